"""The file that `diffusers-ext score` writes: a row for each picture and prompt, that goes by what they are, not by names.

    {"image": "p/0.png", "prompt": "a red circle", "reward": "models/mine", "score": 1.25, "digest": ..., "weights": ...}

digest: SHA-256 of the picture's bytes; weights: of the reward's own files, null where it has none here. A picture that was
redrawn under its name is scored again, one that was only renamed is not. Rows of an earlier version have neither; they
go by the picture's name.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..cache import write_atomically
from ..engine.checkpoints import sha256
from ..errors import InputError

OF_MODELS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".model", ".py")  # files that make a reward


class Pair(NamedTuple):
    """What a score is of: the picture as the output names it, and the prompt."""

    image: str
    prompt: str


@dataclass
class Records:
    """Rows by pair, those of an earlier run among them; notes says what was found out about these."""

    path: Path
    reward: str
    weights: str | None
    digests: Mapping[Pair, str]
    rows: dict[Pair, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def row(self, pair: Pair, result: dict) -> dict:
        """Return the row of a pair; result: {"score": ...} or {"error": ...}."""
        known = {"digest": self.digests[pair], "weights": self.weights}
        return {**pair._asdict(), "reward": self.reward, **result, **known}

    def write(self) -> None:
        """Write all rows, in the order of the data, whole or not at all."""
        _write(self.path, [self.rows[pair] for pair in self.digests if pair in self.rows])


def read_records(path: Path, reward: str, weights: str | None, digests: Mapping[Pair, str]) -> Records:
    """Take over the scores of an earlier run; a line cut by a kill, errors and scores of other pictures are left out.

    Raises InputError for a file of something else, of another reward, of other weights, or of other data.
    """
    records = Records(path, reward, weights, digests)
    by_content = {(digest, pair.prompt): pair for pair, digest in digests.items() if digest}
    changed, unnamed = 0, 0
    for origin, row in _read_rows(path):
        _check_reward(origin, row, reward, weights)
        if "score" not in row:
            continue
        pair, digest = Pair(row["image"], row["prompt"]), row.get("digest")
        own = by_content.get((digest, pair.prompt)) if digest else pair if pair in digests else None
        if own is None and pair not in digests:
            raise InputError(f"{origin}: the score of another picture or prompt; name another --output")
        if own is None:
            changed += 1
        else:
            unnamed += digest is None
            records.rows[own] = {**row, "image": own.image}
    _same_content(records)
    if changed:
        records.notes.append(f"{changed} pictures have changed since {path} was written; they are scored again")
    if unnamed:
        records.notes.append(f"{unnamed} scores in {path} are of an earlier version; they are taken by file name")
    records.write()
    return records


def _same_content(records: Records) -> None:
    """Give pictures of equal bytes and prompt the one score that there is."""
    known = {(row["digest"], pair.prompt): row for pair, row in records.rows.items() if row.get("digest")}
    for pair, digest in records.digests.items():
        if pair not in records.rows and (digest, pair.prompt) in known:
            records.rows[pair] = {**known[digest, pair.prompt], "image": pair.image}


def _check_reward(origin: str, row: dict, reward: str, weights: str | None) -> None:
    if row["reward"] != reward:
        raise InputError(f"{origin}: scores of {row['reward']}, not of {reward}; name another --output")
    if row.get("weights") not in (None, weights):
        raise InputError(f"{origin}: scores of other weights of {reward} than there are now; name another --output")


def _read_rows(path: Path) -> Iterable[tuple[str, dict]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--output {path}: holds no scores ({error}); name another file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            good = all(isinstance(row[name], str) for name in ("image", "prompt", "reward"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                continue  # cut by a kill: no line break follows
            good = False
        if not good:
            raise InputError(f"{path}:{number}: no row of scores; name another --output")
        yield f"{path}:{number}", row


def _write(path: Path, rows: list[dict]) -> None:
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(path, text.encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error})") from None


def weights_of(reward: str) -> str | None:
    """Return the SHA-256 of the files on this machine that a reward's name stands for; None where there are none."""
    files = sorted(set(_files_of(reward, set())))
    if not files:
        return None
    lines = [f"{path.name} {sha256(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _files_of(name: str, seen: set[str]) -> list[Path]:
    """The files of a folder, of a file and of an ensemble's members, of `kind:path@clip`, or of the module of a function."""
    if not name or name in seen:
        return []
    seen.add(name)
    path = Path(name)
    if path.is_dir():
        return [file for file in path.iterdir() if file.is_file() and file.suffix in OF_MODELS]
    if path.is_file():
        members = [file for member in _members(path) for file in _files_of(member, seen)]
        return [path, *members]
    if ":" not in name:
        return []
    kind, _, rest = name.partition(":")
    parts = [file for part in rest.split("@") for file in _files_of(part, seen)]
    return parts or _module_files(kind, rest)


def _members(path: Path) -> list[str]:
    if path.suffix != ".json":
        return []
    try:
        return list(map(str, json.loads(path.read_text(encoding="utf-8"))["members"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # load_reward says what is wrong with it


def _module_files(module: str, attribute: str) -> list[Path]:
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        return []
    try:
        spec = sys.modules[module].__spec__ if module in sys.modules else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return []
    return [Path(spec.origin)] if spec and spec.origin and Path(spec.origin).is_file() else []
