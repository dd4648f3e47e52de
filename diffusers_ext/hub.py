"""Publishing a run folder."""

from pathlib import Path
from typing import Any

from huggingface_hub import create_repo, upload_folder

# best/lora too: by a repository's name diffusers loads the first LoRA file it finds in any folder, and "best" comes first.
RUN_FILES = ["checkpoint-*/**", ".checkpoint-*/**", "abandoned-*/**", "session-*/**", ".session-*/**", "best/lora/**"]
RUN_FILES += ["logs/**", "autoencoder/**", "cache/**", "training/**", ".lock", ".*.partial"]


def publish(folder: Path, options: Any) -> None:
    """Push where --push_to_hub asks for it, and say where to."""
    if options.push_to_hub:
        print(f"published at {push(folder, options)}")


def push(folder: Path, options: Any) -> str:
    """Upload the model, its card, metrics and samples, without the checkpoints; return the repository's address."""
    repository = create_repo(options.hub_model_id or Path(folder).name, exist_ok=True, token=options.hub_token)
    upload_folder(repo_id=repository.repo_id, folder_path=folder, ignore_patterns=RUN_FILES, token=options.hub_token)
    return str(repository)
