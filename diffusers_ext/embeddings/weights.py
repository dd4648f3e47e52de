"""A timm model with exactly the weights of a file: every one of its own is there, or it is refused.

timm itself loads what fits and leaves the rest as it was drawn, another network in each process. Here a prefix that all
names share (`model.`, `backbone.`, as trainers write) is taken off, and what belongs to no part of the model, such as a
head, is left out; both are said. Anything else is an error that names the weights.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
NAMED = 3  # weights that a message names


def timm_model(name: str, source: str, overlay: Mapping[str, Any], weights: Path) -> nn.Module:
    """Return a timm model without its classifier, with the weights of a file.

    name: the reference, for messages. source, overlay: timm's name of the model and what overrides its configuration.
    Raises InputError naming the weights that are missing, left over, or of another shape.
    """
    import timm

    given = timm.models.load_state_dict(str(weights))
    model = timm.create_model(source, pretrained=False, pretrained_cfg_overlay=dict(overlay), num_classes=0)
    heads = _heads(model)
    own = model.state_dict()
    prefix = _prefix(given, own, name)
    if prefix is not None:
        state = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        _check_shapes(state, own, name)
        _say(name, prefix, _others(given, state, own, prefix, heads, name))
        model.load_state_dict({key: state[key] for key in own}, strict=True)
        return model
    return _converted(name, source, overlay, {key: given[key] for key in given if not key.startswith(heads)}, own)


def weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder that timm saved; InputError if there is none."""
    files = [path for suffix in SUFFIXES for path in sorted(folder.glob(f"*{suffix}"))]
    whole = [path for path in files if path.stem in ("model", "pytorch_model", "open_clip_pytorch_model")]
    if not files:
        raise InputError(f"timm:{folder}: holds no weights ({', '.join(SUFFIXES)}); complete the folder")
    return (whole or files)[0]


def _converted(name: str, source: str, overlay: Mapping[str, Any], state: dict[str, torch.Tensor], own: Mapping) -> Any:
    """Let timm convert names of other libraries, then load strictly, which its num_classes must not relax."""
    import timm

    strict = {**overlay, "state_dict": dict(state), "num_classes": 0}
    try:
        return timm.create_model(source, pretrained=True, pretrained_cfg_overlay=strict, num_classes=0)
    except Exception:  # of the conversion or of the strict loading: what matters is which weights do not fit
        missing, left = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        raise InputError(
            f"{name}: its weights do not fit the model: {_names(missing, 'missing')}; {_names(left, 'left over')}; "
            "name the architecture that they were saved from"
        ) from None


def _prefix(given: Mapping, own: Mapping, name: str) -> str | None:
    """Return what all the model's names begin with in a file, "" for nothing, None if they are not all there."""
    some = next(iter(own))
    candidates = {key.removesuffix(some) for key in given if key == some or key.endswith(f".{some}")}
    fitting = sorted(prefix for prefix in candidates if all(prefix + key in given for key in own))
    if len(fitting) > 1 and fitting[0]:
        raise InputError(f"{name}: holds several models ({', '.join(fitting)}); save the one that is meant")
    return fitting[0] if fitting else None


def _check_shapes(state: Mapping, own: Mapping, name: str) -> None:
    wrong = [key for key in own if state[key].shape != own[key].shape]
    if wrong:
        theirs, ours = (tuple(part[wrong[0]].shape) for part in (state, own))
        raise InputError(
            f"{name}: {_names(wrong, 'of another shape')} ({theirs}, the model's is {ours}); "
            "name the architecture that they were saved from"
        )


def _others(given: Mapping, state: Mapping, own: Mapping, prefix: str, heads: tuple[str, ...], name: str) -> list[str]:
    """Return the weights that belong to no part of the model; InputError for more of a part that it has."""
    parts = {key.split(".")[0] for key in own}
    left = [key for key in state if key not in own and not key.startswith(heads)]
    inside = [key for key in left if key.split(".")[0] in parts]
    if inside:
        raise InputError(
            f"{name}: a larger model's weights: {_names(inside, 'left over')}; name the architecture they were saved from"
        )
    return left + [key for key in given if not key.startswith(prefix)]


def _heads(model: nn.Module) -> tuple[str, ...]:
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{head}." for head in ((named,) if isinstance(named, str) else named))


def _say(name: str, prefix: str, others: list[str]) -> None:
    said = [f"the prefix {prefix!r} is taken off its names"] if prefix else []
    said += [f"no part of the model: {_names(others, 'left out')}"] if others else []
    if said:
        warnings.warn(f"{name}: {'; '.join(said)}", UserWarning, stacklevel=2)


def _names(keys: list[str], what: str) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{', '.join(keys[:NAMED])}{more} {what}" if keys else f"none {what}"
