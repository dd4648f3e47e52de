"""Backbones by reference: the same embeddings as their libraries', each picture encoded once."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from diffusers_ext.backbones import features, load_backbone, timm_source
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
