"""What users asked for, what nobody asked for, and what tells their prompts apart.

    python examples/story/prompts.py --folder runs/story --count 2000

requests.txt: prompts of the sixteen basic colours, popular ones many times. held-out.txt: the colour pairs that occur in none
of them, nor in what the embedded model was trained on. encoder/: the embedded model's own text encoder and tokenizer in one
folder, as transformers has sentence encoders.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, SEED, option, run


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")
    count: int = option(2000, "requests", COUNT)
    held_out: int = option(12, "prompts kept apart, of the twelve colour pairs that there are", COUNT)
    seed: int = option(0, "another seed asks for other colours", SEED)


def main(options: Options) -> None:
    from diffusers_ext import embedded_model, randomness
    from diffusers_ext.preferences.simulated import basic_pairs

    folder = Path(options.folder)
    asked, pairs = [], basic_pairs("train")
    for index in range(options.count):
        place = randomness.generator(options.seed, "requests", index).beta(1, 2) * len(pairs)  # early pairs are popular
        asked.append(pairs[int(place)])
    write(folder / "requests.txt", asked)
    write(folder / "held-out.txt", basic_pairs("test")[: options.held_out])
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(Path(embedded_model()) / part, folder / "encoder", dirs_exist_ok=True)
    print(f"{len(asked)} requests of {len(set(asked))} kinds; {options.held_out} colour pairs held out")


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{circle} circle with {background} background\n" for circle, background in pairs]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    run(main, Options)
