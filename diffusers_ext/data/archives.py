"""Zip archives as folders of files, each of which is read where it lies."""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal

from ..errors import InputError
from .files import File
from .names import is_helper, pointer_error

HEADER = struct.Struct("<26xHH")  # of a file in a zip: where the lengths of its name and its extra field stand


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive, stored or deflated; offset: of its header, before its `packed` bytes."""

    archive: Path
    name: str
    offset: int
    packed: int
    size: int
    checksum: int
    deflated: bool

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        try:
            data = self._unpacked()
        except (zlib.error, struct.error) as error:
            raise OSError(f"damaged inside its archive: {error}") from None
        if len(data) != self.size or zlib.crc32(data) != self.checksum:
            raise OSError("truncated or damaged inside its archive")
        return BytesIO(data)

    def _unpacked(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            name, extra = HEADER.unpack(file.read(HEADER.size))
            file.seek(name + extra, os.SEEK_CUR)
            data = file.read(self.packed)
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.size + 1) if self.deflated else data

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


def zip_files(path: Path) -> dict[str, File]:
    """Return the files of a zip by name, without what programs leave behind."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        why = f"not a whole zip archive ({error}); copy or pack it again"
        raise InputError(f"{path}: {pointer_error(path) or why}") from None
    named = {entry.filename.replace("\\", "/"): entry for entry in entries}  # some programs of Windows pack with \
    named = {name: entry for name, entry in named.items() if not any(map(is_helper, name.split("/")))}
    for name, entry in named.items():
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {name} is encrypted or packed in an unusual way; unpack the archive")
    return {name: _member(path, name, entry) for name, entry in named.items()}


def _member(path: Path, name: str, entry: zipfile.ZipInfo) -> ZipMember:
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return ZipMember(path, name, entry.header_offset, entry.compress_size, entry.file_size, entry.CRC, deflated)


def unwrapped(files: dict[str, File]) -> dict[str, File]:
    """Return the files by their names from the first folder that holds more than another folder."""
    while len({name.split("/")[0] for name in files}) == 1 and all("/" in name for name in files):
        inner = {name.split("/", 1)[1]: file for name, file in files.items()}
        if len({name.split("/")[0] for name in inner}) == 1 and not all("/" in name for name in inner):
            break  # a folder of a single file
        files = inner
    return files
