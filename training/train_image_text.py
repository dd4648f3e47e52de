"""Train a small image-text model: two frozen towers, a vision and a text one, joined by new projections.

Locked-image tuning (Zhai et al. 2022) of an open_clip model with a timm vision tower and a Hugging Face text tower. Each
picture and caption goes through its tower once, so that training takes minutes on a CPU:
    accelerate launch training/train_image_text.py --train_data_dir data/photos data/drawings \\
        --vision_tower timm:efficientnet_lite0@weights.safetensors --text_tower path/to/all-MiniLM-L6-v2 \\
        --zero_shot_data_dir data/pacs --output_dir runs/image-text

A data folder holds pictures and metadata.jsonl with {"file_name": ..., "text": a caption or a list of captions}, or any
other form that diffusers_ext/data/rows.py reads. A zero-shot set has labels: diffusers_ext/data/labelled.py.

Run the same command with --resume_from_checkpoint latest to resume after an interruption; on a CPU, bit for bit.
The run folder is itself the model: open_clip.create_model("local-dir:runs/image-text").
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import COUNT, Range, TrainingOptions, group, option, run


@group("model")
@dataclass
class ModelOptions:
    vision_tower: str | None = option(
        None, "timm:model.tag, timm:folder or timm:model@weights.safetensors,size=224 ...", path="read"
    )
    text_tower: str | None = option(
        None, "transformers text encoder, folder or Hub name, pooled by the mean", path="read"
    )
    embed_dim: int = option(256, "dimensions of the space that pictures and texts share", COUNT)
    projection: str = option("linear", "what joins a tower to that space", ("linear", "mlp"))
    context_length: int = option(64, "tokens of a caption that are read", Range(2))
    unlock_text_tower: bool = option(False, "train the text tower too; its captions are then encoded at each step")


@group("data")
@dataclass
class DataOptions:
    train_data_dir: list[str] | None = option(
        None, "captioned folders or tables to learn from, taken as one", path="read"
    )
    caption_column: str = option("text", "their field of captions, one or a list of which one is drawn each epoch")
    held_out_data_dir: list[str] | None = option(
        None, "captioned folders or tables to find captions and pictures in", path="read"
    )
    zero_shot_data_dir: list[str] | None = option(
        None, "labelled folders or tables to classify by their labels' names", path="read"
    )
    zero_shot_label_column: str = option("label", "the labels' field", requires={"zero_shot_data_dir": True})
    zero_shot_templates: list[str] = option(
        ["a photo of a {}", "a picture of a {}"],
        "sentences, {} the label's name",
        requires={"zero_shot_data_dir": True},
    )
    encoder_cache_dir: str | None = option(
        None,
        "keep what the towers make of pictures and captions here, for all runs; default: in output_dir",
        path="folder",
    )


@dataclass
class Options(TrainingOptions, DataOptions, ModelOptions):
    output_dir: str = option("runs/image-text", "the run folder: open_clip model, card, options, metrics, checkpoints")
    learning_rate: float = option(1e-3, "after warm-up, before decay")
    lr_scheduler: str = option(
        "cosine", "shape of the schedule", ("linear", "cosine", "constant", "constant_with_warmup")
    )
    lr_warmup_steps: int = option(20, "steps of linear warm-up")
    adam_weight_decay: float = option(0.1, "decoupled weight decay; biases and the logit scale are never decayed")
    train_batch_size: int = option(512, "pairs per process and step, all of them each other's negatives")
    hub_model_id: str | None = option(
        None, "owner/name of the repository to push to, now or later: the model's configuration names it", requires={}
    )
    num_train_epochs: int = option(30, "passes over the pictures, where max_train_steps is not given")


def main(options: Options) -> None:
    from diffusers_ext.data.preflight import check
    from diffusers_ext.data.rows import read_rows
    from diffusers_ext.data.splits import tell_shared
    from diffusers_ext.engine import loop
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.image_text.captioned import ImageTexts
    from diffusers_ext.image_text.card import write_image_text_card
    from diffusers_ext.image_text.objective import ImageTextObjective
    from diffusers_ext.image_text.previews import ImageTextPreview, Retrieval
    from diffusers_ext.image_text.towers import Encoders, new_model, save

    # What the user can get wrong, before anything heavy.
    check_options(options)
    assert options.train_data_dir and options.vision_tower and options.text_tower, "check_options asks for all three"
    loop.check(options)
    read = lambda folder: check(read_rows(folder, "image", options.caption_column, None)).rows  # noqa: E731
    rows = [row for folder in options.train_data_dir for row in read(folder)]
    held_out = [row for folder in options.held_out_data_dir or () for row in read(folder)]
    labelled = read_labelled_sets(options)
    tests = {name: table.files for name, table in labelled.items()} | {"the held-out data": [r.image for r in held_out]}
    tell_shared([row.image for row in rows], tests)

    accelerator = loop.start(options)
    accelerator.print(f"training: {len(rows):,} pictures; held out: {len(held_out):,}")
    towers = new_model(
        options.vision_tower,
        options.text_tower,
        options.embed_dim,
        options.projection,
        options.context_length,
        options.seed,
    )
    objective = ImageTextObjective(towers.model, options.unlock_text_tower)
    if options.dry_run:
        accelerator.print(loop.plan(options, len(rows), {"model": towers.model}))
        return

    loop.claim(accelerator, options, lambda: sources_of(options, rows, held_out))
    cache = options.encoder_cache_dir or Path(options.output_dir) / "cache"
    encoders = Encoders(towers, cache, options.unlock_text_tower, accelerator.device, accelerator.is_main_process)
    dataset = ImageTexts.of(rows, encoders.images, encoders.texts, options.seed)
    measures = [Retrieval.of(held_out, encoders.images, encoders.texts)] if held_out else []
    measures += zero_shot_measures(options, labelled, encoders)
    loop.train(accelerator, objective, dataset, options, ImageTextPreview(objective, measures))

    if accelerator.is_main_process:
        run_folder = save(towers, options.output_dir, options.hub_model_id)
        write_image_text_card(run_folder, len(rows), len(held_out))
        publish(run_folder, options)
    accelerator.end_training()


def sources_of(options: Options, rows: list, held_out: list):
    """What the weights of the projections come from."""
    from diffusers_ext.engine.provenance import Source, digest_of_files, digest_of_model, digest_of_values

    def captioned(rows: list, name: str) -> Source:
        digest = digest_of_values(digest_of_files(row.image for row in rows), [row.texts for row in rows])
        return Source((name, "caption_column"), digest, f"{len(rows)} rows")

    assert options.vision_tower, "check_options asks for it"
    vision, *settings = options.vision_tower.removeprefix("timm:").split(",")
    _, _, weights = vision.partition("@")
    return {
        "data": captioned(rows, "train_data_dir"),
        "vision tower": Source(("vision_tower",), digest_of_values(digest_of_model(weights or vision), settings)),
        "text tower": Source(("text_tower",), digest_of_model(options.text_tower)),
    }


def check_options(options: Options) -> None:
    """Refuse what is missing or cannot be, before any data are read."""
    from diffusers_ext.image_text.zero_shot import check_templates

    for name, remedy in (
        ("vision_tower", "name a timm model, timm:model@weights.safetensors"),
        ("text_tower", "name a transformers text encoder's folder"),
        ("train_data_dir", "name one captioned folder or several"),
    ):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing: {remedy}")
    if options.push_to_hub and not options.hub_model_id:
        raise InputError("--hub_model_id is missing: the pushed model's configuration names its repository, owner/name")
    check_templates(options.zero_shot_templates)


def read_labelled_sets(options: Options) -> dict:
    """Return the zero-shot sets by name."""
    from diffusers_ext.data.labelled import read_labelled
    from diffusers_ext.image_text.previews import set_name

    sources = options.zero_shot_data_dir or ()
    if len({set_name(source) for source in sources}) < len(sources):
        raise InputError("--zero_shot_data_dir: two sets of one name, by which metrics are called; rename a folder")
    return {set_name(source): read_labelled(source, options.zero_shot_label_column) for source in sources}


def zero_shot_measures(options: Options, labelled: dict, encoders) -> list:
    from diffusers_ext.image_text.previews import ZeroShot

    templates = options.zero_shot_templates
    return [ZeroShot.of(name, table, templates, encoders.images, encoders.texts) for name, table in labelled.items()]


if __name__ == "__main__":
    run(main, Options)
