"""Files: their digests, writing that survives a power cut, and the permissions that a user's umask asks for."""

import hashlib
import os
import uuid
from pathlib import Path

PRIVATE = 0o600  # what safetensors gives its files, whatever the umask


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Return once a file or folder has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at every moment it is absent, as it was, or whole, also when the machine loses power.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, 'a.txt'), b'whole or absent')
    ...     print(Path(folder, 'a.txt').read_text())
    whole or absent
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        sync(path.parent)


def follow_umask(folder: str | Path) -> None:
    """Give the weight files of a saved folder, at any depth, the permissions that every other file got from the umask.

    safetensors makes its files readable by their owner alone. Links are left as they are.
    """
    umask = os.umask(0o077)  # the only portable way to read it; the strictest one meanwhile
    os.umask(umask)
    for path in Path(folder).rglob("*.safetensors"):
        if not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o777 == PRIVATE:
            path.chmod(0o666 & ~umask)
