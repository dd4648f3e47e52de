"""The tokenizer of an open_clip model, without running code that its configuration names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import InputError

FILE = "open_clip_config.json"


def open_clip_tokenizer(name: str) -> Callable:
    """Return open_clip's tokenizer of an architecture, local-dir:FOLDER or hf-hub:OWNER/NAME.

    open_clip hands `tokenizer_kwargs` of a downloaded file to transformers, trust_remote_code among them. Raises
    InputError for a file that asks for it.
    """
    import open_clip

    config = _config(name)
    given = config.get("model_cfg", {}).get("text_cfg", {}).get("tokenizer_kwargs") or {}
    if given.get("trust_remote_code"):
        raise InputError(
            f"{name}: its {FILE} asks to run code of its own (trust_remote_code), which a file may not; remove that line, "
            "and its tokenizer loads if transformers knows it"
        )
    return open_clip.get_tokenizer(name)


def _config(name: str) -> dict[str, Any]:
    """What a folder's or repository's file says; nothing for the architectures that open_clip brings along."""
    schema, _, place = name.partition(":")
    if schema not in ("local-dir", "hf-hub"):
        return {}
    path = Path(place, FILE)
    if schema == "hf-hub":
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(place, FILE))
    return json.loads(path.read_text(encoding="utf-8"))
