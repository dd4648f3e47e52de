"""Train a ControlNet onto a frozen Stable Diffusion 1.x, 2.x or XL.

On your pictures, an image folder with metadata.jsonl (file_name, conditioning_image_file_name, text):
    accelerate launch training/train_controlnet.py --pretrained_model_name_or_path models/stable-diffusion-v1-5 \\
        --train_data_dir data/pairs --resolution 512 --output_dir runs/controlnet --learning_rate 1e-5 \\
        --proportion_empty_prompts 0.5 --mixed_precision bf16 --max_train_steps 10000

On Stable Diffusion XL, whose pictures and captions are better encoded once than at each step:
    accelerate launch training/train_controlnet.py --pretrained_model_name_or_path models/stable-diffusion-xl-base-1.0 \\
        --train_data_dir data/pairs --resolution 1024 --output_dir runs/controlnet-xl --learning_rate 1e-5 \\
        --encoder_cache_dir cache --gradient_checkpointing --train_batch_size 1 --gradient_accumulation_steps 16 \\
        --mixed_precision bf16 --max_train_steps 10000

On a laptop, with the small model that ships with this package and no download:
    python -m diffusers_ext.data.fill50k --output_dir data/fill50k --count 2000
    accelerate launch training/train_controlnet.py --train_data_dir data/fill50k --resolution 64 \\
        --output_dir runs/circles --learning_rate 1e-3 --train_batch_size 8 --max_train_steps 1000

Run the same command with --resume_from_checkpoint latest to go on after an interruption; on a CPU, bit for bit.
The run folder is itself the model: ControlNetModel.from_pretrained("runs/circles").
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import DiffusionOptions, OptimizerOptions, RunOptions, group, option, run


@group("model")
@dataclass
class ModelOptions:
    pretrained_model_name_or_path: str | None = option(
        None, "diffusers folder or Hub name of the base; default: the embedded model"
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "another VAE than the base's: its folder or Hub name, such as one of SDXL's mended for fp16"
    )
    controlnet_model_name_or_path: str | None = option(
        None, "start from this ControlNet instead of a copy of the base's encoder"
    )
    revision: str | None = option(None, "branch, tag or commit of the base on the Hub")
    variant: str | None = option(None, "weight files of the base, such as fp16")
    hint_init: str = option("data", "initialisation of a new ControlNet's hint network", ("data", "kaiming", "default"))
    transfer_from: str | None = option(
        None,
        "base that controlnet_model_name_or_path was trained on: moves it to this base by the difference of weights",
    )
    only_mid_control: bool = option(False, "train the middle connection only: faster, for global conditions")
    unlock_decoder: bool = option(
        False, "train the U-Net's decoder too and save it as unet/; use a lower learning rate"
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations of both networks in the backward pass: less memory, slower"
    )


@group("data")
@dataclass
class DataOptions:
    train_data_dir: str | None = option(
        None,
        "image folder, two folders, .jsonl, .csv, .parquet or .tar files, or fill50k: see diffusers_ext/data/rows.py",
    )
    dataset_name: str | None = option(None, "data set on the Hub, instead of train_data_dir; needs the extra 'data'")
    dataset_config_name: str | None = option(None, "its configuration, where it has several")
    cache_dir: str | None = option(None, "where Hub data sets are kept")
    image_column: str = option("image", "column of the target picture")
    conditioning_image_column: str = option("conditioning_image", "column of the condition")
    mask_column: str | None = option(
        None, "column of masks, white where the condition is to be marked as missing (-1): inpainting"
    )
    caption_column: str = option(
        "text", "column of the caption, or of a list of captions of which one is drawn each time"
    )
    max_train_samples: int | None = option(None, "use only the first so many rows")
    streaming: bool = option(
        False,
        "read a Hub data set, or .parquet files, row by row while training, without a copy or a check of all rows",
    )
    shuffle_buffer: int = option(1000, "rows that streaming keeps undecoded to draw from")
    on_bad_sample: str = option("error", "what to do with rows that cannot be used", ("error", "skip"))
    held_out_samples: int = option(
        16, "rows drawn by the seed and kept from training to measure on, at most a tenth of all"
    )
    condition: str | None = option(
        None,
        "compute conditions from the pictures, after the cut: canny, scribble, ... (diffusers_ext/conditions.py), or module:callable",
    )
    resolution: int = option(
        512, "side of the square training images, in pixels, a multiple of the model's factor; 1024 is usual for SDXL"
    )
    aspect_buckets: bool = option(False, "keep pictures' shapes: cut to the nearest of many sizes of the square's area")
    random_crop: bool = option(False, "cut another part each time, instead of the middle")
    random_flip: bool = option(False, "mirror half of the samples, picture and condition together")
    label_maps: bool = option(False, "conditions are label maps: scale them without mixing colours")
    encoder_cache_dir: str | None = option(
        None, "encode each picture and caption once and keep them here, for all runs; without it, at each step"
    )
    proportion_empty_prompts: float = option(
        0.0, "share of prompts replaced by the empty one, drawn anew each epoch; the paper uses 0.5"
    )


@group("validation")
@dataclass
class ValidationOptions:
    validation_image: list[str] | None = option(None, "condition images to draw from; default: the first held-out rows")
    validation_prompt: list[str] | None = option(None, "their prompts, one each or one for all")
    num_validation_images: int = option(4, "pictures drawn for each condition")
    validation_guidance_scale: float = option(
        2.0, "classifier-free guidance of the drawn samples; 7.5 is usual for SD 1.5, 5 for SDXL"
    )


@dataclass
class Options(ValidationOptions, OptimizerOptions, RunOptions, DiffusionOptions, DataOptions, ModelOptions):
    output_dir: str = option("runs/controlnet", "the run folder: model, card, options, metrics, samples, checkpoints")


def main(options: Options) -> None:
    import torch
    from diffusers import DDPMScheduler

    from diffusers_ext import loop
    from diffusers_ext.base_model import BaseModel
    from diffusers_ext.cards import write_controlnet_card
    from diffusers_ext.data.preflight import contact_sheet
    from diffusers_ext.encoders import is_sdxl
    from diffusers_ext.hub import push
    from diffusers_ext.metrics.condition_gap import ConditionGap
    from diffusers_ext.objectives.control import ControlObjective, save
    from diffusers_ext.objectives.diffusion import Diffusion
    from diffusers_ext.previews import ControlPreview

    # What the user can get wrong, before anything heavy.
    loop.check(options)
    check_options(options)
    dataset, held_out, shown, pairs, report = read_stream(options) if options.streaming else read_data(options)

    # The frozen base, without its encoders where all they make is cached; and the ControlNet.
    accelerator = loop.start(options)
    accelerator.print(report.summary(shown=10))
    forward = loop.frozen_dtype(accelerator)
    dtype = torch.float32 if options.unlock_decoder else forward
    other_vae = options.pretrained_vae_model_name_or_path
    base = BaseModel.find(base_of(options), other_vae, forward, dtype, options.revision, options.variant)
    cached = options.encoder_cache_dir is not None and not options.dry_run
    pipe = base.load_without_encoders() if cached else base.load()
    controlnet = make_controlnet(options, accelerator, base, pipe.unet, shown)
    diffusion = Diffusion.from_options(DDPMScheduler.from_config(pipe.scheduler.config), options)
    switches = (options.only_mid_control, options.unlock_decoder)
    objective = ControlObjective(controlnet, pipe.unet, base.encoders(pipe), diffusion, *switches)
    if options.dry_run:
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        accelerator.print(loop.plan(options, len(dataset), {"controlnet": controlnet, **parts}))
        return

    loop.claim(accelerator, options)
    if accelerator.is_main_process:
        contact_sheet(shown, Path(options.output_dir) / "data.png")
    if cached:
        dataset, held_out = encode(options, accelerator, base, dataset, held_out)
    several = len(held_out) > 1
    gap = ConditionGap(objective, loop.collate([held_out[0, at] for at in range(len(held_out))])) if several else None
    load_drawer = (lambda: base.load(unet=pipe.unet).to(accelerator.device)) if cached else (lambda: pipe)
    loop.train(accelerator, objective, dataset, options, ControlPreview(load_drawer, objective, pairs, gap, options))

    if accelerator.is_main_process:
        run_folder = Path(options.output_dir)
        save(objective, run_folder)
        write_controlnet_card(
            run_folder, base_of(options), len(dataset), len(held_out), report.digest, is_sdxl(base.folder)
        )
        if options.push_to_hub:
            print(f"published at {push(run_folder, options)}")
    accelerator.end_training()


def base_of(options: Options) -> str:
    from diffusers_ext.embedded import embedded_model

    return options.pretrained_model_name_or_path or embedded_model()


def check_options(options: Options) -> None:
    """Refuse model folders of another kind, and options that exclude each other, before any data are read."""
    from diffusers_ext.data.encoded import check_fixed
    from diffusers_ext.encoders import check_stable_diffusion, check_vae

    check_stable_diffusion(base_of(options))
    if options.pretrained_vae_model_name_or_path:
        check_vae(options.pretrained_vae_model_name_or_path)
    if options.transfer_from:
        check_stable_diffusion(options.transfer_from)
        if not options.controlnet_model_name_or_path:
            raise InputError("--transfer_from needs --controlnet_model_name_or_path: the trained ControlNet to move")
    if options.encoder_cache_dir:
        check_fixed(
            random_crop=options.random_crop,
            random_flip=options.random_flip,
            aspect_buckets=options.aspect_buckets,
            streaming=options.streaming,
        )
    if options.streaming:
        if options.max_train_steps is None:
            raise InputError("--streaming needs --max_train_steps: the length of a stream is not known")
        if options.aspect_buckets or options.max_train_samples:
            raise InputError("--streaming cannot look ahead; leave out --aspect_buckets and --max_train_samples")
    if options.mask_column and options.condition == "inpaint":
        raise InputError("--condition inpaint draws masks of its own; with --mask_column give --condition identity")


def read_data(options: Options):
    """Read and check the rows; return the training set, the held-out set, what to show of the data before training,
    the pairs to draw, and the check's report."""
    from diffusers_ext.data.geometry import assign_buckets
    from diffusers_ext.data.rows import check, read_rows

    hub = {"config": options.dataset_config_name, "cache_dir": options.cache_dir}
    image, caption, condition, mask = columns(options)
    found = read_rows(source_of(options), image, caption, condition, options.max_train_samples, **hub, mask_column=mask)
    report = check(found, options.on_bad_sample)
    rows, aside = hold_out(len(report.rows), options)
    dataset, held_out = make_pairs(options, [report.rows[index] for index in rows], [report.rows[at] for at in aside])
    if options.aspect_buckets:
        dataset.buckets = assign_buckets([report.sizes[index] for index in rows], options.resolution)
    return dataset, held_out, dataset, pairs_to_draw(options, held_out, report.rows), report


