"""Join two files of rankings, and keep some prompts of the first apart to measure on.

    python examples/story/join.py --folder runs/story --held_out 20

From rankings.jsonl, of the model's own pictures, every so many prompts go to validation.jsonl; the rest, with all of
spoilt/rankings.jsonl, to training.jsonl. Prompts of the same words in both are the training's to find: it leaves them out.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, option, run


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")
    held_out: int = option(20, "prompts to measure on", COUNT)


def main(options: Options) -> None:
    from diffusers_ext.preferences.rankings import read, write

    folder = Path(options.folder)
    own, spoilt = read(folder / "rankings.jsonl"), read(folder / "spoilt" / "rankings.jsonl")
    every = max(1, len(own) // options.held_out)
    kept = own[::every][: options.held_out]
    names = {prompt.id for prompt in kept}
    write(folder / "validation.jsonl", kept)
    write(folder / "training.jsonl", [*(prompt for prompt in own if prompt.id not in names), *spoilt])
    print(f"{len(kept)} prompts to measure on, {len(own) - len(kept) + len(spoilt)} to learn from")


if __name__ == "__main__":
    run(main, Options)
