"""A diffusers model that is saved, and pushed, with a card that tells of it: diffusers' own is left to be filled in."""

import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from huggingface_hub import ModelCard, create_repo, upload_folder
from typing_extensions import Self

from ..disk import follow_umask
from ..errors import InputError
from .model_files import check_weights, read_json


class CardedModel(ModelMixin, ConfigMixin):
    """What a classifier of this package is: a subclass says what its card is."""

    config_name = "config.json"

    def card(self, name: str) -> ModelCard:
        """Return the card. name: of the folder or repository that the model goes to."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs: Any) -> Self:
        """Load from a folder or the Hub, as any diffusers model.

        Raises InputError for what another class saved, and for weights that are missing, damaged or of other names.
        """
        name, told = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        if name is not None and Path(name).is_dir():
            cls._check_folder(Path(name, kwargs.get("subfolder") or ""), kwargs.get("variant"))
        try:
            model, info = super().from_pretrained(name, output_loading_info=True, **kwargs)
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise InputError(f"{name}: cannot be loaded as a {cls.__name__} ({reason})") from None
        others = sorted({*info["missing_keys"], *info["unexpected_keys"]})
        if others or info["mismatched_keys"]:
            raise InputError(
                f"{name}: its weights are not those of its config.json: {', '.join(others[:3])} missing or unknown "
                f"({len(others)} in all); save or download it again"
            )
        loaded: Any = (model, info) if told else model
        return loaded

    @classmethod
    def _check_folder(cls, folder: Path, variant: str | None) -> None:
        saved = read_json(folder / cls.config_name).get("_class_name")
        if saved != cls.__name__:
            raise InputError(f"{folder}: holds {f'a {saved}' if saved else 'no classifier'}, not a {cls.__name__}")
        check_weights(folder, variant)

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> None:
        """Write config.json, the weights, and the card README.md; a backbone is not copied.

        push_to_hub: upload it too, to repo_id or the folder's name; what follows is as in `push_to_hub`.
        """
        folder = Path(save_directory)
        how = (is_main_process, save_function, safe_serialization, variant, max_shard_size)
        super().save_pretrained(folder, *how)
        follow_umask(folder)
        if is_main_process:
            self.card(folder.name).save(folder / "README.md")
        if push_to_hub and is_main_process:
            self.push_to_hub(
                repo_id or folder.name, commit_message, private, token, create_pr, safe_serialization, variant
            )

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Upload weights, configuration and card; return the repository's address. Arguments as diffusers has them."""
        repository = create_repo(repo_id, private=private, token=token, exist_ok=True)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / repository.repo_name
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            upload_folder(
                repo_id=repository.repo_id,
                folder_path=folder,
                path_in_repo=subfolder,
                token=token,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                create_pr=create_pr,
            )
        return str(repository)
