"""examples/accelerate: accelerate's own loader and launcher take each file for what its name says."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "accelerate"
KINDS = {  # (distributed_type, processes, machines)
    "one_gpu_bf16": ("NO", 1, 1),
    "two_gpus": ("MULTI_GPU", 2, 1),
    "two_machines": ("MULTI_GPU", 16, 2),
}


def test_every_file_is_known_and_named():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.yaml`" in text for name in KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_parses(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = str(FOLDER / f"{name}.yaml")
    config = load_config_from_file(path)  # refuses keys that it does not know
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == KINDS[name]
    words = ["--config_file", path, "training/train_controlnet.py", "--seed", "1"]
    arguments, config, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    kind, processes, machines = KINDS[name]
    assert (arguments.num_processes, arguments.num_machines) == (processes, machines)
    assert arguments.multi_gpu == (kind == "MULTI_GPU") and not arguments.use_fsdp and not arguments.use_deepspeed
    assert arguments.mixed_precision == "bf16"
