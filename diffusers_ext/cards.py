"""Model cards, written from what a run folder holds: nothing is typed in by hand.

Every number comes from metrics.jsonl, the command and the versions from options.json, pictures from samples/.
"""

import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .data.ranking_checks import Counts
from .embedded import embedded_model
from .grids import plot_curves
from .metrics.condition_gap import snap
from .run_folder import OPTIONS, read_metrics

MEASURES = {  # what the columns of metrics.jsonl mean
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
    "held_out_accuracy": "share of strict pairs ordered as people did",
    "held_out_accuracy_low": "its interval, from",
    "held_out_accuracy_high": "to",
    "held_out_spearman": "Spearman's ρ with the rankings, mean",
    "held_out_kendall": "Kendall's τ with the rankings, mean",
}

HELD_OUT = {"held_out_loss": "held out, right condition", "held_out_loss_wrong": "held out, wrong condition"}


def write_controlnet_card(run: Path, base: str, samples: int, held_out: int, digest: str, sdxl: bool = False) -> Path:
    """Write README.md of a ControlNet's run folder; sdxl: whether its base is of that kind."""
    pipeline = f"StableDiffusion{'XL' if sdxl else ''}ControlNetPipeline"
    options = _record(run)["options"]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["controlnet", "diffusers-training", "diffusers_ext"],
        base_model=_hub_name(base),
        base_model_relation="adapter" if _hub_name(base) else None,
        **_licence(base),
    )
    text = f"""# ControlNet for {_title(base)}

{_picture(run)}

Columns: the condition, the base model without control, this ControlNet without prompt, and with it at
{options["num_validation_images"]} seeds.

## Use

```python
from diffusers import {_classes(run, pipeline)}{_import_for(base)}

controlnet = ControlNetModel.from_pretrained("{run.name}")
pipe = {pipeline}.from_pretrained({_load_argument(base)}, {_parts(run)})
```

{_small_part(run, base)}## Training

A trainable copy of {_copied(options)}, joined by zero convolutions (Zhang & Agrawala 2023). The base is frozen{" but for its decoder, which is in unet/" if _unlocked(run) else ""}; the hint network was
initialised by `{options["hint_init"]}`. {_data(options, samples)} at {options["resolution"]} px{_conditions(options)}; digest of {"its first rows" if options["streaming"] else "the data"}
`{digest[:16]}…`.

{_training(run)}

## Measured

{_measured(run, f"the gap on {held_out} held-out pairs, the rest on the pictures above: {_validation_origin(options, held_out)}")}

{_snap(run)}

## Limits

It follows conditions of the kind it was trained on and inherits the base model's biases and licence. Not checked for people,
faces or text.
"""
    return _write(run, data, text)


def write_text_to_image_card(run: Path) -> Path:
    """Write README.md of a model made by train_tiny_text_to_image.py."""
    options = _record(run)["options"]
    own = options["train_data_dir"]
    source = (
        f"the pictures of an image folder, {Path(own).name}"
        if own
        else f"fill50k, regenerated: {options['samples']:,} scenes"
    )
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "diffusers-training", "diffusers_ext"],
        license=None if own else "apache-2.0",
    )
    text = f"""# {run.name}: a small Stable Diffusion

{_picture(run)}

AutoencoderKL (factor 4), CLIP text encoder and U-Net, small enough for a CPU, trained from nothing on {source},
{options["resolution"]}x{options["resolution"]}. It is a fixture for trying out and testing methods, not a model of the world.

## Use

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{run.name}")
image = pipe("dark red circle with light blue background", guidance_scale={options["guidance_scale"]}, num_inference_steps=20).images[0]
```

## Training

First the autoencoder ({options["autoencoder_steps"]:,} steps of {options["autoencoder_batch_size"]} pictures at
{options["autoencoder_resolution"]} px), then text encoder and U-Net together: v-prediction down to pure noise.
Saved are the averaged weights, in float16.

{_training(run)}

## Measured

{_measured(run, f"on {options['validation_samples']} held-out prompts, colour pairs that never occur in training" if not own else "")}

## Limits

It draws what its set holds and nothing else.
"""
    return _write(run, data, text)


