"""Backbones by reference: the same embeddings as their libraries', each picture encoded once."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.embeddings.backbones import features, load_backbone, timm_source
from diffusers_ext.errors import InputError

TIMM = "test_efficientnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small timm model's weights in a file, as float16, with the classifier that nobody asks for."""
    torch.manual_seed(0)
    model = timm.create_model(TIMM)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}, path
    )
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine pictures, the last one large, and a copy of the first."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(8):
        pixels = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    pixels = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1600, 1200), Image.Resampling.BICUBIC).save(folder / "8.jpg", quality=95)
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    return sorted(folder.iterdir())


def reference(weights, size=32) -> str:
    return f"timm:{TIMM}@{weights},mean=127/255,std=128/255,crop_pct=1,size={size}"


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(reference(weights))


def test_timm_features_are_the_models_own(backbone, weights, pictures):
    """The reference's preprocessing is (uint8 - 127) / 128, that of these weights' first users."""
    model = timm.create_model(TIMM, num_classes=0).eval()
    state = {name: value.float() for name, value in timm.models.load_state_dict(str(weights)).items()}
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith("classifier")})
    square = Image.open(pictures[1]).crop((0, 0, 48, 48))
    small = square.resize((32, 32), Image.Resampling.BICUBIC)
    pixels = (torch.from_numpy(np.array(small)).permute(2, 0, 1).float() - 127) / 128
    with torch.no_grad():
        wanted = model(pixels[None])
    found = backbone.embed_images([square])
    assert found.shape == (1, backbone.width) and found.dtype == torch.float32 == backbone.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_preprocessing_is_of_the_reference_and_of_the_key(backbone, weights):
    assert backbone.prepared["size"] == [32, 32] and backbone.prepared["crop_pct"] == 1.0
    np.testing.assert_allclose(backbone.prepared["mean"], [127 / 255] * 3)
    other = load_backbone(f"timm:{TIMM}@{weights},size=32,mean=0.1/0.2/0.3")
    assert other.prepared["mean"] == (0.1, 0.2, 0.3) and other.identity["weights"] == backbone.identity["weights"]
    assert other.identity != backbone.identity
    half = load_backbone(reference(weights), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.identity["dtype"] != backbone.identity["dtype"]


def test_every_picture_is_encoded_once(backbone, pictures, tmp_path, monkeypatch):
    found = features(backbone, pictures, tmp_path, batch_size=4)
    assert found.shape == (10, backbone.width) and found.dtype == np.float32
    np.testing.assert_array_equal(found[0], found[-1])  # the copy
    each = torch.cat([backbone.embed_images([file]) for file in pictures])
    np.testing.assert_allclose(found, each.numpy(), atol=1e-5)

    calls = []
    embed = type(backbone).embed_images
    monkeypatch.setattr(
        type(backbone),
        "embed_images",
        lambda self, images, *more: calls.append(len(images)) or embed(self, images, *more),
    )
    np.testing.assert_array_equal(features(backbone, pictures[::-1], tmp_path), found[::-1])
    assert calls == []
    features(backbone, pictures, tmp_path / "other", batch_size=4)
    assert calls == [4, 4, 1]  # nine different ones


def test_large_jpegs_come_smaller_and_mean_the_same(backbone, pictures):
    small, whole = backbone.picture(pictures[8]), Image.open(pictures[8])
    assert min(small.size) >= 64 and small.width <= whole.width / 8
    near = F.cosine_similarity(backbone.embed_images([pictures[8]]), backbone.embed_images([whole.convert("RGB")]))
    assert near.item() > 0.99


def test_bad_pictures_and_words_without_a_tower_are_refused(backbone, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad.png: cannot be read"):
        features(backbone, [bad], tmp_path)
    with pytest.raises(InputError, match="has no text tower"):
        backbone.embed_texts(["a dog"])
    assert features(backbone, [], tmp_path).shape == (0, backbone.width)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_efficientnet@gone.safetensors", "no file gone.safetensors"),
        ("timm:test_efficientnet@weights.pth", "no file weights.pth of safetensors"),
        ("timm:test_efficientnet,mean=x", "mean=x: no number"),
        ("timm:test_efficientnet,std=1/0", "std=1/0: no number"),
        ("timm:test_efficientnet,sise=3", "unknown 'sise=3'"),
        ("timm:no_such_model", "timm cannot load it"),
        ("ViT-B-32/nowhere", "open_clip cannot load it"),
        ("nonsense", "open_clip cannot load it"),
    ],
)
def test_unknown_references_say_what_there_is(name, message):
    with pytest.raises(InputError) as error:
        load_backbone(name)
    assert message in str(error.value)


def test_references_of_timm():
    source, overlay = timm_source("timm:resnet50.a1_in1k,size=96,interpolation=bilinear")
    assert source == "resnet50.a1_in1k" and overlay == {"input_size": (3, 96, 96), "interpolation": "bilinear"}


def test_open_clip_folders(tmp_path):
    """Embeddings of an open_clip folder are open_clip's own, of unit length; quick_gelu is part of the identity."""
    import open_clip

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    loaded = {}
    for quick in (False, True):
        folder = tmp_path / str(quick)
        folder.mkdir()
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config | {"quick_gelu": quick}}))
        loaded[quick] = load_backbone(str(folder))
    plain, quick = loaded[False], loaded[True]
    assert plain.has_text and plain.width == 8
    assert plain.identity["weights"] == quick.identity["weights"] and plain.identity != quick.identity
    texts = ["a dog", "a cat"]
    with torch.no_grad():
        wanted = F.normalize(model.eval().encode_text(open_clip.get_tokenizer("ViT-B-32")(texts, 16)), dim=1)
    torch.testing.assert_close(plain.embed_texts(texts), wanted)
    torch.testing.assert_close(plain.embed_images([Image.new("RGB", (32, 32))]).norm(), torch.tensor(1.0))


