"""A data set whose pictures and captions have been through the frozen encoders once.

Of a picture the posterior's mean and deviation are kept, not a sample, so that each epoch samples anew; of the captions
each different text and the empty one, so that captions are still dropped and chosen as the data set draws them.

Shapes: latents (c, h, w), moments (2, c, h, w), embeddings of a caption: text (tokens, width), and pooled (width) where the base
reads it. With b bytes a number, a picture costs 2·b·c·h·w bytes (in bfloat16 SD 1.5 at 512 px: 64 KiB; SDXL at 1024 px:
256 KiB) and a different caption b·tokens·width, plus b·width of the pooled one (115.5 and 310.5 KiB).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .. import randomness
from ..cache import Digests, Store, digest_of, digest_of_file, fingerprint
from ..data.batches import Samples
from ..data.files import File, Size
from ..errors import InputError
from .bases.encoders import Embeddings, Encoders
from .files import BaseFiles


class Texts(Protocol):
    """Embeddings by caption."""

    def __getitem__(self, caption: str) -> Embeddings: ...


class Encoded(Samples):
    """A data set with "moments" (2, c, h, w) in place of "pixel_values", and its caption's embeddings beside "text".

    moments None leaves the pictures to be encoded at each step, texts None the captions. `conditions` says whether the
    samples carry their condition and "time_ids", as those of `Pairs` do.
    """

    def __init__(
        self,
        dataset: Dataset,
        moments: "Sequence[torch.Tensor] | CachedMoments | None",
        texts: Texts | None = None,
        conditions: bool = False,
    ):
        self.dataset, self.moments, self.texts, self.conditions = dataset, moments, texts, conditions
        self.buckets = dataset.buckets

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: randomness.Key) -> dict:
        sample = self.dataset[key] if self.moments is None else self._without_picture(key)
        if self.texts is not None:
            sample |= self.texts[sample["text"]]
        return sample

    def _without_picture(self, key: randomness.Key) -> dict:
        bare = {"key": key, "text": self.dataset.caption(key)}
        sample = self.dataset.without_picture(key) if self.conditions else bare
        assert self.moments is not None
        return {**sample, "moments": self.moments[key[1]].float()}


class EncoderCache:
    """What frozen encoders made of pictures and captions, in a folder, for all runs that use these encoders.

    files: the base's, whose content is part of every key. Values are kept in the type of the encoders' weights.
    load: returns the encoders, ready on their device; called at most once, and never where nothing is missing.
    about: what else the values depend on, such as the precision of the forward pass; part of every key.
    autocast: the context of the training's forward pass, so that cached values are those of an uncached run.

    Values are computed one picture at a time, so that they depend on nothing but their content. Batches round differently:
    an uncached run that encodes batches agrees within 1e-5 in its losses at first, and training amplifies the rest.
    """

    def __init__(
        self,
        folder: str | Path,
        files: BaseFiles,
        load: Callable[[], Encoders],
        about: dict | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        show: bool = False,
    ):
        self.folder, self.files, self.show = Path(folder), files, show
        self.model, self.vae = Path(files.folder), files.vae_folder.resolve()
        self.load, self.about, self.autocast = functools.cache(load), about or {}, autocast
        self.digests = Digests(folder)
        self.computed = {"moments": 0, "texts": 0}  # by this process

    @classmethod
    def of(cls, folder: str | Path, files: BaseFiles, accelerator: Accelerator, **about: str | None) -> "EncoderCache":
        """Return the cache of a training, whose values depend on its precision too."""
        return cls(
            folder,
            files,
            lambda: files.load_encoders().to(accelerator.device),
            {"autocast": accelerator.mixed_precision, "variant": files.variant, **about},
            accelerator.autocast,
            accelerator.is_main_process,
        )

    def moments(
        self,
        files: Sequence[File],
        picture: Callable[[int], torch.Tensor],
        transform: dict,
        sizes: Sequence[Size] | None = None,
    ) -> "CachedMoments":
        """Return the moments of pictures, computing what is missing.

        picture(i) is files[i] as the network sees it, (3, H, W) in [-1, 1]; transform names everything that this depends
        on beside the file, which must be the same in every epoch (see `check_fixed`), and sizes each one's (width, height)
        where they differ.
        """
        weights = fingerprint(self.vae.parent, [self.vae.name], self.digests)
        paths = [file for file in files if isinstance(file, Path)]
        keys = self.digests.of(paths) if len(paths) == len(files) else [*map(digest_of_file, files)]
        members: dict[Size | None, list[int]] = {}
        for index, size in enumerate(sizes or [None] * len(files)):
            members.setdefault(size, []).append(index)
        places: dict[int, tuple[Store, str]] = {}
        for size, indices in members.items():
            more = {"transform": transform | ({"size": size} if size else {})}
            store = self._store("moments", weights, self.files.vae_dtype, more)
            seen = [keys[index] for index in indices]
            self._fill(store, "moments", seen, functools.partial(self._moments, picture, indices))
            for index in indices:
                places[index] = store, keys[index]
        return CachedMoments([places[index] for index in range(len(files))])

    def texts(self, captions: Iterable[str]) -> "CachedTexts":
        """Return the embeddings of captions and of the empty one, computing what is missing."""
        parts = [part for part in self.files.family.parts if part.startswith(("text_encoder", "tokenizer"))]
        weights = fingerprint(self.model, parts, self.digests)
        shapes = self.files.family.embedding_shapes(self.model)
        # A store holds one tensor a caption. Of several the spec says so, for their layout is a matter of its own.
        layout = {"layout": {name: list(shape) for name, shape in shapes.items()}} if len(shapes) > 1 else {}
        store = self._store("texts", weights, self.files.dtype, layout)
        captions = ["", *sorted(set(captions) - {""})]
        self._fill(store, "texts", [*map(digest_of, captions)], functools.partial(self._embedded, captions))
        return CachedTexts(store, shapes)

    def _store(self, value: str, weights: str, dtype: torch.dtype, more: dict) -> Store:
        spec = {"value": value, "weights": weights, "dtype": str(dtype), **self.about, **more}
        return Store(self.folder, spec, self.digests)

    def _moments(self, picture: Callable[[int], torch.Tensor], indices: list[int], position: int) -> torch.Tensor:
        return self.load().moments(picture(indices[position])[None])[0].to(self.files.vae_dtype)

    def _embedded(self, captions: list[str], position: int) -> torch.Tensor:
        values = [value[0].to(self.files.dtype) for value in self.load().embed([captions[position]]).values()]
        return values[0] if len(values) == 1 else torch.cat([value.flatten() for value in values])

    def _fill(self, store: Store, value: str, keys: list[str], encode: Callable[[int], torch.Tensor]) -> None:
        def computed(index: int) -> torch.Tensor:
            with torch.no_grad(), self.autocast():
                return encode(index)

        try:
            self.computed[value] += store.fill(keys, computed, self.show)
        finally:
            self.digests.save()
        if self.show:
            size = store[keys[0]].nbytes
            print(
                f"{value}: {len(set(keys)):,} of {size / 1024:.1f} KiB in {store.folder}, {self.computed[value]:,} new"
            )


class CachedMoments:
    """Moments by sample index, each from the store of its size."""

    def __init__(self, places: list[tuple[Store, str]]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        store, key = self.places[index]
        return store[key]


class CachedTexts:
    """Embeddings by caption. shapes: of one caption's, by name; several lie in the store end to end."""

    def __init__(self, store: Store, shapes: dict[str, tuple[int, ...]]):
        self.store, self.shapes = store, shapes

    def __getitem__(self, caption: str) -> Embeddings:
        try:
            value = self.store[digest_of(caption)].flatten()
        except KeyError:
            raise KeyError(f"{caption!r} is not among the captions that were embedded") from None
        values = value.split([prod(shape) for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), values)}


