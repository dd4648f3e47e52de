"""training/train_incremental.py: a stream of labelled pictures, resumed after any session, on one process and on two."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "training" / "train_incremental.py"))
Options, main = SCRIPT["Options"], SCRIPT["main"]
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220), "grey": (128, 128, 128)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four colours in two domains, plain and striped, 8 pictures of each, and a tiny timm backbone."""
    import timm

    folder = tmp_path_factory.mktemp("labelled")
    draw = np.random.default_rng(0)
    for domain in ("plain", "striped"):
        for name, colour in COLOURS.items():
            (folder / "pictures" / domain / name).mkdir(parents=True)
            for number in range(8):
                pixels = np.clip(np.array(colour) + draw.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                if domain == "striped":
                    pixels[::4] = 255
                Image.fromarray(pixels).save(folder / "pictures" / domain / name / f"{number}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", pretrained=False)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


def arguments(data, output, *more) -> list[str]:
    backbone = f"timm:test_efficientnet@{data / 'weights.safetensors'},size=32,crop_pct=1"
    given = [
        "--data",
        data / "pictures",
        "--backbone",
        backbone,
        "--groups",
        2,
        "--memory",
        12,
        "--projections",
        64,
        "--output_dir",
        output,
    ]
    return [str(each) for each in [*given, "--encoder_cache_dir", data / "cache", *more]]


@pytest.fixture(scope="module")
def finished(data, launch):
    launch("training/train_incremental.py", *arguments(data, data / "run"), real=True)
    return data / "run"


def test_the_run_folder_explains_itself(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["accuracy"] > 60
    protocol = json.loads((finished / "protocol.json").read_text())
    assert len(protocol["sessions"]) == 4 and sum(map(len, protocol["sessions"])) == 8
    for name in ("accuracy.png", "components.png", "samples/components.png", "options.json"):
        assert (finished / name).stat().st_size > 100
    card = (finished / "README.md").read_text()
    assert all(f"| {name}" in card for name in ("**vMF mixture**", "streaming LDA", "ridge", "kNN on memory"))
    assert "reproduces" not in card
    assert sorted(path.name for path in finished.glob("session-*")) == ["session-3", "session-4"]
    assert set(VMFMixtureClassifier.from_pretrained(finished).classes_) == set(COLOURS)


def test_going_on_after_a_session_equals_never_having_stopped(data, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for name in ("session-4", "samples"):
        shutil.rmtree(tmp_path / "run" / name)
    for name in ("config.json", "diffusion_pytorch_model.safetensors", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "session-4").mkdir()  # of a kill: no manifest
    main(parse(Options, arguments(data, tmp_path / "run", "--resume_from_checkpoint", "latest")))
    same(finished, tmp_path / "run")
    rows = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) for folder in (finished, tmp_path / "run")
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"] and rows[0]["components"] == rows[1]["components"]


def same(first, second) -> None:
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.launch
def test_two_processes_learn_what_one_does(data, finished, tmp_path, launch):
    """Check 19: ranks share the encoding, and end with one process's statistics and labels."""
    launch(
        "training/train_incremental.py", *arguments(data, tmp_path / "run", "--no-baselines"), processes=2, real=True
    )
    same(finished, tmp_path / "run")


def test_a_dry_run_writes_nothing(data, tmp_path, capsys):
    main(parse(Options, arguments(data, tmp_path / "run", "--dry_run", "--setting", "NC")))
    text = capsys.readouterr().out
    assert "64 pictures" in text and "4 classes, 2 domains" in text and not (tmp_path / "run").exists()


def test_mistakes_are_named(data, tmp_path):
    for wrong, message in (
        (("--data", "nowhere"), "no such folder"),
        (("--domains", "plain=x"), "either --data"),
        (("--groups", "9"), "groups must lie in 1 to 4"),
        (("--test_fraction", "1.5"), "--test_fraction"),
    ):
        with pytest.raises(InputError, match=message):
            main(parse(Options, [*arguments(data, tmp_path / "run"), *wrong]))
    options = parse(Options, ["--domains", f"plain={data / 'pictures' / 'plain'}", "striped", "--backbone", "x"])
    with pytest.raises(InputError, match="write name=folder"):
        main(options)


def test_domains_arrive_in_the_order_given(data, tmp_path, capsys):
    folders = [f"{name}={data / 'pictures' / name}" for name in ("striped", "plain")]
    given = [
        "--domains",
        *folders,
        "--setting",
        "ND",
        "--backbone",
        "timm:x",
        "--dry_run",
        "--output_dir",
        str(tmp_path),
    ]
    main(parse(Options, given))
    text = capsys.readouterr().out
    assert text.index("in striped") < text.index("in plain")