def changed(weights, path, change) -> str:
    """A reference to the file of weights after a change of its dictionary."""
    save_file(change(load_file(weights)), path)
    return f"timm:{TIMM}@{path},size=32"


FITTING = {
    "a trainer's prefix": lambda state: {f"model.{name}": value for name, value in state.items()},
    "a deep prefix and a loss": lambda state: {
        **{f"student.net.{name}": value for name, value in state.items()},
        "loss.scale": torch.ones(1),
    },
    "no classifier": lambda state: {name: value for name, value in state.items() if not name.startswith("classifier")},
    "a head of its own": lambda state: {**state, "projection.weight": torch.ones(3, 3)},
}
UNFIT = {
    "one weight less": (lambda state: {name: state[name] for name in sorted(state)[1:]}, "blocks.0.0.bn1.bias missing"),
    "other names": (lambda state: {f"{name}_": value for name, value in state.items()}, "missing"),
    "more of a part": (lambda state: {**state, "blocks.9.weight": torch.ones(1)}, "blocks.9.weight left over"),
    "another shape": (
        lambda state: {**state, "conv_stem.weight": torch.ones(8, 3, 5, 5)},
        "conv_stem.weight of another",
    ),
    "two models": (
        lambda state: {
            f"{part}.{name}": value.clone() for name, value in state.items() for part in ("student", "teacher")
        },
        "several models",
    ),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_file_that_holds_the_model_is_loaded_whole(name, weights, backbone, tmp_path, recwarn):
    loaded = load_backbone(changed(weights, tmp_path / "w.safetensors", FITTING[name]))
    assert loaded.weights == backbone.weights
    said = "; ".join(str(warning.message) for warning in recwarn)
    assert {"no classifier": not said, "a trainer's prefix": "'model.'" in said}.get(name, "left out" in said)


@pytest.mark.parametrize("name", UNFIT)
def test_a_file_of_another_model_is_refused_by_its_weights(name, weights, tmp_path):
    change, message = UNFIT[name]
    with pytest.raises(InputError, match=message) as error:
        load_backbone(changed(weights, tmp_path / "w.safetensors", change))
    assert len(str(error.value)) < 600


def test_a_folder_that_timm_saved_is_loaded_strictly_too(weights, backbone, tmp_path):
    from timm.models import save_for_hf

    model = timm.create_model(TIMM, num_classes=0)
    model.load_state_dict(backbone.model.state_dict())
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    assert load_backbone(f"timm:{tmp_path}").weights == backbone.weights
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: state[name] for name in sorted(state)[1:]}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing"):
        load_backbone(f"timm:{tmp_path}")


@pytest.mark.parametrize(
    "name",
    ["runs/image-text", "./clip", "timm:gone/folder", "timm:./gone", "/nowhere/clip", "timm:resnet18@gone.safetensors"],
)
def test_a_backbone_that_is_gone_is_said_to_be(name):
    with pytest.raises(InputError, match=r"pass backbone= ") as error:
        load_backbone(name)
    assert len(str(error.value)) < 400


def test_a_classifier_finds_its_backbone_beside_it_and_checks_it(weights, pictures, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    shutil.copy(weights, tmp_path / "run" / "w.safetensors")
    monkeypatch.chdir(tmp_path / "run")
    named = load_backbone(f"timm:{TIMM}@w.safetensors,size=32")
    classifier = VMFMixtureClassifier.of(named).partial_fit(named.embed_images(pictures), [0, 1] * 5)
    classifier.save_pretrained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert VMFMixtureClassifier.from_pretrained(tmp_path / "moved").backbone.weights == named.weights
    state = load_file(weights)
    save_file({**state, "conv_stem.weight": state["conv_stem.weight"] + 1}, tmp_path / "moved" / "w.safetensors")
    with pytest.raises(InputError, match="not those that this classifier was trained on"):
        VMFMixtureClassifier.from_pretrained(tmp_path / "moved").backbone  # noqa: B018
    old = VMFMixtureClassifier(named.width, encoder=named.name)
    with pytest.raises(InputError, match="pass backbone="):
        old.backbone  # noqa: B018
    old.backbone = named  # saved before there were digests: any
    with pytest.raises(InputError, match="names no backbone"):
        VMFMixtureClassifier(8).backbone  # noqa: B018


def test_many_pictures_are_embedded_a_few_at_a_time(backbone, pictures, monkeypatch):
    sizes, embed = [], type(backbone)._embed
    monkeypatch.setattr(type(backbone), "_embed", lambda self, part: sizes.append(len(part)) or embed(self, part))
    found = backbone.embed_images(pictures, batch_size=4)
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(found, backbone.embed_images(pictures), rtol=1e-4, atol=1e-5)
    assert backbone.embed_images([]).shape == (0, backbone.width)


def test_all_bad_pictures_are_named_at_once(backbone, pictures, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    files = [pictures[0], tmp_path / "a.png", pictures[1], tmp_path / "b.jpg"]
    with pytest.raises(InputError, match=r"(?s)2 of \d pictures cannot be read.*a\.png.*b\.jpg"):
        features(backbone, files, tmp_path / "cache", batch_size=1)
    assert features(backbone, [pictures[0]], tmp_path / "cache").shape == (1, backbone.width)
