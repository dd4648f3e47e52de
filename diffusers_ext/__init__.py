"""Alignment and control for the diffusers ecosystem. Public names load on first use, so that `import` costs nothing."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "condition_following": "toy.measures",
    "VMFMixtureClassifier": "mixtures.classifier",
    "ImageRewardModel": "rewards.modeling_image_reward",
    "LADSClassifier": "lads.classifier",
    "embedded_model": "toy.embedded",
    "LateLora": "diffusion.lora",
    "select_prompts": "preferences.select",
    "load_control_lora": "control.lora",
    "load_pipeline": "publish.loading",
    "load_reward": "rewards.loading",
    "RewardReranker": "rerank.reranker",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusers_ext' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
