"""How an ImageReward is loaded, saved and published: strictly, and with its tokenizer.

Copied beside the weights of saved reward models, so it imports nothing of its package but the exception type.
"""

import os
import stat
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import create_repo, file_exists, upload_folder
from transformers import PreTrainedTokenizerFast
from transformers.utils import cached_file

from .completeness import StrictLoading, check_tokenizer
from .image_reward_hub import card_of, fetch_tokenizer
from .reward_inputs import InputError


class ImageRewardFiles(StrictLoading):
    """Put it first in the bases of a transformers model that has a `tokenizer`."""

    tokenizer: Any
    get_input_embeddings: Callable[[], Any]

    def _load_companions(self, name: str | os.PathLike, hub: dict[str, Any]) -> None:
        """Set the tokenizer to that beside the weights, where there is one."""
        fetch_tokenizer(name)
        if cached_file(name, "tokenizer_config.json", **hub, _raise_exceptions_for_missing_entries=False):
            # AutoTokenizer would read the config first, and ask whether to run the code that it names.
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **hub)
            check_tokenizer(self.tokenizer, self.get_input_embeddings().num_embeddings, name)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        safe_serialization: bool = True,
        repo_id: str | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save weights, config, tokenizer and this file; arguments are those of transformers.

        variant: goes into the names of the weight files, as diffusers has it: weights of another variant stay.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False: an ImageRewardModel is saved as safetensors only")
        written = {"state_dict": state_dict, "max_shard_size": max_shard_size, "variant": variant, "token": token}
        write = super().save_pretrained  # type: ignore[misc]  # transformers' own
        write(save_directory, is_main_process=is_main_process, **written, **kwargs)
        if is_main_process:
            _share_weights(save_directory)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(save_directory)
        if push_to_hub:  # after the tokenizer, so that it is uploaded too
            name = repo_id or os.path.basename(os.path.abspath(save_directory))
            self.push_to_hub(name, private=private, token=token, commit_message=commit_message)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes, and a card where the repository has none; return its address.

        The card is that of the folder the model came from, if its weights are still those. Arguments are those of
        transformers.
        """
        repository = create_repo(repo_id, private=private, token=token, exist_ok=True)
        upload: dict[str, Any] = {"commit_message": commit_message, "commit_description": commit_description}
        upload |= {"revision": revision, "create_pr": create_pr}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            if not file_exists(repository.repo_id, "README.md", token=token):
                card_of(self, repository.repo_id).save(os.path.join(folder, "README.md"))
            upload_folder(repo_id=repository.repo_id, folder_path=folder, token=token, **upload)
        return str(repository)


def _share_weights(folder: str | os.PathLike) -> None:
    """Give the weights the permissions of config.json: safetensors makes them readable by their owner alone."""
    mode = stat.S_IMODE(os.stat(os.path.join(folder, "config.json")).st_mode)
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            os.chmod(os.path.join(folder, name), mode)
