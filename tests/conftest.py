"""Fixtures: a small set of circles, an untrained Stable Diffusion and an untrained XL, and scripts launched as a user launches them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from fork_server import FEW_STEPS, ForkServer, environment

from diffusers_ext.toy import circles as fill50k

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and real assets that lies beside the checkout where tests run in CI."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: reference numbers and real pictures are not part of this repository")
    return SHARED


@pytest.fixture(scope="session")
def circles(tmp_path_factory) -> Path:
    """An image folder of 48 circles at 64 px."""
    return fill50k.write(tmp_path_factory.mktemp("data") / "circles", count=48, size=64)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """An SD 1.5-like folder with random weights: epsilon prediction, autoencoder of factor 8, 2-level U-Net."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from diffusers_ext.toy import tiny

    torch.manual_seed(0)
    tokenizer = tiny.tokenizer(["red circle with blue background"], merges=16)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    parts = (vae, tiny.text_encoder(tokenizer), tokenizer, unet, scheduler, None, None)
    folder = tmp_path_factory.mktemp("models") / "untrained"
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def untrained_xl(tmp_path_factory) -> Path:
    """An SDXL-like folder with random weights: two text encoders of different widths and padding, time ids, Euler."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from diffusers_ext.toy import tiny

    torch.manual_seed(0)
    tokenizers = [tiny.tokenizer(["red circle with blue background"], merges=16) for _ in range(2)]
    tokenizers[1].pad_token = "!"
    common = {"vocab_size": len(tokenizers[0]), "max_position_embeddings": tiny.TOKENS, "num_attention_heads": 2}
    common |= {f"{name}_token_id": getattr(tokenizers[0], f"{name}_token_id") for name in ("bos", "eos")}
    configs = [
        CLIPTextConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=layers, projection_dim=16, **common
        )
        for width, layers in ((24, 2), (40, 3))
    ]
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=24 + 40,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025,
    )
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
    encoders = (CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1]))
    folder = tmp_path_factory.mktemp("models") / "untrained-xl"
    pipe = StableDiffusionXLPipeline(vae, *encoders, *tokenizers, unet, scheduler, add_watermarker=False)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(circles):
    """The circles as a data set."""
    from diffusers_ext.data.pairs import Pairs
    from diffusers_ext.data.rows import read_image_folder

    return Pairs(read_image_folder(str(circles)), 64, seed=0)


@pytest.fixture(scope="module")
def pipe(untrained):
    """The untrained Stable Diffusion, frozen."""
    from diffusers_ext.diffusion.base import load_base

    return load_base(str(untrained))


@pytest.fixture
def objective(pipe):
    """The ControlNet objective on the untrained base, with a fresh ControlNet."""
    from diffusers_ext.control.hint import new_controlnet
    from diffusers_ext.control.objective import ControlObjective
    from diffusers_ext.diffusion.base import base_of
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of

    controlnet = new_controlnet(pipe.unet, 8)
    diffusion = Diffusion(path_of(pipe.scheduler), seed=0)
    # A network as it comes, with gradients: freezing it is the objective's own task.
    base = base_of(pipe)
    base.network = copy.deepcopy(pipe.unet).requires_grad_(True)
    return ControlObjective(controlnet, base, diffusion)


def accelerate_command(script: str | Path, *arguments: str, processes: int = 1) -> list[str]:
    """The `accelerate launch` command line of a script on CPU processes."""
    settings = [
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    if processes > 1:
        settings += ["--multi_gpu", "--main_process_port", "0"]
    return [sys.executable, "-m", "accelerate.commands.launch", *settings, str(script), *map(str, arguments)]


def few_steps(script: str | Path) -> str:
    """Code that shortens the previews of a ControlNet's training; empty for other scripts."""
    return FEW_STEPS if "train_control" in str(script) else ""


@pytest.fixture(scope="session")
def fork_server():
    """Processes in which torch, diffusers and transformers are imported already; see fork_server.py."""
    if sys.platform != "linux":
        pytest.skip("scripts are forked off a process that has imported torch, which Linux alone allows")
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def launch(request):
    """Run a script and return the finished process; real: under `accelerate launch`, else forked, which takes seconds less."""

    def run(script: str | Path, *arguments: str, processes: int = 1, real: bool = False) -> subprocess.CompletedProcess:
        if real or sys.platform != "linux":
            command = accelerate_command(script, *arguments, processes=processes)
            done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=540)
        else:
            server = request.getfixturevalue("fork_server")
            before = few_steps(script)
            done = server.start(script, *arguments, processes=processes, env=environment(), before=before).wait()
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session")
def fresh(fork_server):
    """Run a piece of code, as python -c would, in a process that has imported nothing of this package."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
        done = fork_server.start("-c", code, *arguments, env=environment()).wait()
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run


@pytest.fixture
def launch_and_kill(fork_server):
    """Start a script and SIGKILL it, with all its processes, as soon as `when()` is true."""

    def run(script: str | Path, *arguments: str, when, processes: int = 1) -> None:
        before = few_steps(script)
        running = fork_server.start(script, *arguments, processes=processes, env=environment(), before=before)
        try:
            while not when():
                assert running.poll(0.02) is None, "the run ended before it could be killed"
        finally:
            running.kill()
            running.wait()

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many faults of tests/faults were tried and how many of them cost a run anything."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    tried = survived = 0
    for report in reports:
        counts = dict(report.user_properties).get("faults")
        if counts is not None and report.when == "call":
            tried += counts.get("tried", 1)
            survived += counts.get("survived", int(report.passed))
    if tried:
        terminalreporter.write_line(f"faults: {tried} tried, {survived} survived, {tried - survived} lost")
