"""Check a downloaded model before hours are spent on it: files, weights, shapes, and whether its parts fit.

    diffusers-ext check-model models/stable-diffusion-v1-5 --variant fp16
    diffusers-ext check-model ImageReward.pt
    diffusers-ext check-model clip:ViT-B-32/openai

Takes a Stable Diffusion or other diffusers folder, one model of it, a reward by any name that load_reward takes, or
ImageReward's official checkpoint. Ends with exit code 2 and a list where something is wrong.
"""

from dataclasses import dataclass

from ..options import option


@dataclass
class Options:
    model: str | None = option(None, "folder, file, or name of a reward", positional=True, path="read")
    variant: str | None = option(None, "which weight files of a folder, such as fp16")
    draw: str | None = option(None, "also draw a picture with the pipeline, in four steps, to this file", path="file")
    prompt: str = option(
        "a photograph of a red apple on a wooden table", "what to draw", requires={"draw": True}, blank=True
    )


def main(options: Options) -> None:
    from ..errors import InputError
    from ._model_check import check_model

    if not options.model:
        raise InputError("give a model: diffusers-ext check-model PATH; see --help")
    check_model(options.model, options.variant)
    if options.draw:
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(options.model, variant=options.variant)
        pipe(options.prompt, num_inference_steps=4).images[0].save(options.draw)
        print(f"drawn to {options.draw}; look at it")
