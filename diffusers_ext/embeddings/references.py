"""What names a backbone: where its path leads, and what a reference of timm says beside it. The forms are in `backbones`."""

import os
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import InputError


def located(name: str, beside: str | PathLike | None = None) -> str:
    """Return a reference with its path where it lies, here or beside; InputError if it names a path that is not there."""
    kind, rest = ("timm:", name.removeprefix("timm:")) if name.startswith("timm:") else ("", name)
    source, *settings = rest.split(",") if kind else [rest]
    architecture, at, weights = source.partition("@") if kind else ("", "", source)
    path = weights if at else source
    places = _places(path, beside)
    if not (at or _is_path(path, bool(kind)) or (path and any(place.is_dir() for place in places))):
        return name
    there = [place for place in places if place.exists()]
    if not there:
        what = f"no file {path} of safetensors" if at else f"{path}: not found"
        raise InputError(
            f"{name}: {what}; pass backbone= (on the command line --backbone) where it lies now, or give timm:model, "
            "timm:folder, timm:model@weights.safetensors, model/tag of open_clip, or a folder of it"
        )
    return ",".join([f"{kind}{architecture + at if at else ''}{there[0]}", *settings])


def _places(path: str, beside: str | PathLike | None) -> list[Path]:
    """Where a path may lead: from here; from a folder and those above it; or to a folder's own entry of that name."""
    given = Path(path).expanduser()
    if beside is None:
        return [given]
    folder = Path(beside).resolve()
    own = [folder / given, folder.parent / given, folder / given.name, folder.parent / given.name]
    return (
        [own[0], given, *own[1:]] if given.name == str(given) else [given, *own]
    )  # a bare name: the folder's own first


def _is_path(name: str, of_timm: bool) -> bool:
    """Whether a reference without scheme means a path: neither timm nor open_clip has such a name."""
    import open_clip

    if Path(name).expanduser().is_dir() or name.startswith((".", "~", os.sep)):
        return True
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) or not ({"/", "\\"} & set(name)):
        return False
    return of_timm or name.split("/")[0] not in open_clip.list_models()


def timm_source(name: str) -> tuple[str, dict[str, Any]]:
    """Split a reference timm:... into timm's own name of the model and what overrides its pretrained configuration.

    Raises InputError for settings that are not known, no numbers, or a file of weights that is missing or no safetensors.
    """
    source, *settings = name.removeprefix("timm:").split(",")
    architecture, _, weights = source.partition("@")
    overlay = dict(_setting(name, setting) for setting in settings)
    if Path(source).is_dir():
        return f"local-dir:{Path(source).resolve()}", overlay
    if weights:
        if not weights.endswith(".safetensors") or not Path(weights).is_file():
            raise InputError(f"{name}: no file {weights} of safetensors; give timm:model@weights.safetensors")
        overlay["file"] = weights
    return architecture, overlay


def overlay_of(name: str) -> dict[str, Any]:
    """Return the settings after a reference's commas: {"input_size": (3, 224, 224), ...}.

    >>> overlay_of('timm:resnet18,size=64')
    {'input_size': (3, 64, 64)}
    """
    return dict(_setting(name, setting) for setting in name.removeprefix("timm:").split(",")[1:])


def _setting(name: str, setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition("=")
    try:
        if key == "size":
            return "input_size", (3, int(value), int(value))
        if key in ("mean", "std"):
            numbers = [float(number) for number in value.split("/")]
            return key, tuple(numbers) if len(numbers) == 3 else (numbers[0] / (numbers[1:] or [1.0])[0],) * 3
        if key == "crop_pct":
            return key, float(value)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{name}: {setting}: no number; write size=224, mean=0.5, std=127/255, crop_pct=1") from None
    if key != "interpolation":
        raise InputError(f"{name}: unknown {setting!r}; there are size, mean, std, crop_pct and interpolation")
    return key, value
