"""Frozen backbones by reference: embeddings of pictures, and of texts where there is a text tower.

    ViT-B-32/laion2b_s34b_b79k       open_clip's architecture and tag
    hf-hub:owner/name                an open_clip model on the Hub
    path/to/folder                   open_clip_config.json, weights and tokenizer, as training/train_image_text.py saves
    timm:resnet50.a1_in1k            a timm model with its weights from the Hub
    timm:path/to/folder              the same from a folder that timm saved
    timm:tf_efficientnet_lite0@weights.safetensors,mean=127/255,std=128/255    a timm architecture and a file of weights

After a comma, size=, mean=, std=, crop_pct= and interpolation= replace what timm says of a timm model's input; a mean
or deviation of three channels is written a/b/c or, of all, as a number or fraction.

    backbone = load_backbone("timm:tf_efficientnet_lite0@weights.safetensors", device="cuda")
    features(backbone, files, "cache")          # (n, width) float32, each picture encoded once, for all runs

Shapes: N pictures or texts, D the width of the embeddings.
"""

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image

from ..cache import Batches, Digests, Store, digest_of, digest_of_file, digest_of_tensors
from ..data.files import File, load
from ..data.names import reason
from ..data.readable import check_readable
from ..errors import InputError
from ..rewards.reward_inputs import as_list, check_image, read_rgb
from .references import located
from .references import timm_source as timm_source
from .tokenizer import open_clip_tokenizer
from .weights import timm_model, weights_in

TEXTS = 256  # texts encoded at once


@dataclass(eq=False)
class Backbone:
    """A frozen model with its preprocessing, and its tokenizer where it has a text tower.

    name: the reference it was loaded by. prepared: what `preprocess` does to a picture, in words and numbers.
    Embeddings of open_clip models have unit length, those of timm models are the pooled features as they are.
    """

    name: str
    model: nn.Module
    preprocess: Callable[[Image.Image], torch.Tensor]
    prepared: dict[str, Any]
    tokenizer: Any = None

    def __post_init__(self):
        self.model.eval().requires_grad_(False)

    @property
    def has_text(self) -> bool:
        return self.tokenizer is not None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in; embeddings are float32 in any case."""
        return next(self.model.parameters()).dtype

    @functools.cached_property
    def width(self) -> int:
        """D."""
        return self.embed_images([Image.new("RGB", (8, 8))]).shape[1]

    @functools.cached_property
    def weights(self) -> str:
        """The digest of the weights as they were loaded, whatever type `load_backbone` brought them to afterwards."""
        return digest_of_tensors([self.model])

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that the embeddings depend on: weights, structure, preprocessing and type. Part of every cache key."""
        # The structure tells what weights do not: QuickGELU and GELU have none.
        structure = digest_of(repr(self.model))
        return {"weights": self.weights, "structure": structure, "prepared": self.prepared, "dtype": str(self.dtype)}

    @torch.no_grad()
    def embed_images(self, images: Sequence[Any], batch_size: int = 64) -> torch.Tensor:
        """Return the embeddings of images in the forms of `reward_inputs`, or of files: (N, D) float32, on the model's device.

        At most batch_size pictures are decoded and in memory at once. Raises InputError naming a file that cannot be
        decoded, or the place of an image whose values cannot be.
        """
        check_batch_size(batch_size)
        images = as_list(images)
        if not len(images):
            return torch.empty(0, self.width, device=self.device)
        firsts = range(0, len(images), batch_size)
        return torch.cat([self._embed(self.pictures(images[first : first + batch_size], first)) for first in firsts])

    def _embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        pixels = pixels.to(self.device, self.dtype, memory_format=torch.channels_last)
        if self.has_text:
            return F.normalize(self.model.encode_image(pixels).float(), dim=1)
        return self.model(pixels).float()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the unit embeddings of texts, (N, D) float32, on the model's device; InputError without a text tower."""
        if not self.has_text:
            raise InputError(f"{self.name}: has no text tower; words need an open_clip model")
        if (
            isinstance(texts, str)
            or not isinstance(texts, Sequence)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InputError("texts: give a list of texts")
        if not texts:
            return torch.empty(0, self.width, device=self.device)
        texts = list(texts)
        batches = [self.tokenizer(texts[first : first + TEXTS]) for first in range(0, len(texts), TEXTS)]
        rows = [self.model.encode_text(tokens.to(self.device)).float() for tokens in batches]
        return F.normalize(torch.cat(rows), dim=1)

    def pictures(self, images: Sequence[Any], first: int = 0) -> list[Image.Image]:
        """Return images as `picture` does; InputError tells the place of the one that cannot be, counted from `first`."""
        found = []
        for place, image in enumerate(images, first):
            try:
                found.append(self.picture(image))
            except InputError as error:
                raise InputError(f"image {place}: {error}") from None
        return found

    def picture(self, image: Any) -> Image.Image:
        """Return an image in any form of `reward_inputs` as RGB; a large JPEG may come smaller, at twice the model's size or more.

        Raises InputError for what is no image, for values of another range, and for a file that cannot be decoded.
        """
        if isinstance(image, str) and (not image or "://" in image):
            raise InputError(f"{image!r}: no path of a picture{'; download it first' if image else ''}")
        if isinstance(image, (str, os.PathLike)) or (hasattr(image, "open") and hasattr(image, "name")):
            return self._file(Path(image) if isinstance(image, (str, os.PathLike)) else image)
        picture = check_image(image)
        return to_pil_image(picture) if isinstance(picture, torch.Tensor) else read_rgb(picture)

    def _file(self, file: File) -> Image.Image:
        try:
            picture = load(file, 2 * self.prepared["size"][0])
        except Exception as error:  # decoders raise whatever they like at damaged bytes
            raise InputError(f"{file}: cannot be read ({reason(error, file.name)}); fix or remove it") from None
        try:
            return check_image(picture)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None


def features(
    backbone: Backbone,
    files: Sequence[File],
    cache_dir: str | Path,
    batch_size: int = 16,
    show: bool = False,
) -> np.ndarray:
    """Return the embeddings of files, in their order: (n, D) float32, the missing ones computed, the others looked up.

    They are kept by the content of picture and backbone, whatever the names. A batch rounds otherwise than a picture
    alone, by about 1e-6. What is computed stays if the user interrupts. Raises InputError for what cannot be decoded.
    """
    digests = Digests(cache_dir)
    store = Store(cache_dir, {"value": "features", **backbone.identity}, digests)
    files = list(files)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda file: digests(file) if isinstance(file, Path) else digest_of_file(file), files))
    digests.save()
    missing = set(store.missing(keys))
    new = list({key: file for key, file in zip(keys, files) if key in missing}.items())
    check_readable([file for key, file in zip(keys, files) if key in missing])

    def encode(positions: range) -> torch.Tensor:
        with ThreadPoolExecutor(4) as pool:  # decoders release the interpreter
            pictures = list(pool.map(backbone.picture, [new[position][1] for position in positions]))
        return backbone.embed_images(pictures, batch_size)

    store.fill([key for key, _ in new], Batches(len(new), batch_size, encode), show)
    return np.stack([store[key].numpy() for key in keys]) if keys else np.empty((0, backbone.width), np.float32)


