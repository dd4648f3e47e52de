"""One image in every form that people have it: read exactly right, or refused in one line that tells type and range."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as vision

from diffusers_ext.data.files import Row
from diffusers_ext.data.preflight import check
from diffusers_ext.data.readable import check_readable
from diffusers_ext.embeddings.backbones import Backbone
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.reward_inputs import check_images, pixels

EIGHT = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
GREY = EIGHT[..., 0]


class Flat(torch.nn.Module):
    """A backbone that returns its pixels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return images.flatten(1) * self.scale


@pytest.fixture(scope="module")
def flat() -> Backbone:
    return Backbone("flat", Flat(), lambda image: vision.to_tensor(image.convert("RGB")), {"size": [512, 512]})


def encoded(form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(EIGHT).save(stream, form)
    return stream.getvalue()


RIGHT = {
    "PIL": Image.fromarray(EIGHT),
    "array": EIGHT,
    "int64": EIGHT.astype(np.int64),
    "big-endian": EIGHT.astype(">i4"),
    "negative strides": np.ascontiguousarray(EIGHT[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
    "Fortran order": np.asfortranarray(EIGHT),
    "floats": EIGHT / 255,
    "float32": (EIGHT / 255).astype(np.float32),
    "opaque": np.dstack([EIGHT, np.full(EIGHT.shape[:2], 255, np.uint8)]),
    "tensor": torch.from_numpy(EIGHT).permute(2, 0, 1),
    "ToTensor": vision.to_tensor(EIGHT),
    "PNG bytes": encoded(),
    "bytearray": bytearray(encoded("TIFF")),
    "open file": io.BytesIO(encoded("BMP")),
}


@pytest.mark.parametrize("form", RIGHT)
def test_every_form_is_the_same_picture(flat, form):
    wanted = vision.to_tensor(EIGHT).flatten()
    torch.testing.assert_close(flat.embed_images([RIGHT[form]])[0], wanted, rtol=0, atol=0)
    torch.testing.assert_close(flat.embed_images(RIGHT[form])[0], wanted, rtol=0, atol=0)  # one that is in no list
    (image,) = check_images([RIGHT[form]])
    torch.testing.assert_close(pixels(image, 20), pixels(RIGHT["PIL"], 20), rtol=0, atol=2e-2)


@pytest.mark.parametrize("grey", [GREY, GREY[..., None], Image.fromarray(GREY), GREY.astype(np.int32), GREY / 255])
def test_grey_is_the_same_in_three_channels(flat, grey):
    wanted = vision.to_tensor(np.repeat(GREY[..., None], 3, 2)).flatten()
    torch.testing.assert_close(flat.embed_images([grey])[0], wanted, rtol=0, atol=0)


def test_a_deep_grey_picture_keeps_its_brightness(flat):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    torch.testing.assert_close(flat.embed_images([deep]), flat.embed_images([GREY]), rtol=0, atol=0)


NORMALISED = vision.normalize(vision.to_tensor(EIGHT), [0.5] * 3, [0.25] * 3)
WRONG = {
    "normalised": (NORMALISED, r"floats in \[0, 1\] .*got torch.float32 from -2 to 2"),
    "floats to 255": (
        EIGHT.astype(np.float32),
        r"float32 from 0 to 255; expected uint8 in 0..255 or floats in \[0, 1\]",
    ),
    "tensor of floats to 255": (torch.from_numpy(EIGHT).permute(2, 0, 1).float(), "from 0 to 255"),
    "-1 to 1": (EIGHT / 127.5 - 1, "from -1 to 1"),
    "NaN": (np.full((4, 4, 3), np.nan), "from nan to nan"),
    "uint16": (EIGHT.astype(np.uint16) * 200, "uint16 from"),
    "negative": (EIGHT.astype(int) - 5, "from -5 to 250"),
    "mode I of 8 bits": (Image.fromarray(GREY.astype(np.int32)), "mode I with values from 0 to 25"),
    "mode I;16 of 8 bits": (Image.fromarray(GREY.astype(np.uint16)), "mode I;16 with values from 0 to 25"),
    "mode F to 255": (Image.fromarray(GREY.astype(np.float32)), r"floats from 0 to 25"),
    "channels first": (EIGHT.transpose(2, 0, 1), r"transpose\(1, 2, 0\)"),
    "channels last": (torch.from_numpy(EIGHT), r"permute\(2, 0, 1\)"),
    "bool": (EIGHT > 100, "array of bool"),
    "objects": (EIGHT.astype(object), "array of object"),
    "complex": (EIGHT.astype(complex), "array of complex"),
    "no picture": (b"<html>", "bytes that begin with b'<html>': cannot be read"),
    "nothing": (None, "got NoneType"),
    "dictionary": ({"bytes": encoded()}, "got dict"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "expected an array"),
}


@pytest.mark.parametrize("form", WRONG)
def test_what_cannot_be_told_is_refused_in_one_line(flat, form):
    image, message = WRONG[form]
    with pytest.raises(InputError, match=f"image 1: .*{message}") as error:
        flat.embed_images([EIGHT, image])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=message):
        pixels(check_images([image])[0], 8)


def test_all_unreadable_pictures_are_named_before_any_is_encoded(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded())
    (tmp_path / "cut.jpg").write_bytes(encoded("JPEG")[:-200])
    (tmp_path / "page.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    check_readable([tmp_path / name for name in ("a.png", "b.png")])
    with pytest.raises(InputError, match="3 of 6 pictures") as error:
        check_readable(sorted(tmp_path.iterdir()))
    assert all(word in str(error.value) for word in ("cut.jpg", "page.jpg", "photo.heic", "pip install pillow-heif"))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["PNG", "TIFF", "JPEG", "GIF", "WEBP", "BMP", "PPM"]), st.data())
def test_damaged_pictures_raise_nothing_that_callers_do_not_name(form, data):
    """Whatever decoders raise at damaged bytes, users see an InputError."""
    whole = bytearray(encoded(form))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    held = Held(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    for take in (
        lambda: check_readable([held]),
        lambda: check([Row(held, ("",), held, "row 1")]),
        lambda: pixels(check_images([held.data])[0], 8),
    ):
        with contextlib.suppress(InputError):
            take()


@dataclass(frozen=True)
class Held:
    data: bytes
    name: str = "held.png"

    def open(self, mode):
        return io.BytesIO(self.data)
