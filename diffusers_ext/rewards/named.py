"""A reward that a pipeline saves by its name, not by its weights."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from .loading import check_ensemble, load_reward, load_saved_reward, names_code, names_ensemble


class NamedRewardConfig(PreTrainedConfig):
    """name: what `load_reward` takes."""

    model_type = "named_reward"

    name: str = "fill50k"


class NamedReward(PreTrainedModel):
    """What `load_reward(name)` returns, as a component that a pipeline can save: a config.json with the name.

    Only ImageRewardModel and LinearHeadReward have files of their own. The others (CLIP's family, exact colours, ensembles)
    are found again by name, so a name that is a path holds on the machine that has the file. A reward of your own code
    works here but cannot be saved: a file may not name code.

    name: your own argument, which may be "module:name"; a config comes from a file, and may not.

    >>> from PIL import Image
    >>> NamedReward('fill50k').score('red circle with blue background', [Image.new('RGB', (64, 64))]).shape
    torch.Size([1])
    """

    config_class = NamedRewardConfig
    base_model_prefix = ""

    def __init__(self, name: str | NamedRewardConfig, trust_remote_code: bool = False):
        given = isinstance(name, NamedRewardConfig)
        super().__init__(name if given else NamedRewardConfig(name=name))
        if given:
            self.check_saved()
            self.reward = load_saved_reward(self.config.name)
        else:
            self.reward = load_reward(self.config.name, trust_remote_code=trust_remote_code)

    def check_saved(self) -> None:
        """Raise InputError where the name is, or leads to, somebody's code: no file may name that."""
        name = self.config.name
        if not isinstance(name, str):
            raise InputError(f"reward {name!r}: expected a name that load_reward takes")
        if names_code(name):
            raise InputError(
                f"reward {name!r}: a file may not name code, so this cannot be saved: save the pipeline with "
                f"reward_model=None, and load it with reward_model=NamedReward({name!r})"
            )
        if names_ensemble(name):
            check_ensemble(Path(name), trust_remote_code=False)

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def dtype(self) -> torch.dtype:
        return self.reward.dtype

    @property
    def device(self) -> torch.device:
        return self.reward.device

    def score(self, prompts: str | Sequence[str], images: Any, batch_size: int = 16) -> torch.Tensor:
        """As `Reward.score`."""
        return self.reward.score(prompts, images, batch_size)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write config.json; there are no weights, so the other arguments, which diffusers passes, have no effect.

        Raises InputError for a reward of somebody's code.
        """
        self.check_saved()
        self.config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        dtype: torch.dtype | str | None = None,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> "NamedReward":
        """Read config.json and load the reward of that name. InputError for a name of somebody's code, "module:name".

        kwargs: what diffusers passes for weights, of which there are none; torch_dtype is the older name of dtype.
        """
        hub = {"subfolder": subfolder, "revision": revision, "token": token, "cache_dir": cache_dir}
        given = {name: value for name, value in hub.items() if value}
        reward = cls(NamedRewardConfig.from_pretrained(pretrained_model_name_or_path, **given))
        dtype = dtype or kwargs.get("torch_dtype")
        return reward.to(dtype) if isinstance(dtype, torch.dtype) else reward
