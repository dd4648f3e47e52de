"""A reward that a pipeline saves by its name, not by its weights."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from .loading import KINDS, load_reward


class NamedRewardConfig(PreTrainedConfig):
    """name: what `load_reward` takes."""

    model_type = "named_reward"

    name: str = "fill50k"


class NamedReward(PreTrainedModel):
    """What `load_reward(name)` returns, as a component that a pipeline can save: a config.json with the name.

    Only ImageRewardModel and LinearHeadReward have files of their own. The others (CLIP's family, exact colours, ensembles)
    are found again by name, so a name that is a path holds on the machine that has the file.
    """

    config_class = NamedRewardConfig
    base_model_prefix = ""

    def __init__(self, name: str | NamedRewardConfig):
        super().__init__(name if isinstance(name, NamedRewardConfig) else NamedRewardConfig(name=name))
        self.reward = load_reward(self.config.name)

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def dtype(self) -> torch.dtype:
        return self.reward.dtype

    @property
    def device(self) -> torch.device:
        return self.reward.device

    def score(self, prompts: Any, images: Any, batch_size: int = 16) -> torch.Tensor:
        """As `Reward.score`."""
        return self.reward.score(prompts, images, batch_size)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write config.json."""
        self.config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, dtype: Any = None, **kwargs: Any) -> "NamedReward":
        """Read config.json and load the reward of that name. InputError for a name of somebody's code, "module:name"."""
        hub = {name: kwargs[name] for name in ("subfolder", "revision", "token", "cache_dir") if name in kwargs}
        config = NamedRewardConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        if ":" in config.name and config.name.partition(":")[0] not in KINDS:
            raise InputError(
                f"reward {config.name!r}: a downloaded file may not name code; build NamedReward(NAME) yourself"
            )
        reward = cls(config)
        return reward.to(dtype) if isinstance(dtype, torch.dtype) else reward
