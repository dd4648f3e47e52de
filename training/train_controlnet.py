"""Train a ControlNet onto a frozen Stable Diffusion 1.x or 2.x.

On your pictures, an image folder with metadata.jsonl (file_name, conditioning_image_file_name, text):
    accelerate launch training/train_controlnet.py --pretrained_model_name_or_path models/stable-diffusion-v1-5 \\
        --train_data_dir data/pairs --resolution 512 --output_dir runs/controlnet --learning_rate 1e-5 \\
        --proportion_empty_prompts 0.5 --mixed_precision bf16 --max_train_steps 10000

On a laptop, with the small model that ships with this package and no download:
    python -m diffusers_ext.data.fill50k --output_dir data/fill50k --count 2000
    accelerate launch training/train_controlnet.py --train_data_dir data/fill50k --resolution 64 \\
        --output_dir runs/circles --learning_rate 1e-3 --train_batch_size 8 --max_train_steps 1000

Run the same command with --resume_from_checkpoint latest to go on after an interruption, bit for bit.
The run folder is itself the model: ControlNetModel.from_pretrained("runs/circles").
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import OptimizerOptions, RunOptions, group, option, run


@group("model")
@dataclass
class ModelOptions:
    pretrained_model_name_or_path: str | None = option(
        None, "diffusers folder or Hub name of the base; default: the embedded model"
    )
    controlnet_model_name_or_path: str | None = option(
        None, "start from this ControlNet instead of a copy of the base's encoder"
    )
    revision: str | None = option(None, "branch, tag or commit of the base on the Hub")
    variant: str | None = option(None, "weight files of the base, such as fp16")
    hint_init: str = option("data", "initialisation of a new ControlNet's hint network", ("data", "kaiming", "default"))
    gradient_checkpointing: bool = option(
        False, "recompute activations of both networks in the backward pass: less memory, slower"
    )


@group("data")
@dataclass
class DataOptions:
    train_data_dir: str | None = option(None, "image folder with metadata.jsonl")
    image_column: str = option("image", "column of the target picture")
    conditioning_image_column: str = option("conditioning_image", "column of the condition")
    caption_column: str = option("text", "column of the caption")
    max_train_samples: int | None = option(None, "use only the first so many rows")
    resolution: int = option(512, "side of the square training images, in pixels; a multiple of the model's factor")
    encoder_cache_dir: str | None = option(
        None, "encode each picture and caption once and keep them here, for all runs; without it, at each step"
    )
    proportion_empty_prompts: float = option(
        0.0, "share of prompts replaced by the empty one, drawn anew each epoch; the paper uses 0.5"
    )


@group("validation")
@dataclass
class ValidationOptions:
    validation_image: list[str] | None = option(
        None, "condition images to draw from; default: the first rows of the data"
    )
    validation_prompt: list[str] | None = option(None, "their prompts, one each or one for all")
    num_validation_images: int = option(4, "pictures drawn for each condition")
    validation_guidance_scale: float = option(
        2.0, "classifier-free guidance of the drawn samples; 7.5 is usual for SD 1.5"
    )


@dataclass
class Options(ValidationOptions, OptimizerOptions, RunOptions, DataOptions, ModelOptions):
    output_dir: str = option("runs/controlnet", "the run folder: model, card, options, metrics, samples, checkpoints")


def main(options: Options) -> None:
    import functools

    from diffusers import ControlNetModel, DDPMScheduler

    from diffusers_ext import loop
    from diffusers_ext.cards import write_controlnet_card
    from diffusers_ext.control_init import init_hint, new_controlnet
    from diffusers_ext.data.pairs import Pairs
    from diffusers_ext.data.rows import check, read_image_folder
    from diffusers_ext.embedded import embedded_model
    from diffusers_ext.encoders import (
        ENCODERLESS,
        StableDiffusionEncoders,
        check_resolution,
        check_stable_diffusion,
        load_stable_diffusion,
        local_folder,
        vae_config,
        vae_scale_factor,
    )
    from diffusers_ext.hub import push
    from diffusers_ext.objectives.control import ControlObjective
    from diffusers_ext.previews import ControlPreview, validation_pairs

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    if options.train_data_dir is None:
        raise InputError(
            "--train_data_dir is missing: name an image folder; python -m diffusers_ext.data.fill50k makes one"
        )
    base = options.pretrained_model_name_or_path or embedded_model()
    check_stable_diffusion(base)
    columns = (options.image_column, options.caption_column, options.conditioning_image_column)
    rows = read_image_folder(options.train_data_dir, *columns, limit=options.max_train_samples)
    pairs = validation_pairs(options, rows)
    check(rows)
    dataset = Pairs(rows, options.resolution, options.seed, options.proportion_empty_prompts)

    # The frozen base, and the ControlNet: a copy of its encoder behind a hint network that is ready to carry.
    accelerator = loop.start(options)
    folder = local_folder(base, revision=options.revision, variant=options.variant)
    load_base = functools.partial(
        load_stable_diffusion, folder, loop.frozen_dtype(accelerator), variant=options.variant
    )
    cached, vae = bool(options.encoder_cache_dir and not options.dry_run), vae_config(folder)
    pipe = load_base(**(ENCODERLESS if cached else {}))
    check_resolution(options.resolution, vae, pipe.unet.config)
    if options.controlnet_model_name_or_path:
        controlnet = ControlNetModel.from_pretrained(options.controlnet_model_name_or_path)
    else:
        controlnet = new_controlnet(pipe.unet, vae_scale_factor(vae))
        ratio = init_hint(controlnet, options.hint_init, dataset.sample_conditions(64), options.seed)
        accelerator.print(f"hint network ({options.hint_init}): {ratio:.1%} of its signal depends on the condition")
    if options.dry_run:
        frozen = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
        accelerator.print(loop.plan(options, len(dataset), {"controlnet": controlnet}, frozen))
        return
    if options.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        pipe.unet.enable_gradient_checkpointing()

    if cached:
        dataset = encode(options, dataset, folder, load_base, accelerator)
    encoders = StableDiffusionEncoders(pipe.vae, pipe.text_encoder, pipe.tokenizer, vae.scaling_factor)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    objective = ControlObjective(controlnet, pipe.unet, encoders, scheduler, options.seed)
    # A cached run needs the VAE and the text encoder for its samples only.
    load_drawer = (lambda: load_base(unet=pipe.unet).to(accelerator.device)) if cached else lambda: pipe
    preview = ControlPreview(load_drawer, controlnet, pairs, options)
    loop.train(accelerator, objective, dataset, options, preview)

    if accelerator.is_main_process:
        controlnet.save_pretrained(options.output_dir)
        write_controlnet_card(Path(options.output_dir), base, len(dataset))
        if options.push_to_hub:
            print(f"published at {push(Path(options.output_dir), options)}")


def encode(options: Options, dataset, folder: str, load_base, accelerator):
    """Return the data set with moments and text embeddings from --encoder_cache_dir; encoders are loaded for what is missing."""
    from diffusers_ext import loop
    from diffusers_ext.data.encoded import Encoded, EncoderCache
    from diffusers_ext.encoders import StableDiffusionEncoders

    def load_encoders() -> StableDiffusionEncoders:
        pipe = load_base(unet=None)
        return StableDiffusionEncoders(pipe.vae, pipe.text_encoder, pipe.tokenizer).to(accelerator.device)

    dtype, show = loop.frozen_dtype(accelerator), accelerator.is_main_process
    cache = EncoderCache(options.encoder_cache_dir, folder, dtype, load_encoders, accelerator.autocast, show)
    transform = {"fit": "cover", "resolution": options.resolution}
    moments = cache.moments([row.image for row in dataset.rows], dataset.picture, transform)
    return Encoded(dataset, moments, cache.texts(dataset.captions()), conditions=True)


if __name__ == "__main__":
    run(main, Options)
