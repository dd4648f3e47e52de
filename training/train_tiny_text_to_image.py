"""Train a small Stable Diffusion from nothing: autoencoder, text encoder, U-Net.

The model that ships with this package (75 minutes on one busy CPU core):
    accelerate launch training/train_tiny_text_to_image.py --output_dir runs/fill50k-64

A model of your own pictures, from an image folder with captions (metadata.jsonl: file_name, text):
    accelerate launch training/train_tiny_text_to_image.py --train_data_dir data/pictures --output_dir runs/pictures-64

The run folder is itself the model: DiffusionPipeline.from_pretrained("runs/fill50k-64").
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import (
    COUNT,
    POSITIVE,
    SCHEDULES,
    SHARE,
    WEIGHT,
    TrainingOptions,
    group,
    option,
    run,
)


@group("model and data")
@dataclass
class Options(TrainingOptions):
    train_data_dir: str | None = option(
        None, "image folder with metadata.jsonl; without it, fill50k is drawn on the fly", path="read"
    )
    samples: int = option(
        20_000, "number of fill50k scenes, where no folder is given", COUNT, requires={"train_data_dir": False}
    )
    resolution: int = option(64, "side of the training images, in pixels", COUNT)
    proportion_empty_prompts: float = option(0.1, "share of prompts replaced by the empty one, for guidance", SHARE)
    autoencoder_steps: int = option(4_000, "steps of the first stage; max_train_steps are those of the second", COUNT)
    autoencoder_batch_size: int = option(16, "samples per step of the first stage", COUNT)
    autoencoder_resolution: int = option(
        32, "side of its pictures; convolutions carry over to the full resolution", COUNT
    )
    autoencoder_learning_rate: float = option(3e-3, "learning rate of the first stage", POSITIVE)
    guidance_scale: float = option(2.0, "classifier-free guidance of the drawn samples", WEIGHT)
    validation_samples: int = option(64, "held-out prompts to draw and measure", COUNT)

    # What the shipped model was trained with.
    output_dir: str = option("runs/tiny-text-to-image", "the run folder, which becomes the model folder")
    max_train_steps: int | None = option(3_000, "steps of the second stage")
    train_batch_size: int = option(32, "samples per process and forward pass")
    learning_rate: float = option(1e-3, "learning rate of the second stage")
    lr_scheduler: str = option("cosine", "shape of the schedule", SCHEDULES)
    lr_warmup_steps: int = option(100, "steps of linear warm-up")
    adam_beta2: float = option(0.95, "decay of AdamW's second moment")
    use_ema: bool = option(True, "keep an exponential moving average of the weights and save that")
    ema_decay: float = option(0.999, "its decay; it warms up from 0")
    validation_steps: int = option(500, "draw samples and measure every so many steps")
    checkpointing_steps: int = option(250, "write a checkpoint every so many steps")
    checkpoints_total_limit: int | None = option(1, "keep only so many checkpoints, the newest")


def main(options: Options) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    from diffusers_ext.control.previews import TextToImagePreview
    from diffusers_ext.diffusion.base import base_of
    from diffusers_ext.diffusion.card import write_text_to_image_card
    from diffusers_ext.diffusion.encoded import Encoded, encode_in_memory
    from diffusers_ext.diffusion.noising import Diffusion
    from diffusers_ext.diffusion.paths import path_of
    from diffusers_ext.diffusion.text_to_image import AutoencoderObjective, TextToImageObjective
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.toy import tiny

    loop.check(options)
    dataset, small, prompts = make_data(options)
    torch.manual_seed(options.seed)
    vae, unet, scheduler = tiny.autoencoder(), tiny.unet(), tiny.scheduler()
    tokenizer = tiny.tokenizer(dataset.captions())
    text_encoder = tiny.text_encoder(tokenizer)
    if options.dry_run:
        print(loop.plan(options, len(dataset), {"vae": vae, "unet": unet, "text_encoder": text_encoder}))
        return

    output_dir = Path(options.output_dir)
    first_stage = dataclasses.replace(
        options,
        output_dir=str(output_dir / "autoencoder"),
        max_train_steps=options.autoencoder_steps,
        train_batch_size=options.autoencoder_batch_size,
        learning_rate=options.autoencoder_learning_rate,
        resume_from_checkpoint=options.resume_from_checkpoint and "latest",
        push_to_hub=False,
    )

    def sources():
        return sources_of(options, dataset)

    accelerator = loop.start(first_stage)
    loop.claim(accelerator, options, sources)
    loop.claim(accelerator, first_stage, sources)
    loop.train(accelerator, AutoencoderObjective(vae, options.seed), small, first_stage)

    accelerator = loop.start(options)
    vae.requires_grad_(False).eval()
    pipe = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    base = base_of(pipe).to(accelerator.device)
    base.encoders.scale_latents(torch.stack([dataset.picture(index) for index in range(min(256, len(dataset)))]))
    objective = TextToImageObjective(base, Diffusion(path_of(scheduler), options.seed))
    preview = TextToImagePreview(pipe, prompts, options.guidance_scale, output_dir)
    loop.train(accelerator, objective, Encoded(dataset, encode_in_memory(dataset, base.encoders)), options, preview)

    if accelerator.is_main_process:
        tiny.save_half(pipe, output_dir)
        write_text_to_image_card(output_dir)
        publish(output_dir, options)
    accelerator.end_training()


def sources_of(options: Options, dataset):
    """What the weights come from: drawn circles, of which the options say all, or captioned pictures."""
    from diffusers_ext.engine.provenance import Source, digest_of_files, digest_of_values

    if options.train_data_dir is None:
        return {"data": Source(("train_data_dir",), digest_of_values("fill50k"), f"{options.samples} circles")}
    files = digest_of_files(row.image for row in dataset.rows)
    digest = digest_of_values(files, [row.texts for row in dataset.rows])
    return {"data": Source(("train_data_dir",), digest, f"{len(dataset.rows)} rows")}


def make_data(options: Options):
    """Return the training set at full and at the autoencoder's resolution, and the prompts to draw."""
    from diffusers_ext.data.pairs import Pairs
    from diffusers_ext.data.rows import check, read_image_folder
    from diffusers_ext.toy.circles import Fill50k, scene

    sides, drop = (options.resolution, options.autoencoder_resolution), options.proportion_empty_prompts
    if options.train_data_dir is None:
        prompts = [scene(index, options.seed, "test").prompt for index in range(options.validation_samples)]
        return *(Fill50k(options.samples, side, options.seed, "train", drop) for side in sides), prompts
    rows = read_image_folder(options.train_data_dir, conditioning_image_column=None)
    check(rows)
    prompts = [row.text for row in rows[: options.validation_samples]]
    return *(Pairs(rows, side, options.seed, drop) for side in sides), prompts


if __name__ == "__main__":
    run(main, Options)
