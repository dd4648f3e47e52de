"""`load_reward(name)`: any reward of the family by name.

runs/my-reward, owner/name      a folder or Hub repository that holds an ImageRewardModel, or a folder with a trained head
clip:ViT-B-32/openai            CLIP score, open_clip's architecture and tag, or architecture and checkpoint file
clip:path/to/clip               the same, a transformers CLIP folder
pickscore, pickscore:path       PickScore, from the Hub or a folder
hps, hps:HPS_v2.1_compressed.pt HPSv2 or 2.1, from the Hub (2.1) or a checkpoint file
aesthetic:head.pth              a LAION head on the CLIP it was made for; head.pth@ViT-L-14/openai names another
fill50k, fill50k:soft           the embedded model's colours: exact, or with gradients
ensemble.json                   several of these (`EnsembleReward.save`)
my_module:my_reward             a reward of your own: a function (prompts, images (3, H, W) in [0, 1]) -> rewards, an object
                                with such a `score`, or a class of one (`interface.OwnReward`)

The last is code, and so a matter of trust: see `load_reward`.
"""

import importlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .completeness import LOADING_ERRORS, why_not_loaded

PICKSCORE, PICKSCORE_TOKENIZER = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPS_REPOSITORY, HPS_FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
NO_CODE = (
    "a file may not name code. If the file and that module are yours, load_reward(FILE, trust_remote_code=True), "
    "or diffusers-ext score --trust_remote_code"
)
AESTHETIC_CLIPS = {512: "ViT-B-32/openai", 768: "ViT-L-14/openai"}  # by width, of LAION's heads
FORMS = "\n".join(line.strip() for line in (__doc__ or "").partition("\n\nThe last")[0].splitlines()[2:])


def load_reward(
    name_or_path: str | os.PathLike, device: str | torch.device | None = None, trust_remote_code: bool = False
) -> Any:
    """Return a reward, in evaluation mode in float32, ready to `score(prompts, images)`; `.to(device)` moves it.

    Args:
        name_or_path: one of the forms above. "my_module:my_reward" imports my_module: it is your own argument.
        device: where it is computed; default: the CPU, or where your own is.
        trust_remote_code: let an ensemble's file name such code too. Without, no file, folder or repository makes
            anything be imported, whatever it says (SECURITY.md).

    Raises InputError, saying what was tried, where a name is unknown, its weights cannot be had or are not whole, or a file
    names code.

    >>> reward = load_reward('fill50k')
    >>> from PIL import Image
    >>> reward.score('red circle with blue background', [Image.new('RGB', (64, 64), 'blue')]).shape
    torch.Size([1])
    """
    reward = _load(os.fspath(name_or_path), True, trust_remote_code)
    return reward if device is None else reward.to(device)


def load_saved_reward(name: str) -> Any:
    """Return the reward of a name that stood in a file: as `load_reward`, but it names no code."""
    return _load(name, False, False)


def _load(name: str, own_code: bool, trust_remote_code: bool) -> Any:
    """own_code: whether this name may be "module:attribute". trust_remote_code: whether those in files may."""
    kind, _, rest = name.partition(":")
    if kind in KINDS:
        reward = KINDS[kind](rest)
    elif names_ensemble(name):
        reward = _ensemble(Path(name), trust_remote_code)
    elif names_code(name):
        if not own_code:
            raise InputError(f"reward {name!r}: {NO_CODE}")
        reward = _own(kind, rest)
    else:
        reward = _image_reward(name)
    return reward.eval().requires_grad_(False)


def names_ensemble(name: str) -> bool:
    """Say whether a name is that of an ensemble's file."""
    return name.partition(":")[0] not in KINDS and name.endswith(".json") and not Path(name).is_dir()


def names_code(name: str) -> bool:
    """Say whether a name is "module:attribute", which `load_reward` imports."""
    module, _, attribute = name.partition(":")
    if module in KINDS or names_ensemble(name) or not attribute or Path(name).exists():
        return False
    return all(part.isidentifier() for part in (*module.split("."), attribute))


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
        model_type = _model_type(path)
        if model_type == "open_clip_reward":
            from .linear_head import LinearHeadReward

            return _whole(lambda: LinearHeadReward.from_pretrained(name, dtype=torch.float32), name)
        if model_type != "image_reward":
            raise InputError(f"{name}: a model of type {model_type!r}, not image_reward; CLIP is clip:{name}")
    return _whole(lambda: ImageRewardModel.from_pretrained(name, dtype=torch.float32), name)


