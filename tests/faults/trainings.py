"""The five trainings, and two of their relatives, at the smallest size that has everything: cache, checkpoints, previews, card."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fork_server import FEW_STEPS
from PIL import Image

from diffusers_ext.preferences import simulated as simulated_rankings
from diffusers_ext.preferences.rankings import read
from diffusers_ext.rewards import tiny as tiny_image_reward
from diffusers_ext.toy import circles as fill50k

NAMES = ("controlnet", "reward_model", "reward_tuning", "lads", "incremental")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Training:
    """A script and its words; {work} stands for the folder that run and cache lie in. results: of two equal runs, equal bytes."""

    name: str
    words: tuple[str, ...]
    results: tuple[str, ...] = (WEIGHTS, "metrics.jsonl")
    before: str = ""  # run first in its process

    @property
    def script(self) -> str:
        return f"training/train_{self.name}.py"

    def arguments(self, work: Path, *more: object) -> list[str]:
        given = [word.replace("{work}", str(work)) for word in self.words]
        return [*given, "--output_dir", f"{work}/run", *map(str, more)]


def make(folder: Path, untrained: Path, circles: Path) -> dict[str, Training]:
    """Write the data and models of all trainings, and return these by name."""
    torch.manual_seed(0)
    options = {"count": 12, "images": 3, "annotators": 1, "size": 32, "basic_colours": True}
    ranked = simulated_rankings.simulate(simulated_rankings.Options(output_dir=f"{folder}/ranked", **options))
    texts = [prompt.prompt for prompt in read(ranked)]
    reward = tiny_image_reward.image_reward(texts, width=16, layers=2, image_size=32, patch_size=16)
    reward.save_pretrained(folder / "reward")
    (folder / "prompts.txt").write_text("\n".join(fill50k.scene(index).prompt for index in range(3)) + "\n")
    squares, clip, timm = write_squares(folder / "squares"), write_clip(folder / "clip"), write_timm(folder / "timm")
    condition = next((circles / "conditions").iterdir())
    domains = {
        "source": ["a photo of a {}"],
        "targets": {"dark": ["a dark photo of a {}"], "ink": ["a drawing of a {}"]},
    }

    base = f"--pretrained_model_name_or_path {untrained} --resolution 32 --seed 3 --learning_rate 1e-3"
    steps = "--max_train_steps 6 --checkpointing_steps 2 --validation_steps 3 --logging_steps 2 --encoder_cache_dir {work}/cache"
    drawn = f"--num_validation_images 1 --validation_image {condition} --validation_prompt circle"
    control = f"{base} --train_data_dir {circles} --max_train_samples 8 --train_batch_size 1 {drawn} {steps}"
    lines = {
        "controlnet": f"{control} --held_out_samples 2 --use_ema --proportion_empty_prompts 0.5",
        "reward_model": f"--backbone {folder}/reward --rankings {ranked} --train_batch_size 2 --freeze_fraction 0.5 --seed 3 {steps}",
        "reward_tuning": f"{base} --reward rewards_of_tests:smooth --held_out_reward rewards_of_tests:contrast "
        f"--prompts {folder}/prompts.txt --num_inference_steps 2 --train_batch_size 1 --lora_rank 2 --num_validation_images 1 "
        f"--no-strength_sweep {steps}",
        "lads": f"--train_data_dir {squares} --source_domain plain --backbone {clip} --hidden_dim 8 --num_train_epochs 4 "
        "--probe_epochs 4 --train_batch_size 16 --runs 1 --checkpointing_epochs 1 --no-baselines",
        "incremental": f"--data {squares} --backbone timm:test_efficientnet@{timm},size=32,crop_pct=1 --groups 2 --memory 12 "
        "--k_new 2 --projections 16",
    }
    words = {name: line.split() for name, line in lines.items()}
    words["lads"] += ["--domains", json.dumps(domains)]
    results = {"reward_model": ("model.safetensors", "metrics.jsonl")}
    results["reward_tuning"] = ("pytorch_lora_weights.safetensors", "metrics.jsonl")
    results["lads"] = (WEIGHTS, "metrics.jsonl", "results.json")
    default = Training.results
    before = {"controlnet": FEW_STEPS}
    return {
        name: Training(name, tuple(words[name]), results.get(name, default), before.get(name, "")) for name in NAMES
    }


def write_squares(folder: Path) -> Path:
    """Red, green and blue squares, plain and dark: domain/class/file."""
    draw = np.random.default_rng(0)
    for domain, light in (("plain", 255), ("dark", 110)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / domain / name).mkdir(parents=True)
            for number in range(6):
                pixels = draw.integers(0, light // 3, (16, 16, 3))
                pixels[..., channel] += light // 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / domain / name / f"{number}.png")
    return folder


def write_clip(folder: Path) -> Path:
    """An open_clip model with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    mean_std = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": mean_std}))
    return folder


def write_timm(folder: Path) -> Path:
    """The weights of a timm model, random."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir()
    model = timm.create_model("test_efficientnet", pretrained=False)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"
