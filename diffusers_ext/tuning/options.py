"""What training/train_reward_tuning.py asks for, what each method uses of it, and what cannot be combined."""

from dataclasses import dataclass
from pathlib import Path

from ..control.options import base_name, check_revision
from ..errors import InputError
from ..options import (
    ANY,
    COUNT,
    NATURAL,
    POSITIVE,
    SHARE,
    WEIGHT,
    Range,
    TrainingOptions,
    check_declared,
    check_used,
    group,
    option,
)

METHODS = ("refl", "draft", "draft_lv", "alignprop", "dpo")
_REWARDED, _RANKED, _ADAPTED = {"method": METHODS[:-1]}, {"method": ("dpo",)}, {"full_unet": False}


@group("model")
@dataclass
class ModelOptions:
    pretrained_model_name_or_path: str | None = option(
        None,
        "diffusers folder or Hub name of the base, Stable Diffusion 1.x, 2.x or XL; default: the embedded model",
        path="read",
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "another VAE than the base's: its folder or Hub name", path="read"
    )
    revision: str | None = option(
        None, "branch, tag or commit of the base on the Hub", requires={"pretrained_model_name_or_path": True}
    )
    variant: str | None = option(
        None, "weight files of the base, such as fp16", requires={"pretrained_model_name_or_path": True}
    )
    full_unet: bool = option(
        False,
        "train the whole U-Net instead of low-rank adapters: an ordinary model, with the optimiser's memory of all of it",
    )
    lora_rank: int = option(
        16, "rank of the adapters", COUNT, requires=_ADAPTED, instead="--full_unet trains all weights"
    )
    lora_alpha: float | None = option(
        None, "adapters count alpha / rank; default: the rank, a factor of 1", POSITIVE, requires=_ADAPTED
    )
    lora_target_modules: list[str] | None = option(
        None,
        "layers to adapt, by the ends of their names; default: the attention's to_q to_k to_v to_out.0",
        requires=_ADAPTED,
    )
    tiny_decoder: str | None = option(
        None,
        "decode pictures for the reward by this AutoencoderTiny, such as madebyollin/taesd: faster and smaller",
        path="read",
    )
    gradient_checkpointing: bool = option(
        False, "recompute the U-Net's and the decoder's activations in the backward pass: less memory, slower"
    )


@group("method")
@dataclass
class MethodOptions:
    method: str = option(
        "refl", "objective; tuning/reward_tuning.py and preference.py have each one's equation", METHODS
    )
    num_inference_steps: int = option(20, "steps of the sampler, as you will sample", COUNT)
    guidance_scale: float = option(
        1.0,
        "classifier-free guidance while learning, as you will sample; above 1 doubles the cost of the U-Net",
        Range(1),
        instead="1 is without guidance",
    )
    eta: float = option(0.0, "noise that the sampler adds, 0 is DDIM, 1 ancestral DDPM as in the official ReFL", SHARE)
    grad_window: list[int] | None = option(
        None,
        "refl: first and last step, counted from noise, at one of which the reward is given; default: the last quarter without the very last step",
        NATURAL,
        requires={"method": ("refl",)},
    )
    unit_gain: bool = option(
        False, "refl: divide out that noisier steps move the picture more", requires={"method": ("refl",)}
    )
    grad_steps: int | None = option(
        None,
        "draft: last steps that carry a gradient, default 1; alignprop: their largest number, default all",
        COUNT,
        requires={"method": ("draft", "alignprop")},
    )
    lv_repeats: int | None = option(
        None,
        "draft_lv: draws of fresh noise beside the sampler's own; default 2",
        COUNT,
        requires={"method": ("draft_lv",)},
    )
    dpo_beta: float | None = option(
        None, "dpo: how closely the model keeps to the base; default 5000", POSITIVE, requires=_RANKED
    )


@group("reward")
@dataclass
class RewardOptions:
    reward: str | None = option(None, "what to optimise: any name of docs/rewards.md with a gradient", path="read")
    held_out_reward: str | None = option(
        None,
        "a reward that is never optimised, measured beside it: when only one of them rises, the reward is being fooled",
        path="read",
    )
    reward_margin: float = option(
        2.0,
        "pictures above it teach nothing more; 2 is the published one, for ImageReward",
        ANY,
        requires={**_REWARDED, "use_margin": True},
    )
    use_margin: bool = option(
        True, "--no-use_margin: the reward has no scale, every picture teaches", requires=_REWARDED
    )
    reward_weight: float = option(
        1.0, "weight of the reward; only its ratio to the other terms matters to AdamW", POSITIVE, requires=_REWARDED
    )
    drift_weight: float = option(
        0.0,
        "weight of the squared distance to the frozen base's prediction; free with adapters",
        WEIGHT,
        requires=_REWARDED,
    )
    pretrain_data_dir: str | None = option(
        None,
        "pictures with captions, in any form of data/rows.py, whose denoising loss is added: the published pre-training term",
        requires=_REWARDED,
        path="read",
    )
    pretrain_weight: float = option(
        1.0, "weight of that term", WEIGHT, requires={**_REWARDED, "pretrain_data_dir": True}
    )
    decode_batch_size: int = option(
        1, "pictures in the decoder and the reward at a time: memory against speed", COUNT, requires=_REWARDED
    )


