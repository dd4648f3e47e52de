"""Files made to do harm: pickles that run code, names that leave their folder, pictures that fill the memory, words that are markup."""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ext.data.labelled import read_labelled
from diffusers_ext.data.preflight import check
from diffusers_ext.data.rows import read_rows
from diffusers_ext.diffusion.files import BaseFiles
from diffusers_ext.embeddings.backbones import features, load_backbone
from diffusers_ext.engine import checkpoints
from diffusers_ext.errors import InputError
from diffusers_ext.preferences.checks import check_images
from diffusers_ext.preferences.formats import read_rankings
from diffusers_ext.rewards.loading import load_reward

# ---------------------------------------------------------------- pickles


class Poison:
    """Whoever unpickles it writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def poison(folder: Path, name: str, marker: Path) -> Path:
    """Put a pickle in the place of all weights of a folder."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()
    torch.save({"weight": torch.ones(2), "state_dict": Poison(marker)}, folder / name)
    return folder


def base_model(made, marker):
    poison(made["base"] / "unet", "diffusion_pytorch_model.bin", marker)
    return lambda: BaseFiles.find(str(made["base"])).load()


def text_encoder(made, marker):
    poison(made["base"] / "text_encoder", "pytorch_model.bin", marker)
    return lambda: BaseFiles.find(str(made["base"])).load()


def reward(made, marker):
    folder = poison(made["reward"], "pytorch_model.bin", marker)
    return lambda: load_reward(str(folder))


def open_clip(made, marker):
    folder = poison(made["clip"], "open_clip_pytorch_model.bin", marker)
    return lambda: load_backbone(str(folder))


def timm(made, marker):
    folder = poison(made["timm"], "pytorch_model.bin", marker)
    config = {"architecture": "test_efficientnet", "pretrained_cfg": {"input_size": [3, 32, 32]}, "num_classes": 1000}
    (folder / "config.json").write_text(json.dumps(config))
    return lambda: load_backbone(f"timm:{folder}")


def image_reward_checkpoint(made, marker):
    from diffusers_ext import ImageRewardModel

    torch.save({"module.mlp.layers.0.weight": torch.ones(2), "x": Poison(marker)}, made["reward"] / "ImageReward.pt")
    return lambda: ImageRewardModel.from_official_checkpoint(made["reward"] / "ImageReward.pt")


def aesthetic_head(made, marker):
    torch.save({"weight": Poison(marker)}, made["reward"] / "head.pth")
    return lambda: load_reward(f"aesthetic:{made['clip']},{made['reward'] / 'head.pth'}")


@pytest.fixture
def made(trainings, untrained, tmp_path) -> dict[str, Path]:
    """Copies of the models of the trainings, by kind."""
    words = trainings["lads"].words
    models = Path(words[words.index("--backbone") + 1]).parent
    folders = {name: models / name for name in ("reward", "clip", "timm")} | {"base": untrained}
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}


PLACES = [base_model, text_encoder, reward, open_clip, timm, image_reward_checkpoint, aesthetic_head]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_pickle_in_the_place_of_weights_is_not_run(place, made, tmp_path):
    load = place(made, tmp_path / "executed")
    with pytest.raises(Exception):  # noqa: B017, each library has its own; InputError where this one reads
        load()
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_somebody_else_sealed_runs_no_code(trainings, undisturbed, start, tmp_path):
    """Its manifest agrees, and its optimiser, schedule and random states are pickles."""
    work = shutil.copytree(undisturbed("reward_model").work, tmp_path / "work")
    checkpoint = work / "run" / "checkpoint-6"
    poisoned = [path for path in checkpoint.iterdir() if path.suffix in (".bin", ".pkl", ".pt")]
    assert len(poisoned) >= 2
    for path in poisoned:
        torch.save({"state": Poison(tmp_path / f"executed-{path.name}")}, path)
    (checkpoint / checkpoints.MANIFEST).unlink()
    checkpoints.seal(checkpoint, 6)
    done = start(trainings["reward_model"], work).wait()
    assert done.returncode != 0 and not list(tmp_path.glob("executed-*")), done.stderr[-2000:]


# ---------------------------------------------------------------- names


def picture(path: Path, *size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size or (16, 16), 60).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("name", ["../secret.png", "/{root}/secret.png", "a/../../secret.png", "./../data2/secret.png"])
def test_metadata_name_no_file_outside_their_folder(name, tmp_path):
    for place in ("secret.png", "data2/secret.png", "data/a/0.png"):
        picture(tmp_path / place)
    name = name.replace("/{root}", str(tmp_path))
    for row in ({"file_name": name}, {"file_name": "a/0.png", "conditioning_image_file_name": name}):
        line = json.dumps({"conditioning_image_file_name": "a/0.png", "text": "x", "label": "y", **row})
        (tmp_path / "data" / "metadata.jsonl").write_text(line)
        with pytest.raises(InputError, match="lies outside"):
            read_rows(str(tmp_path / "data"))
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": name, "label": "y"}))
    with pytest.raises(InputError, match="lies outside"):
        read_labelled(str(tmp_path / "data"))


