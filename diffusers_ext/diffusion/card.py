"""The card of a small Stable Diffusion trained from nothing."""

from pathlib import Path

from huggingface_hub import ModelCardData

from ..publish.cards.markdown import escape, literal
from ..publish.cards.parts import NOT_TO_DRAW, heading, measured, picture, record, save, training

MEASURES = {
    "circle_error": "colour error of the circle, CIEDE2000, median",
    "background_error": "colour error of the background, CIEDE2000, median",
}


def write_text_to_image_card(run: Path) -> Path:
    """Write README.md of a model made by train_tiny_text_to_image.py."""
    options = record(run)["options"]
    own = options["train_data_dir"]
    source = (
        f"the pictures of an image folder, {escape(Path(own).name)}"
        if own
        else f"fill50k, regenerated: {options['samples']:,} scenes"
    )
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["stable-diffusion", "diffusers-training", "diffusers_ext"],
        license="other" if own else "apache-2.0",
        license_name="that-of-the-data" if own else None,
    )
    how = f"on {options['validation_samples']} held-out prompts{'' if own else ', colour pairs that never occur in training'}"
    text = f"""{heading(run, "a small Stable Diffusion")}

{picture(run)}

AutoencoderKL (factor 4), CLIP text encoder and U-Net, small enough for a CPU, trained from nothing on {source},
{options["resolution"]}x{options["resolution"]}. It is a fixture for trying out and testing methods, not a model of the world.

## Use

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({literal(run.name)})
image = pipe("dark red circle with light blue background", guidance_scale={options["guidance_scale"]}, num_inference_steps=20).images[0]
```

## Training

First the autoencoder ({options["autoencoder_steps"]:,} steps of {options["autoencoder_batch_size"]} pictures at
{options["autoencoder_resolution"]} px), then text encoder and U-Net together: v-prediction down to pure noise.
Saved are the averaged weights, in float16.

{training(run)}

## Measured

{measured(run, MEASURES, how)}

## Limits and misuse

It draws what its set holds and nothing else. {NOT_TO_DRAW if own else ""}
"""
    return save(run, data, text)
