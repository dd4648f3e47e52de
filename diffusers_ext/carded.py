"""A diffusers model that is saved, and pushed, with a card that tells of it: diffusers' own is left to be filled in."""

import tempfile
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from huggingface_hub import ModelCard, create_repo, upload_folder

from .disk import follow_umask


class CardedModel(ModelMixin, ConfigMixin):
    """What a classifier of this package is: a subclass says what its card is."""

    config_name = "config.json"

    def card(self, name: str) -> ModelCard:
        """Return the card. name: of the folder or repository that the model goes to."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write config.json, the weights, and the card README.md; a backbone is not copied."""
        if settings.pop("push_to_hub", False):
            self.push_to_hub(settings.pop("repo_id", Path(folder).name), **settings)
        super().save_pretrained(folder, **settings)
        follow_umask(folder)
        self.card(Path(folder).name).save(Path(folder) / "README.md")

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload weights, configuration and card; return the repository's address."""
        repository = create_repo(repo_id, private=private, token=token, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / repository.repo_name)
            upload_folder(repo_id=repository.repo_id, folder_path=Path(folder) / repository.repo_name, token=token)
        return str(repository)
