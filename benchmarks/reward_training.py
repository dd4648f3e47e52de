"""Training a reward from rankings: does it learn what can be learnt, and what does a step cost?

    python benchmarks/reward_training.py --parts learns --pictures embedded
    python benchmarks/reward_training.py --parts cost

learns: simulated people rank spoilt circles with Bradley-Terry noise on the exact colour reward, so the accuracy that no
reward can exceed on average is known. training/train_reward_model.py learns from them, from random weights; it is then asked
about prompts and pictures held out, and about colour pairs that occur in no training prompt. Prints both accuracies as
shares of that bound; some minutes on two cores.

cost: CPU seconds of forward and backward on the full architecture with random weights, 70 % frozen, one prompt with seven
images. The other side does as the official trainer's pair mode: each pair of images is a sample of its own and both
images go through the encoders again, here in this project's model. In turns, one process, one thread; about 4 GB.
"""

import json
import runpy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, SEED, option, parse, run

SCRIPT = Path(__file__).parents[1] / "training" / "train_reward_model.py"
LEARNS = [
    *("--backbone", "tiny", "--freeze_fraction", "0", "--train_batch_size", "16", "--learning_rate", "1e-3"),
    *("--lr_warmup_steps", "40", "--adam_weight_decay", "0.01", "--validation_steps", "200", "--random_flip"),
]


@dataclass
class Options:
    parts: list[str] = option(["learns", "cost"], "what to measure")
    output_dir: str | None = option(None, "where rankings and runs are written; default: a folder that is removed")
    prompts: int = option(
        3000, "learns: ranked prompts to learn from, six pictures each; a tenth as many to measure on", COUNT
    )
    pictures: str = option(
        "drawn", "learns: circles drawn exactly, or made by the embedded model, then spoilt", ("drawn", "embedded")
    )
    annotators: int = option(3, "learns: simulated people who rank each prompt", COUNT)
    steps: int = option(1000, "learns: optimiser steps", COUNT)
    temperature: float = option(0.5, "learns: the simulated people's noise", POSITIVE)
    seed: int = option(0, "learns: of rankings and training", SEED)
    images: int = option(7, "cost: images of the prompt", COUNT)
    rounds: int = option(3, "cost: turns of each side; the medians count", COUNT)


def main(options: Options) -> None:
    if "learns" in options.parts:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(learns(options, Path(options.output_dir or scratch))))
    if "cost" in options.parts:
        print(json.dumps(cost(options)))


def learns(options: Options, folder: Path) -> dict:
    """Simulate, train, measure."""
    from diffusers_ext import load_reward
    from diffusers_ext.preferences.agreement import preference_accuracy
    from diffusers_ext.preferences.rankings import read, write
    from diffusers_ext.preferences.simulated import Options as Simulated
    from diffusers_ext.preferences.simulated import bayes_accuracy, read_truth, simulate

    common = {"size": 32, "basic_colours": True, "temperature": options.temperature, "seed": options.seed}
    common |= {"annotators": options.annotators, "pictures": options.pictures}
    aside = options.prompts // 10
    train = simulate(Simulated(output_dir=str(folder / "train"), count=options.prompts + aside, **common))
    unseen = simulate(Simulated(output_dir=str(folder / "test"), count=aside, split="test", **common))
    prompts, truth = read(train), {**read_truth(folder / "train"), **read_truth(folder / "test")}
    rankings = write(folder / "train" / "learnt.jsonl", prompts[:-aside])

    arguments = ["--rankings", rankings, "--output_dir", folder / "run", "--max_train_steps", options.steps]
    script, start = runpy.run_path(str(SCRIPT)), time.process_time()
    script["main"](parse(script["Options"], [*LEARNS, "--seed", str(options.seed), *map(str, arguments)]))
    seconds = time.process_time() - start
    reward = load_reward(folder / "run")

    def measured(prompts: list) -> dict:
        exact = [truth[prompt.id] for prompt in prompts]
        scores = [reward.score(prompt.prompt, list(prompt.images)).numpy() for prompt in prompts]
        found, bound = preference_accuracy(scores, prompts), bayes_accuracy(exact, options.temperature)
        ceiling = preference_accuracy(exact, prompts).micro
        shares = {"share_of_bayes": round(found.micro / bound, 4), "of_the_exact_reward": round(ceiling / bound, 4)}
        return {"accuracy": str(found), "bayes_accuracy": round(bound, 4), **shares}

    return {
        "training_prompts": options.prompts,
        "steps": options.steps,
        "training_cpu_seconds": round(seconds),
        "held_out_prompts": measured(prompts[-aside:]),
        "colour_pairs_never_seen": measured(read(unseen)),
    }


def cost(options: Options) -> dict:
    """Return CPU seconds per pair: each image once for all its pairs, and each pair by itself."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    objective, sample = build(options.images)
    pairs, seconds = len(sample["pairs"][0]), {"once": [], "pair": []}
    for turn in range(options.rounds):
        seconds["once"].append(timed(objective, sample) / pairs)
        seconds["pair"].append(timed(objective, pair_alone(sample, turn)))
        print(f"turn {turn + 1}: {seconds['once'][-1]:.2f} and {seconds['pair'][-1]:.2f} CPU s a pair", flush=True)
    once, alone = (statistics.median(seconds[name]) for name in ("once", "pair"))
    return {
        "images": options.images,
        "pairs": pairs,
        "cpu_seconds_per_pair": round(once, 3),
        "cpu_seconds_per_pair_of_pair_mode": round(alone, 3),
        "ratio": round(once / alone, 3),
    }


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


def timed(objective, batch: dict) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    start = time.process_time()
    objective(batch)["loss"].backward()
    spent = time.process_time() - start
    objective.zero_grad()
    return spent


if __name__ == "__main__":
    run(main, Options)
