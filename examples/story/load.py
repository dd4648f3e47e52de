"""Load every result in this process, from the folder or by its name on the Hub, and use it: draw, score, classify.

    python examples/story/load.py --folder runs/story --source here --output here.json
    python examples/story/load.py --folder runs/story --source hub --output hub.json --expected here.json

Of the story's folder the second takes the pictures to score only. It ends with code 1 where an answer is another one.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import option, run

PROMPT = "red circle with blue background"
DRAWING = {"num_inference_steps": 5, "guidance_scale": 1.0}
NAMES = {  # on the Hub; here it is the run folder
    "reward": "story-reward",
    "tuned": "story-lora",
    "controlnet": "story-controlnet",
    "controlnet-closer": "story-controlnet-closer",
    "image-text": "story-image-text",
    "lads": "story-colours",
    "stream": "story-stream",
}


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")
    source: str = option("hub", "where to load from", ("here", "hub"))
    output: str = option("answers.json", "the file to write")
    expected: str | None = option(None, "another such file, to compare with")


def main(options: Options) -> None:
    folder, hub = Path(options.folder), options.source == "hub"
    names = {part: f"me/{name}" if hub else str(folder / part) for part, name in NAMES.items()}
    answers = {**rewards(folder, names), **drawings(names, hub), **classes(folder, names, hub)}
    lines = [f"{what}: {answer}" for what, answer in answers.items()]
    if options.expected:
        expected = json.loads(Path(options.expected).read_text(encoding="utf-8"))
        lines = [f"{what}: {'the same' if answers[what] == expected[what] else 'ANOTHER'}" for what in expected]
    Path(options.output).write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if options.expected and answers != expected:
        raise SystemExit("what was loaded from the Hub is not what lies here")


def rewards(folder: Path, names: dict) -> dict:
    """Score by transformers alone; the reward's own code comes with it."""
    from transformers import AutoModel

    reward = AutoModel.from_pretrained(names["reward"], trust_remote_code=True)
    pictures = sorted(map(str, (folder / "rerank" / "candidates").glob("0000-*.png")))[:6]
    return {"scores": [round(score, 5) for score in reward.score(PROMPT, pictures).tolist()]}


def drawings(names: dict, hub: bool) -> dict:
    """Draw by every pipeline; an answer is the digest of the pixels."""
    import numpy as np
    import torch
    from diffusers import ControlNetModel, DiffusionPipeline, StableDiffusionControlNetPipeline
    from PIL import Image

    from diffusers_ext import ImageRewardModel, embedded_model
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
    from diffusers_ext.toy import circles as fill50k

    def digest(pipe, **arguments) -> str:
        pipe.set_progress_bar_config(disable=True)
        seeded = {"generator": torch.Generator().manual_seed(3)} if "num_candidates" not in arguments else {"seed": 3}
        picture = pipe(PROMPT, **DRAWING, **arguments, **seeded).images[0]
        return hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()[:16]

    reward = ImageRewardModel.from_pretrained(names["reward"])
    whole = (
        DiffusionPipeline.from_pretrained("me/story-rerank", trust_remote_code=True)
        if hub
        else RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=reward)
    )
    code = DiffusionPipeline.from_pretrained(
        embedded_model(),
        custom_pipeline="me/story-rerank-code" if hub else "pipelines/reward_rerank.py",
        reward_model=reward,
        trust_remote_code=True,
    )
    tuned = DiffusionPipeline.from_pretrained(embedded_model())
    tuned.load_lora_weights(names["tuned"])
    answers = {
        "best of 4, pipeline": digest(whole, num_candidates=4, keep=1),
        "best of 4, code alone": digest(code, num_candidates=4, keep=1),
        "tuned model": digest(tuned),
    }
    outline = Image.fromarray(fill50k.draw_condition(fill50k.scene(0, split="test"), 64))
    for part in ("controlnet", "controlnet-closer"):
        parts = {"controlnet": ControlNetModel.from_pretrained(names[part]), "safety_checker": None}
        pipe = StableDiffusionControlNetPipeline.from_pretrained(
            embedded_model(), requires_safety_checker=False, **parts
        )
        answers[part] = digest(pipe, image=outline)
    return answers


def classes(folder: Path, names: dict, hub: bool) -> dict:
    """Classify drawings by both classifiers, on what the image-text model makes of them."""
    from diffusers_ext import LADSClassifier, VMFMixtureClassifier
    from diffusers_ext.embeddings.backbones import load_backbone

    backbone = load_backbone(f"hf-hub:{names['image-text']}" if hub else names["image-text"])
    pictures = sorted((folder / "colours").glob("test-*-0000.png"))
    extended = LADSClassifier.from_pretrained(names["lads"])
    extended.backbone = backbone  # refused unless its weights are those of the training
    grown = VMFMixtureClassifier.from_pretrained(names["stream"])
    found = {"extended": extended.predict(pictures).labels, "grown": grown.predict(backbone.embed_images(pictures))}
    return {f"classes, {name}": list(map(str, labels)) for name, labels in found.items()}


if __name__ == "__main__":
    run(main, Options)
