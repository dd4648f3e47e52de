"""Stable Diffusion that draws several candidates of a prompt and returns the best, by a reward.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5", reward_model=diffusers_ext.load_reward("models/image-reward"),
    custom_pipeline="pipelines/reward_rerank.py", trust_remote_code=True,
)
best = pipe("red circle with blue background", num_candidates=16, keep=4, chunk_size=4, seed=0)
best.images[0], best.scores[0], best.seeds[0]
```
"""

from typing import ClassVar

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.reranker import RerankMixin
from diffusers_ext.rewards.interface import RewardModel


class RewardRerankPipeline(HubLoadable, RerankMixin, StableDiffusionPipeline):
    """`StableDiffusionPipeline` with best-of-N; `RewardReranker.__call__` says what is new.

    reward_model: anything with `score(prompts, images)`; or None, and then to be set before a call.
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
        reward_model: RewardModel | None,  # without a default, else diffusers ignores what is passed for it
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
