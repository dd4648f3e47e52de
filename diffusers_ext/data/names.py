"""What a file of a data folder is, by its name: a picture, an array, a helper of some program, or something else.

A picture is what the installed Pillow reads, with the plug-ins that are installed beside it (pillow-heif,
pillow-jxl-plugin, pillow-avif-plugin). Of an animation the first frame is read.
"""

import functools
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from PIL import Image

from ..errors import InputError

Kind = Literal["picture", "array", "foreign", "helper", "other"]

# Pillow lists these too, but they are documents, films, data or pictures that it cannot open on every system.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
HEIF = "pip install pillow-heif, or convert it to PNG"
JXL = "pip install pillow-jxl-plugin, or convert it to PNG"
AVIF = "pip install 'pillow>=11.3', or convert it to PNG"
CONVERT = "convert it to PNG"
FOREIGN = {  # pictures that Pillow alone does not read, and what helps
    **dict.fromkeys((".heic", ".heif", ".heics", ".heifs", ".hif"), HEIF),
    ".jxl": JXL,
    **dict.fromkeys((".avif", ".avifs"), AVIF),
    **dict.fromkeys((".svg", ".svgz", ".exr", ".hdr", ".jxr", ".wdp", ".ai", ".xcf", ".kra", ".eps", ".wmf"), CONVERT),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".pef"), CONVERT),
    **dict.fromkeys((".dcm", ".fits", ".fit", ".emf"), CONVERT),
}
POINTER = b"version https://git-lfs"
POINTER_ERROR = "a pointer of Git LFS, not the file itself; run: git lfs pull"
PLUG_INS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None, "pillow_avif": None}  # module: what registers
HELPERS = {  # folders and files that programs leave in places of pictures, in small letters
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}


def classify_name(name: str) -> Kind:
    """Say what a file is, by the last part of its name.

    "picture": Pillow opens it here. "array": .npy, which may be a condition. "foreign": a picture that needs what
    `remedy` says. "helper": hidden, or left by a program. "other": no picture.
    """
    base = os.path.basename(name)
    suffix = os.path.splitext(base)[1].lower()
    if is_helper(base):
        return "helper"
    if suffix == ".npy":
        return "array"
    if suffix in picture_suffixes():
        return "picture"
    return "foreign" if suffix in FOREIGN else "other"


def is_picture(name: str) -> bool:
    """Say whether a file of this name is a picture or an array, as conditions may be.

    >>> is_picture('photo.JPG'), is_picture('notes.txt')
    (True, False)
    """
    return classify_name(name) in ("picture", "array")


def is_helper(part: str) -> bool:
    """Say whether one part of a path is hidden, or named as programs name what they leave: `.DS_Store`, `@eaDir`.

    >>> is_helper('.ipynb_checkpoints'), is_helper('photos')
    (True, False)
    """
    return (part.startswith(".") and part not in (".", "..")) or part.lower() in HELPERS


def remedy(name: str) -> str:
    """Return what helps to read a "foreign" picture."""
    return FOREIGN[os.path.splitext(name)[1].lower()]


def foreign_error(name: str) -> str:
    """Return what is wrong with a "foreign" picture and what to do, for a message that names the file."""
    return f"{os.path.splitext(name)[1]} is not read by the installed Pillow; {remedy(name)}"


def reason(error: Exception, name: str) -> str:
    """Say in words why a picture of this name could not be decoded."""
    if not isinstance(error, Image.UnidentifiedImageError):
        return str(error) or type(error).__name__
    return foreign_error(name) if classify_name(name) == "foreign" else "not a picture"


def is_pointer(data: bytes) -> bool:
    """Say whether a file holds the pointer that Git LFS leaves in place of what was not downloaded."""
    return data.startswith(POINTER)


def pointer_error(path: Path) -> str | None:
    """Return what is wrong with a file that is a pointer of Git LFS, None for others and where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return POINTER_ERROR if is_pointer(stream.read(len(POINTER))) else None
    except OSError:
        return None


def picture_suffixes() -> frozenset[str]:
    """The endings that the installed Pillow and its plug-ins read, in small letters."""
    register_plug_ins()
    return _suffixes(len(Image.registered_extensions()), len(Image.OPEN))


def open_picture(stream: IO[bytes]) -> Image.Image:
    """Open a picture with Pillow and its plug-ins; of an animation the first frame."""
    register_plug_ins()
    return Image.open(stream)


@functools.cache
def register_plug_ins() -> None:
    """Register the picture plug-ins that are installed, once a process: data workers have processes of their own."""
    Image.init()
    for module, register in PLUG_INS.items():
        try:
            plug_in = importlib.import_module(module)
        except Exception:  # absent, or made for another Pillow: its pictures are then named as foreign
            continue
        if register:
            getattr(plug_in, register, lambda: None)()


@functools.cache
def _suffixes(extensions: int, openers: int) -> frozenset[str]:
    """The endings; the numbers of what is registered tell when a plug-in was added."""
    known = Image.registered_extensions().items()
    return frozenset(suffix.lower() for suffix, form in known if form in Image.OPEN and form not in NO_PICTURES)


def walk(root: Path, dead_links: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below root and the names of its files, both sorted, without helpers and what lies in them.

    Links to folders are followed, but never into a folder that holds the link. InputError for a folder that cannot be
    read and for a link to nothing, unless dead_links are wanted among the files.
    """
    yield from _walk(root, {os.path.realpath(root)}, dead_links)


def _walk(folder: Path, above: set[str], dead_links: bool) -> Iterator[tuple[Path, list[str]]]:
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not is_helper(entry.name)), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); allow it, or move the folder") from None
    for entry in entries:
        if entry.is_symlink() and not os.path.exists(entry.path) and not dead_links:
            raise InputError(f"{entry.path}: a link to nothing ({os.readlink(entry.path)}); restore or remove it")
    yield folder, [entry.name for entry in entries if not entry.is_dir()]
    for entry in entries:
        if entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
            yield from _walk(folder / entry.name, above | {real}, dead_links)
