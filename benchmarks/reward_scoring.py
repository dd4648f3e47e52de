"""What does an ImageReward score cost, against scoring one pair of prompt and image at a time?

    python benchmarks/reward_scoring.py                                        # about two minutes on an idle core, 4 GB
    python benchmarks/reward_scoring.py --dtype bf16 --images 1 --rounds 1     # slow on a CPU without bf16 products

The full architecture with random weights. The other side is what the official scorer does for a prompt and a list of
images: each image alone through the image encoder, the prompt padded to 35 tokens and read again for each image,
attention without a fused kernel; here with transformers' own BLIP modules and the very same weights. Both sides take
turns in one process; --dtype is for ours only, the other side stays in float32.

Columns: CPU seconds of a call; "of one pair at a time", the ratio within a round, where several prompts cost the other
side as many calls; the largest difference of rewards between both sides.
"""

import copy
from dataclasses import dataclass

from harness import BenchmarkOptions, Report, run, take_turns
from spreads import paired_ratio, quartiles

from diffusers_ext.options import COUNT, option

PROMPTS = [
    "a painting of an old lighthouse above a stormy sea at dusk, thick brush strokes, warm light in the windows",
    "portrait of a smiling carpenter in his workshop, shallow depth of field, soft morning light",
    "an astronaut riding a bicycle through a field of sunflowers, wide angle, vivid colours",
    "isometric drawing of a small library with plants, reading people and a sleeping cat",
]
ALONE = "one pair at a time"


@dataclass
class Options(BenchmarkOptions):
    images: int = option(8, "pictures of 512 x 512 per prompt", COUNT)
    rounds: int = option(3, "rounds of both sides", COUNT)
    dtype: str = option(
        "fp32",
        "our precision: float32, autocast to bfloat16, or weights in bfloat16",
        ("fp32", "autocast", "bf16"),
    )
    small: bool = option(False, "shrink the architecture, to try the script: its figures mean nothing")


def main(options: Options, report: Report) -> None:
    import torch

    torch.manual_seed(0)
    model, peer = build(options.small)
    images = pictures(options.images)
    sides = {
        ALONE: lambda: peer(model, PROMPTS[0], images),
        "1 prompt": lambda: scored(model, PROMPTS[:1], images, options.dtype),
        "4 prompts": lambda: scored(model, PROMPTS, images, options.dtype),
    }
    with torch.inference_mode():
        turns = take_turns(sides, options.rounds)
    alone = [turn.cpu for turn in turns[ALONE]]
    rows = []
    for (name, timings), calls in zip(turns.items(), (1, 1, 4)):
        seconds = [turn.cpu for turn in timings]
        apart = [(turn.result.flatten()[: options.images] - turns[ALONE][0].result).abs().max() for turn in timings]
        row = {"side": name, "images": options.images, "dtype": "fp32" if name == ALONE else options.dtype}
        ratio = paired_ratio(seconds, [calls * value for value in alone])
        largest = f"{float(max(apart)):.1e}"
        rows.append({**row, "CPU s": quartiles(seconds), "of " + ALONE: ratio, "largest difference": largest})
    report.table("scores", rows, {"CPU s": ".2f"})


def build(small: bool):
    """Return our model with random weights, and the other side, which shares them."""
    import torch
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

    from diffusers_ext.rewards.modeling_image_reward import ImageRewardConfig, ImageRewardModel

    thin = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ImageRewardConfig(vision_config=thin, text_config=thin) if small else ImageRewardConfig()
    model = ImageRewardModel(config).eval()
    words = sorted({word for prompt in PROMPTS for word in prompt.replace(",", " ,").split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    model.tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    with torch.device("meta"):
        vision = BlipVisionModel(unfused(model.config.vision_config))
        text = BlipTextModel(unfused(model.config.text_config), add_pooling_layer=False)
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


def unfused(config):
    """Return a copy of a configuration without the fused kernel of attention."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    return config


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


if __name__ == "__main__":
    run(main, Options)
