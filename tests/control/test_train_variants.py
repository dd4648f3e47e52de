"""The variants as the script runs them: what a run leaves behind, resuming, compiling."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from control_script import arguments, call, losses, refusal
from diffusers import ControlNetModel
from safetensors.torch import load_file

from diffusers_ext.control.blocks import behind
from diffusers_ext.data.batches import Samples
from diffusers_ext.engine import loop
from diffusers_ext.engine.objective import Objective
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.options import TrainingOptions

FILE = "diffusion_pytorch_model.safetensors"


def test_a_lora_run_resumes_exactly_and_leaves_both_sizes(untrained, circles, tmp_path):
    """With decay towards the initial weights, which a resumed run must find again."""
    common = ["--lora_rank", 2, "--decay_to_initial", "--adam_weight_decay", 1, "--logging_steps", 1]
    common += ["--checkpointing_steps", 2, "--train_batch_size", 2]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    call(*arguments(untrained, circles, straight, *common, "--max_train_steps", 4))
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    call(*arguments(untrained, circles, resumed, *common, "--max_train_steps", 4, "--resume_from_checkpoint", "latest"))
    assert losses(resumed) == losses(straight) and list(losses(straight)) == [1, 2, 3, 4]
    assert (resumed / FILE).read_bytes() == (straight / FILE).read_bytes()

    small = straight / "lora" / "pytorch_lora_weights.safetensors"
    saved = straight / "checkpoint-4" / "controlnet" / small.name
    final, last, first = (
        load_file(file) for file in (small, saved, straight / "checkpoint-2" / "controlnet" / small.name)
    )
    assert all(torch.equal(final[name], last[name]) for name in final) and final.keys() == last.keys() == first.keys()
    assert not any(torch.equal(first[name], last[name]) for name in first if "lora_B" in name)
    assert small.stat().st_size < (straight / FILE).stat().st_size
    assert (straight / "best" / FILE).exists() and (straight / "best" / "lora" / small.name).exists()
    assert ControlNetModel.from_pretrained(straight).controlnet_mid_block.weight.any()
    assert "load_control_lora(" in (straight / "README.md").read_text()
    about = (straight / "checkpoint-4" / "controlnet" / "README.md").read_text()
    assert "`ControlNetModel.from_pretrained` does not load this folder" in about
    code = about.split("```python\n")[1].split("```")[0]
    names = {"the base": str(untrained), "this folder": str(saved.parent)}
    for name, path in names.items():
        code = code.replace(name, path)
    made: dict = {}
    exec(code, made)  # as a user would
    assert made["controlnet"].controlnet_mid_block.weight.any()


def test_a_run_of_the_first_blocks_can_be_trained_on(untrained, circles, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    call(*arguments(untrained, circles, first, "--controlnet_blocks", 1, "--max_train_steps", 2))
    more = ["--controlnet_blocks", 1, "--controlnet_model_name_or_path", first, "--max_train_steps", 2]
    call(*arguments(untrained, circles, second, *more))
    nets = [ControlNetModel.from_pretrained(folder) for folder in (first, second)]
    for net in nets:
        assert list(net.config.down_block_types) == ["CrossAttnDownBlock2D", "DownBlock2D"]
        assert not any(parameter.any() for parameter in behind(net, 1).parameters())
    assert not torch.equal(nets[0].controlnet_down_blocks[0].weight, nets[1].controlnet_down_blocks[0].weight)
    assert "this base has 1 to 2 down blocks" in refusal(
        *arguments(untrained, circles, tmp_path / "third", "--controlnet_blocks", 3)
    )


def test_told_corners_need_sdxl(untrained, circles, tmp_path):
    assert "only SDXL is told" in refusal(
        *arguments(untrained, circles, tmp_path / "out", "--crops_coords_top_left_h", 0)
    )
    assert not (tmp_path / "out").exists()


# Compiling


@dataclass
class Options(TrainingOptions):
    pass


class Numbers(Samples):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, key) -> dict:
        return {"key": key, "x": torch.full((4,), float(key[1]))}


class Regression(Objective):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.controlnet = ControlNetModel(
            block_out_channels=(8,), down_block_types=("DownBlock2D",), layers_per_block=1, norm_num_groups=2
        )
        self.map, self.trainable = torch.nn.Linear(4, 4), {"controlnet": self.controlnet}

    def forward(self, batch: dict) -> dict:
        return {"loss": (self.map(batch["x"]) - batch["x"]).square().mean()}


def run(folder, **switches) -> None:
    options = Options(
        output_dir=str(folder), max_train_steps=3, learning_rate=0.1, logging_steps=1, checkpointing_steps=3, **switches
    )
    loop.check(options)
    accelerator = loop.start(options)
    loop.claim(accelerator, options)
    loop.train(accelerator, Regression(), Numbers(), options)


def test_a_largest_norm_of_zero_is_without_clipping(tmp_path):
    for name, norm in (("off", 0.0), ("large", 1e9), ("small", 1e-3)):
        run(tmp_path / name, max_grad_norm=norm)
    rows = {name: read_metrics(tmp_path / name) for name in ("off", "large")}
    assert rows["off"] == rows["large"] and all(row["grad_norm"] > 0 for row in rows["off"])
    assert len({row["loss"] for row in rows["off"]}) == 3  # it learns


def test_a_warm_up_that_is_not_finished_is_said_before_the_first_step(tmp_path, capsys):
    run(tmp_path / "short", lr_scheduler="constant_with_warmup")
    assert "warning: --lr_warmup_steps 500 is not below the run's 3 steps" in capsys.readouterr().out
    run(tmp_path / "warm", lr_scheduler="constant_with_warmup", lr_warmup_steps=2)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["--torch_compile", "accelerate launch --dynamo_backend"])
def test_compiled_runs_save_plain_names_and_agree(how, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    if how == "--torch_compile" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    run(tmp_path / "eager")
    AcceleratorState._reset_state()
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda *a, compile=torch.compile, **k: compiled.append(k) or compile(*a, **k))
    if how == "--torch_compile":
        run(tmp_path / "compiled", torch_compile=True)
    else:
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
        run(tmp_path / "compiled")
    AcceleratorState._reset_state()
    assert [settings["backend"] for settings in compiled] == ["inductor" if how == "--torch_compile" else "aot_eager"]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    names = [load_file(tmp_path / each / "checkpoint-3" / "controlnet" / FILE).keys() for each in ("eager", "compiled")]
    assert names[0] == names[1] and not any("_orig_mod" in name for name in names[1])
    assert json.loads((tmp_path / "compiled" / "checkpoint-3" / "manifest.json").read_text())["step"] == 3