def read_stream(options: Options):
    """As `read_data`, of rows that are read while training: only the first ones are checked before."""
    from diffusers_ext.data.files import Columns
    from diffusers_ext.data.preflight import check
    from diffusers_ext.data.stream import Stream

    hub = {"config": options.dataset_config_name, "cache_dir": options.cache_dir}
    drawing = (options.seed, options.shuffle_buffer, options.on_bad_sample)
    stream = Stream(source_of(options), Columns(*columns(options)), options.held_out_samples, *drawing, **hub)
    report = check(stream.head, options.on_bad_sample)
    aside = check(stream.held_out, options.on_bad_sample).rows if stream.held_out else []
    shown, held_out = make_pairs(options, report.rows, aside)
    stream.pairs = shown
    return stream, held_out, shown, pairs_to_draw(options, held_out, report.rows), report


def source_of(options: Options) -> str:
    source = options.train_data_dir or options.dataset_name
    if source is None:
        raise InputError(
            "--train_data_dir is missing: name an image folder; python -m diffusers_ext.data.fill50k makes one"
        )
    return source


def columns(options: Options) -> tuple[str, str, str | None, str | None]:
    """Image, caption, condition and mask. A computed condition comes from the picture; only label maps are read, to be coloured."""
    condition = None if options.condition and not options.label_maps else options.conditioning_image_column
    return options.image_column, options.caption_column, condition, options.mask_column


