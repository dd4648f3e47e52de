"""training/train_incremental.py: a stream of labelled pictures, resumed after any session, on one process and on two."""

import json
import runpy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.data.labelled import read_labelled
from diffusers_ext.embeddings.backbones import load_backbone
from diffusers_ext.engine import checkpoints
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "training" / "train_incremental.py"))
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
    for name, file in (("test_efficientnet", "weights"), ("test_convnext", "learns")):
        save_file(timm.create_model(name, pretrained=False).state_dict(), folder / f"{file}.safetensors")
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
    launch("training/train_incremental.py", *arguments(data, data / "run"))
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


@pytest.mark.parametrize("more", [("--setting", "NC"), ("--k_new", "2"), ("--label_column", "kind"), ("--seed", "1")])
def test_a_stream_does_not_go_on_as_another(data, finished, tmp_path, more):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(InputError, match="session-4: of other data or options"):
        main(parse(Options, arguments(data, tmp_path / "run", "--resume_from_checkpoint", "latest", *more)))
    assert (tmp_path / "run/protocol.json").read_bytes() == (finished / "protocol.json").read_bytes()


def same(first, second) -> None:
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def trainable(data, output, *more) -> list[str]:
    """Two sessions of new classes, for a backbone that learns; ConvNeXt has no batch normalisation."""
    given = ["--data", data / "pictures", "--setting", "NC", "--groups", 2, "--memory", 12, "--no-baselines"]
    given += [
        "--backbone",
        f"timm:test_convnext@{data / 'learns.safetensors'},size=32,crop_pct=1",
        "--regime",
        "trainable",
    ]
    given += ["--num_train_epochs", 2, "--train_batch_size", 8, "--learning_rate", 1e-3, "--regulariser", 0]
    return [str(each) for each in [*given, "--output_dir", output, *more]]


@pytest.fixture(scope="module")
def trained(data):
    torch.set_num_threads(1)
    main(parse(Options, trainable(data, data / "trained")))
    return data / "trained"