def embed(captions: Iterable[str], encoders: Encoders, dtype: torch.dtype) -> dict[str, Embeddings]:
    """Return the embeddings of captions and of the empty one, each different caption once, on the CPU.

    >>> from diffusers_ext import embedded_model
    >>> from diffusers_ext.diffusion.base import base_of, load_base
    >>> texts = embed(['red circle'], base_of(load_base(embedded_model())).encoders, torch.float32)
    >>> sorted(texts), texts['red circle']['text_embeddings'].shape
    (['', 'red circle'], torch.Size([32, 96]))
    """
    with torch.no_grad():
        return {
            caption: {name: value[0].to(dtype).cpu() for name, value in encoders.embed([caption]).items()}
            for caption in dict.fromkeys(["", *captions])
        }


def check_fixed(**drawn: bool) -> None:
    """Raise InputError if an option is on under which pictures change from epoch to epoch."""
    on = [f"--{name}" for name, value in drawn.items() if value]
    if on:
        raise InputError(
            f"--encoder_cache_dir keeps each picture in one geometry; leave it out, or leave out {' and '.join(on)}"
        )


def encode_in_memory(dataset: Dataset, encoders: Encoders, batch_size: int = 64) -> torch.Tensor:
    """Return the moments of all pictures, (N, 2, c, h, w), in memory: for encoders that were just trained."""
    chunks = tqdm(range(0, len(dataset), batch_size), desc="encoding", unit="batch", dynamic_ncols=True)
    return torch.cat([_encode(dataset, encoders, first, batch_size) for first in chunks])


def _encode(dataset: Dataset, encoders: Encoders, first: int, count: int) -> torch.Tensor:
    indices = range(first, min(first + count, len(dataset)))
    return encoders.moments(torch.stack([dataset.picture(index) for index in indices])).cpu()
