"""Start a training: the script of that name, by accelerate.

    diffusers-ext train controlnet --help
    diffusers-ext train controlnet --train_data_dir data --output_dir runs/mine
    diffusers-ext train --num_processes 2 --multi_gpu controlnet --train_data_dir data --output_dir runs/mine

Words before the training's name are accelerate's, those after it the script's: the same as
`accelerate launch ... training/train_NAME.py ...`.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def launch(words: list[str]) -> None:
    """Become the training; raises InputError that lists what there is where no training is named."""
    from ..errors import InputError

    scripts = {path.stem.removeprefix("train_"): path for path in sorted(_folder().glob("train_*.py"))}
    names = {name.replace("_", "-"): name for name in scripts}
    at = next((index for index, word in enumerate(words) if word in {**names, **scripts}), None)
    if at is None:
        if not words or words[0] in ("-h", "--help"):
            print(f"{__doc__.strip()}\n\ntrainings: {', '.join(names)}")
            return
        raise InputError(f"name a training: {', '.join(names)}")
    script, rest = scripts[names.get(words[at], words[at])], words[at + 1 :]
    alone = {"-h", "--help"} & {*rest}  # answers at once, without accelerate
    starter = [] if alone else ["-m", "accelerate.commands.launch", *words[:at]]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *starter, str(script), *rest])


def _folder() -> Path:
    spec = find_spec("diffusers_ext.training")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])
