"""ImageReward scores: CPU seconds against one pair at a time, on the full architecture with random weights.

    python benchmarks/reward_scoring.py
    python benchmarks/reward_scoring.py --dtype bf16 --images 1 --rounds 1    # slow where the CPU has no bf16 products

The other side is what the official scorer does for a prompt and a list of images: each image alone through the image
encoder, the prompt padded to 35 tokens and read again for each, attention without a fused kernel, here with transformers'
own BLIP modules and the very same weights. Both sides take turns in one process with one thread; --dtype is ours
only, the other side stays in float32.
"""

import json
import statistics
import time
from dataclasses import dataclass

from diffusers_ext.options import COUNT, option, run

PROMPTS = [
    "a painting of an old lighthouse above a stormy sea at dusk, thick brush strokes, warm light in the windows",
    "portrait of a smiling carpenter in his workshop, shallow depth of field, soft morning light",
    "an astronaut riding a bicycle through a field of sunflowers, wide angle, vivid colours",
    "isometric drawing of a small library with plants, reading people and a sleeping cat",
]


@dataclass
class Options:
    images: int = option(8, "pictures of 512 x 512 per prompt", COUNT)
    rounds: int = option(3, "turns of each side; the medians count", COUNT)
    dtype: str = option("fp32", "our precision: float32, autocast to bfloat16, or weights in bfloat16",
                        ("fp32", "autocast", "bf16"))  # fmt: skip


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, peer = build()
    images = pictures(options.images)
    kinds = {"1 prompt": PROMPTS[:1], "4 prompts": PROMPTS}
    seconds: dict[str, list[float]] = {name: [] for name in ("one pair at a time", *kinds)}
    apart = 0.0
    for turn in range(options.rounds):
        for name, prompts in kinds.items():
            ours, spent = timed(lambda prompts=prompts: scored(model, prompts, images, options.dtype))
            seconds[name].append(spent)
            theirs, spent = timed(lambda: peer(model, PROMPTS[0], images))
            seconds["one pair at a time"].append(spent)
            apart = max(apart, (ours[0] - theirs).abs().max().item())
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()))
    report(options, {name: statistics.median(values) for name, values in seconds.items()}, apart)


def report(options: Options, median: dict[str, float], apart: float) -> None:
    """Print the ratios; four prompts cost the other side four calls."""
    alone = median["one pair at a time"]
    result = {
        "images": options.images,
        "dtype": options.dtype,
        "one_pair_at_a_time_seconds": round(alone, 2),
        "one_prompt_seconds": round(median["1 prompt"], 2),
        "one_prompt_ratio": round(median["1 prompt"] / alone, 3),
        "four_prompts_seconds": round(median["4 prompts"], 2),
        "four_prompts_ratio": round(median["4 prompts"] / (4 * alone), 3),
        "largest_difference_of_rewards": apart,
    }
    print(json.dumps(result))


def build():
    """Return our model with random weights, and the other side, which shares them."""
    import torch
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

    from diffusers_ext.rewards.modeling_image_reward import ImageRewardConfig, ImageRewardModel

    model = ImageRewardModel(ImageRewardConfig()).eval()
    words = sorted({word for prompt in PROMPTS for word in prompt.replace(",", " ,").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    model.tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    with torch.device("meta"):
        vision = BlipVisionModel(model.config.vision_config)
        text = BlipTextModel(model.config.text_config, add_pooling_layer=False)
    vision.load_state_dict(model.vision_model.state_dict(), assign=True)
    text.load_state_dict(model.text_encoder.state_dict(), assign=True)
    text.embeddings.position_ids = model.text_encoder.embeddings.position_ids
    vision.eval(), text.eval()

    def one_pair_at_a_time(model, prompt, images):
        rewards = []
        for image in images:
            tokens = vision(model.preprocess(image)).last_hidden_state
            words = model.tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
            hidden = text(words["input_ids"], words["attention_mask"], encoder_hidden_states=tokens).last_hidden_state
            rewards.append((model.mlp(hidden[:, 0]) - model.config.reward_mean) / model.config.reward_std)
        return torch.cat(rewards).float()

    return model, one_pair_at_a_time


def pictures(count: int) -> list:
    """Smooth random colours, 512 x 512."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    small = (Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count))
    return [image.resize((512, 512), Image.Resampling.BICUBIC) for image in small]


def scored(model, prompts: list[str], images: list, dtype: str):
    import torch

    if dtype == "bf16" and model.dtype != torch.bfloat16:
        halves = {
            name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if not name.startswith("mlp.")
        }
        model.load_state_dict(halves, strict=False, assign=True)  # the other side keeps the float32 tensors
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        return model.score_matrix(prompts, images)


def timed(work) -> tuple:
    """Return what it returns, and the CPU seconds it took."""
    import torch

    with torch.inference_mode():
        start = time.process_time()
        result = work()
        return result, time.process_time() - start


if __name__ == "__main__":
    run(main, Options)
