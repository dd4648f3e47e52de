"""Is a file a picture, and which one? Decoded whole, and known by the SHA-256 of its bytes, whatever its name says."""

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm.auto import tqdm

from .files import File, rgb

SETTLED = 2.0  # seconds after which a changed file is sure to have another time stamp
LFS = b"version https://git-lfs"
_remembered: dict[Path, tuple[tuple[int, int, int], "Examined"]] = {}


class Examined(NamedTuple):
    """digest: SHA-256 of the bytes, "" where they cannot be read. format: Pillow's name of it. fault: None for a good picture."""

    digest: str
    format: str
    fault: str | None


def examine(file: File) -> Examined:
    """Read a file and decode it whole: an error page, an empty file and a cut one are told from pictures."""
    try:
        with file.open("rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        return Examined("", "", "no such file")
    except OSError as error:
        return Examined("", "", f"cannot be read ({error.strerror or error})")
    digest = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(BytesIO(data)) as opened:
            form = opened.format or ""
        rgb(BytesIO(data))
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        return Examined(digest, "", _fault(data, error))
    return Examined(digest, form, None)


def _fault(data: bytes, error: Exception) -> str:
    if not data:
        return "an empty file"
    if data.startswith(LFS):
        return "a Git LFS pointer, not the picture; run git lfs pull"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a readable picture (not a picture of any known kind: it starts with {data[:24]!r})"
    return f"not a readable picture ({error or type(error).__name__})"


def examined(path: Path) -> Examined:
    """Return what `examine` says, remembered until the size or a time of the file changes."""
    began = time.time()
    try:
        status = os.stat(path)
    except OSError:
        return examine(path)
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _remembered.get(path)
    if known and known[0] == stamp:
        return known[1]
    found = examine(path)
    if began - max(stamp[1:]) / 1e9 > SETTLED:  # else a later change might leave the same stamp
        _remembered[path] = (stamp, found)
    return found


def examine_all(files: Iterable[File]) -> dict[File, Examined]:
    """Examine each different file, several at a time, with a bar where it takes long."""
    unique = list(dict.fromkeys(files))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda file: examined(file) if isinstance(file, Path) else examine(file), unique)
        return dict(zip(unique, tqdm(looks, total=len(unique), desc="checking", unit="picture", delay=3)))
