"""Captioned and labelled pictures of the shared assets, as training/train_image_text.py reads them.

    python examples/image_text_data.py --assets ../shared/assets/data --output_dir data/image-text

unpacks the zips and writes tables beside them. To learn from: flickr8k-train, imagenet and emoji-train.jsonl. Held out:
flickr8k-test.jsonl and emoji-test.jsonl, the latter every tenth emoji in all its drawing styles. To classify by name:
pacs.jsonl, of which nothing is trained on, cifar10.jsonl and emoji-test.jsonl.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext import randomness
from diffusers_ext.errors import InputError
from diffusers_ext.options import option, run

PHOTO = ["a photo of a {}", "a picture of the {}"]
STYLES = {  # what the drawing styles are called beside the assets' own captions
    "noto": "a cartoon of {}",
    "twemoji": "clip art of {}",
    "openmoji-color": "a comic drawing of {}",
    "openmoji-lineart": "a sketch of {}",
    "fluent-3d": "a 3D model of {}",
    "fluent-flat": "a flat illustration of {}",
    "fluent-contrast": "a silhouette of {}",
}
HELD_OUT = 0.1  # share of the emoji


@dataclass
class Options:
    assets: str = option("../shared/assets/data", "the folder of the zips")
    output_dir: str = option("data/image-text", "the folder to write")


def main(options: Options) -> None:
    assets, output = Path(options.assets), Path(options.output_dir)
    if not (assets / "pacs128.zip").is_file():
        raise InputError(f"--assets {assets}: no pacs128.zip; the shared assets are not part of this repository")
    flickr = unpack(assets / "flickr8k_1k.zip", output / "flickr8k")
    emoji = unpack(assets / "emoji7x1562_64.zip", output / "emoji")
    cifar = unpack(assets / "cifar10_6k.zip", output / "cifar10")
    tables = {
        "flickr8k-train": [flickr_row(row) for row in flickr if row["split"] != "test"],
        "flickr8k-test": [flickr_row(row) for row in flickr if row["split"] == "test"],
        "imagenet": [imagenet_row(row) for row in unpack(assets / "imagenet_sample160.zip", output / "imagenet")],
        "emoji-train": [emoji_row(row) for row in emoji if not held_out(row)],
        "emoji-test": [emoji_row(row) for row in emoji if held_out(row)],
        "pacs": unpack(assets / "pacs128.zip", output / "pacs"),
        "cifar10": [row for row in cifar if row["split"] == "test"],
    }
    for name, rows in tables.items():
        (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{output / name}.jsonl: {len(rows):,} pictures")


def unpack(archive: Path, folder: Path) -> list[dict]:
    """Unpack a zip of the assets and return its rows, files named from the folder above."""
    with zipfile.ZipFile(archive) as opened:
        if not folder.exists():
            opened.extractall(folder)
        rows = [json.loads(line) for line in opened.read("metadata.jsonl").splitlines()]
    return [row | {"file_name": f"{folder.name}/{row['file_name']}"} for row in rows]


def flickr_row(row: dict) -> dict:
    return {"file_name": row["file_name"], "text": row["captions"]}


def imagenet_row(row: dict) -> dict:
    return {"file_name": row["file_name"], "text": [form.format(row["label"]) for form in PHOTO]}


def emoji_row(row: dict) -> dict:
    captions = [row["text"], STYLES[row["domain"]].format(row["name"]), row["name"]]
    return {"file_name": row["file_name"], "text": captions, "label": row["name"], "domain": row["domain"]}


def held_out(row: dict) -> bool:
    """Say whether an emoji is held out, in all styles alike."""
    return randomness.uniform(0, "held-out emoji", (int(row["codepoint"].split("-")[0], 16), 0)) < HELD_OUT


if __name__ == "__main__":
    run(main, Options)