def write_reward_card(run: Path, training: Counts, held_out: Counts) -> Path:
    """Write README.md of a run folder of train_reward_model.py."""
    options, config = _record(run)["options"], json.loads((run / "config.json").read_text(encoding="utf-8"))
    base, head_alone = options["backbone"], config["model_type"] == "open_clip_reward"
    data = ModelCardData(
        library_name="transformers",
        tags=["reward-model", "human-preference", "diffusers_ext"],
        base_model=None if base == "tiny" else _hub_name(base),
        **({"license": "unknown"} if base == "tiny" else _licence(base)),
    )
    name = "LinearHeadReward" if head_alone else "ImageRewardModel"
    module = "diffusers_ext.rewards.linear_head" if head_alone else "diffusers_ext"
    architecture = (
        f"A head on the frozen embeddings of {base}"
        if head_alone
        else f"ImageReward (Xu et al. 2023) from {_title(base)}, {options['freeze_fraction']:.0%} of the layers frozen"
    )
    text = f"""# {run.name}: a reward model for images and prompts

{_picture(run)}

Held-out prompts: the images from the highest reward to the lowest.

## Use

```python
from {module} import {name}

reward = {name}.from_pretrained("{run.name}")
scores = reward.score("a prompt", images)  # higher is better; compare images of one prompt only
```

## Training

{architecture}. −log σ(r_winner − r_loser) on every strict pair, each {options["pair_weighting"]} counting alike.
Trained on: {training}.

Rewards are normalised by the training images' mean {config["reward_mean"]:.4g} and deviation {config["reward_std"]:.4g}.

{_training(run)}

## Measured

{_measured(run, f"on held-out prompts: {held_out}; 95 % interval over prompts. Equal scores count as wrong")}

`best/` holds the most accurate weights of the run.

## Limits

It predicts the people who ranked these images, on prompts and images like these. A model tuned on it finds what it
overlooks: measure with another reward as well.
"""
    return _write(run, data, text)


def write_image_text_card(run: Path, samples: int, held_out: int) -> Path:
    """Write README.md of a run folder of train_image_text.py."""
    options, config = _record(run)["options"], json.loads((run / "open_clip_config.json").read_text(encoding="utf-8"))
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=["open_clip", "clip", "locked-image-tuning", "diffusers_ext"],
        license="other",
        license_name="that-of-the-towers-and-the-data",
    )
    measured = {
        name: value for row in read_metrics(run) if "loss" not in row for name, value in row.items() if name != "step"
    }
    table = "\n".join(["| measure | last step |", "|---|---|", *(f"| {n} | {v:.3f} |" for n, v in measured.items())])
    learned = "its projection and the text tower" if options["unlock_text_tower"] else "the projections alone"
    text = f"""# {run.name}: a small image-text model

## Use

```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:{run.name}")
tokenizer = open_clip.get_tokenizer("local-dir:{run.name}")
```

## Training

Locked-image tuning (Zhai et al. 2022): {config["model_cfg"]["vision_cfg"]["timm_model_name"]} and {Path(options["text_tower"]).name}, joined
by {options["projection"]} projections into {options["embed_dim"]} dimensions; {learned} learned. {samples:,} captioned
pictures of {", ".join(Path(each).name for each in options["train_data_dir"])}; {held_out:,} held out.

{_training(run)}

## Measured

{table if measured else "Nothing was measured: no held-out captions and no labelled pictures were given."}

zero_shot: share of pictures whose class is told by its name in {", ".join(map(repr, options["zero_shot_templates"]))}; r1, r5:
share whose own caption, or picture, is the nearest, or among the five nearest.

## Limits

It knows the pictures and words it was trained on and little else; its licence is bounded by those of both towers and the data.
"""
    return _write(run, data, text)


def published(command: str) -> str:
    """Return a command as a card shows it: of an absolute path only the last name, as others have no such folder."""
    return re.sub(r"(?<![\w.:/])[~/][^\s'\"=,@]*/([^\s'\"=,@/]+)", r"\1", command)


def _record(run: Path) -> dict:
    return json.loads((run / OPTIONS).read_text(encoding="utf-8"))


def _write(run: Path, data: ModelCardData, text: str) -> Path:
    path = run / "README.md"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(path)
    return path


