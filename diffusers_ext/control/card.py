"""The card of a ControlNet."""

from pathlib import Path

from huggingface_hub import ModelCardData

from ..diffusion.base import Family
from ..engine.run_folder import read_metrics
from ..publish.cards.markdown import escape, fenced, literal
from ..publish.cards.parts import (
    NOT_TO_DRAW,
    import_for,
    load_argument,
    measured,
    of_base,
    picture,
    record,
    save,
    title,
    training,
)
from .gap import snap

MEASURES = {
    "gap": "gap: held-out loss with a wrong condition over that with the right one, minus 1",
    "consistency": "agreement of the condition extracted from the pictures with the given one, 1 is full",
    "consistency_no_prompt": "the same, drawn without prompt",
    "consistency_no_control": "the same, the base without control",
    "consistency_true": "the same, the true pictures",
    "iou": "IoU of the drawn circle with the outlined disc, mean",
    "iou_no_prompt": "the same, drawn without prompt",
    "iou_no_control": "the same, the base without control",
    "circle_error": "colour error of the circle, CIEDE2000, median",
    "background_error": "colour error of the background, CIEDE2000, median",
}


def write_controlnet_card(run: Path, base: str, family: Family, samples: int, held_out: int, digest: str) -> Path:
    """Write README.md of a ControlNet's run folder; samples and held_out: rows learned from and measured on."""
    options = record(run)["options"]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["controlnet", "diffusers-training", "diffusers_ext"],
        **of_base(base, "adapter"),
    )
    how = f"the gap on {held_out} held-out pairs, the rest on the pictures above: {_origin(options, held_out)}"
    text = f"""# ControlNet for {escape(title(base))}

{picture(run)}

Columns: the condition, the base model without control, this ControlNet without prompt, and with it at
{options["num_validation_images"]} seeds.

## Use

{_use(run, base, options, family)}

{_small_part(run, base, family)}## Training

A trainable copy of {_copied(options)}, joined by zero convolutions (Zhang & Agrawala 2023). The base is frozen{f" but for its decoder, which is in {family.network}/" if _unlocked(options) else ""}; the hint network was
initialised by `{options["hint_init"]}`. {_data(options, samples)} at {options["resolution"]} px{_conditions(options)}; digest of {"its first rows" if options["streaming"] else "the data"}
`{digest[:16]}…`.

{training(run)}

## Measured

{measured(run, MEASURES, how)}

{_snap(run)}

## Limits and misuse

It follows conditions of the kind it was trained on and inherits the base model's biases and licence. Not checked for people,
faces or text. {NOT_TO_DRAW}
"""
    return save(run, data, text)


def _use(run: Path, base: str, options: dict, family: Family) -> str:
    """How to load it: with the parts that were trained, or taken from elsewhere, beside the base."""
    pipeline, control = family.control_pipeline.__name__, family.control_network.__name__
    classes, parts = [control, pipeline], ["controlnet=controlnet"]
    if _unlocked(options):
        network = family.network_class.__name__
        classes.append(network)
        source = f'{network}.from_pretrained({literal(run.name)}, subfolder="{family.network}")'
        parts.append(f"{family.network}={source}")
    vae = options.get("pretrained_vae_model_name_or_path")
    if vae:
        classes.append("AutoencoderKL")
        parts.append(f"vae=AutoencoderKL.from_pretrained({literal(title(vae))})")
    return fenced(
        f"""from diffusers import {", ".join(sorted(classes))}{import_for(base)}

controlnet = {control}.from_pretrained({literal(run.name)})
pipe = {pipeline}.from_pretrained({load_argument(base)}, {", ".join(parts)})""",
        "python",
    )


def _small_part(run: Path, base: str, family: Family) -> str:
    """How to put a LoRA-ControlNet's small file on a base."""
    file = run / "lora" / "pytorch_lora_weights.safetensors"
    if not file.exists():
        return ""
    network, part = family.network_class.__name__, family.network
    example = f"""from diffusers import {network}
from diffusers_ext import load_control_lora{import_for(base)}

{part} = {network}.from_pretrained({load_argument(base)}, subfolder="{part}")
controlnet = load_control_lora({literal(f"{run.name}/lora")}, {part})"""
    size = file.stat().st_size / 2**20
    return f"""`lora/` holds what learned, {size:,.1f} MiB, for this base or another of its architecture:

{fenced(example, "python")}

"""


def _origin(options: dict, held_out: int) -> str:
    if options["validation_image"]:
        return "conditions given by --validation_image"
    return "the first held-out conditions" if held_out else "the first conditions of the training set"


def _data(options: dict, samples: int) -> str:
    source = escape(title(options["train_data_dir"] or options["dataset_name"] or ""))
    return f"Pairs streamed from {source}" if options["streaming"] else f"{samples:,} pairs"


def _conditions(options: dict) -> str:
    computed = options["condition"]
    return f", conditions computed from the pictures ({escape(computed)})" if computed else ""


def _snap(run: Path) -> str:
    """When following began."""
    rows = read_metrics(run)
    if not any("gap" in row for row in rows):
        return ""
    step = snap(rows)
    if step is None:
        return "It does not use its condition yet: the gap stayed below 0.2. Train longer."
    return f"Following began by step {step:,}, the first measurement from which on the gap stayed above 0.2."


def _unlocked(options: dict) -> bool:
    return options.get("unlock_decoder", False)


def _copied(options: dict) -> str:
    """What of the base was copied, and what of the copy learned."""
    if options.get("lora_rank"):
        return f"the base's encoder that learned through adapters of rank {options['lora_rank']} (Hu et al. 2021)"
    blocks = options.get("controlnet_blocks")
    return f"the first {blocks} down block(s) of the base's encoder" if blocks else "the base's encoder"