def make_pairs(options: Options, rows: list, aside: list):
    """Return rows to train on, with what varies from epoch to epoch, and held-out rows, without."""
    from diffusers_ext.conditions import resolve
    from diffusers_ext.data.pairs import Pairs

    geometry = {
        "condition": resolve(options.condition) if options.condition else None,
        "label_maps": options.label_maps,
    }
    varied = {"random_crop": options.random_crop, "flip": 0.5 if options.random_flip else 0.0}
    dropped = options.proportion_empty_prompts
    return (
        Pairs(rows, options.resolution, options.seed, dropped, **geometry, **varied),
        Pairs(aside, options.resolution, options.seed, **geometry),
    )


def pairs_to_draw(options: Options, held_out, rows: list):
    """The conditions and prompts that samples are drawn from: the first held-out ones, unless others are given."""
    from diffusers_ext.previews import validation_pairs

    return validation_pairs(options, held_out if len(held_out) else make_pairs(options, [], rows)[1])


def hold_out(count: int, options: Options) -> tuple[list[int], list[int]]:
    """Split row numbers into those to train on, in order, and those kept aside, drawn by the seed: files are often sorted."""
    from diffusers_ext.randomness import generator

    order = generator(options.seed, "held_out").permutation(count)
    aside = min(options.held_out_samples, count // 10)
    return sorted(map(int, order[aside:])), list(map(int, order[:aside]))


def make_controlnet(options: Options, accelerator, base, unet, dataset):
    """Load the ControlNet that is given, or copy the base's encoder behind a hint network that is ready to carry."""
    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel

    from diffusers_ext.control_init import check_fit, init_hint, new_controlnet, transfer
    from diffusers_ext.encoders import check_resolution, vae_scale_factor

    check_resolution(options.resolution, base.vae, unet.config)
    factor = vae_scale_factor(base.vae)
    conditions = dataset.sample_conditions(64)
    source = unet  # what learns starts from weights that were never rounded to half precision
    if unet.dtype != torch.float32:
        source = UNet2DConditionModel.from_pretrained(base.folder, subfolder="unet", variant=options.variant)
    if options.controlnet_model_name_or_path:
        controlnet = ControlNetModel.from_pretrained(options.controlnet_model_name_or_path)
        check_fit(controlnet, unet, factor, conditions.shape[1])
        if options.transfer_from:
            old = UNet2DConditionModel.from_pretrained(options.transfer_from, subfolder="unet")
            transfer(controlnet, old, source)
    else:
        torch.manual_seed(options.seed)
        controlnet = new_controlnet(source, factor, conditions.shape[1])
        ratio = init_hint(controlnet, options.hint_init, conditions, options.seed)
        accelerator.print(
            f"hint network ({options.hint_init}): its signal varies with the condition by {ratio:.2g} of its size"
        )
    if options.gradient_checkpointing:
        controlnet.enable_gradient_checkpointing()
        unet.enable_gradient_checkpointing()
    return controlnet


def encode(options: Options, accelerator, base, dataset, held_out):
    """Return both data sets with what --encoder_cache_dir holds; the encoders are loaded for what is missing."""
    from diffusers_ext.data.encoded import Encoded, EncoderCache

    def load_encoders():
        return base.encoders(base.load(unet=None)).to(accelerator.device)

    # What the values depend on beside weights and content.
    computed = {"autocast": accelerator.mixed_precision, "variant": options.variant}
    show = accelerator.is_main_process
    cache = EncoderCache(
        options.encoder_cache_dir,
        base.folder,
        base.dtype,
        load_encoders,
        computed,
        accelerator.autocast,
        show,
        vae=base.vae_folder,
        vae_dtype=base.vae_dtype,
    )
    # All that a picture's tensor depends on beside its file: change this with the geometry, or stale values are served.
    transform = {"fit": "cover", "resolution": options.resolution}
    texts = cache.texts([*dataset.captions(), *held_out.captions()])

    def encoded(pairs) -> Encoded:
        moments = cache.moments([row.image for row in pairs.rows], pairs.picture, transform) if len(pairs) else []
        return Encoded(pairs, moments, texts, conditions=True)

    return encoded(dataset), encoded(held_out)


if __name__ == "__main__":
    run(main, Options)
