"""A diffusers model that is saved, and pushed, with a card that tells of it: diffusers' own is left to be filled in."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from diffusers import ConfigMixin, ModelMixin
from huggingface_hub import ModelCard, create_repo, upload_folder

from .disk import follow_umask


class CardedModel(ModelMixin, ConfigMixin):
    """What a classifier of this package is: a subclass says what its card is."""

    config_name = "config.json"

    def card(self, name: str) -> ModelCard:
        """Return the card. name: of the folder or repository that the model goes to."""
        raise NotImplementedError

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
