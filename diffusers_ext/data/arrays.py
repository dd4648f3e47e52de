"""Pictures that lie in arrays: MNIST's idx files, CIFAR's binary records, SVHN's .mat; each as a file of its own.

Shapes: n pictures of H x W pixels.
"""

import gzip
import struct
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image

from ..errors import InputError

IDX: dict[int, np.dtype] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
}  # of the magic number
IDX |= {0x0D: np.dtype(">f4"), 0x0E: np.dtype(">f8")}


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """One picture of an array, (H, W, 3) uint8, or (H, W) for grey; opened, it is a BMP, byte for byte the same anywhere."""

    pixels: np.ndarray = field(repr=False)
    name: str
    source: str

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        stream = BytesIO()
        Image.fromarray(self.pixels).convert("RGB").save(stream, "BMP")
        stream.seek(0)
        return stream

    def __str__(self) -> str:
        return f"{self.source}[{self.name}]"


def array_files(pixels: np.ndarray, source: str | Path) -> list[ArrayFile]:
    """Return the pictures of an array (n, H, W) or (n, H, W, 3) uint8 as files."""
    return [ArrayFile(pixel, str(index), str(source)) for index, pixel in enumerate(pixels)]


def read_idx(path: str | Path) -> np.ndarray:
    """Read an idx file, gzipped or not, as http://yann.lecun.com/exdb/mnist describes it.

    Raises InputError if it is missing, cut short or of another format.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, axes = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
        if zero or kind not in IDX:
            raise ValueError(f"magic number {data[:4].hex()}")
        return np.frombuffer(data, IDX[kind], offset=4 + 4 * axes).reshape(shape)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; download it, or name the folder that has it") from None
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{path}: not a whole idx file ({error}); download it again") from None


def find_idx(folder: str | Path, stem: str) -> Path:
    """Return the idx file of a folder, gzipped or not: of stem train-images, "train-images-idx3-ubyte.gz" or the like."""
    found = sorted(path for path in Path(folder).glob(f"{stem}*") if "idx" in path.name)
    if not found:
        raise InputError(f"{folder}: holds no {stem}-idx*-ubyte or .gz; copy MNIST's file there")
    return found[0]


def read_digits(folder: str | Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and labels of "train" or "t10k" of a folder of idx files: (n, H, W) uint8 and (n,) uint8.

    Raises InputError also where the two files do not fit together.
    """
    paths = find_idx(folder, f"{part}-images"), find_idx(folder, f"{part}-labels")
    images, labels = map(read_idx, paths)
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{paths[0]}: {images.dtype} of shape {images.shape} with labels of shape {labels.shape}; "
            "expected bytes (n, H, W) and (n,)"
        )
    return images, labels


def read_cifar100(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pictures, coarse and fine labels of a file of CIFAR-100's binary version: (n, 32, 32, 3), (n,), (n,) uint8."""
    data = _bytes(path)
    record = 2 + 3 * 32 * 32
    if not data.size or data.size % record:
        raise InputError(f"{path}: {data.size} bytes, no multiple of {record}; download cifar-100-binary again")
    rows = data.reshape(-1, record)
    return rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0], rows[:, 1]


def read_svhn(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures and digits of SVHN's cropped .mat: (n, 32, 32, 3) uint8 and (n,) int; label 10 is the digit 0."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{path}: reading it needs scipy; pip install scipy") from None
    try:
        values = loadmat(path)
        return values["X"].transpose(3, 0, 1, 2), values["y"].ravel().astype(int) % 10
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not SVHN's {Path(path).name} ({error}); download it again") from None


def _bytes(path: str | Path) -> np.ndarray:
    try:
        return np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name the folder that has it") from None
