"""Does training work on this machine? `python training/train_controlnet.py --self_test` answers in about a minute.

Trains on 64 generated pairs with the embedded model, on the CPU, where equal means equal bit for bit, in a temporary
folder that is removed afterwards. Each check prints one line: whether it holds, what it says, and the figures.
"""

import contextlib
import functools
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image, ControlNetModel, DiffusionPipeline

from ..data.batches import collate
from ..data.pairs import Pairs
from ..data.rows import read_image_folder
from ..diffusion.base import base_of, load_base
from ..diffusion.draw import draw
from ..diffusion.files import BaseFiles
from ..diffusion.noising import Diffusion
from ..diffusion.paths import path_of
from ..engine.run_folder import read_metrics
from ..errors import InputError
from ..toy import circles as fill50k
from ..toy.embedded import embedded_model
from .hint import init_hint, new_controlnet
from .objective import ControlObjective

SIDE, PAIRS, STEPS, SEED = 64, 64, 6, 0
WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPT = "gold circle with midnight blue background"


@dataclass(frozen=True)
class Bench:
    """What checks work on. train(**options) is the script's main; runs go into `folder`."""

    train: Callable[..., None]
    base: str
    folder: Path

    @functools.cached_property
    def data(self) -> Path:
        return fill50k.write(self.folder / "pairs", count=PAIRS, size=SIDE)

    @functools.cached_property
    def dataset(self) -> Pairs:
        return Pairs(read_image_folder(str(self.data)).whole(), SIDE, SEED, proportion_empty_prompts=0.5)

    @functools.cached_property
    def pipe(self) -> DiffusionPipeline:
        return load_base(self.base)

    def controlnet(self) -> ControlNetModel:
        """A new ControlNet, as a run starts with."""
        torch.manual_seed(SEED)
        controlnet = new_controlnet(base_of(self.pipe).network, BaseFiles.find(self.base).vae_factor)
        init_hint(controlnet, "data", self.dataset.sample_conditions(16), SEED)
        return controlnet

    def run(self, name: str, steps: int = STEPS, **options) -> Path:
        """Train as the script does and return the run folder."""
        run = self.folder / name
        self.train(
            pretrained_model_name_or_path=self.base,
            train_data_dir=str(self.data),
            output_dir=str(run),
            resolution=SIDE,
            mixed_precision="no",
            seed=SEED,
            learning_rate=1e-3,
            train_batch_size=1,
            proportion_empty_prompts=0.5,
            max_train_steps=steps,
            checkpointing_steps=STEPS // 2,
            validation_image=[str(self.data / "conditions" / "000000.png")],
            validation_prompt=[PROMPT],
            num_validation_images=1,
            **options,
        )
        return run

    @functools.cached_property
    def straight(self) -> Path:
        """A run that nothing interrupts."""
        return self.run("straight")

    @functools.cached_property
    def first_steps(self) -> tuple[list[set[str]], set[str], bool]:
        """Take three steps: which tensors got a gradient in each, all that learn, and whether what is frozen stayed."""
        base, diffusion = base_of(self.pipe), Diffusion(path_of(self.pipe.scheduler), SEED)
        objective = ControlObjective(self.controlnet(), base, diffusion)
        parameters = dict(objective.controlnet.named_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        frozen = list(base.parameters())
        before, reached = digest(frozen), []
        for _ in range(3):
            objective(collate([self.dataset[0, index] for index in range(2)]))["loss"].backward()
            reached.append(
                {name for name, weight in parameters.items() if weight.grad is not None and weight.grad.any()}
            )
            optimizer.step()
            optimizer.zero_grad()
        untouched = digest(frozen) == before and all(weight.grad is None for weight in frozen)
        return reached, set(parameters), untouched


Check = Callable[[Bench], tuple[bool, str]]  # its docstring is what it says; returns whether that holds, and figures


def zero_init(bench: Bench) -> tuple[bool, str]:
    """a new ControlNet draws the base's picture, bit for bit"""
    conditions = [bench.dataset.condition(index) for index in range(2)]
    plain = draw_tensors(bench.pipe, 2, steps=4)
    ours = draw_tensors(controlled(bench.pipe, bench.controlnet()), 2, steps=4, image=conditions)
    largest = max((a - b).abs().max().item() for a, b in zip(plain, ours))
    return all(map(torch.equal, plain, ours)), f"largest difference {largest:g}"


def gradient_reach(bench: Bench) -> tuple[bool, str]:
    """gradients reach the zero convolutions at step 1, everything at step 3"""
    reached, everything, _ = bench.first_steps
    zero = {name for name in everything if name.startswith(("controlnet_down_blocks", "controlnet_mid_block"))}
    counts = ", ".join(str(len(names)) for names in reached)
    right = reached[0] == zero and zero < reached[1] < everything and reached[2] == everything
    return right, f"{counts} of {len(everything)} tensors at steps 1, 2, 3"


def frozen_weights(bench: Bench) -> tuple[bool, str]:
    """U-Net, autoencoder and text encoder stay as they are"""
    untouched = bench.first_steps[2]
    return untouched, "same SHA-256, no gradients" if untouched else "changed, or has gradients"


def cache_equality(bench: Bench) -> tuple[bool, str]:
    """training from cached latents and captions equals training without"""
    return same_runs(bench.straight, bench.run("cached", encoder_cache_dir=str(bench.folder / "cache")))


def resume_equality(bench: Bench) -> tuple[bool, str]:
    """a run that was stopped and resumed equals one that was not"""
    bench.run("resumed", steps=STEPS // 2)
    return same_runs(bench.straight, bench.run("resumed", resume_from_checkpoint="latest"))


def fresh_process(bench: Bench) -> tuple[bool, str]:
    """what was saved draws the same picture in a new process, loaded by diffusers alone"""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, bench.base, str(bench.straight), PROMPT, str(SIDE)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or ["no output"])[-1]
    pipe = controlled(bench.pipe, ControlNetModel.from_pretrained(bench.straight))
    here = digest(draw_tensors(pipe, 1, steps=2, image=[torch.ones(3, SIDE, SIDE)]))
    there = done.stdout.split()[-1]
    return here == there, f"SHA-256 {here[:8]} and {there[:8]}"


def live_dropping(bench: Bench) -> tuple[bool, str]:
    """prompts are dropped anew in each epoch: each is seen, each is dropped"""
    epochs = range(20)
    dropped = torch.tensor([[bench.dataset.caption((epoch, row)) == "" for row in range(PAIRS)] for epoch in epochs])
    never = int((~dropped.any(0)).sum() + dropped.all(0).sum())
    rate = dropped.float().mean().item()
    return never == 0 and 0.45 < rate < 0.55, f"{rate:.1%} dropped at 50 % asked, {never} of {PAIRS} always or never"


CHECKS: tuple[Check, ...] = (
    zero_init,
    gradient_reach,
    frozen_weights,
    cache_equality,
    resume_equality,
    fresh_process,
    live_dropping,
)

ELSEWHERE = """
import hashlib, sys, torch
from diffusers import AutoPipelineForText2Image, ControlNetModel
base, run, prompt, side = sys.argv[1:]
parts = {"safety_checker": None, "requires_safety_checker": False}
pipe = AutoPipelineForText2Image.from_pretrained(base, controlnet=ControlNetModel.from_pretrained(run), **parts)
settings = {"num_inference_steps": 2, "height": int(side), "width": int(side), "output_type": "pt"}
start = torch.Generator().manual_seed(0)
picture = pipe([prompt], image=torch.ones(1, 3, int(side), int(side)), generator=[start], **settings).images[0]
print(hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest())
"""


def self_test(train: Callable[..., None], base: str | None = None, checks: Sequence[Check] = CHECKS) -> int:
    """Run the checks, print a line for each, and return how many failed.

    train(**options): the training script's main, given its options by name. base: a Stable Diffusion folder of 64 px
    pictures, by default the embedded model. Raises InputError where several processes were launched.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--self_test takes one process: python training/train_controlnet.py --self_test")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    began, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(train, base or embedded_model(), Path(folder))
        for check in checks:
            start = time.monotonic()
            held, figures = attempt(check, bench)
            failed += not held
            print(
                f"{'ok' if held else 'failed':<7} {check.__doc__}: {figures} ({time.monotonic() - start:.0f} s)",
                flush=True,
            )
    print(f"{len(checks)} checks, {failed} failed, {time.monotonic() - began:.0f} s")
    return failed


def attempt(check: Check, bench: Bench) -> tuple[bool, str]:
    """Run a check without what training prints; whatever it raises is a failure."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return check(bench)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def draw_tensors(pipe: Any, count: int, steps: int, image: Sequence | None = None) -> list[torch.Tensor]:
    """Draw `count` pictures of PROMPT, (3, H, W) in [0, 1]; image: their conditions."""
    drawn: list = draw(
        pipe, [PROMPT] * count, image=image, num_inference_steps=steps, height=SIDE, width=SIDE, output_type="pt"
    )
    return drawn


def controlled(pipe: DiffusionPipeline, controlnet: ControlNetModel) -> DiffusionPipeline:
    """Return the ControlNet pipeline of the base's kind, around the same parts."""
    return AutoPipelineForText2Image.from_pipe(pipe, controlnet=controlnet)


def same_runs(first: Path, second: Path) -> tuple[bool, str]:
    """Compare two runs: every loss and every byte of the weights."""
    losses = [{row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row} for run in (first, second)]
    equal = sum(losses[0][step] == losses[1].get(step) for step in losses[0])
    weights = (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    figures = f"{equal} of {len(losses[0])} losses equal, weights {'' if weights else 'not '}byte for byte"
    return equal == len(losses[0]) == STEPS and weights, figures


def digest(tensors: Sequence[torch.Tensor]) -> str:
    """Return the SHA-256 of tensors' values, in hexadecimal."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()