def test_an_archive_writes_and_opens_nothing_outside_itself(tmp_path):
    """Members are read where they lie: names that climb are names, and a link that leaves the archive is refused by name."""
    picture(tmp_path / "secret.png")
    place = tmp_path / "deep" / "shards"
    place.mkdir(parents=True)
    noise = picture(tmp_path / "one.png").read_bytes()
    with tarfile.open(place / "0.tar", "w") as archive:
        for name in ("../../climbed.png", "../../climbed.cond.png", "/tmp/absolute-of-faults.png"):
            member = tarfile.TarInfo(name)
            member.size = len(noise)
            archive.addfile(member, io.BytesIO(noise))
    with tarfile.open(tmp_path / "leaves.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "secret.png"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"leaves\.tar: link\.png is a link to secret\.png"):
        read_rows(str(tmp_path / "leaves.tar"))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    rows = read_rows(str(place))
    assert [row.image.name for row in rows] == ["../../climbed.png"]
    with rows[0].image.open("rb") as file:
        assert file.read() == noise
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == {place / "0.tar.index.json"}
    assert not Path("/tmp/absolute-of-faults.png").exists()


# ---------------------------------------------------------------- pictures that fill the memory


def png_of(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def npy_of(*shape: int) -> bytes:
    """An array of no values that says it has so many."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(("role", "bytes_of"), [("image", png_of), ("condition", png_of), ("condition", npy_of)])
def test_a_bomb_is_named_before_training(role, bytes_of, tmp_path):
    names = {"image": "image.png", "condition": "condition" + (".npy" if bytes_of is npy_of else ".png")}
    for name in ("image.png", "condition.png"):
        picture(tmp_path / name)
    (tmp_path / names[role]).write_bytes(bytes_of(60_000, 60_000))
    row = {"file_name": names["image"], "conditioning_image_file_name": names["condition"], "text": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    rows = read_rows(str(tmp_path))
    rows.orphans = []
    with pytest.raises(InputError, match=f"{names[role]}: (decompression bomb|cannot be read)"):
        check(rows)


def test_bombs_among_labelled_and_ranked_pictures_are_named(made, tmp_path):
    picture(tmp_path / "data/a/0.png")
    (tmp_path / "data" / "a" / "bomb.png").write_bytes(png_of(60_000, 60_000))
    with pytest.raises(InputError, match=r"bomb\.png: cannot be read"):
        features(load_backbone(str(made["clip"])), read_labelled(str(tmp_path / "data")).files, tmp_path / "cache")
    line = {"id": "0", "prompt": "x", "images": ["data/a/0.png", "data/a/bomb.png"]}
    line["rankings"] = [{"annotator": "me", "ranking": [1, 2]}]
    (tmp_path / "rankings.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=r"bomb\.png"):
        check_images(read_rankings(str(tmp_path / "rankings.jsonl")))


# ---------------------------------------------------------------- words that are markup

WICKED = ("<script>alert(1)</script>", "![x](https:⁄⁄evil.example⁄x.png)", "a|b`c`", "--- license: evil", "[click](x)")


def test_class_names_that_are_markup_stay_words_on_a_card(trainings, start, tmp_path):
    """Folders of anybody's data set become classes and domains, and these stand on the card."""
    import yaml

    from diffusers_ext.publish.cards.check import card_problems
    from diffusers_ext.publish.cards.markdown import split_code

    words = trainings["lads"].words
    squares, data = Path(words[words.index("--train_data_dir") + 1]), tmp_path / "data"
    for domain, other in (("plain", "plain"), ("dark", "</td><script>x</script>")):
        for name, wicked in zip(("red", "green", "blue"), WICKED):
            shutil.copytree(squares / domain / name, data / other.replace("/", "⁄") / wicked.replace("/", "⁄"))
    done = start(trainings["lads"], tmp_path, "--train_data_dir", data).wait()
    run = tmp_path / "run"
    assert (run / "README.md").exists(), done.stderr[-3000:]
    assert not card_problems(run)
    _, metadata, text = (run / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(metadata)["license"] == "other"
    prose, _ = split_code(text)
    assert "<script" not in prose and "![x](https" not in prose and "a|b" not in prose
    assert "script" in prose and "evil.example" in prose  # shown, as words
