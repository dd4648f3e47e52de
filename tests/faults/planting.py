"""Faults that a script plants in its own process before it starts: `ForkServer.start(..., before="planting.kill_at(...)")`.

Python tells an audit hook (PEP 578) of every file that it is about to open, rename, make or remove; a hook that raises makes the
call fail, and one that kills leaves the files as they are at that moment. What Rust and C++ write is not told of; there a CPU
timer kills at any moment, and a limit on the size of files fails every write.
"""

import atexit
import ctypes
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

CALLS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SMALL = 20_000  # bytes that a file on a full disk may still grow to, for what the process prints


def watch(folder: str, act: Callable[[str, bool], None], pattern: str = "") -> None:
    """Call act(what is about to happen, whether it writes) before every call on a file in the folder that matches.

    What is about to happen reads "open:run/metrics.jsonl", with the name from the folder on.
    """
    root, busy = os.path.realpath(folder), []

    def hook(event: str, given: tuple) -> None:
        if event not in CALLS or busy or not isinstance(given[0], (str, bytes, os.PathLike)):
            return
        busy.append(event)
        try:
            path, place = os.fsdecode(given[0]), given[-1] if event != "open" else -1
            if isinstance(place, int) and place >= 0 and event not in ("shutil.rmtree", "os.truncate"):
                path = os.path.join(os.readlink(f"/proc/self/fd/{place}"), path)  # a name relative to an open folder
            name = os.path.relpath(os.path.abspath(path), root)
            what = f"{event}:{name}"
            if not name.startswith("..") and re.search(pattern, what):
                act(what, event != "open" or bool((given[2] or 0) & WRITING))
        finally:
            busy.clear()

    sys.addaudithook(hook)


def record(folder: str, log: str) -> None:
    """Write down every call on a file in the folder, and at the end the CPU seconds that the process took."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    watch(folder, lambda what, _: os.write(handle, f"{what}\n".encode()))
    atexit.register(lambda: os.write(handle, str(time.process_time()).encode()))


def kill_at(folder: str, number: int, pattern: str = "", how: int = signal.SIGKILL, group: bool = False) -> None:
    """Send this process, or all of its group, a signal before the call of that number, from 1, on a matching file."""
    left = [number]

    def act(*_) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(0 if group else os.getpid(), how)

    watch(folder, act, pattern)


def kill_after(seconds: float) -> None:
    """End the process after so much CPU time, wherever it is then, by the kernel, as SIGKILL does."""
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-3))


def fail_from(folder: str, number: int, code: int) -> None:
    """From the writing call of that number on, every write in the folder fails with an errno, as on a disk that is full."""
    left = [number]

    def act(what: str, writes: bool) -> None:
        left[0] -= writes
        if left[0] <= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.RLIM_INFINITY))
            if writes and not what.startswith(("os.remove", "os.rmdir", "shutil.rmtree")):
                raise OSError(code, os.strerror(code), what.partition(":")[2])

    watch(folder, act)


def turn_back_clocks() -> None:
    """Every look at the clock is an hour before the last."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    time.time = earlier


def obey_permissions() -> None:
    """Let the superuser's process write only where permissions say so: drop CAP_DAC_OVERRIDE and its like (capset(2))."""
    if os.geteuid() == 0:
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0


def scar(path: Path) -> None:
    """Flip the bits of one byte in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 255]))
