"""training/train_controlnet.py as tests run it: its usual words, in this process or another, and what it leaves behind."""

import runpy
from pathlib import Path

import pytest
from fork_server import PREVIEW_STEPS, ROOT

from diffusers_ext.control import previews
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse

SCRIPT = ROOT / "training" / "train_controlnet.py"


def arguments(base, data, output, *more) -> list[str]:
    settings = {
        "--pretrained_model_name_or_path": base,
        "--train_data_dir": data,
        "--output_dir": output,
        "--resolution": 64,
        "--learning_rate": 1e-3,
        "--seed": 3,
        "--proportion_empty_prompts": 0.5,
        "--num_validation_images": 1,
        "--validation_steps": 1000,
    }
    return [str(word) for pair in settings.items() for word in pair] + [str(word) for word in more]


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def call(*argv: str) -> None:
    """Run the script's main in this process, with previews of few steps, which would cost more than the training."""
    script = runpy.run_path(str(SCRIPT))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "STEPS", PREVIEW_STEPS)
        script["main"](parse(script["Options"], list(map(str, argv))))


def refusal(*argv) -> str:
    with pytest.raises(InputError) as refused:
        call(*argv)
    return str(refused.value)