def check_device(device: str | torch.device) -> None:
    """Raise InputError, naming the option, unless tensors can be brought to a device."""
    try:
        there = torch.zeros(1).to(device).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, TypeError):  # each backend has its own
        there = False
    if not there:
        raise InputError(f"--device {device}: no such device on this machine; leave it out, or give cpu")


def check_batch_size(size: int) -> None:
    """Raise InputError unless a number of pictures at a time is one."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size must be a whole number, 1 or more, got {size!r}")


def is_open_clip(name: str) -> bool:
    """Say whether a name means an open_clip model: a folder with open_clip_config.json, hf-hub:owner/name, or model/tag."""
    import open_clip

    return (
        (Path(name) / "open_clip_config.json").is_file()
        or name.startswith("hf-hub:")
        or tuple(name.split("/", 1)) in open_clip.list_pretrained()
    )


def load_backbone(
    name: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    beside: str | PathLike | None = None,
) -> Backbone:
    """Load a model with its trained weights; InputError, saying what a reference may be, where it cannot be had.

    beside: a folder in which a relative path is looked for too, where it does not lead anywhere from here.
    """
    found = located(name, beside)
    backbone = _load_timm(found) if found.startswith("timm:") else _load_open_clip(found)
    backbone.name = name
    if dtype != torch.float32:
        _ = backbone.weights  # taken before they are rounded
    backbone.model.to(device, dtype, memory_format=torch.channels_last)  # convolutions on a CPU: two thirds of the time
    return backbone


def _load_open_clip(name: str) -> Backbone:
    import open_clip

    model_name, tag, settings = name, None, {}
    if Path(name).is_dir():
        model_name, settings = f"local-dir:{Path(name).resolve()}", _own_text_tower(Path(name).resolve())
    elif not name.startswith("hf-hub:"):
        model_name, _, tag = name.partition("/")
        # Weights trained with the quick form run with the other too, a little wrong everywhere.
        settings = {"force_quick_gelu": open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu", False)}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*QuickGELU mismatch")
            model, preprocess = open_clip.create_model_from_pretrained(model_name, tag, **settings)
        tokenizer = open_clip_tokenizer(model_name)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, UserWarning) as error:
        raise InputError(
            f"{name}: open_clip cannot load it ({_reason(error)}); give a folder with open_clip_config.json and weights, "
            "hf-hub:owner/name, or model/tag of open_clip.list_pretrained(), or timm:model"
        ) from None
    size = model.visual.preprocess_cfg["size"]
    prepared = {**model.visual.preprocess_cfg, "size": [size, size] if isinstance(size, int) else list(size)}
    return Backbone(name, model, preprocess, prepared, tokenizer)


def _reason(error: Exception) -> str:
    """The first line of an error, cut: libraries list all that they know."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line if len(line) <= 200 else f"{line[:197]}..."


def _own_text_tower(folder: Path) -> dict[str, Any]:
    """Where a folder holds its Hugging Face text tower's config.json, let open_clip read that one, wherever it came from."""
    try:
        text = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # open_clip says what is wrong
    if "hf_model_name" not in text or not (folder / "config.json").is_file():
        return {}
    return {"text_cfg": {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}}


def _load_timm(name: str) -> Backbone:
    import timm

    source, overlay = timm_source(name)
    weights = overlay.pop("file", None)
    if source.startswith("local-dir:"):
        weights = weights_in(Path(source.removeprefix("local-dir:")))
    try:
        if weights:
            model = timm_model(name, source, overlay, Path(weights))
        else:
            model = timm.create_model(source, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    except InputError:
        raise
    except Exception as error:  # timm, the Hub's client and torch each have their own
        raise InputError(
            f"{name}: timm cannot load it ({_reason(error)}); give timm:model.tag, timm:folder or timm:model@weights.safetensors"
        ) from None
    config = timm.data.resolve_model_data_config(model)
    prepared = {**config, "size": list(config["input_size"][1:])}
    return Backbone(name, model, timm.data.create_transform(**config, is_training=False), prepared)
