"""Judgements on disk: a file per annotator, a line per judgement, appended and never rewritten.

    DIR/annotations/ada.jsonl

A line names the pictures by their paths and by the SHA-256 of their bytes ("digests"), so that a judgement never counts
for other pictures that came under the same names. A prompt that was skipped is a line with "skipped": true and no ranking.

A judgement counts as saved when its line has reached the disk (fsync), and only then is the page told so. A correction
is one more line, and an item's last line wins. A line that a crash cut short was never told to be saved; it is removed
before the next line is written. Any number of threads and processes may use the same file: each holds its lock while it
writes, and first reads what others have added.
"""

import json
import logging
import os
import re
import unicodedata
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from ...errors import InputError

FOLDER = "annotations"
NAME = r"[^\W_][\w-]{0,39}"
WAIT = 30  # seconds for another process to finish writing
log = logging.getLogger(__name__)


class Damaged(InputError):
    """A file of judgements cannot be read; the message names the file, so it is for the terminal, not for the page."""


class Conflict(Exception):
    """The item was judged elsewhere since the page showed it; `newer` is that judgement."""

    def __init__(self, newer: dict):
        super().__init__(newer)
        self.newer = newer


def annotator_name(text: str) -> str:
    """Return a person's name as files have it: lower case, composed letters.

    Raises InputError unless it is one to forty letters, digits, - or _, the first neither - nor _.
    """
    name = unicodedata.normalize("NFC", text.strip().casefold())
    if not re.fullmatch(NAME, name):
        raise InputError(f"annotator {text[:60]!r}: give a name of letters, digits, - and _, at most forty")
    return name


def annotators(folder: Path) -> list[str]:
    """Return the names of those who have a file in the folder of annotations."""
    return sorted(path.stem for path in folder.glob("*.jsonl") if re.fullmatch(NAME, path.stem))


class Judgements:
    """The judgements of one annotator."""

    def __init__(self, folder: Path, annotator: str):
        """Read the file, if there is one, and repair its end; raises InputError where a line in it is damaged."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); judgements could not be kept") from None
        self.path = folder / f"{annotator}.jsonl"
        self._lock = FileLock(folder / f".{annotator}.lock", timeout=WAIT)
        self._latest: dict[str, dict] = {}
        self._end = self._lines = 0  # bytes and lines read so far
        with self._lock:
            self._catch_up()

    def latest(self) -> dict[str, dict]:
        """Return each item's last judgement, under its id."""
        with self._lock:
            self._catch_up()
            return dict(self._latest)

    def append(self, judgement: dict, replaces: int) -> dict:
        """Write a judgement to the disk and return it with `revision` and `saved_at`; it has an `id` and a `nonce`.

        replaces: the revision that the page showed, 0 for none. A judgement whose nonce is already the last one's is
        the same sent again, and is not written twice. Raises Conflict if another revision has come since, OSError if
        the disk does not take it; the file is then as before.
        """
        with self._lock:
            self._catch_up()
            known = self._latest.get(judgement["id"], {"revision": 0, "nonce": None})
            if known["nonce"] == judgement["nonce"]:
                return known
            if known["revision"] != replaces:
                raise Conflict(known)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            saved = {**judgement, "revision": replaces + 1, "saved_at": now}
            self._write(json.dumps(saved, ensure_ascii=False).encode() + b"\n")
            self._latest[saved["id"]] = saved
            return saved

    def _write(self, line: bytes) -> None:
        new = not self.path.exists()
        with open(self.path, "ab", buffering=0) as file:
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._end)
                raise
        if new:
            _sync_folder(self.path.parent)
        self._end, self._lines = self._end + len(line), self._lines + 1

    def _catch_up(self) -> None:
        """Read the lines added since the last time; with the lock held, an unfinished line is a crash's."""
        if not self.path.exists() or self.path.stat().st_size < self._end:  # taken away, or replaced by an older copy
            self._latest, self._end, self._lines = {}, 0, 0
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self._end)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n")[:-1]:
            self._take(line)
        self._end += len(whole)
        if len(whole) < len(data):
            self._repair(data[len(whole) :])

    def _take(self, line: bytes) -> None:
        self._lines += 1
        try:
            judgement = json.loads(line)
            self._latest[judgement["id"]] = {"nonce": None, "revision": 1, **judgement}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            where = f"{self.path}:{self._lines}"
            raise Damaged(f"{where}: damaged ({error!r}); restore the file or remove the line") from None

    def _repair(self, torn: bytes) -> None:
        """Remove a line that was cut short, or end it where only the line break is missing."""
        try:
            self._take(torn)
        except InputError:
            self._lines -= 1
            log.warning("%s: removed a line that a crash cut short after %d bytes", self.path, len(torn))
            os.truncate(self.path, self._end)
        else:
            with open(self.path, "ab") as file:
                file.write(b"\n")
            self._end += len(torn) + 1


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable; Windows has no such call."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
