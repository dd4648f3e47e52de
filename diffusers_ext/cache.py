"""A store of tensors on disk, keyed by the content that they were computed from.

    store = Store(folder, {"value": "moments", "weights": ..., "transform": ..., "dtype": ...}, Digests(folder))
    store.fill(keys, encode)    # computes what is missing, together with any other process that does the same
    store[key]                  # memory-mapped, copied by nobody

A folder looks like this:

    digests.json                          SHA-256 of files, remembered by path, size and times
    moments-1f0c.../spec.json             what these values were computed with: another spec, another folder
    moments-1f0c.../8a41....safetensors   up to 256 values and their keys; the name is the SHA-256 of its bytes

Since a shard is named by its content, there is no index that could disagree with it: a shard is whole and itself, or it
is dropped. Processes meet on the file system only, so ranks, nodes and independent runs can share a folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from .disk import sha256, write_atomically
from .errors import InputError

if TYPE_CHECKING:
    from .data.files import File

try:
    import fcntl
except ImportError:  # Windows: several processes then may compute the same value, which costs time and nothing else
    fcntl = None  # type: ignore[assignment]

SHARD = 256  # values in a file; what a kill can lose
HEX = 32  # hexadecimal digits of a key: 128 bits
SETTLED = 2.0  # seconds after which a changed file is sure to have another time stamp


class Digests:
    """SHA-256 of files, computed once and remembered by path, size, and times of change.

    The time of the last status change is among them, which no program can set back.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "digests.json"
        self.known = self._read()
        self.news: dict[str, list] = {}

    def __call__(self, path: str | Path) -> str:
        """Return the digest of a file; OSError if it cannot be read."""
        path = os.path.abspath(path)
        began, status = time.time(), os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        found = self.known.get(path)
        if found and found[:3] == stamp:
            return found[3]
        digest = sha256(Path(path))
        if began - max(stamp[1:]) / 1e9 > SETTLED:  # else a later change might leave the same stamp
            self.known[path] = self.news[path] = [*stamp, digest]
        return digest

    def of(self, paths: Iterable[str | Path]) -> list[str]:
        """Return the digests of many files, several read at once."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self, paths))

    def save(self) -> None:
        """Write what is new; when two processes write at once the last wins, and the other's files are hashed again."""
        if self.news:
            write_atomically(self.path, json.dumps({**self._read(), **self.news}).encode())
            self.news = {}

    def _read(self) -> dict[str, list]:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # absent or damaged: only time is lost
            return {}


