"""training/train_lads.py and `diffusers-ext classify`: from pictures to a classifier that loads in another process."""

import json
import runpy
import shutil
from pathlib import Path

import fresh_processes
import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_ext
from diffusers_ext import cli
from diffusers_ext.errors import InputError
from diffusers_ext.options import parse
from diffusers_ext.publish.cards.check import card_problems
from diffusers_ext.publish.loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "training" / "train_lads.py"
PRESET = ["--config", str(ROOT / "training" / "presets" / "lads_balanced.json")]
pytestmark = pytest.mark.launch
DOMAINS = {
    "source": ["a photo of a {}"],
    "targets": {"dark": ["a dark photo of a {}"], "drawing": ["a drawing of a {}"]},
}
SWAP = {"swap": {"plain": ["a bright photo of a {}"], "dark": ["a dark photo of a {}"]}}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A tiny open_clip model with random weights."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "clip"
    folder.mkdir()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    mean_std = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": mean_std}))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Red, green and blue squares, plain and darkened: domain/class/file."""
    root, draw = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0)
    for domain, light in (("plain", 255), ("dark", 110)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / domain / name).mkdir(parents=True)
            for number in range(20):
                pixels = draw.integers(0, light // 3, (16, 16, 3))
                pixels[..., channel] += light // 2
                Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{number}.png")
    return root


def arguments(pictures: Path, backbone: Path, output: Path, *more) -> list[str]:
    settings = {
        "--train_data_dir": pictures,
        "--source_domain": "plain",
        "--domains": json.dumps(DOMAINS),
        "--backbone": backbone,
        "--output_dir": output,
        "--hidden_dim": 8,
        "--num_train_epochs": 4,
        "--probe_epochs": 6,
        "--train_batch_size": 16,
        "--probe_learning_rate": 0.05,
        "--runs": 2,
    }
    return [*(str(word) for pair in settings.items() for word in pair), *map(str, more)]


def between_two(words: list[str]) -> list[str]:
    """The same in the bias setting."""
    at = words.index("--source_domain")
    return [*words[:at], *words[at + 2 :], "--domains", json.dumps(SWAP)]


def call(*words: str) -> None:
    script = runpy.run_path(str(SCRIPT))
    script["main"](parse(script["Options"], list(words)))


@pytest.fixture(scope="module")
def run(launch, pictures, backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "lads"
    launch(SCRIPT, *arguments(pictures, backbone, folder, "--few_images", 5))
    return folder


def test_a_run_explains_itself(run):
    results = json.loads((run / "results.json").read_text())
    assert {"LADS", "linear probe", "WiSE", "probe + few images", "zero-shot, generic"} <= set(results["accuracy"])
    assert all(len(each) == 2 for method in results["accuracy"].values() for each in method.values())
    assert set(results["diagnostics"]) == {"dark", "drawing"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["stage"] == "networks" for row in rows) == 4 and sum(row["stage"] == "probe" for row in rows) == 6
    assert list((run / "samples").glob("*.png"))
    text = (run / "README.md").read_text()
    assert not card_problems(run)
    assert "| LADS |" in text and "zero-shot, adaptive" in text and "plain" not in text.split("```json")[0]


def test_the_classifier_loads_in_a_fresh_process(run, pictures, fresh):
    model = diffusers_ext.LADSClassifier.from_pretrained(run)
    files = sorted(pictures.glob("dark/*/0.png"))
    _, probabilities, domains = model.predict(files)
    assert probabilities.shape == (3, 3) and set(domains) <= {"source", "dark", "drawing"}
    code = (
        "import sys, diffusers_ext; model = diffusers_ext.LADSClassifier.from_pretrained(sys.argv[1]);"
        "print(model.predict(sys.argv[2:]).probabilities.tolist())"
    )
    np.testing.assert_allclose(json.loads(fresh(code, run, *files).stdout), probabilities, atol=1e-6)
    assert torch.equal(model.predict(model.embed(files)).probabilities, probabilities), "embeddings serve as well"
    assert model.augment(files).shape == (2, 3, 16)
    by_text = model.predict(files, head="zero_shot").probabilities
    mixed = model.predict(files, head="ensemble", share=0.25).probabilities
    np.testing.assert_allclose(mixed, 0.25 * probabilities + 0.75 * by_text, atol=1e-6)


def test_one_picture_in_any_form(run, pictures):
    model = diffusers_ext.LADSClassifier.from_pretrained(run)
    file = sorted(pictures.glob("dark/*/0.png"))[0]
    pixels = np.array(Image.open(file))
    tensor, batch = torch.from_numpy(pixels).permute(2, 0, 1), np.stack([pixels, pixels])
    expected = model.predict(file).probabilities
    for form in (Image.open(file), tensor, tensor / 255, [tensor], pixels, pixels / np.float32(255), [pixels]):
        torch.testing.assert_close(model.predict(form).probabilities, expected)
    torch.testing.assert_close(model.predict(batch).probabilities, expected.expand(2, -1))
    with pytest.raises(InputError, match=r"expected an array \(H, W, 3\)"):
        model.predict(pixels.transpose(2, 0, 1))


def test_mistakes_at_predict(run, pictures, tmp_path):
    model = diffusers_ext.LADSClassifier.from_pretrained(run)
    with pytest.raises(InputError, match="embeddings have 8 dimensions, this classifier 16"):
        model.predict(torch.ones(2, 8))
    with pytest.raises(InputError, match="embedding 1 is zero or not finite"):
        model.predict(torch.stack([torch.ones(16), torch.full((16,), torch.nan)]))
    with pytest.raises(InputError, match="choose from probe"):
        model.predict(torch.ones(2, 16), head="best")
    with pytest.raises(InputError, match="no images"):
        model.predict([])


def test_another_backbone_is_refused(run, backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    from diffusers_ext.embeddings.backbones import load_backbone

    other = tmp_path / "clip"
    shutil.copytree(backbone, other)
    weights = load_file(other / "open_clip_model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "open_clip_model.safetensors")
    model = diffusers_ext.LADSClassifier.from_pretrained(run)
    for dtype in (torch.float32, torch.float16):
        model.backbone = load_backbone(str(backbone), dtype=dtype)  # the same, in any precision
        with pytest.raises(InputError, match="not those that this classifier was trained on"):
            model.backbone = load_backbone(str(other), dtype=dtype)


def test_saving_again(run, tmp_path):
    model = diffusers_ext.LADSClassifier.from_pretrained(run)
    model.save_pretrained(tmp_path / "again")
    again = diffusers_ext.LADSClassifier.from_pretrained(tmp_path / "again")
    x = torch.randn(4, 16)
    assert torch.equal(again.predict(x).probabilities, model.predict(x).probabilities)
    assert "| LADS |" in (tmp_path / "again" / "README.md").read_text()


def test_pushed_it_loads_from_the_hub(run, pictures, tmp_path):
    """Two processes: one pushes the run to a Hub, another that knows its name alone classifies with it."""
    picture = sorted(pictures.glob("dark/*/0.png"))[0]
    load = "from diffusers_ext import LADSClassifier\nmodel = LADSClassifier.from_pretrained({!r})\n"
    predict = f"result = model.predict([{str(picture)!r}]).probabilities.tolist()"
    pieces = {
        "push": load.format(str(run)) + 'result = model.push_to_hub("me/lads")',
        "load": load.format("me/lads") + predict,
    }
    package = fresh_processes.installed(tmp_path / "site")
    with LoopbackHub(tmp_path / "hub") as hub:
        found, _ = fresh_processes.run(pieces, tmp_path, package, HF_ENDPOINT=hub.url, HF_TOKEN="hf_none")
        files = set(hub.files("me/lads"))
    assert files == {"config.json", "README.md", "diffusion_pytorch_model.safetensors"} and "me/lads" in found["push"]
    expected = diffusers_ext.LADSClassifier.from_pretrained(run).predict([picture]).probabilities
    np.testing.assert_allclose(found["load"], expected, atol=1e-6)


def test_resuming_is_exact(pictures, backbone, tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    common = ["--no-baselines", "--checkpointing_epochs", 2]
    call(*arguments(pictures, backbone, straight, *common))

    def stop_at(monkeypatch, name, epoch):
        from diffusers_ext.lads import fit as lads_fit

        save = lads_fit.Checkpoint.save

        def dying(self, fitted, *state):
            save(self, fitted, *state)
            if self.path.stem.startswith(name) and len(fitted.history) == epoch:
                raise KeyboardInterrupt

        monkeypatch.setattr(lads_fit.Checkpoint, "save", dying)

    for name, epoch in (("networks", 2), ("probe", 4)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, name, epoch)
            call(*arguments(pictures, backbone, cut, *common, "--resume_from_checkpoint", "latest"))
    harmless = ["--checkpointing_epochs", 3, "--encoder_cache_dir", tmp_path / "cache"]
    call(*arguments(pictures, backbone, cut, *common, "--resume_from_checkpoint", "latest", *harmless))
    for name in ("diffusion_pytorch_model.safetensors", "metrics.jsonl", "results.json"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes(), name
    words = json.dumps({**DOMAINS, "class_text": "{} alone"})
    for other in (["--alpha", 0.4], ["--seed", 1], ["--runs", 3], ["--domains", words]):
        with pytest.raises(InputError, match="of other data or options"):
            call(*arguments(pictures, backbone, cut, *common, "--resume_from_checkpoint", "latest", *other))


def test_two_processes_make_what_one_makes(launch, run, pictures, backbone, tmp_path):
    """Each rank trains its own domains: products of one network or two round otherwise, by 1e-6."""
    launch(SCRIPT, *arguments(pictures, backbone, tmp_path / "two", "--no-baselines"), processes=2)
    one, two = (diffusers_ext.LADSClassifier.from_pretrained(folder).state_dict() for folder in (run, tmp_path / "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-6, rtol=2e-5)


def test_the_bias_setting(backbone, tmp_path):
    """Parity decides the light in training; test digits break the rule."""
    root, draw = tmp_path / "biased", np.random.default_rng(0)
    rows = []
    (root / "images").mkdir(parents=True)
    for split, count in (("train", 16), ("val", 6), ("test", 8)):
        for label, channel in (("red", 0), ("blue", 2)):
            for number in range(count):
                domain = ("plain", "dark")[channel > 0] if split != "test" else ("plain", "dark")[number % 2]
                pixels = draw.integers(0, 40, (16, 16, 3))
                pixels[..., channel] += 60 if domain == "dark" else 160
                name = f"images/{split}-{label}-{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(root / name)
                rows.append({"file_name": name, "label": label, "domain": domain, "split": split})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(*between_two(arguments(root, backbone, tmp_path / "run", "--true_domains", "--neighbour_weight", 0.1)))
    accuracy = json.loads((tmp_path / "run" / "results.json").read_text())["accuracy"]
    assert "conflicting" in accuracy["LADS"] and "worst_group" in accuracy["LADS"]
    model = diffusers_ext.LADSClassifier.from_pretrained(tmp_path / "run")
    assert list(model.config.domain_names) == ["plain", "dark"] and model.config.networks == 1


def test_classify(run, pictures, tmp_path, capsys):
    cli.main(["classify", str(pictures), "--model", str(run), "--output", str(tmp_path / "out.jsonl"), "--top", "2"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 120 and all(len(row["top"]) == 2 for row in rows)
    printed = capsys.readouterr().out
    truth = [Path(row["image"]).parts[-3:-1] for row in rows]
    right = np.mean([row["label"] == label for row, (domain, label) in zip(rows, truth) if domain == "dark"])
    assert f"dark: {100 * right:.2f} % of 60 right" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--backbone", "nowhere"], "nowhere: open_clip cannot load it"),
        (["--domains", '{"source": ["a photo"], "targets": {"x": ["a {}"]}}'], "must be text with one {}"),
        (
            ["--domains", '{"source": ["a {}"], "targets": ["a drawing of a {}", "a {} painted"]}'],
            "must name each domain",
        ),
        (["--domains", '{"source": ["a {}"], "targets": {"x": []}}'], "domain 'x' has no template"),
        (["--source_domain", "noon"], "the data have dark, plain"),
        (["--alpha", "1.5"], "--alpha must lie in 0 to 1"),
        (["--runs", "0"], "--runs must be at least 1"),
        (["--original_share", "0"], "--original_share must lie above 0"),
        (["--few_images", "-1"], "--few_images must be at least 0"),
        (["--image_directions"], "none of 'drawing'"),
        (["--few_images", "60"], "domain 'dark' has 60 images"),
        (["--true_domains"], "targets would ignore it"),
        (["--mnist_cut", "3", "2", "1"], "labelled would ignore it"),
        (["--domains", json.dumps(SWAP)], "--source_domain is for --domains targets; swap would ignore it"),
    ],
)
def test_mistakes_surface_before_anything_is_written(pictures, backbone, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        call(*arguments(pictures, backbone, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--few_images", "5"], "--few_images is for --domains targets; swap would ignore it"),
        (["--domain_class_text"], "--domain_class_text is for --domains targets"),
        (["--true_domains"], "the data have dark, noon, plain, --domains plain, dark; name the same"),
    ],
)
def test_mistakes_in_the_bias_setting(pictures, backbone, tmp_path, more, message):
    shutil.copytree(pictures, tmp_path / "data")
    shutil.copytree(pictures / "dark", tmp_path / "data" / "noon")
    with pytest.raises(InputError, match=message):
        call(*between_two(arguments(tmp_path / "data", backbone, tmp_path / "run", *more)))
    assert not (tmp_path / "run").exists()


def test_a_class_without_training_images_is_named(pictures, backbone, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "plain" / "green")
    with pytest.raises(InputError, match="class 'green' has no training image"):
        call(*arguments(tmp_path / "data", backbone, tmp_path / "run"))


def test_an_option_of_ones_own_wins_over_the_preset():
    """Even where it is the default."""
    options = runpy.run_path(str(SCRIPT))["Options"]
    preset, own = parse(options, PRESET), parse(options, [*PRESET, "--no-without_gap"])
    assert preset.without_gap and preset.original_share == own.original_share == 0.5 and not own.without_gap


def test_a_dry_run_says_what_it_would_do(pictures, backbone, tmp_path, capsys):
    call(*arguments(pictures, backbone, tmp_path / "run", "--dry_run", *PRESET))
    printed = capsys.readouterr().out
    assert (
        "plain: 60 images" in printed and "drawing: a drawing of a {}" in printed and "original_share: 0.5" in printed
    )
    assert not (tmp_path / "run").exists()
