"""Is a loaded model whole? transformers only logs which weights a folder lacks, and gives them random values.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.
"""

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedConfig

from .image_reward_checkpoint import LFS, why_unreadable
from .reward_inputs import InputError

# What transformers and safetensors raise at damaged files, config.json and all.
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)
SHOWN = 3  # names of tensors in a message
REMEDY = "save the model's tokenizer there too: AutoTokenizer.from_pretrained(ORIGIN).save_pretrained(FOLDER)"


def why_not_loaded(where: str | os.PathLike, error: Exception) -> str:
    """Say what is wrong with a folder that transformers refused: by its file, where that is a pointer or no tensors."""
    for path in sorted(path for path in Path(where).glob("*") if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                return f"{path.name} is {why_unreadable(path, error)}"
    if isinstance(error, (pickle.UnpicklingError, EOFError)):
        return f"its weights are {why_unreadable(where, error)}"
    return str(error).strip() or type(error).__name__


def check_weights(report: dict[str, Any], where: Any, unused: Iterable[str] = ()) -> None:
    """Raise InputError where a folder's tensors are not those of the model that was loaded from it.

    report: what `from_pretrained(..., output_loading_info=True)` returns. unused: beginnings of the names that the
    caller does not need, missing or not.
    """
    kinds = (("missing_keys", "lacks"), ("unexpected_keys", "has too many"), ("mismatched_keys", "has other shapes of"))
    wrong = []
    for kind, verb in kinds:
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in report.get(kind) or ())
        keys = [key for key in keys if not key.startswith(tuple(unused))]
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            wrong.append(f"it {verb} {len(keys)} tensors: {', '.join(keys[:SHOWN])}{more}")
    if wrong:
        raise InputError(
            f"{where or 'these weights'}: not the weights of this model; {'; '.join(wrong)}. Download or save it again"
        )


def check_tokenizer_files(where: str | os.PathLike) -> None:
    """Raise InputError, before transformers does without a name, where a folder has one of a tokenizer's two files."""
    folder = Path(where)
    if folder.is_dir() and not (folder / "tokenizer.json").exists():
        halves = [name for name in ("vocab.json", "merges.txt") if not (folder / name).exists()]
        if len(halves) == 1:
            raise InputError(f"{folder / halves[0]}: missing, half of its tokenizer; {REMEDY}")


def check_tokenizer(tokenizer: Any, vocabulary: int, where: str | os.PathLike) -> None:
    """Raise InputError where a tokenizer has no words of its own, or more tokens than the text encoder has embeddings.

    Without its files, transformers makes an empty tokenizer, to which all prompts are alike.
    """
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(
            f"{where}: no tokenizer.json, nor vocab.json and merges.txt, with words in them, so that every prompt would "
            f"score alike; {REMEDY}"
        )
    if (highest := max(tokenizer.get_vocab().values())) >= vocabulary:
        raise InputError(
            f"{where}: its tokenizer has token {highest}, but the text encoder {vocabulary} embeddings; "
            "it is the tokenizer of another model"
        )


class StrictLoading:
    """Put it before a transformers model in the bases of a class: it then loads whole or not at all, by every route.

    AutoModel and diffusers call the class's own `from_pretrained`, as everybody does.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        cache_dir: str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        use_safetensors: bool | None = None,
        weights_only: bool = True,
        subfolder: str = "",
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load from a folder or the Hub, with a tokenizer where there is one; arguments, and kwargs, are transformers' own.

        Raises InputError where tensors are missing, unexpected or of another shape: transformers would log it and leave
        the model random. With ignore_mismatched_sizes, other shapes pass.
        """
        hub = {"cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
        hub |= {"token": token, "revision": revision, "subfolder": subfolder}
        model, report = super().from_pretrained(  # type: ignore[misc]  # transformers' own
            pretrained_model_name_or_path,
            *model_args,
            config=config,
            ignore_mismatched_sizes=True,  # reported with the others, by `check_weights`
            use_safetensors=use_safetensors,
            weights_only=weights_only,
            output_loading_info=True,
            **hub,
            **kwargs,
        )
        check_weights(
            report | ({"mismatched_keys": ()} if ignore_mismatched_sizes else {}), pretrained_model_name_or_path
        )
        if pretrained_model_name_or_path is not None:
            model._load_companions(pretrained_model_name_or_path, hub)
        return (model, report) if output_loading_info else model

    def _load_companions(self, name: str | os.PathLike, hub: dict[str, Any]) -> None:
        """Load what lies beside the weights; nothing here."""