@group("data")
@dataclass
class DataOptions:
    prompts: str | None = option(
        None,
        "prompts to draw and reward: a .txt, .json, .jsonl or .csv, or what diffusers-ext select-prompts wrote",
        path="read",
    )
    prompt_field: str = option("prompt", "field of the prompt, where rows have several")
    rankings: str | None = option(
        None,
        "dpo: rankings to learn from, in any form that preferences/formats.py reads",
        requires=_RANKED,
        path="read",
    )
    image_root: str | None = option(
        None, "dpo: folder that paths of ImageReward's and HPDv2's rankings start from", requires=_RANKED, path="read"
    )
    on_bad_sample: str = option("error", "what to do with pictures that cannot be used", ("error", "skip"))
    resolution: int = option(512, "side of the pictures in pixels; 1024 is usual for SDXL", COUNT)
    held_out_samples: int = option(
        8,
        "prompts drawn by the seed and kept to measure on, a tenth of all at most",
        NATURAL,
    )
    validation_prompts: str | None = option(None, "a file of prompts to measure on, instead", path="read")
    encoder_cache_dir: str | None = option(
        None,
        "keep embeddings of captions, and latents of pictures, here, for all runs; else captions are embedded once a run",
        path="folder",
    )


@group("validation")
@dataclass
class ValidationOptions:
    num_validation_images: int = option(
        4,
        "pictures of each validation prompt, one seed each, the same every time",
        COUNT,
        instead="give a large --validation_steps to draw only at the end",
    )
    early_stopping_patience: int | None = option(
        None,
        "stop after so many measurements without a better held-out reward; without one, the optimised reward counts",
        COUNT,
        instead="leave it out to never stop early",
    )
    strength_sweep: bool = option(
        True, "when done, measure the adapters at strengths from 0 to 1.25 and plot what they trade"
    )


@dataclass
class TuningOptions(ValidationOptions, TrainingOptions, DataOptions, RewardOptions, MethodOptions, ModelOptions):
    """Everything that a reward tuning asks for."""


def check_options(options: TuningOptions) -> None:
    """Raise InputError for what is missing or excludes each other, before any data are read."""
    from ..diffusion.base import check_base
    from ..diffusion.check import check_vae

    check_declared(options)
    if options.method == "dpo" and options.rankings is None:
        raise InputError("--rankings is missing: --method dpo learns from rankings; docs/annotation.md collects them")
    if options.method != "dpo" and options.prompts is None:
        raise InputError("--prompts is missing: name a file of prompts, one a line, or a .jsonl with a field 'prompt'")
    if options.method == "dpo" and options.prompts is not None:
        raise InputError("--prompts: --method dpo has the prompts of its rankings; name others as --validation_prompts")
    if options.method != "dpo" and options.reward is None:
        raise InputError("--reward is missing: name one of docs/rewards.md that has a gradient, such as fill50k:soft")
    if options.method != "dpo":
        check_used(options, {"held_out_samples": {"validation_prompts": False}})
    if options.early_stopping_patience and not (options.reward or options.held_out_reward):
        raise InputError("--early_stopping_patience needs a reward to measure: give --held_out_reward, or leave it out")
    if options.held_out_reward and options.held_out_reward == options.reward:
        raise InputError(
            f"--held_out_reward {options.reward}: is --reward itself, so it cannot show whether that is being fooled; name "
            "another, or leave it out"
        )
    if (
        options.tiny_decoder
        and not Path(options.tiny_decoder, "config.json").exists()
        and options.tiny_decoder.count("/") != 1
    ):
        raise InputError(
            f"--tiny_decoder {options.tiny_decoder}: no folder of an AutoencoderTiny, nor a name on the Hub"
        )
    check_steps(options)
    check_base(base_name(options), options.variant)
    check_revision(options.revision, base_name(options))
    if options.pretrained_vae_model_name_or_path:
        check_vae(options.pretrained_vae_model_name_or_path)


def check_steps(options: TuningOptions) -> None:
    """Raise InputError for steps that the sampler does not have."""
    steps = options.num_inference_steps
    if (options.grad_steps or 1) > steps:
        raise InputError(f"--grad_steps {options.grad_steps}: the sampler has {steps} steps")
    window = options.grad_window or grad_window(options)
    if len(window) != 2 or not 0 <= window[0] <= window[1] < steps:
        raise InputError(
            f"--grad_window {' '.join(map(str, window))}: two steps of 0 to {steps - 1}, the first not the later"
        )


def grad_window(options: TuningOptions) -> tuple[int, int]:
    """Return the window of ReFL: as given, or the last quarter without the very last step, which moves nothing."""
    steps = options.num_inference_steps
    first, last = options.grad_window or (max(0, min(steps - 2, steps * 3 // 4)), max(0, steps - 2))
    return first, last
