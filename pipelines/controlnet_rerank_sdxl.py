"""Stable Diffusion XL with ControlNet that draws several candidates and returns the best, by a reward and by obedience.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", controlnet=controlnet,
    reward_model=diffusers_ext.load_reward("models/image-reward"),
    custom_pipeline="pipelines/controlnet_rerank_sdxl.py", trust_remote_code=True,
)
best = pipe("a red circle", image=edges, condition_extractor="canny", num_candidates=16, keep=4, seed=0)
best.images[0], best.scores[0], best.candidates[0][0].parts["consistency"]
```
"""

from typing import ClassVar, TypeAlias

from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.controlled import ControlRerankMixin
from diffusers_ext.rewards.interface import RewardModel

Control: TypeAlias = ControlNetModel | list[ControlNetModel] | tuple[ControlNetModel] | MultiControlNetModel


class StableDiffusionXLControlNetRerankPipeline(HubLoadable, ControlRerankMixin, StableDiffusionXLControlNetPipeline):
    """`StableDiffusionXLControlNetPipeline` with best-of-N; `ControlRerankMixin.__call__` says what is new.

    reward_model: anything with `score(prompts, images)`; or None, and then obedience alone counts.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae->reward_model"
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionXLControlNetPipeline._optional_components,
        "reward_model",
    ]
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["reward_model"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        controlnet: Control,
        scheduler: KarrasDiffusionSchedulers,
        reward_model: RewardModel | None,  # without a default, else diffusers ignores what is passed for it
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: CLIPImageProcessor = None,
        image_encoder: CLIPVisionModelWithProjection = None,
    ):
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            controlnet,
            scheduler,
            force_zeros_for_empty_prompt,
            add_watermarker,
            feature_extractor,
            image_encoder,
        )
        self.register_modules(reward_model=reward_model)
