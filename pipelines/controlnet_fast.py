"""Stable Diffusion with ControlNet, as diffusers draws it bit for bit, without the ControlNet calls that change nothing.

```py
pipe = DiffusionPipeline.from_pretrained(
    "stable-diffusion-v1-5/stable-diffusion-v1-5", controlnet=controlnet,
    custom_pipeline="pipelines/controlnet_fast.py", trust_remote_code=True,
)
pipe("red circle with blue background", image=condition, control_guidance_end=0.5)  # half the ControlNet calls
```
"""

from diffusers import StableDiffusionControlNetPipeline

from diffusers_ext.control.fast import FastControlMixin
from diffusers_ext.publish.loadable import HubLoadable


class StableDiffusionControlNetFastPipeline(HubLoadable, FastControlMixin, StableDiffusionControlNetPipeline):
    """`StableDiffusionControlNetPipeline` with skipped calls, a cached hint and two more arguments.

    The parts are those of diffusers' pipeline; `FastControlMixin.__call__` says what is new.
    """