def fingerprint(folder: str | Path, parts: Sequence[str], digests: Digests) -> str:
    """Return the digest of all files of a model's sub-folders: weights, configuration, vocabulary.

    Raises InputError if one of them holds no file.
    """
    lines = []
    for part in parts:
        files = sorted(path for path in (Path(folder) / part).rglob("*") if path.is_file())
        if not files:
            raise InputError(f"{Path(folder) / part}: missing or empty; the model's folder is incomplete")
        lines += [f"{path.relative_to(folder)} {digest}" for path, digest in zip(files, digests.of(files))]
    return digest_of("\n".join(lines))


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal.

    >>> digest_of('red circle')[:8]
    '2eb730c7'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_file(file: "File") -> str:
    """Return the SHA-256 of a file inside an archive or a data set, read anew each time."""
    with file.open("rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def digest_of_tensors(modules: Sequence[torch.nn.Module]) -> str:
    """Return the SHA-256 of the weights of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Batches:
    """`Store.fill` asks for values one by one, in order; this computes each with its neighbours.

    compute(positions) returns the values at these positions, stacked; called for one run of batch_size at a time.
    """

    def __init__(self, count: int, batch_size: int, compute: Callable[[range], torch.Tensor]):
        self.count, self.batch_size, self.compute = count, batch_size, compute
        self.number, self.values = -1, torch.empty(0)

    def __call__(self, index: int) -> torch.Tensor:
        number, place = divmod(index, self.batch_size)
        if number != self.number:
            first = number * self.batch_size
            self.number, self.values = number, self.compute(range(first, min(first + self.batch_size, self.count)))
        return self.values[place]


class Store:
    """Tensors of one shape and type by key, in memory-mapped files of one folder.

    The spec is all that the values depend on beside their own content; "value" says in a word what they are. Damaged
    shards are named, removed and so computed again. Opening costs a look at each file, not a read.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = Store(folder.name, {'value': 'squares', 'dtype': 'torch.float32'}, Digests(folder.name))
    >>> keys = [digest_of(str(number)) for number in range(3)]
    >>> store.fill(keys, lambda index: torch.tensor([float(index**2)]))
    3
    >>> [store[key].item() for key in keys]
    [0.0, 1.0, 4.0]
    >>> store.fill(keys, lambda index: torch.tensor([float(index**2)]))
    0
    >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, spec: dict, digests: Digests):
        described = json.dumps(spec, indent=1, sort_keys=True)
        self.folder, self.digests = Path(folder) / f"{spec['value']}-{digest_of(described)[:16]}", digests
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "spec.json").exists():
                write_atomically(self.folder / "spec.json", described.encode())
        except OSError as error:
            raise InputError(f"{self.folder}: the cache cannot be written ({error}); name another folder") from None
        for partial in self.folder.glob(".*.partial"):  # of a writer that was killed
            if time.time() - partial.stat().st_mtime > 3600:
                partial.unlink(missing_ok=True)
        self._shards: list[Path] = []
        self._maps: dict[int, torch.Tensor] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> torch.Tensor:
        """Return a value, a view of the mapped file; KeyError if it was never computed."""
        shard, row = self._places[key[:HEX]]
        if shard not in self._maps:
            with safe_open(self._shards[shard], "pt") as file:
                self._maps[shard] = file.get_tensor("values")
        return self._maps[shard][row]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}  # another process maps the files itself

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that have no value yet, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key[:HEX] not in self._places]

    def refresh(self) -> None:
        """Take up shards that appeared since, from whichever process; drop those that are damaged."""
        known = set(self._shards)
        new = sorted(path for path in self.folder.glob("*.safetensors") if path not in known)
        with ThreadPoolExecutor(8) as pool:
            for path, keys in zip(new, pool.map(self._keys_of, new)):
                if keys is not None:
                    self._places.update((key, (len(self._shards), row)) for row, key in enumerate(keys))
                    self._shards.append(path)

    def fill(self, keys: Sequence[str], encode: Callable[[int], torch.Tensor], show: bool = False) -> int:
        """Compute the missing values, `encode(i)` for keys[i], and return how many this process computed.

        Processes that fill the same keys share the work, and all return when every value is there. What was computed
        is kept if `encode` raises or the user interrupts; a kill loses at most one shard per process.
        """
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        left = self.missing(keys)
        if not left:
            return 0
        done = 0
        name = f"encoding {self.folder.name.split('-')[0]}"
        with tqdm(total=len(left), desc=name, dynamic_ncols=True, disable=not show) as bar:
            while left:
                with self._claim(left) as mine:
                    done += self._compute(mine, first, encode, bar, len(left))
                if not mine:
                    time.sleep(0.2)  # others compute the rest
                self.refresh()
                left = self.missing(left)
                bar.update(bar.total - len(left) - bar.n)
        return done

    def _compute(self, keys: list[str], first: dict[str, int], encode: Callable, bar: tqdm, left: int) -> int:
        """Compute and write one shard."""
        values: list[torch.Tensor] = []
        try:
            for key in keys:
                values.append(encode(first[key]).detach().cpu().contiguous())
                if len(values) == 1:
                    self._check_space(left * values[0].nbytes)
                    bar.set_postfix_str(f"{values[0].nbytes / 1024:.1f} KiB each")
                bar.update()
        finally:
            if values:
                self._write(keys[: len(values)], torch.stack(values))
        return len(values)

    def _write(self, keys: list[str], values: torch.Tensor) -> None:
        data = save({"values": values}, {"keys": " ".join(key[:HEX] for key in keys)})
        write_atomically(self.folder / f"{hashlib.sha256(data).hexdigest()}.safetensors", data)

    def _keys_of(self, path: Path) -> list[str] | None:
        """Return the keys of a shard, or remove it and return None if it is not what was written."""
        try:
            if self.digests(path) == path.stem:
                with safe_open(path, "pt") as file:
                    return file.metadata()["keys"].split()
        except FileNotFoundError:  # another process removed it
            return None
        tqdm.write(f"{path}: damaged; removed, its values are computed again")
        path.unlink(missing_ok=True)
        return None

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"{self.folder}: the values need {needed / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; "
                "name another folder or make room"
            )

    @contextlib.contextmanager
    def _claim(self, keys: Sequence[str]) -> Iterator[list[str]]:
        """Yield up to SHARD of the keys that no other process is computing, and keep them from others meanwhile.

        Each key is a byte of a lock file (POSIX record locks): the kernel frees them when their owner dies, however it
        dies, and two processes agree on them whatever else they compute.
        """
        with open(self.folder / "lock", "ab") as file:
            mine: list[str] = []
            for key in keys:
                if len(mine) == SHARD:
                    break
                if _lock(file.fileno(), key):
                    mine.append(key)
            self.refresh()  # some may have been finished between our look and our lock
            yield self.missing(mine)


def _lock(handle: int, key: str) -> bool:
    """Lock the byte of a key, or say that another process has it."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: as above, twice the work at worst
        return True
    return True