def test_a_backbone_learns_with_its_mixture(data, trained):
    """The run folder is a classifier and its backbone; the memory is a list of files, balanced, and only in the sessions' folders."""
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (trained / "training/session-2/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and {"classification", "distillation", "loss"} <= set(steps[0])
    memory = json.loads((trained / "session-2" / "memory.json").read_text())
    counts = Counter(Path(file).parent.name for file in memory["files"])
    assert counts == dict.fromkeys(COLOURS, 3) and not (trained / "memory.json").exists()
    backbone = load_backbone(f"timm:{trained / 'backbone'}")
    before = load_backbone(f"timm:test_convnext@{data / 'learns.safetensors'},size=32,crop_pct=1")
    classifier = VMFMixtureClassifier.from_pretrained(trained)
    table = read_labelled(data / "pictures")
    embedded = backbone.embed_images(table.files)
    assert (embedded - before.embed_images(table.files)).abs().max() > 1e-3
    answers = classifier.predict(embedded)
    assert np.mean(answers == np.array([sample.label for sample in table.samples])) > 0.7
    assert "which learnt with them" in (trained / "README.md").read_text()


def test_a_memory_may_be_balanced_over_classes_alone(data, trained, tmp_path):
    main(parse(Options, trainable(data, tmp_path / "run", "--memory_balance", "classes")))
    alone, both = (
        json.loads((folder / "session-2/memory.json").read_text())["files"] for folder in (tmp_path / "run", trained)
    )
    assert Counter(Path(file).parent.name for file in alone) == dict.fromkeys(COLOURS, 3) and set(alone) != set(both)


def test_training_goes_on_inside_a_session(data, trained, tmp_path):
    """Killed after a checkpoint in the middle of session 2: the same weights and statistics, bit for bit."""
    whole = trainable(data, tmp_path / "whole", "--checkpointing_steps", "3")
    with pytest.raises(KeyboardInterrupt):
        main_until(parse(Options, whole), "session-2", 3)
    main(parse(Options, [*whole, "--resume_from_checkpoint", "latest"]))
    same(trained, tmp_path / "whole")
    assert (
        same_file(trained / "backbone" / "model.safetensors", tmp_path / "whole" / "backbone" / "model.safetensors")
        == 0
    )


def main_until(options, session: str, step: int) -> None:
    """Run until a checkpoint of that session and step is whole, then interrupt as a user does."""
    save = checkpoints.save

    def interrupt(accelerator, output_dir, done, limit):
        save(accelerator, output_dir, done, limit)
        if (output_dir.name, done) == (session, step):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", interrupt)
        main(options)


def same_file(first, second) -> float:
    """The largest difference of two files of tensors, beside 1 + the size of the number."""
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    pairs = [(value.double(), theirs[name].double()) for name, value in ours.items() if value.numel()]
    return max(float(((one - other).abs() / (1 + one.abs())).max()) for one, other in pairs)


@pytest.mark.launch
def test_two_processes_train_what_one_does(data, trained, tmp_path, launch):
    """Gradients are averaged and sums added over ranks, half the batch on each: weights to 1e-3, the mixture's sums to 1e-2."""
    launch(
        "training/train_incremental.py",
        *trainable(data, tmp_path / "run", "--train_batch_size", "4"),
        processes=2,
    )
    for name, tolerance in (("backbone/model", 1e-3), ("diffusion_pytorch_model", 1e-2)):
        assert same_file(trained / f"{name}.safetensors", tmp_path / "run" / f"{name}.safetensors") < tolerance


@pytest.mark.parametrize("more", [("--lora_rank", "2"), ("--head", "linear")])
def test_adapters_and_a_linear_layer_learn_too(data, tmp_path, more):
    given = ("--num_train_epochs", "1", "--train_batch_size", "32", *more)
    main(parse(Options, trainable(data, tmp_path / "run", *given)))
    before = load_file(data / "learns.safetensors")
    after = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    convolved = {name for name in after if ".conv_dw." in name}
    assert moved and (moved.isdisjoint(convolved) == (more[0] == "--lora_rank"))


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
        (("--regime", "trainable", "--backbone", "ViT-B-32/x"), "it must be timm's"),
        (("--regime", "trainable", "--head", "lda"), "the trainable regime has mixture, linear"),
        (("--head", "linear"), "the frozen regime has mixture, lda"),
        (("--data_format", "digits"), "takes --domains"),
        (("--lora_rank", "4"), "--lora_rank is for --regime trainable; frozen would ignore it"),
        (("--adam_beta1", "0.8"), "--adam_beta1 is for --regime trainable"),
        (("--regime", "trainable", "--jury", "20"), "--jury is for --regime frozen"),
    ):
        with pytest.raises(InputError, match=message):
            main(parse(Options, [*arguments(data, tmp_path / "run"), *wrong]))
    options = parse(Options, ["--domains", f"plain={data / 'pictures' / 'plain'}", "striped", "--backbone", "x"])
    with pytest.raises(InputError, match="write name=folder"):
        main(options)


def test_a_domain_without_a_test_half_gets_one(data, tmp_path):
    """Of two folders one names its test pictures."""
    shutil.copytree(data / "pictures" / "plain", tmp_path / "plain" / "train")
    shutil.copytree(data / "pictures" / "striped", tmp_path / "striped")
    for name in COLOURS:
        (tmp_path / "plain" / "test" / name).mkdir(parents=True)
        (tmp_path / "plain" / "train" / name / "0.png").rename(tmp_path / "plain" / "test" / name / "0.png")
    folders = [f"{name}={tmp_path / name}" for name in ("plain", "striped")]
    table, test = SCRIPT["read_data"](parse(Options, ["--domains", *folders]))
    found = Counter((table.domains[table.domain_index[at]], table.label_index[at]) for at in test.nonzero()[0])
    assert [found["plain", label] for label in range(4)] == [1] * 4
    assert [found["striped", label] for label in range(4)] == [2] * 4


def test_streams_that_cannot_be_measured_are_refused(data, tmp_path):
    given = ["--backbone", "timm:x", "--groups", "2", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"the first session \(.*\) has no picture to test on"):
        main(parse(Options, ["--data", str(data / "pictures"), "--test_fraction", "0.01", *given]))
    picture = str(data / "pictures/plain/red/0.png")
    rows = [{"file_name": picture, "label": label, "domain": "inside"} for label in ("red", "green")]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="its table names other domains"):
        main(parse(Options, ["--domains", f"photo={tmp_path / 'named.jsonl'}", "--test_fraction", "0.5", *given]))


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
