"""The card of a small image-text model."""

import json
from pathlib import Path

from huggingface_hub import ModelCardData

from ..engine.run_folder import read_metrics
from ..publish.cards.markdown import code, escape, literal, table
from ..publish.cards.parts import NOT_TO_JUDGE, heading, record, save, training


def write_image_text_card(run: Path, samples: int, held_out: int) -> Path:
    """Write README.md of a run folder of train_image_text.py."""
    options, config = record(run)["options"], json.loads((run / "open_clip_config.json").read_text(encoding="utf-8"))
    data = ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=["open_clip", "clip", "locked-image-tuning", "diffusers_ext"],
        license="other",
        license_name="that-of-the-towers-and-the-data",
    )
    towers = (config["model_cfg"]["vision_cfg"]["timm_model_name"], Path(options["text_tower"]).name)
    learned = "its projection and the text tower" if options["unlock_text_tower"] else "the projections alone"
    text = f"""{heading(run, "a small image-text model")}

## Use

```python
import open_clip

model, preprocess = open_clip.create_model_from_pretrained({literal(f"local-dir:{run.name}")})
tokenizer = open_clip.get_tokenizer({literal(f"local-dir:{run.name}")})
```

## Training

Locked-image tuning (Zhai et al. 2022): {escape(towers[0])} and {escape(towers[1])}, joined
by {options["projection"]} projections into {options["embed_dim"]} dimensions; {learned} learned. {samples:,} captioned
pictures of {", ".join(escape(Path(each).name) for each in options["train_data_dir"])}; {held_out:,} held out.

{training(run)}

## Measured

{_measured(run)}

zero_shot: share of pictures whose class is told by its name in {", ".join(map(code, options["zero_shot_templates"]))}; r1, r5:
share whose own caption, or picture, is the nearest, or among the five nearest.

## Limits and misuse

It knows the pictures and words it was trained on and little else; its licence is bounded by those of both towers and the data.
{NOT_TO_JUDGE}
"""
    return save(run, data, text)


def _measured(run: Path) -> str:
    """The last value of every measure of the run; their names hold those of the data sets."""
    found = {
        name: value for row in read_metrics(run) if "loss" not in row for name, value in row.items() if name != "step"
    }
    if not found:
        return "Nothing was measured: no held-out captions and no labelled pictures were given."
    return table(("measure", "last step"), [(escape(name), f"{value:.3f}") for name, value in found.items()])