def _whole(load: Callable[[], Any], name: str) -> Any:
    """Load a folder or a repository; whatever is wrong with its files, an InputError says so."""
    try:
        return load()
    except InputError:
        raise
    except LOADING_ERRORS as error:
        origin = "" if Path(name).is_dir() else "no such folder, and from the Hub "
        reason = why_not_loaded(name, error)
        raise InputError(f"{name}: {origin}no ImageRewardModel could be loaded: {reason}; download it again") from error


def _model_type(folder: Path) -> Any:
    """Return what a folder's config.json says that it is."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: a {type(config).__name__}, no configuration; download it again")
    return config.get("model_type")


def read_json(path: Path) -> Any:
    """Return what a file holds; InputError naming it where that is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; download it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no JSON that can be read ({error}); download it again") from None


def _own(module: str, attribute: str) -> Any:
    """Import somebody's own reward and bring it to the interface."""
    from .interface import OwnReward, Reward
    from .modeling_image_reward import ImageRewardModel

    name = f"{module}:{attribute}"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name}: {error}; name a module on the PYTHONPATH and what is in it") from None
    except SyntaxError as error:
        raise InputError(f"{name}: {error.filename}, line {error.lineno}: {error.msg}") from None
    try:
        made = found() if isinstance(found, type) else found
    except TypeError as error:
        raise InputError(f"{name}: a class is made without arguments, which this one refuses ({error})") from None
    if not callable(getattr(made, "score", made)):
        raise InputError(f"{name}: a {type(made).__name__}; expected a function (prompts, images) or a `score`")
    _check_arguments(getattr(made, "score", made), name)
    return made if isinstance(made, (Reward, ImageRewardModel)) else OwnReward(made, name)


def _check_arguments(score: Callable[..., Any], name: str) -> None:
    """Raise InputError where a function does not take two arguments; those written in C may not tell."""
    try:
        signature = inspect.signature(score)
    except (TypeError, ValueError):
        return
    try:
        signature.bind([], [])
    except TypeError as error:
        raise InputError(f"{name}: takes {signature}, but is called with (prompts, images) ({error})") from None


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
    with torch.no_grad():
        found = reward.clip.embed_images([torch.zeros(3, 8, 8)]).shape[1]
    if found != width:
        raise InputError(f"aesthetic:{rest}: the head reads {width} numbers, that CLIP gives {found}")


def _fill50k(rest: str) -> Any:
    from .colour import ColourReward, SoftColourReward

    if rest not in ("", "soft"):
        raise InputError(f"fill50k:{rest}: there are fill50k and fill50k:soft")
    return SoftColourReward() if rest else ColourReward()


def _ensemble(path: Path, trust_remote_code: bool) -> Any:
    """Load an ensemble after its file, and those that it names, were read: nothing is imported before that."""
    from .ensemble import EnsembleReward, read_ensemble

    check_ensemble(path, trust_remote_code)
    record = read_ensemble(path)
    members = {name: _load(name, trust_remote_code, trust_remote_code) for name in record.scales}
    try:
        return EnsembleReward(members, record.scales, record.combine, record.k)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_ensemble(path: Path, trust_remote_code: bool, above: tuple[Path, ...] = ()) -> None:
    """Raise InputError where an ensemble's file, or one that it names, is damaged, names code, or names itself."""
    from .ensemble import read_ensemble

    if path.resolve() in above:
        raise InputError(f"{path}: an ensemble that is a member of itself")
    for name in read_ensemble(path).scales:
        if names_code(name) and not trust_remote_code:
            raise InputError(f"{path}: reward {name!r}: {NO_CODE}")
        if names_ensemble(name):
            check_ensemble(Path(name), trust_remote_code, (*above, path.resolve()))


KINDS = {
    "clip": _clip,
    "pickscore": _pickscore,
    "hps": _hps,
    "aesthetic": _aesthetic,
    "fill50k": _fill50k,
}  # before ":"