def _training(run: Path) -> str:
    """The command, the numbers and the curve."""
    record = _record(run)
    everything = read_metrics(run)
    options, rows = record["options"], [row for row in everything if "loss" in row]
    window = max(1, len(rows) // 50)
    means = [
        sum(row["loss"] for row in rows[at : at + window]) / len(rows[at : at + window])
        for at in range(0, len(rows), window)
    ]
    curves = {"training": ([row["step"] for row in rows[::window]], means)}
    for name, label in HELD_OUT.items():
        measured = [row for row in everything if name in row]
        if measured:
            curves[label] = ([row["step"] for row in measured], [row[name] for row in measured])
    plot_curves(run / "loss.png", curves, "step", "loss", log_y=True)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""```bash
{published(record["command"])}
```

{rows[-1]["step"]:,} steps of {options["train_batch_size"]} x {options["gradient_accumulation_steps"]} samples per process, AdamW at
{options["learning_rate"]:g} ({options["lr_scheduler"]}), seed {options["seed"]}. {versions}.

![training loss](loss.png)"""


def _measured(run: Path, how: str) -> str:
    """A table of the last step's measures, and how they came about along the run."""
    rows = [row for row in read_metrics(run) if any(name in row for name in MEASURES)]
    if not rows:
        return "Nothing was measured: the prompts are not of a set with a known truth. Judge by the pictures."
    lines = [
        f"| {meaning} | {rows[0].get(name, float('nan')):.3g} | {rows[-1][name]:.3g} |"
        for name, meaning in MEASURES.items()
        if name in rows[-1]
    ]
    head = f"| measure | step {rows[0]['step']:,} | step {rows[-1]['step']:,} |\n|---|---|---|"
    return "\n".join([head, *lines, "", f"{how[:1].upper()}{how[1:]}."])


def _picture(run: Path) -> str:
    samples = sorted((run / "samples").glob("step-*.png"))
    return f"![samples of the last step](samples/{samples[-1].name})" if samples else ""


def _validation_origin(options: dict, held_out: int) -> str:
    if options["validation_image"]:
        return "conditions given by --validation_image"
    return "the first held-out conditions" if held_out else "the first conditions of the training set"


def _data(options: dict, samples: int) -> str:
    streamed = f"Pairs streamed from {options['train_data_dir'] or options['dataset_name']}"
    return streamed if options["streaming"] else f"{samples:,} pairs"


def _conditions(options: dict) -> str:
    return f", conditions computed from the pictures ({options['condition']})" if options["condition"] else ""


def _snap(run: Path) -> str:
    """When following began."""
    rows = read_metrics(run)
    if not any("gap" in row for row in rows):
        return ""
    step = snap(rows)
    if step is None:
        return "It does not use its condition yet: the gap stayed below 0.2. Train longer."
    return f"Following began by step {step:,}, the first measurement from which on the gap stayed above 0.2."


def _hub_name(base: str) -> str | None:
    return None if Path(base).exists() else base


def _title(base: str) -> str:
    return base if _hub_name(base) else Path(base).name


def _unlocked(run: Path) -> bool:
    return _record(run)["options"].get("unlock_decoder", False)


def _parts(run: Path) -> str:
    """The pipeline's arguments beside the base: what was trained."""
    unet = f', unet=UNet2DConditionModel.from_pretrained("{run.name}", subfolder="unet")' if _unlocked(run) else ""
    vae = f", vae=AutoencoderKL.from_pretrained({json.dumps(_title(_other_vae(run)))})" if _other_vae(run) else ""
    return f"controlnet=controlnet{unet}{vae}"


def _classes(run: Path, pipeline: str) -> str:
    """What the example imports from diffusers."""
    more = [("UNet2DConditionModel", _unlocked(run)), ("AutoencoderKL", _other_vae(run))]
    return ", ".join(sorted(["ControlNetModel", pipeline, *(name for name, needed in more if needed)]))


def _other_vae(run: Path) -> str | None:
    return _record(run)["options"].get("pretrained_vae_model_name_or_path")


def _copied(options: dict) -> str:
    """What of the base was copied, and what of the copy learned."""
    if options.get("lora_rank"):
        return f"the base's encoder that learned through adapters of rank {options['lora_rank']} (Hu et al. 2021)"
    blocks = options.get("controlnet_blocks")
    return f"the first {blocks} down block(s) of the base's encoder" if blocks else "the base's encoder"


def _small_part(run: Path, base: str) -> str:
    """How to put a LoRA-ControlNet's small file on a base."""
    file = run / "lora" / "pytorch_lora_weights.safetensors"
    if not file.exists():
        return ""
    return f"""`lora/` holds what learned, {file.stat().st_size / 2**20:,.1f} MiB, for this base or another of its architecture:

```python
from diffusers import UNet2DConditionModel
from diffusers_ext import load_control_lora{_import_for(base)}

unet = UNet2DConditionModel.from_pretrained({_load_argument(base)}, subfolder="unet")
controlnet = load_control_lora("{run.name}/lora", unet)
```

"""


def _import_for(base: str) -> str:
    return "\n\nimport diffusers_ext" if base == embedded_model() else ""


def _load_argument(base: str) -> str:
    return "diffusers_ext.embedded_model()" if base == embedded_model() else json.dumps(_title(base))


def _licence(base: str) -> dict[str, str]:
    """The base's licence, from its card where that is at hand."""
    card = Path(base) / "README.md"
    known = ModelCard.load(card).data.get("license") if card.exists() else None
    return {"license": known} if known else {"license": "other", "license_name": "that-of-the-base-model"}
