"""check-model and card check: a good folder passes, and each fault is named with its file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_ext import cli, embedded_model
from diffusers_ext.commands._model_check import check_model
from diffusers_ext.errors import InputError
from diffusers_ext.publish.cards.check import card_problems
from diffusers_ext.publish.cards.parts import published

CARD = """---
library_name: diffusers
license: apache-2.0
tags: [controlnet]
---
# A model

![picture](samples.png)

## Use

```python
print("hello")
```

## Limits

None known.
"""


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(embedded_model(), tmp_path / "model"))


def weights(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def test_a_whole_model_is_said_to_be_whole(model, capsys):
    cli.main(
        ["check-model", str(model), "--draw", str(model / "drawn.png"), "--prompt", "red circle with blue background"]
    )
    said = capsys.readouterr().out
    assert "unet: UNet2DConditionModel, 3.0 M weights" in said and "whole" in said
    assert (model / "drawn.png").is_file()


def cut(folder):
    weights(folder / "unet").write_bytes(weights(folder / "unet").read_bytes()[:-1000])


def gone(folder):
    shutil.rmtree(folder / "vae")


def without_a_weight(folder):
    state = load_file(weights(folder / "unet"))
    del state["conv_in.weight"]
    save_file(state, weights(folder / "unet"), {"format": "pt"})


def not_finite(folder):
    state = load_file(weights(folder / "vae"))
    state["encoder.conv_in.weight"][0] = torch.nan
    save_file(state, weights(folder / "vae"), {"format": "pt"})


def another_shape(folder):
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))


def broken_index(folder):
    (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "unet"),
        (gone, "vae: missing; download"),
        (without_a_weight, "unet: 1 weights are missing, such as conv_in.weight"),
        (not_finite, "vae: 1 weights are not finite, such as encoder.conv_in.weight"),
        (another_shape, "unet"),
        (broken_index, "not JSON"),
    ],
)
def test_each_fault_is_named(model, spoil, words):
    spoil(model)
    with pytest.raises(InputError, match=words):
        check_model(str(model))


def test_rewards_and_official_checkpoints_are_checked(shared, tmp_path):
    check_model("fill50k:soft")
    with pytest.raises(InputError, match="no such folder"):
        check_model(str(tmp_path / "nothing"))
    torch.save({"wrong": torch.zeros(1)}, tmp_path / "ImageReward.pt")
    with pytest.raises(InputError, match=r"wrong|missing"):
        check_model(str(tmp_path / "ImageReward.pt"))


def test_a_good_card_passes(tmp_path, capsys):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "samples.png").write_bytes(b"")
    cli.main(["card", "check", str(tmp_path)])
    assert "in order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("license: apache-2.0\n", ""), "license is missing"),
        (("license: apache-2.0", "license: other"), "license_name"),
        (("[controlnet]", "[a, 3]"), "tags must be texts"),
        (("tags:", "base_model_relation: cousin\ntags:"), "'cousin'"),
        (("tags:", "base_model: /home/me/sd\ntags:"), "path of this machine"),
        (("None known.", "TODO"), "'TODO' is left"),
        (("None known.", "Trained on /home/me/data."), "/home/me/data"),
        (("## Limits", "## Ends"), "no section 'Limits'"),
        (('print("hello")', "print("), "does not parse"),
        (("None known.", "In code, `<script>`, it is well. <script>1</script>"), "'<script' would run"),
        (("None known.", '<img src="x" onerror="a()">'), "would run"),
        (("None known.", "[x](javascript:a())"), "would run"),
        (("samples.png", "../samples.png"), "outside the folder"),
        (("samples.png", "other.png"), "other.png is not there"),
        (("tags: [controlnet]", "tags: ["), "metadata cannot be read"),
    ],
)
def test_each_fault_of_a_card_is_named(tmp_path, change, words):
    (tmp_path / "README.md").write_text(CARD.replace(*change))
    (tmp_path / "samples.png").write_bytes(b"")
    assert any(words in problem for problem in card_problems(tmp_path)), card_problems(tmp_path)


def test_nothing_is_published_with_a_faulty_card(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["push", str(tmp_path)])
    assert "README.md: missing" in capsys.readouterr().err


def test_a_training_is_started_by_its_name(capfd):
    cli.main(["train"])
    assert "trainings: " in capfd.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "dance"])
    assert "name a training" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "train.py --data /home/me/pictures --reward clip:ViT-B-32/openai",
            "train.py --data pictures --reward clip:ViT-B-32/openai",
        ),
        ("train.py --data=/home/me/pictures/ --rate 1e-3", "train.py --data=pictures/ --rate 1e-3"),
        (
            "train.py --data data/pictures --model owner/name ~/x/y",
            "train.py --data data/pictures --model owner/name y",
        ),
        ("train.py --d '/a b/c' https://host/x/y", "train.py --d '/a b/c' https://host/x/y"),
    ],
)
def test_a_card_shows_no_path_of_this_machine(command, shown):
    assert published(command) == shown
