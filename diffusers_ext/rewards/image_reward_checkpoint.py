"""Official ImageReward checkpoints: their names, their options, and a strict conversion to ours.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.
"""

import contextlib
import os
import pickle
import re
from typing import Any

import torch
from transformers import BlipTextConfig, BlipVisionConfig

from .reward_inputs import InputError

# Our names and the official checkpoint's, replaced one after the other; mlp.* are equal in both.
OFFICIAL_NAMES = [
    ("vision_model.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision_model.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision_model.post_layernorm.", "blip.visual_encoder.norm."),
    (".layer_norm", ".norm"),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    ("text_encoder.", "blip.text_encoder."),
]
OFFICIAL_VISION = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch": "patch_size",
}
# In every released file and read by nothing: a buffer of 0, 1, 2 ..., and projections of a retrieval loss.
UNUSED = re.compile(r"blip\.(text_encoder\.embeddings\.position_ids|(vision|text)_proj\.(weight|bias))")
LFS = b"version https://git-lfs"
UNUSED_OPTIONS = {"architectures", "model_type", "type_vocab_size", "encoder_width", "add_cross_attention"}

READING_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)  # of torch.load


def why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Say what is wrong with a file that torch.load refused, without its advice to load anything at all."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            return "a Git LFS pointer, not the file itself; run git lfs pull, or download the file"
    if isinstance(error, pickle.UnpicklingError):
        return "not a file of tensors, or one with code in it, which is not run"
    return str(error).splitlines()[0] if str(error) else "empty, or cut short"


def read_checkpoint(path_or_state_dict: str | os.PathLike | dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an official checkpoint by their official names, float32."""
    state: Any = path_or_state_dict
    if not isinstance(path_or_state_dict, dict):
        try:
            state = torch.load(path_or_state_dict, map_location="cpu", weights_only=True)
        except READING_ERRORS as error:
            reason = why_unreadable(path_or_state_dict, error)
            raise InputError(f"{path_or_state_dict}: no checkpoint that can be read ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError("an official checkpoint is a dict of tensors; this one holds something else")
    # A tensor that was handed over stays the caller's own.
    copy = isinstance(path_or_state_dict, dict)
    named = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value.to(torch.float32, copy=copy) for name, value in named.items() if not UNUSED.fullmatch(name)}


def convert(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename official tensors to ours; InputError naming what is missing, unexpected or of another shape."""
    official = {}
    for name in expected:
        renamed = name
        for ours, theirs in OFFICIAL_NAMES:
            renamed = renamed.replace(ours, theirs)
        official[renamed] = name
    wrong = [f"missing: {name}" for name in official if name not in state]
    wrong += [f"unexpected: {name}" for name in state if name not in official]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(expected[ours].shape)}"
        for name, ours in official.items()
        if name in state and state[name].shape != expected[ours].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            f"not a checkpoint of this ImageReward: {'; '.join(wrong[:5])}{more}; see text_config, vision_config"
        )
    return {ours: state[name] for name, ours in official.items()}


def official_options(text_config: dict | None, vision_config: dict | None) -> tuple[dict, dict]:
    """Turn med_config.json's and {"width", "depth", "heads", ...} into BLIP's options; InputError for unknown ones."""
    text = {name: value for name, value in (text_config or {}).items() if name not in UNUSED_OPTIONS}
    vision = {OFFICIAL_VISION.get(name, name): value for name, value in (vision_config or {}).items()}
    if "hidden_size" in vision:
        vision.setdefault("intermediate_size", 4 * vision["hidden_size"])
    for given, kind in ((text, BlipTextConfig), (vision, BlipVisionConfig)):
        if unknown := given.keys() - kind().to_dict().keys():
            raise InputError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return text, vision
