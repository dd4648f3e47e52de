"""Stable Diffusion that improves its own initial noise by a reward: local search, or the gradient in few-step models.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stabilityai/sd-turbo", reward_model=diffusers_ext.load_reward("ensemble.json"),
    custom_pipeline="pipelines/noise_search.py", trust_remote_code=True,
)
found = pipe(
    "red circle with blue background", method="gradient", num_candidates=64, seed=0, held_out=another_reward,
    num_inference_steps=1, guidance_scale=0.0,
)
found.images[0], found.scores[0], found.held_out[0]
```
"""

from typing import ClassVar

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.noise_search import NoiseSearchMixin
from diffusers_ext.rewards.interface import RewardModel
from diffusers_ext.rewards.modeling_image_reward import ImageRewardModel


class NoiseSearchPipeline(HubLoadable, NoiseSearchMixin, StableDiffusionPipeline):
    """`StableDiffusionPipeline` that searches its initial noise for a reward; `NoiseSearch.__call__` says what is new.

    reward_model: anything with `score(prompts, images)`, or None, which must be set before a call.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae->reward_model"
    _optional_components: ClassVar[list[str]] = [*StableDiffusionPipeline._optional_components, "reward_model"]
    _exclude_from_cpu_offload: ClassVar[list[str]] = [
        *StableDiffusionPipeline._exclude_from_cpu_offload,
        "reward_model",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        reward_model: ImageRewardModel | RewardModel | None,  # no default, else diffusers ignores what is passed
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
    ):
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.register_modules(reward_model=reward_model)
