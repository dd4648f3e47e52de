"""Stable Diffusion XL that draws several candidates of a prompt and returns the best, by a reward.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", reward_model=diffusers_ext.load_reward("models/image-reward"),
    custom_pipeline="pipelines/reward_rerank_sdxl.py", trust_remote_code=True,
)
best = pipe("red circle with blue background", num_candidates=16, keep=4, chunk_size=4, seed=0)
best.images[0], best.scores[0], best.seeds[0]
```
"""

from typing import ClassVar

from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.reranker import RerankMixin
from diffusers_ext.rewards.interface import RewardModel


class RewardRerankXLPipeline(HubLoadable, RerankMixin, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with best-of-N; `RewardReranker.__call__` says what is new.

    reward_model: anything with `score(prompts, images)`; or None, and then to be set before a call.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae->reward_model"
    _optional_components: ClassVar[list[str]] = [*StableDiffusionXLPipeline._optional_components, "reward_model"]
    _exclude_from_cpu_offload: ClassVar[list[str]] = [
        *StableDiffusionXLPipeline._exclude_from_cpu_offload,
        "reward_model",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        reward_model: RewardModel | None,  # without a default, else diffusers ignores what is passed
        image_encoder: CLIPVisionModelWithProjection = None,
        feature_extractor: CLIPImageProcessor = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ):
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
        )
        self.register_modules(reward_model=reward_model)
