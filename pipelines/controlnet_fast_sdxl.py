"""Stable Diffusion XL with ControlNet, as diffusers draws it bit for bit, without the ControlNet calls that change nothing.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0", controlnet=controlnet,
    custom_pipeline="pipelines/controlnet_fast_sdxl.py", trust_remote_code=True,
)
pipe("red circle with blue background", image=condition, control_guidance_end=0.5)  # half the ControlNet calls
```
"""

from diffusers import StableDiffusionXLControlNetPipeline

from diffusers_ext.control.fast import FastControlMixin
from diffusers_ext.publish.loadable import HubLoadable


class StableDiffusionXLControlNetFastPipeline(HubLoadable, FastControlMixin, StableDiffusionXLControlNetPipeline):
    """`StableDiffusionXLControlNetPipeline` with skipped calls, a cached hint and two more arguments.

    The parts are those of diffusers' pipeline; `FastControlMixin.__call__` says what is new.
    """
