"""Scripts in processes of their own that start in a tenth of a second: a server imports torch, diffusers and transformers once
and forks for each script.

    with ForkServer() as server:
        run = server.start("training/train_lads.py", "--seed", "3", processes=2)
        done = run.wait(60)

A forked process sees the environment, folder and arguments it is given, and runs the script as __main__; its ranks find each
other as torchrun's do. The server imports nothing of diffusers_ext, so that a process which loads a saved model is as fresh as
a new one. What is decided when Python starts (locale, UTF-8 mode) is the server's; such tests need a new Python.
"""

import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PREVIEW_STEPS = 3  # of the sampler, where tests train a ControlNet: 20 would cost more than the training
FEW_STEPS = f"import diffusers_ext.control.previews as previews; previews.STEPS = {PREVIEW_STEPS}"
SLOW = "torch torchvision.transforms.functional diffusers.training_utils accelerate.tracking peft open_clip timm cv2"
SLOW = [*SLOW.split(), "matplotlib.pyplot", "scipy.stats", "skimage.color", "skimage.filters", "skimage.measure"]


def environment() -> dict[str, str]:
    """This process's environment, for a script on CPU processes."""
    # accelerate's --cpu with several processes silently runs one; this variable does not.
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class ForkServer:
    """The server, as its user sees it. One user, one call at a time; any number of scripts may run meanwhile."""

    def __init__(self):
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        command, pipes = [sys.executable, __file__], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env={**os.environ, **quiet}, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()  # the server ends with its input
        self.process.wait()

    def start(
        self, *words: object, processes: int = 1, env: dict | None = None, cwd=ROOT, before: str = ""
    ) -> "Running":
        """Start a script (or "-c", code) with its arguments. before: code that each process runs first, to plant a fault."""
        folder = tempfile.mkdtemp(prefix="forked-")
        given = {"words": [str(word) for word in words], "processes": processes, "cwd": str(cwd), "before": before}
        given |= {"env": dict(env or os.environ), "folder": folder}
        return Running(self, self.ask(given)["pid"], given["words"], Path(folder))

    def ask(self, question: dict, seconds: float = 600) -> dict:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        assert ready, f"the fork server has not answered for {seconds} s"
        return json.loads(self.process.stdout.readline())


class Running:
    """A started script, all its ranks: a process group."""

    def __init__(self, server: ForkServer, pid: int, words: list[str], folder: Path):
        self.server, self.pid, self.words, self.folder, self.code = server, pid, words, folder, None

    def poll(self, seconds: float = 0) -> int | None:
        """Wait so long at most; return the exit code, -N after signal N, or None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid, "seconds": seconds}, seconds + 60)["code"]
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all its processes."""
        if self.code is None:
            os.killpg(self.pid, number)

    def wait(self, seconds: float = 540) -> subprocess.CompletedProcess:
        """Return what subprocess.run would, once; a run that takes longer is killed and counts as killed."""
        if self.poll(seconds) is None:
            self.kill()
        code = self.poll(60)
        out, err = (Path(self.folder, name).read_text(errors="replace") for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess(self.words, code, out, err)


# ---------------------------------------------------------------- the server's side


def serve() -> None:
    """Answer requests, a line of JSON each, until the input ends; then kill what still runs."""
    import_what_is_slow()
    replies, running = os.fdopen(os.dup(1), "w"), set()
    os.dup2(2, 1)  # what an import prints is no reply
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            code = wait_for(request["wait"], request["seconds"])
            running -= {request["wait"]} if code is not None else set()
            reply = {"code": code}
        else:
            reply = {"pid": fork(become_session, request)}
            running.add(reply["pid"])
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
    os._exit(0)  # without the second that tidying up takes


def import_what_is_slow() -> None:
    import gc
    import importlib

    for name in SLOW:
        importlib.import_module(name)
    from diffusers import AutoPipelineForText2Image, ControlNetModel, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from transformers import AutoModel, BlipTextModel, BlipVisionModel, CLIPTextModel, CLIPTokenizer  # noqa: F401

    warm_up()
    assert not any(name.split(".")[0] == "diffusers_ext" for name in sys.modules)
    threads = Path("/proc/self/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1, "a fork copies one thread only"
    gc.collect()
    gc.freeze()  # the children leave these objects, and so their pages, alone


def warm_up() -> None:
    """Fill the caches that the first plot and the first loading of a text encoder fill, a second of CPU time each."""
    import io

    from matplotlib import pyplot
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("clip_text_model")
    figure, axes = pyplot.subplots()
    axes.plot([1, 2], [0.1, 20], label="a")
    axes.set_yscale("log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(io.BytesIO())
    pyplot.close(figure)


def fork(act, *given) -> int:
    """Run a function in a child and return its pid; the child ends with the function."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = act(*given)
        finally:
            os._exit(code)
    return pid


def wait_for(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def become_session(request: dict) -> int:
    """In the child: lead a process group of its own, and be the script, or the parent of its ranks."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(f"{request['folder']}/{name}", flags, 0o644), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if request["processes"] == 1:
        return run_script(request)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    count = str(request["processes"])
    os.environ.update(place, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count)
    ranks = {fork(run_rank, request, rank) for rank in range(request["processes"])}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the ranks
    return outcome_of(ranks)


def outcome_of(ranks: set[int]) -> int:
    """Wait for all ranks; when one fails the others are ended, and its outcome is the whole's."""
    worst = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not worst:
            worst = code
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    if worst < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return worst


def run_rank(request: dict, rank: int) -> int:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    return run_script(request)


def run_script(request: dict) -> int:
    """Be `python SCRIPT WORDS`, or `python -c CODE`, up to the exit code."""
    import atexit
    import threading
    import traceback

    time.tzset()
    script, *words = request["words"]
    first = "" if script == "-c" else os.path.dirname(os.path.abspath(script))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *paths, *sys.path[1:]]
    code = 0
    try:
        exec(request["before"], {})
        if script == "-c":
            sys.argv = ["-c", *words[1:]]
            exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [script, *words]
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
