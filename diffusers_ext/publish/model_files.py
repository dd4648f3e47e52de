"""Are a model's files what their names say? Found out from headers and JSON, without loading weights.

Downloads stop half-way, Git leaves pointers in place of large files, repositories hold weights of one variant only.
Each check raises InputError that names the file and the remedy.
"""

import json
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError

POINTER = b"version https://git-lfs.github.com/spec/"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
ENDINGS = (".safetensors", ".bin")  # in the order in which diffusers and transformers look for them
_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})\.(?:safetensors\.index\.)?(?!safetensors|bin|index)([\w-]+?)(?:-\d+-of-\d+)?\."
)
AGAIN = "download it again"
OLD_NAMES = {  # of attention in autoencoders before diffusers 0.17; and a prefix that transformers adds or takes away
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
    "text_model.": "",
}


def read_json(path: Path) -> dict:
    """Return a JSON object. Raises InputError for a missing or cut file, a Git LFS pointer, and anything but an object."""
    record = check_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(record).__name__}; {AGAIN}")
    return record


def check_json(path: Path) -> object:
    """Return what a JSON file holds. Raises InputError for a missing or cut file and for a Git LFS pointer."""
    check_downloaded(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {AGAIN}") from None


def check_downloaded(path: Path) -> None:
    """Raise InputError for a file that is missing, empty, unreadable or a Git LFS pointer."""
    if not path.is_file():
        raise InputError(f"{path}: missing; the download is incomplete")
    try:
        with open(path, "rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if start == POINTER:
        raise InputError(
            f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in that repository, or download it with"
            " `hf download`"
        )
    if not start:
        raise InputError(f"{path}: empty; {AGAIN}")


def check_weights(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the weight files of a part of a model, after reading their headers.

    variant: of the files, such as fp16; as in diffusers, a part without it is loaded from its plain files.
    Raises InputError for missing or damaged files, and where there are weights of other variants only.
    """
    first = find_weights(folder, variant) or find_weights(folder)
    if first is None:
        raise InputError(_no_weights(folder, variant))
    files = _shards(first) if ".index." in first.name else [first]
    for path in files:
        check_weight_file(path)
    return files


def find_weights(folder: Path, variant: str | None = None) -> Path | None:
    """Return the weight file of a variant, or the index of its shards; None where there is neither."""
    dotted = f".{variant}" if variant else ""
    for ending in ENDINGS:
        for stem in STEMS:
            names = (
                f"{stem}{dotted}{ending}",
                f"{stem}{ending}.index{dotted}.json",
                f"{stem}{dotted}{ending}.index.json",
            )
            for name in names:
                if (folder / name).is_file():
                    return folder / name
    return None


def variants_of(folder: Path) -> list[str]:
    """Return the variants that a part has weights of, such as ["fp16"].

    >>> from diffusers_ext import embedded_model
    >>> sorted(map(str, variants_of(Path(embedded_model()) / 'unet')))
    []
    """
    found = (_VARIANT.match(path.name) for path in folder.iterdir())
    return sorted({match[1] for match in found if match})


def check_weight_file(path: Path) -> None:
    """Raise InputError unless the header of a weight file can be read and the file is as long as it says."""
    check_downloaded(path)
    if path.suffix == ".safetensors":
        tensor_shapes([path])
        return
    try:
        _read_pickle(path)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: a pickle that holds more than tensors, and could run code; take a repository with .safetensors files"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); {AGAIN}") from None


def tensor_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of what .safetensors files hold. Raises InputError for a damaged file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a whole .safetensors file ({_line(error)}); {AGAIN}") from None
    return shapes


def check_tensors(files: list[Path], expected: Mapping[str, torch.Size]) -> None:
    """Raise InputError where .safetensors files lack a tensor, or hold it in another shape: libraries would draw it at random.

    Names that diffusers and transformers translate while loading count as their new ones.
    """
    if any(path.suffix != ".safetensors" for path in files):
        return
    shapes = {_new_name(name): shape for name, shape in tensor_shapes(files).items()}
    wanted = {_new_name(name): tuple(shape) for name, shape in expected.items()}
    folder = files[0].parent
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise InputError(
            f"{folder}: {len(missing)} weights are missing, such as {', '.join(missing[:3])}; its files and its config.json"
            " do not belong together, or the download is incomplete"
        )
    other = next((name for name, shape in wanted.items() if math.prod(shapes[name]) != math.prod(shape)), None)
    if other is not None:
        raise InputError(
            f"{folder}: {other} has the shape {shapes[other]}, by config.json {wanted[other]}; weights and config.json do"
            " not belong together"
        )


def _new_name(name: str) -> str:
    """The name of a tensor as the libraries have it now."""
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names. Raises InputError where one is missing."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: names no files of weights (weight_map); {AGAIN}")
    files = [index.parent / name for name in sorted({str(name) for name in names.values()})]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(
            f"{index}: {len(missing)} of {len(files)} files of weights are missing, such as {missing[0]}; the download is"
            " incomplete"
        )
    return files


def _no_weights(folder: Path, variant: str | None) -> str:
    others = variants_of(folder)
    if others and variant is None:
        return f"{folder}: has weights of the variant {' and '.join(others)} only; give --variant {others[0]}"
    if others:
        return (
            f"{folder}: no weights of the variant {variant}, but of {' and '.join(others)}; give --variant {others[0]}"
        )
    return (
        f"{folder}: no weights (such as {STEMS[0]}.safetensors or {STEMS[1]}.safetensors); the download is incomplete"
    )


def _read_pickle(path: Path) -> None:
    if zipfile.is_zipfile(path):
        torch.load(path, map_location="meta", mmap=True, weights_only=True)
    else:  # the format before PyTorch 1.6
        torch.load(path, map_location="cpu", weights_only=True)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
