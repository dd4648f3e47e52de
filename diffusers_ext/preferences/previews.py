"""What a reward model shows while it learns: accuracy on held-out pairs, pictures in its order, the best weights."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from ..data.batches import collate
from ..data.files import load
from ..disk import follow_umask
from ..engine.run_folder import read_metrics, save_sample
from ..figures import labelled_grid
from .agreement import summary
from .dataset import RankedImages
from .objective import RankingObjective
from .rankings import RankedPrompt

ROWS_SHOWN, COLUMNS_SHOWN = 6, 8
NORMALISED_ON = 2000  # prompts that mean and deviation are taken from, at most


class RankingPreview:
    """A `loop.Preview`: scores held-out prompts, keeps the most accurate weights in `best/`."""

    def __init__(self, objective: RankingObjective, held_out: RankedImages, options: Any):
        self.objective, self.held_out, self.options = objective, held_out, options
        self.folder = Path(options.output_dir)

    def __call__(self, step: int) -> dict[str, float]:
        prompts = self.held_out.prompts
        scores = [each.numpy() for each in score_all(self.objective, self.held_out, self.options.train_batch_size)]
        save_sample(
            self.folder, step, grid_in_order(prompts, scores, f"step {step}: best first; (people's rank) reward")
        )
        measures = {f"held_out_{name}": value for name, value in summary(scores, prompts).items()}
        earlier = [row["held_out_accuracy"] for row in read_metrics(self.folder) if "held_out_accuracy" in row]
        if measures["held_out_accuracy"] > max(earlier, default=-math.inf):
            self.objective.model.save_pretrained(self.folder / "best")
            follow_umask(self.folder / "best")
        return measures


def score_all(objective: RankingObjective, dataset: RankedImages, batch_size: int) -> list[torch.Tensor]:
    """Return the rewards of every prompt's images, a (K,) tensor each, without dropout."""
    device, learning = next(objective.parameters()).device, objective.training
    objective.eval()
    try:
        return [
            score for batch in _batches(dataset, batch_size) for score in objective.score(send_to_device(batch, device))
        ]
    finally:
        objective.train(learning)


def normalise(objective: RankingObjective, dataset: RankedImages, batch_size: int) -> tuple[float, float]:
    """Set the reward's mean and deviation to those of its raw output on the training images, at most 2,000 prompts'.

    Returns them. Rewards then have mean 0 and deviation 1 there, whatever the head's scale.
    """
    config = objective.model.config
    first = torch.utils.data.Subset(dataset, range(min(NORMALISED_ON, len(dataset))))
    config.reward_mean, config.reward_std = 0.0, 1.0
    raw = torch.cat(score_all(objective, first, batch_size))
    config.reward_mean, config.reward_std = raw.mean().item(), max(raw.std().item(), 1e-6)
    return config.reward_mean, config.reward_std


def finish(objective: RankingObjective, dataset: RankedImages, folder: Path, batch_size: int) -> tuple[float, float]:
    """Write the normalised reward into the run folder, its best weights into best/; return the final mean and deviation."""
    model, best = objective.model, folder / "best"
    final = {name: value.clone() for name, value in model.state_dict().items()}
    if best.exists():
        model.load_state_dict(load_file(best / "model.safetensors"))
        normalise(objective, dataset, batch_size)
        model.save_pretrained(best)
        model.load_state_dict(final)
    found = normalise(objective, dataset, batch_size)
    model.save_pretrained(folder)
    return found


def grid_in_order(prompts: list[RankedPrompt], scores: list, title: str):
    """Show the first prompts' images from the highest reward to the lowest, each with the first person's rank."""
    rows, labels = [], []
    for prompt, score in list(zip(prompts, scores))[:ROWS_SHOWN]:
        order = (-score).argsort()[:COLUMNS_SHOWN]
        ranks = prompt.valid[0].ranking
        rows.append([load(prompt.images[at]) for at in order])
        labels.append(f"{prompt.prompt[:60]}   " + "  ".join(f"({ranks[at]}) {score[at]:.2f}" for at in order))
    columns = [str(number + 1) for number in range(max(map(len, rows)))]
    return labelled_grid(rows, columns, labels, title=title)


def _batches(dataset: Dataset, batch_size: int) -> Iterator[dict]:
    keys = [
        [(0, at) for at in range(first, min(first + batch_size, len(dataset)))]
        for first in range(0, len(dataset), batch_size)
    ]
    prompts = dataset.dataset if isinstance(dataset, torch.utils.data.Subset) else dataset
    yield from DataLoader(prompts, batch_sampler=keys, collate_fn=collate)
