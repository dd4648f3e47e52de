"""Alignment and control for the diffusers ecosystem. Public names load on first use, so that `import` costs nothing."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "condition_following": "metrics.fill50k",
    "VMFMixtureClassifier": "mixtures",
    "ImageRewardModel": "rewards.modeling_image_reward",
    "LADSClassifier": "lads",
    "embedded_model": "embedded",
    "LateLora": "unet_lora",
    "select_prompts": "prompts",
    "load_control_lora": "control_lora",
    "load_pipeline": "pipeline_loading",
    "load_reward": "rewards.loading",
    "RewardReranker": "reranking",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusers_ext' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
