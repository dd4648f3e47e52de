"""Pieces of code, each run as the first thing that a Python process does after importing torch, diffusers and transformers.

One process per set of environment variables imports these, which takes seconds, and forks for every piece: what one piece
imports or loads, the others never see. A piece leaves its answer in `result`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
import json, os, sys
import torch
import diffusers.guiders, torchvision.transforms.functional
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ModularPipelineBlocks, StableDiffusionPipeline
from diffusers import UNet2DConditionModel
from huggingface_hub import snapshot_download
from transformers import AutoModel, BlipTextModel, BlipVisionModel, CLIPTextModel, CLIPTokenizer

assert not any(name.split(".")[0] == "diffusers_ext" for name in sys.modules)
torch.set_num_threads(1)

def picture(pipe):
    '''What the pipeline draws, and what drew it.'''
    drawn = pipe("red circle", num_inference_steps=2, num_candidates=4, keep=1, seed=3, output_type="pt")
    return {**names(pipe), "sum": drawn.images.double().sum().item(), "score": drawn.scores[0]}

def names(pipe):
    reward = getattr(pipe, "reward_model", None)
    kind = type(reward)
    return {"class": f"{type(pipe).__module__}.{type(pipe).__name__}",
            "reward": None if reward is None else f"{kind.__module__}.{kind.__name__}"}

for name, code in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if os.fork() == 0:
        scope = dict(globals())
        try:
            exec(code, scope)
            answer = scope["result"]
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("RESULT", json.dumps([name, answer]), flush=True)
        os._exit(0)
    os.wait()
"""


def run(pieces: dict[str, str], folder: Path, package: Path | None, **variables: str) -> tuple[dict, str]:
    """Return {name: answer or {"error": ...}} and what was written to stderr.

    folder: the working folder; its home/ holds the Hub's cache and what diffusers copies code to. package: the folder that
    holds diffusers_ext; None hides it. variables: of the environment.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DIFFUSERS_"))}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # Installed packages without what .pth files add: that is how an editable diffusers_ext would be found.
    paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    environment = {
        **inherited,
        **quiet,
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(package)] * (package is not None) + paths),
        **variables,
    }
    command = [sys.executable, "-S", "-c", PROGRAM, json.dumps(pieces)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return dict(json.loads(line) for line in lines), done.stderr


def installed(folder: Path) -> Path:
    """Lay this checkout out as a wheel is installed, by links, whatever is installed here; return the folder to import from."""
    package = folder / "diffusers_ext"
    package.mkdir(parents=True)
    for path in (ROOT / "diffusers_ext").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in ("pipelines", "training"):
        (package / name).symlink_to(ROOT / name)
    return folder
