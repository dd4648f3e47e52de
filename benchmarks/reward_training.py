"""Training a reward from rankings: does it learn what can be learnt, and what does a step cost?

    python benchmarks/reward_training.py --parts learns --pictures embedded      # some minutes, seven more for drawing
    python benchmarks/reward_training.py --parts cost                            # two minutes, 4 GB

learns: simulated people rank spoilt circles with Bradley-Terry noise on the exact colour reward, so the accuracy that no
reward can exceed on average (Bayes accuracy) is known. training/train_reward_model.py learns from the rankings, from
random weights. It is measured on held-out prompts and pictures, and on colour pairs that occur in no training prompt.
Columns: accuracy; Bayes accuracy; the accuracy as a share of it; the exact reward's accuracy as a share of it.

cost: CPU seconds of forward and backward pass on the full architecture with random weights, 70 % frozen, one prompt with
seven images. The other side does as the official trainer's pair mode: each pair of images is a sample of its own and
both images go through the encoders again, here in this project's model. Both take turns in one process.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import BenchmarkOptions, Report, run, run_script, take_turns, timed
from spreads import paired_ratio, quartiles

from diffusers_ext.options import COUNT, POSITIVE, SEED, option

LEARNS = [
    *("--backbone", "tiny", "--freeze_fraction", "0", "--train_batch_size", "16", "--learning_rate", "1e-3"),
    *("--adam_weight_decay", "0.01", "--validation_steps", "200", "--random_flip"),
]
PARTS = ("learns", "cost")


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] = option(list(PARTS), "parts to run", PARTS)
    output_dir: str | None = option(None, "folder of rankings and runs; default: a temporary one")
    prompts: int = option(
        3000, "learns: ranked prompts to learn from, six pictures each; a tenth more to measure on", COUNT
    )
    pictures: str = option(
        "drawn", "learns: circles drawn exactly, or made by the embedded model, then spoilt", ("drawn", "embedded")
    )
    annotators: int = option(3, "learns: simulated people who rank each prompt", COUNT)
    steps: int = option(1000, "learns: optimiser steps", COUNT)
    temperature: float = option(0.5, "learns: noise of the simulated people", POSITIVE)
    seed: int = option(0, "learns: seed of rankings and training", SEED)
    images: int = option(7, "cost: images of the prompt", COUNT)
    rounds: int = option(3, "cost: rounds of both sides", COUNT)


def main(options: Options, report: Report) -> None:
    if "learns" in options.parts:
        with tempfile.TemporaryDirectory() as scratch:
            learns(options, Path(options.output_dir or scratch), report)
    if "cost" in options.parts:
        cost(options, report)


def learns(options: Options, folder: Path, report: Report) -> None:
    """Simulate rankings, train, measure."""
    from diffusers_ext import load_reward
    from diffusers_ext.preferences.rankings import read, write
    from diffusers_ext.preferences.simulated import Options as Simulated
    from diffusers_ext.preferences.simulated import read_truth, simulate

    common = {"size": 32, "basic_colours": True, "temperature": options.temperature, "seed": options.seed}
    common |= {"annotators": options.annotators, "pictures": options.pictures}
    held_out = max(1, options.prompts // 10)
    train = simulate(Simulated(output_dir=str(folder / "train"), count=options.prompts + held_out, **common))
    unseen = simulate(Simulated(output_dir=str(folder / "test"), count=held_out, split="test", **common))
    prompts, truth = read(train), {**read_truth(folder / "train"), **read_truth(folder / "test")}
    rankings = write(folder / "train" / "learnt.jsonl", prompts[:-held_out])

    words = ["--rankings", rankings, "--output_dir", folder / "run", "--max_train_steps", options.steps]
    words += ["--lr_warmup_steps", min(40, options.steps // 10), "--seed", options.seed]
    spent = timed(lambda: run_script("train_reward_model", *LEARNS, *words))
    reward = load_reward(folder / "run")
    sets = {"held-out prompts": prompts[-held_out:], "colour pairs never seen": read(unseen)}
    rows = [{"measured on": name, **accuracies(reward, these, truth, options)} for name, these in sets.items()]
    title = f"learns: {options.prompts:,} prompts, {options.steps:,} steps, {spent.cpu:.0f} CPU s of training"
    report.table(title, rows, ".4f")


def accuracies(reward, prompts: list, truth: dict, options: Options) -> dict:
    """Return the accuracy of a reward on ranked prompts, beside what can be reached."""
    from diffusers_ext.preferences.agreement import preference_accuracy
    from diffusers_ext.preferences.simulated import bayes_accuracy

    exact = [truth[prompt.id] for prompt in prompts]
    scores = [reward.score(prompt.prompt, list(prompt.images)).numpy() for prompt in prompts]
    accuracy, bound = preference_accuracy(scores, prompts), bayes_accuracy(exact, options.temperature)
    ceiling = preference_accuracy(exact, prompts).micro
    shares = {"share of Bayes": accuracy.micro / bound, "the exact reward's share": ceiling / bound}
    return {"accuracy": accuracy.micro, "in words": str(accuracy), "Bayes accuracy": bound, **shares}


def cost(options: Options, report: Report) -> None:
    """Time each image once for all its pairs, and each pair by itself."""
    import torch

    torch.manual_seed(0)
    objective, sample = build(options.images)
    pairs = len(sample["pairs"][0])
    sides = {
        "each image once": lambda: step(objective, sample),
        "each pair alone": lambda: step(objective, pair_alone(sample, 0)),
    }
    turns = take_turns(sides, options.rounds)
    seconds = {"each image once": [turn.cpu / pairs for turn in turns["each image once"]]}
    seconds["each pair alone"] = [turn.cpu for turn in turns["each pair alone"]]
    rows = [
        {
            "side": name,
            "images": options.images,
            "pairs": pairs,
            "CPU s a pair": quartiles(values),
            "of each pair alone": paired_ratio(values, seconds["each pair alone"]),
        }
        for name, values in seconds.items()
    ]
    report.table("cost", rows)


def build(images: int):
    """Return the objective on the released model's shape with random weights, and a batch of one prompt."""
    import torch
    from transformers import BertTokenizer

    from diffusers_ext.preferences.backbones import freeze, prepare
    from diffusers_ext.preferences.objective import RankingObjective
    from diffusers_ext.rewards.modeling_image_reward import ImageRewardConfig, ImageRewardModel

    model = ImageRewardModel(ImageRewardConfig())
    words = [f"word{number}" for number in range(33)]
    model.tokenizer = BertTokenizer(
        vocab={word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    )
    frozen = freeze(model, 0.7)
    objective = RankingObjective(model, prepare(model, frozen, [], [], None).rewards, frozen)
    ranks = torch.arange(images)
    sample = {
        "prompt": [" ".join(words)],  # fills the 35 tokens that are read, as pair mode pads to them
        "images": [[torch.randn(3, 224, 224) for _ in range(images)]],
        "pairs": [torch.nonzero(ranks[:, None] < ranks[None]).numpy()],
    }
    return objective, {**sample, "pair_weight": torch.tensor([1 / len(sample["pairs"][0])])}


def pair_alone(sample: dict, which: int) -> dict:
    """Return one pair of a sample as pair mode has it: its two images and nothing else."""
    import numpy as np
    import torch

    better, worse = sample["pairs"][0][which % len(sample["pairs"][0])]
    images = [[sample["images"][0][better], sample["images"][0][worse]]]
    return {**sample, "images": images, "pairs": [np.array([[0, 1]])], "pair_weight": torch.ones(1)}


def step(objective, batch: dict) -> None:
    """Run a forward and a backward pass."""
    objective(batch)["loss"].backward()
    objective.zero_grad()


if __name__ == "__main__":
    run(main, Options)
