"""`load_reward(name)`: any reward of the family by name.

runs/my-reward, owner/name      a folder or Hub repository that holds an ImageRewardModel, or a folder with a trained head
clip:ViT-B-32/openai            CLIP score, open_clip's architecture and tag, or architecture and checkpoint file
clip:path/to/clip               the same, a transformers CLIP folder
pickscore, pickscore:path       PickScore, from the Hub or a folder
hps, hps:HPS_v2.1_compressed.pt HPSv2 or 2.1, from the Hub (2.1) or a checkpoint file
aesthetic:head.pth              a LAION head on the CLIP it was made for; head.pth@ViT-L-14/openai names another
fill50k, fill50k:soft           the embedded model's colours: exact, or with gradients
ensemble.json                   several of these (`EnsembleReward.save`)
my_module:my_reward             a Reward of your own, or a function (prompts, images (3, H, W) in [0, 1]) -> rewards
"""

import importlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError

PICKSCORE, PICKSCORE_TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPS_REPOSITORY, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
AESTHETIC_CLIPS = {512: "ViT-B-32/openai", 768: "ViT-L-14/openai"}  # by width, of LAION's heads
FORMS = "\n".join(line.strip() for line in (__doc__ or "").splitlines()[2:])


def load_reward(name_or_path: str | os.PathLike) -> Any:
    """Return a reward, in evaluation mode on the CPU in float32, ready to `score(prompts, images)`; `.to(device)` moves it.

    Raises InputError, saying what was tried, where a name is unknown or its weights cannot be had.
    """
    name = str(name_or_path)
    kind, _, rest = name.partition(":")
    if kind in KINDS:
        reward = KINDS[kind](rest)
    elif name.endswith(".json"):
        reward = _ensemble(Path(name))
    elif rest and not Path(name).exists() and all(part.isidentifier() for part in (*kind.split("."), rest)):
        reward = _own(kind, rest)
    else:
        reward = _image_reward(name)
    return reward.eval().requires_grad_(False)


def _image_reward(name: str) -> Any:
    path = Path(name)
    if name and path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name}: holds no config.json; expected what ImageRewardModel.save_pretrained wrote")
    if path.is_file():
        raise InputError(
            f"{name}: a checkpoint is converted first: diffusers-ext convert-reward {name} --output_dir FOLDER"
        )
    if not name or (not path.is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~")))):
        raise InputError(f"{name or 'an empty name'}: no such folder, and no reward has that name. There are:\n{FORMS}")
    from .modeling_image_reward import ImageRewardModel

    if path.is_dir():
        model_type = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
        if model_type == "open_clip_reward":
            from .linear_head import LinearHeadReward

            return LinearHeadReward.from_pretrained(name)
        if model_type != "image_reward":
            raise InputError(f"{name}: a model of type {model_type!r}, not image_reward; CLIP is clip:{name}")
    try:
        return ImageRewardModel.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: {'' if path.is_dir() else 'no such folder, and from the Hub '}no ImageRewardModel could be loaded: {error}"
        ) from error


def _own(module: str, attribute: str) -> Any:
    from .interface import FunctionReward, Reward

    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{module}:{attribute}: {error}; name a module on the PYTHONPATH and what is in it") from None
    made = found() if isinstance(found, type) else found
    return made if isinstance(made, Reward) else FunctionReward(made)


def _clip(rest: str) -> Any:
    from .clip import ClipReward

    return ClipReward(_towers(rest, "clip"))


def _towers(rest: str, kind: str) -> Any:
    """A transformers folder, or ARCHITECTURE/TAG of open_clip."""
    from .clip import OpenClip, TransformersClip

    if Path(rest, "config.json").is_file():
        return TransformersClip.load(rest)
    architecture, _, pretrained = rest.partition("/")
    if not architecture or not pretrained:
        raise InputError(
            f"{kind}:{rest}: give ARCHITECTURE/TAG, such as {kind}:ViT-B-32/openai, or a transformers folder"
        )
    return OpenClip.load(architecture, pretrained)


def _pickscore(rest: str) -> Any:
    from .clip import ClipReward, TransformersClip

    return ClipReward(TransformersClip.load(rest or PICKSCORE, None if rest else PICKSCORE_TOKENIZER), scaled=True)


def _hps(rest: str) -> Any:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    from .clip import ClipReward, OpenClip

    if rest and not Path(rest).is_file():
        raise InputError(f"hps:{rest}: no such file; give {HPS_FILE} of {HPS_REPOSITORY}")
    try:
        path = rest or hf_hub_download(HPS_REPOSITORY, HPS_FILE)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"hps: {HPS_FILE} of {HPS_REPOSITORY} cannot be had: {error}") from error
    return ClipReward(OpenClip.load("ViT-H-14", path, whole=True))


def _aesthetic(rest: str) -> Any:
    from .clip import AestheticReward, load_aesthetic_head

    path, _, clip = rest.partition("@")
    if not Path(path).is_file():
        raise InputError(
            f"aesthetic:{rest}: no head at {path!r}; give aesthetic:FILE, a .pth of LAION's aesthetic predictors"
        )
    head = load_aesthetic_head(path)
    width = head[0].in_features
    if not clip and width not in AESTHETIC_CLIPS:
        raise InputError(f"{path}: a head of width {width}; name its CLIP, aesthetic:{path}@ARCHITECTURE/TAG")
    reward = AestheticReward(_towers(clip or AESTHETIC_CLIPS[width], "aesthetic"), head)
    _check_width(reward, width, rest)
    return reward


def _check_width(reward: Any, width: int, rest: str) -> None:
    import torch

    with torch.no_grad():
        found = reward.clip.embed_images([torch.zeros(3, 8, 8)]).shape[1]
    if found != width:
        raise InputError(f"aesthetic:{rest}: the head reads {width} numbers, that CLIP gives {found}")


def _fill50k(rest: str) -> Any:
    from .colour import ColourReward, SoftColourReward

    if rest not in ("", "soft"):
        raise InputError(f"fill50k:{rest}: there are fill50k and fill50k:soft")
    return SoftColourReward() if rest else ColourReward()


def _ensemble(path: Path) -> Any:
    from .ensemble import EnsembleReward, Scale

    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scales = {name: Scale(**scale) for name, scale in record["members"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no ensemble as EnsembleReward.save writes it ({error})") from None
    members = {name: load_reward(name) for name in scales}
    return EnsembleReward(members, scales, record.get("combine", "mean"), record.get("k", 1.0))


KINDS = {
    "clip": _clip,
    "pickscore": _pickscore,
    "hps": _hps,
    "aesthetic": _aesthetic,
    "fill50k": _fill50k,
}  # before ":"
