"""ImageReward's own interface (Xu et al. 2023), so that code written for it runs with one line changed.

    import diffusers_ext.imagereward as RM             # was: import ImageReward as RM

    model = RM.load("models/image-reward")             # or "ImageReward-v1.0", or path/to/ImageReward.pt
    ranking, rewards = model.inference_rank(prompt, ["1.png", "2.png"])
    print(f"{model.score(prompt, '1.png'):.2f}")

Rewards are the official ones; docs/rewards.md lists what differs. New code rather takes `diffusers_ext.load_reward`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn

from .errors import InputError
from .rewards.loading import load_reward
from .rewards.modeling_image_reward import ImageRewardModel

_MODELS = {"ImageReward-v1.0": "ImageReward.pt"}
REPOSITORY, TOKENIZER = "THUDM/ImageReward", "bert-base-uncased"
Picture = Image.Image | str | os.PathLike


def available_models() -> list[str]:
    """Return the names that `load` knows beside paths.

    >>> available_models()
    ['ImageReward-v1.0']
    """
    return list(_MODELS)


def load(
    name: str = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    download_root: str | None = None,
    med_config: str | None = None,
) -> "ImageReward":
    """Load an ImageReward.

    Args:
        name: one of `available_models()`, which is taken from download_root or downloaded, 1.8 GB; the path of an official
            checkpoint; or a folder that `diffusers-ext convert-reward` or a training made. A path downloads nothing.
        device: default: cuda where there is one, else the CPU.
        download_root: where official files are, or are downloaded to; default: ~/.cache/ImageReward.
        med_config: JSON of another text encoder than the released one.

    Raises InputError where a file is missing and cannot be downloaded.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if Path(name).is_dir():
        model = load_reward(name)
        if not isinstance(model, ImageRewardModel):
            raise InputError(f"{name}: a {type(model).__name__}, no ImageReward; diffusers_ext.load_reward takes it")
        return ImageReward(model.to(device))
    root = Path(download_root or "~/.cache/ImageReward").expanduser()
    if name not in _MODELS and not Path(name).is_file():
        raise InputError(f"{name}: no such file or folder; available models: {', '.join(available_models())}")
    path = _downloaded(_MODELS[name], root) if name in _MODELS else Path(name)
    text_config = _read_json(med_config) if med_config else None
    tokenizer = _tokenizer([path.parent, root], download=name in _MODELS)
    model = ImageRewardModel.from_official_checkpoint(path, text_config, None, tokenizer)
    return ImageReward(model.requires_grad_(False).to(device))


class ImageReward(nn.Module):
    """The official class's methods around an `ImageRewardModel`, which is `.model`.

    Unlike the official ones, a list of one image gives a list, a file that is missing is an error, and no graph is kept.
    """

    def __init__(self, model: ImageRewardModel):
        super().__init__()
        self.model = model
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def blip(self) -> SimpleNamespace:
        """What official code reads of it: `blip.tokenizer`."""
        return SimpleNamespace(tokenizer=self.model.tokenizer)

    def preprocess(self, image: Picture) -> torch.Tensor:
        """Return one image as (3, H, W), as the model sees it."""
        return self.model.preprocess(image)[0]

    def score(self, prompt: str, image: Picture | Sequence[Picture]) -> float | list[float]:
        """Return the reward of an image, a float, or of a list of images, a list of floats in their order."""
        if isinstance(image, (list, tuple)):
            return self.inference_rank(prompt, image)[1]
        return float(self.model.score(_one_prompt(prompt), image))

    def inference_rank(self, prompt: str, generations_list: Sequence[Picture]) -> tuple[list[int], list[float]]:
        """Return the rank of each image, 1 the best, and its reward; equal rewards rank in the list's order."""
        rewards = self.model.score(_one_prompt(prompt), list(generations_list))
        ranks = rewards.argsort(descending=True, stable=True).argsort() + 1
        return ranks.tolist(), rewards.tolist()

    def score_gard(
        self, prompt_ids: torch.Tensor, prompt_attention_mask: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Return the rewards, (N, 1), of N prompts and N images (N, 3, H, W), as `preprocess` gives them, with a gradient."""
        pairs = torch.arange(len(prompt_ids), device=prompt_ids.device)
        return self.model(prompt_ids, prompt_attention_mask, image, prompt_index=pairs, image_index=pairs)[:, None]


def _one_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt: expected one text, got {type(prompt).__name__}; ImageRewardModel.score takes several"
        )
    return prompt


def _downloaded(file: str, root: Path) -> Path:
    """Return an official file: that in the folder, else from the Hub."""
    if (root / file).is_file():
        return root / file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, file, local_dir=root))
    except Exception as error:  # the Hub's client has many: no network, no access, offline mode
        raise InputError(
            f"{file}: not in {root}, and it cannot be downloaded from {REPOSITORY} ({str(error).splitlines()[0]}); "
            "copy it there, or name a converted folder"
        ) from error


def _tokenizer(folders: Sequence[Path], download: bool) -> Any:
    """Return BERT's tokenizer: one beside the weights, or that in the Hub's cache; only with `download` from the network."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder)
    try:
        return AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=not download, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folders[0]}: no tokenizer.json beside the weights, and {TOKENIZER} is not in the Hub's cache; put its files "
            "there, or name a folder that diffusers-ext convert-reward made"
        ) from error


def _read_json(path: str) -> dict:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"med_config {path}: no JSON that can be read ({error})") from None
