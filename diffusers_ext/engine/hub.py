"""Publishing a run folder: what can fail is tried before the first step, and a failure at the end loses nothing."""

from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, constants, create_repo, get_token, upload_folder
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..disk import follow_umask
from ..errors import InputError

# best/lora too: by a repository's name diffusers loads the first LoRA file it finds in any folder, and "best" comes first.
RUN_FILES = ["checkpoint-*/**", ".checkpoint-*/**", "abandoned-*/**", "session-*/**", ".session-*/**", "best/lora/**"]
RUN_FILES += ["logs/**", "autoencoder/**", "cache/**", "training/**", ".lock", ".*.partial"]


class PushOptions(Protocol):
    hub_model_id: str | None
    hub_token: str | None


class RunPushOptions(PushOptions, Protocol):
    push_to_hub: bool
    output_dir: str


def check_push(folder: Path, options: PushOptions) -> None:
    """Raise InputError if a push cannot work, as far as this can be said without the network: name, offline, token."""
    name = repository_name(folder, options)
    if name.count("/") > 1:
        raise InputError(f"{name}: not a repository's name; give --hub_model_id OWNER/NAME")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"{name}: not a name that a repository can have; give --hub_model_id OWNER/NAME ({error})"
        ) from None
    if constants.is_offline_mode():
        raise InputError(
            "pushing is impossible offline; unset HF_HUB_OFFLINE, or train without --push_to_hub and push the folder "
            "later with diffusers-ext push"
        )
    if not (options.hub_token or get_token()):
        raise InputError("pushing needs a token; run hf auth login, or give --hub_token")


def open_repository(folder: Path, options: PushOptions) -> str:
    """Make the repository where there is none, and return its full name; InputError if it cannot be written."""
    name = repository_name(folder, options)
    try:
        made = create_repo(name, exist_ok=True, token=options.hub_token)
        HfApi(token=options.hub_token).auth_check(made.repo_id, write=True)
    except Exception as error:  # of the Hub, or of its transport, which has errors of its own
        raise InputError(
            f"{name}: the repository cannot be made or written ({_short(error)}); check the name, the token's rights "
            "and the network, or leave --push_to_hub out and push the folder later with diffusers-ext push"
        ) from None
    return made.repo_id


def publish(folder: Path, options: RunPushOptions) -> None:
    """Push a finished run folder where --push_to_hub asks for it, and say where to.

    Raises InputError, saying how to push it later, if the upload fails.
    """
    follow_umask(folder)
    if not options.push_to_hub:
        return
    try:
        print(f"published at {push(folder, options)}")
    except Exception as error:  # whatever it was, the training is done
        again = f"diffusers-ext push {folder} {options.hub_model_id or ''}".rstrip()
        raise InputError(
            f"{folder} is finished and saved, but the upload failed ({_short(error)}); push it with: {again}"
        ) from None


def push(folder: Path, options: PushOptions) -> str:
    """Upload the model, its card, metrics and samples, without the checkpoints; return the repository's address."""
    repository = create_repo(repository_name(folder, options), exist_ok=True, token=options.hub_token)
    upload_folder(repo_id=repository.repo_id, folder_path=folder, ignore_patterns=RUN_FILES, token=options.hub_token)
    return str(repository)


def repository_name(folder: Path, options: PushOptions) -> str:
    return options.hub_model_id or Path(folder).name


def _short(error: Exception) -> str:
    """The first line of an error of the Hub, which may be a page long."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
