"""The whole story in one command: every part of this package, on the model that ships with it, ending in one report.

    python examples/story --output_dir runs/story                # under twenty minutes on two cores; no GPU, no download
    python examples/story --steps reward rerank report           # some steps of it
    python examples/story --quick --output_dir runs/story-quick  # the same commands at a size that shows nothing

Prompts are chosen, pictures drawn and ranked, a reward learnt, pictures chosen by it, the model tuned by it, a ControlNet
trained and tuned, classifiers extended and grown, everything published on a Hub of this machine and loaded from it in a
new process. `report.html` in the folder tells it from what the runs left there.

Each step is a command that you could type, printed before it runs. Started again, the story goes on where it stopped: a
step that is done is not run again, a training goes on from its last checkpoint. To do a step again, remove its folder
and its lines in steps.jsonl.
"""

from dataclasses import dataclass
from pathlib import Path

from steps import FULL, QUICK, story
from walk import ROOT, walk

from diffusers_ext.errors import InputError
from diffusers_ext.options import option, run


@dataclass
class Options:
    output_dir: str = option("runs/story", "the folder of all runs and of report.html")
    steps: list[str] | None = option(None, "only these steps, in the story's order; see --list")
    quick: bool = option(False, "everything as small as it can be: to see that it runs, not what it shows")
    list: bool = option(False, "print the steps and their commands, and stop")


def main(options: Options) -> None:
    folder = Path(options.output_dir)
    if not folder.resolve().is_relative_to(ROOT):
        raise InputError(f"--output_dir {folder}: name a folder inside {ROOT}; no card may name a path of this machine")
    steps = story(folder, QUICK if options.quick else FULL)
    if unknown := sorted({*(options.steps or ())} - {step.name for step in steps}):
        raise InputError(f"--steps {unknown[0]}: there are {', '.join(step.name for step in steps)}")
    if options.list:
        print("\n\n".join("\n".join([f"{step.name}: {step.title}", *step.commands]) for step in steps))
        return
    try:
        walk(folder, [step for step in steps if options.steps is None or step.name in options.steps])
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here")
        raise SystemExit(130) from None
    if (folder / "report.html").exists():
        print(f"\nsee {folder / 'report.html'}")


if __name__ == "__main__":
    run(main, Options)
