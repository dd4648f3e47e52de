"""Stable Diffusion with ControlNet that draws several candidates and returns the best, by a reward and by obedience.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5", controlnet=controlnet,
    reward_model=diffusers_ext.load_reward("models/image-reward"),
    custom_pipeline="pipelines/controlnet_rerank.py", trust_remote_code=True,
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
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.controlled import ControlRerankMixin
from diffusers_ext.rewards.interface import RewardModel

Control: TypeAlias = ControlNetModel | list[ControlNetModel] | tuple[ControlNetModel] | MultiControlNetModel


class StableDiffusionControlNetRerankPipeline(HubLoadable, ControlRerankMixin, StableDiffusionControlNetPipeline):
    """`StableDiffusionControlNetPipeline` with best-of-N; `ControlRerankMixin.__call__` says what is new.

    reward_model: anything with `score(prompts, images)`; or None, and then obedience alone counts.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->unet->vae->reward_model"
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionControlNetPipeline._optional_components,
        "reward_model",
    ]
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker", "reward_model"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        controlnet: Control,
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
            controlnet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.register_modules(reward_model=reward_model)
