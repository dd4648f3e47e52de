"""What limits LADS: its words, its networks, or its probe? A diagnosis with the target's pictures, which LADS never sees.

    python benchmarks/domain_limits.py --backbone path/to/open_clip_folder --pacs pacs128.zip      # ten minutes on a core

For each source domain of PACS two tables.

words: for each target the cosine between the move in text, T[k, c] − S[c], and the true move of the images, the difference of
their class means; of the part that all classes share, and of what is left of each class; the shared part's portion of the
squared length, in images and in text; and the cosine without the gap (--without_gap). Then the moved training images beside
real ones: the distance of class means before and after (the MMD of a linear kernel), and the percentage whose nearest real
picture of the target is of their class.

oracles: accuracy in percent, mean and standard deviation over seeds, where the moves of the words are replaced by the true
ones, shared or of each class; where the networks are replaced by adding those; and by the shared move of --few pictures
without labels, which a user could have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from domain_extension import PACS, Bench, Case, accuracies, by_measure
from domain_extension import Options as BenchOptions
from harness import BenchmarkOptions, Report, run

from diffusers_ext.options import COUNT, option

if TYPE_CHECKING:
    import torch

    from diffusers_ext.lads.data import Embedded
    from diffusers_ext.lads.domains import DomainText


@dataclass
class Options(BenchmarkOptions):
    backbone: str | None = option(
        None, "an open_clip model with a text tower; see diffusers_ext/embeddings/backbones.py"
    )
    pacs: str | None = option(None, "PACS, a zip or a folder")
    sources: list[str] | None = option(None, "source domains; default: all four", tuple(PACS))
    seeds: int = option(3, "runs of everything that is drawn", COUNT)
    few: int = option(5, "pictures of each target for the move that needs no labels; they leave all test sets", COUNT)
    cache_dir: str = option("runs/feature-cache", "folder of embeddings")


def main(options: Options, report: Report) -> None:
    from diffusers_ext.lads.baselines import take_few

    with tempfile.TemporaryDirectory() as scratch:
        bench_options = BenchOptions(backbone=options.backbone, seeds=options.seeds, cache_dir=options.cache_dir)
        bench = Bench(bench_options, Path(scratch))
        for source in options.sources or PACS:
            case = bench.extension(options.pacs, PACS, source)
            few, splits = take_few(case.splits, options.few)
            case = replace(case, splits=splits)
            true = true_moves(case)
            report.table(f"PACS from {source}, words", words(case, true, bench), ".3g")
            report.table(f"PACS from {source}, oracles", oracles(case, true, few, bench), ".2f")


def class_means(data: Embedded) -> torch.Tensor:
    """Return the mean image of each class, (C, D)."""
    import torch

    return torch.stack([data.x[data.labels == label].mean(0) for label in range(len(data.classes))])


def true_moves(case: Case) -> torch.Tensor:
    """Return by how much each class's mean image differs between source and targets, (K, C, D)."""
    import torch

    targets = torch.stack([class_means(case.splits.out_of_domain[name]) for name in case.names])
    return targets - class_means(case.splits.train)


def shared(moves: torch.Tensor) -> torch.Tensor:
    """Return the mean move of all classes for each, (K, C, D)."""
    return moves.mean(1, keepdim=True).expand_as(moves)


def words(case: Case, true: torch.Tensor, bench: Bench) -> list[dict]:
    """Return the table of how the moves in text agree with those of the images."""
    from torch.nn import functional as F

    from diffusers_ext.lads.bank import augment
    from diffusers_ext.lads.objective import modality_gap, without

    train, text = case.splits.train, case.text
    said = text.targets - text.source[0]
    flat = without(said, modality_gap(train.x, text.source))

    def cosine(a: torch.Tensor, b: torch.Tensor) -> list[float]:
        return F.cosine_similarity(a, b, dim=-1).mean(1).tolist()

    def portion(moves: torch.Tensor) -> list[float]:
        return (shared(moves).square().sum((1, 2)) / moves.square().sum((1, 2))).tolist()

    moved = augment(bench.fit(case, {}).bank, train.x)[: len(case.names)]
    rows = {
        "cosine of moves": cosine(said, true),
        "of the shared part": cosine(shared(said), shared(true)),
        "of what is left of a class": cosine(said - shared(said), true - shared(true)),
        "without the gap": cosine(flat, true),
        "shared portion, images": portion(true),
        "shared portion, text": portion(said),
    }
    for name, images in (("before", train.x.expand_as(moved)), ("moved", moved)):
        targets = (case.splits.out_of_domain[target] for target in case.names)
        pairs = [resemblance(train, moved_to, target) for moved_to, target in zip(images, targets)]
        rows[f"distance of class means, {name}"], rows[f"nearest picture's class, %, {name}"] = zip(*pairs)
    columns = {target: {row: values[k] for row, values in rows.items()} for k, target in enumerate(case.names)}
    return by_measure(columns)


def resemblance(train: Embedded, images: torch.Tensor, target: Embedded) -> tuple[float, float]:
    """Compare images (N, D), of the training images' classes, with real ones: distance of class means, agreement of class."""
    from diffusers_ext.lads.measures import nearest

    distance = (class_means(replace(train, x=images)) - class_means(target)).norm(dim=-1).mean().item()
    _, neighbours = nearest(images, target.x)
    return distance, 100 * (target.labels[neighbours] == train.labels).double().mean().item()


def oracles(case: Case, true: torch.Tensor, few: dict[str, Embedded], bench: Bench) -> list[dict]:
    """Return the table of accuracies with what LADS cannot know."""
    import torch
    from torch.nn import functional as F

    from diffusers_ext.lads.baselines import linear, measure, probe_with

    splits, settings, seeds = case.splits, bench.settings, bench.seeds
    centres = torch.stack([few[name].x.mean(0) for name in case.names])
    by_few = (centres - splits.train.x.mean(0))[:, None].expand_as(true)
    moves = {
        f"shared move of {len(few[case.names[0]])} pictures": by_few,
        "true shared move": shared(true),
        "true move": true,
    }

    def lads(text: DomainText) -> Callable:
        return linear(bench.fit(replace(case, text=text), {}).probe)

    def added(move: torch.Tensor) -> Callable:
        moved = F.normalize(splits.train.x + move[:, splits.train.labels], dim=-1)
        return linear(probe_with(moved, splits, settings, seeds))

    methods = {"linear probe": linear(probe_with([], splits, settings, seeds)), "LADS": lads(case.text)}
    methods |= {
        f"LADS, {name}": lads(replace(case.text, targets=case.text.source[0] + move)) for name, move in moves.items()
    }
    methods |= {f"probe + {name}, added": added(move) for name, move in moves.items()}
    return accuracies(measure(methods, splits, seeds))


if __name__ == "__main__":
    run(main, Options)
