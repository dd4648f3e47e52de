"""What may happen to a run from outside: a second run on its folder, and the order to end.

A run holds a lock on `.lock` in its folder, which the kernel frees when the process ends, however it ends.
"""

import os
import signal
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps a second run out
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


def check_free(folder: Path) -> None:
    """Raise InputError if another process trains into a folder."""
    if (folder / LOCK).exists() and os.access(folder / LOCK, os.R_OK):
        with open(folder / LOCK, "rb") as file:
            _lock(file, "LOCK_SH")


def claim(folder: Path, owner: object) -> None:
    """Keep other runs out of a folder as long as `owner`, a run's options, lives; InputError if one is there already."""
    try:
        file = open(folder / LOCK, "a+b")  # noqa: SIM115, it stays open
    except OSError:
        return  # of another user, say: what follows will tell
    weakref.finalize(owner, file.close)
    _lock(file, "LOCK_EX")
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}".encode())
    file.flush()


def _lock(file: BinaryIO, kind: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        who = file.read().decode(errors="replace") or "unknown"
        raise InputError(
            f"{Path(file.name).parent}: another run writes there, process {who}; wait for it, end it, or name another --output_dir"
        ) from None
    except OSError:
        return  # a file system without locks


class Interrupted(BaseException):
    """SIGTERM came while something was drawn that can be drawn again; no `except Exception` on the way takes it."""


class Sigterm:
    """Within the block SIGTERM, with which schedulers take a machine back, ends nothing: `came` says that it did."""

    def __init__(self):
        self.came = False
        self.hooks: list[Any] | None = None  # where drawing may be interrupted, the hooks that do it

    def __enter__(self) -> "Sigterm":
        self.main = threading.current_thread() is threading.main_thread()  # elsewhere Python sets no handler
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Within the block the next call of any network after SIGTERM raises Interrupted.

        Only there: weights that are being merged, averaged or written are never left halfway.
        """
        self.hooks = []
        try:
            if self.came:
                raise Interrupted
            yield
        finally:
            hooks, self.hooks = self.hooks, None
            for hook in hooks:
                hook.remove()

    def _note(self, *_) -> None:
        self.came = True
        if self.hooks is not None:
            self.hooks.append(register_module_forward_pre_hook(_interrupt))


def _interrupt(*_: Any) -> None:
    raise Interrupted


def outlive_sigterm(worker: int) -> None:
    """In a process that loads data: outlive the first SIGTERM, which is for the training; the second ends it."""
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
