"""Publish the embedded model with the learnt reward as one pipeline, with a gallery of what it chose; and its code alone.

    python examples/story/publish.py --folder runs/story

The other results are run folders, which `diffusers-ext push` publishes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import option, run

SHOWN = 4


@dataclass
class Options:
    folder: str = option("runs/story", "the story's folder")


def main(options: Options) -> None:
    from diffusers_ext import ImageRewardModel, embedded_model
    from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline

    folder = Path(options.folder)
    reward = ImageRewardModel.from_pretrained(folder / "reward")
    pipe = RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=reward)
    pipe.push_to_hub("me/story-rerank", gallery=chosen(folder / "rerank"))
    RewardRerankPipeline.push_code("me/story-rerank-code")
    print("published me/story-rerank and me/story-rerank-code")


def chosen(folder: Path) -> list:
    """The best picture of the first prompts, with what it was chosen by."""
    from PIL import Image

    prompts = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["prompts"][:SHOWN]
    best = [(each["prompt"], each["candidates"][0]) for each in prompts]
    return [
        (Image.open(folder / row["image"]), f"{text}, seed {row['seed']}, reward {row['score']:.2f}")
        for text, row in best
    ]


if __name__ == "__main__":
    run(main, Options)
