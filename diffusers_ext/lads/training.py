"""Training of augmentation networks and of the linear probe: one loop for both, on embeddings held in memory.

    bank = train_bank(train, val, text, options, seeds=[0]).bank       # moves images to the unseen domains
    rows = augmented_set(train, bank, text, options, seeds=[0])
    probe = train_probe(rows, val, options, seeds=[0]).probe

All seeds and domains are trained at once, see `lads.fit`. Nothing here sees target images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .. import randomness
from ..errors import InputError
from .bank import AugmentationBank, augment, keeps_meaning, new_bank, part_way
from .data import Embedded
from .domains import DomainText
from .fit import Fitted, Orders, Rows, Watch, adamw, fit, shuffled
from .objective import (
    LatentAugmentation,
    Probe,
    Terms,
    class_weights,
    directions,
    modality_gap,
    move_table,
    nearest_domains,
    nearest_sentences,
    swap_table,
    without,
)
from .options import AugmentationOptions, LADSOptions


def measure_bank(objective: LatentAugmentation, rows: Rows, orders: Orders, by_batch: bool) -> Callable:
    """Return epoch -> the loss of each network on the validation rows; by_batch: batches count alike, as officially."""

    def measure(epoch: int) -> torch.Tensor:
        batches = orders(epoch)
        counts = [1 if by_batch else index.shape[1] for index in batches]
        losses = [objective(rows(index))["loss"] * count for index, count in zip(batches, counts)]
        return torch.stack(losses).sum(0) / sum(counts)

    return measure


def balanced_accuracy(predictions: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the mean accuracy of the classes that occur: predictions (R, N), labels (N,) -> (R,).

    >>> balanced_accuracy(torch.tensor([[0, 0, 1]]), torch.tensor([0, 0, 1]), 2)
    tensor([1.])
    """
    counts = labels.bincount(minlength=classes)
    right = torch.zeros(len(predictions), classes, device=labels.device)
    right.index_add_(1, labels, (predictions == labels).float())
    return (right / counts.clamp_min(1)).sum(1) / (counts > 0).sum()


class FittedBank(NamedTuple):
    """The trained networks, and what was seen on the way."""

    bank: AugmentationBank
    fitted: Fitted


class FittedProbe(NamedTuple):
    """The trained probes, one for each seed, and what was seen on the way."""

    probe: Probe
    fitted: Fitted


class Trained(NamedTuple):
    """The parts of a classifier, of all runs."""

    probe: Probe
    bank: AugmentationBank


class ProbeRows(NamedTuple):
    """What a probe learns from: x (R, N, D), or (N, D) for all runs; labels (N,); weights (R, N)."""

    x: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


def train_bank(
    train: Embedded,
    val: Embedded,
    text: DomainText,
    options: AugmentationOptions,
    seeds: Sequence[int] = (0,),
    targets: Sequence[int] | None = None,
    watch: Watch = Watch(),  # noqa: B008, it is immutable
) -> FittedBank:
    """Train a network for each seed and target domain, seed by seed: G = seeds x targets; in the bias setting one a seed.

    targets: positions of the domains to train for, by default all. In the bias setting each
    image's `domains` say which of the two it is of, 0 or 1; see `predicted_domains`.
    """
    swap = text.swap
    wanted = [0] if swap else list(range(len(text.targets)) if targets is None else targets)
    bank = new_bank(
        [(seed, k) for seed in seeds for k in wanted], train.x.shape[1], options.hidden_dim, options.residual
    )
    objective = bank_objective(bank.to(train.x.device), train, text, options, wanted)
    official = options.compat == "official"
    fitted = fit(
        objective,
        rows_of(train, text),
        shuffled(len(train), options.train_batch_size, seeds, "lads-order"),
        adamw(list(bank.parameters()), options.learning_rate, options.weight_decay, official),
        options.num_train_epochs,
        measure_bank(
            objective,
            rows_of(val, text),
            shuffled(len(val), options.train_batch_size, seeds, "lads-val-order"),
            official,
        ),
        watch,
    )
    return FittedBank(bank.requires_grad_(False), fitted)


def bank_objective(
    bank: AugmentationBank, train: Embedded, text: DomainText, options: AugmentationOptions, targets: Sequence[int]
) -> LatentAugmentation:
    """Return the loss of a bank whose networks are, for each run, of these target domains."""
    table, classes = moves_of(train, text, options, targets), text.classes
    if options.domain_class_text and not text.swap:
        classes = text.targets[list(targets)].repeat(len(bank.weight1) // len(targets), 1, 1)
    terms = Terms(
        options.alpha,
        options.neighbour_weight,
        options.normalised_direction,
        options.logit_scale,
        options.pairwise_weight,
    )
    return LatentAugmentation(bank, table, classes, class_weights(train.labels, len(train.classes)), terms)


def moves_of(train: Embedded, text: DomainText, options: AugmentationOptions, targets: Sequence[int]) -> torch.Tensor:
    """Return the directions to these target domains, (K, n_s, C, D); in the bias setting to the other, (1, 2, C, D)."""
    if text.moves is not None:
        return F.normalize(text.moves if text.swap else text.moves[list(targets)], dim=-1)
    table = swap_table(text.source) if text.swap else move_table(text.source, text.targets[list(targets)])
    return without(table, modality_gap(train.x, text.source)) if options.without_gap else table


def text_by_images(train: Embedded, text: DomainText, few: Sequence[Embedded] = ()) -> DomainText:
    """Return the text with moves of mean images: to `few` images of each target, which need no labels, from the training images.

    In the bias setting they are between the two domains of the training images.
    """
    if text.swap:
        means = domain_means(train)
        moves = (means.flip(0) - means)[None, :, None].expand(-1, -1, text.source.shape[1], -1)
    else:
        moves = torch.stack([each.x.mean(0) for each in few]) - train.x.mean(0)
        moves = moves[:, None, None].expand(-1, *text.source.shape[:2], -1)
    return replace(text, moves=moves)


def domain_means(data: Embedded) -> torch.Tensor:
    """Return the mean image of each of the two domains of the bias setting, (2, D)."""
    return torch.stack([data.x[data.domains == domain].mean(0) for domain in (0, 1)])


def starts_of(data: Embedded, text: DomainText) -> torch.Tensor:
    """Return from which sentence each image starts, (N,): its nearest, or in the bias setting its domain."""
    if text.swap:
        if len(data.domains.unique()) < 2:
            raise InputError(
                "the bias setting needs images of both domains, and all have one; give their true domains, or let text "
                "predict them"
            )
        return data.domains
    return nearest_sentences(data.x, data.labels, text.source)


def rows_of(data: Embedded, text: DomainText) -> Rows:
    """Return what gathers the batches of `LatentAugmentation`."""
    starts = starts_of(data, text)

    def rows(index: torch.Tensor) -> dict[str, torch.Tensor]:
        index = index.to(data.x.device)
        return {"x": data.x[index], "labels": data.labels[index], "starts": starts[index]}

    return rows


def predicted_domains(data: Embedded, text: DomainText) -> Embedded:
    """Return the data with the domain of each image as text sees it, by position in text.domains."""
    names = tuple(str(index) for index in range(len(text.domains)))
    return replace(data, domains=nearest_domains(data.x, text.domains), domain_names=names)


def augmented_set(
    train: Embedded, bank: AugmentationBank, text: DomainText, options: AugmentationOptions, seeds: Sequence[int] = (0,)
) -> ProbeRows:
    """Return the probe's training set of each run: x (R, N(K+1), D), labels (N(K+1),), weights (R, N(K+1)).

    Image by image: the original, then what each network makes of it, unit vectors. Weights balance the classes; rows that
    the filter drops have weight 0. With original_share s moved rows weigh (1 − s)/(K s) of an original.
    """
    runs, (n, dim) = len(seeds), train.x.shape
    moved = augment(bank, train.x).view(runs, -1, n, dim)
    if options.random_strength:
        moved = torch.stack([part_way(train.x, rows, seed) for rows, seed in zip(moved, seeds)])
    kept = torch.ones(runs, moved.shape[1] + 1, n, dtype=torch.bool, device=moved.device)
    if options.latent_filter:
        table = moves_of(train, text, options, range(len(text.targets)))
        moves = directions(table, starts_of(train, text), train.labels)
        for run, rows in enumerate(moved):
            kept[run, 1:] = keeps_meaning(train.x, rows, train.labels, text.classes, moves)
    x = torch.cat([train.x.expand(runs, 1, n, dim), moved], dim=1).transpose(1, 2).reshape(runs, -1, dim)
    labels = train.labels.repeat_interleave(moved.shape[1] + 1)
    weights = row_weights(labels, kept.transpose(1, 2).reshape(runs, -1), len(train.classes))
    if (share := options.original_share) is not None:
        weights.view(runs, n, -1)[..., 1:] *= (1 - share) / (share * moved.shape[1])
    return ProbeRows(x, labels, weights)


def row_weights(labels: torch.Tensor, kept: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the weight of each row by its class, 0 where it is not kept: labels (N,), kept (R, N) -> (R, N).

    >>> row_weights(torch.tensor([0, 0, 1]), torch.ones(1, 3, dtype=torch.bool), 2)
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    return torch.stack([class_weights(labels[mask], classes)[labels] * mask for mask in kept])


def train_probe(
    training: ProbeRows,
    val: Embedded,
    options: LADSOptions,
    seeds: Sequence[int] = (0,),
    start: torch.Tensor | None = None,
    watch: Watch = Watch(),  # noqa: B008, it is immutable
) -> FittedProbe:
    """Train a probe for each seed; each keeps its best epoch on `val`.

    start (C, D): weights to start from, else drawn as torch draws a Linear layer. The best epoch has the highest
    class-balanced accuracy on the validation images, the earliest of equals.
    """
    x, labels, weights = training
    probe = new_probe(seeds, len(val.classes), x.shape[-1], start).to(x.device)
    runs = torch.arange(len(seeds), device=x.device)[:, None]

    def rows(index: torch.Tensor) -> dict[str, torch.Tensor]:
        index = index.to(x.device)
        taken = x[runs, index] if x.ndim == 3 else x[index]
        return {"x": taken, "labels": labels[index], "weights": weights.expand(len(seeds), -1).gather(1, index)}

    def measure(epoch: int) -> torch.Tensor:
        predictions = probe.logits(val.x.expand(len(seeds), -1, -1)).argmax(-1)
        return -balanced_accuracy(predictions, val.labels, len(val.classes))

    official = options.compat == "official"
    optimizer = adamw(list(probe.parameters()), options.probe_learning_rate, options.probe_weight_decay, official)
    orders = shuffled(len(labels), options.train_batch_size, seeds, "lads-probe-order")
    fitted = fit(probe, rows, orders, optimizer, options.probe_epochs, measure, watch)
    return FittedProbe(probe.requires_grad_(False), fitted)


def new_probe(seeds: Sequence[int], classes: int, dim: int, start: torch.Tensor | None = None) -> Probe:
    """Return a probe for each seed, drawn, or from given weights (C, D) and no bias."""
    if start is not None:
        return Probe(start.repeat(len(seeds), 1, 1), torch.zeros(len(seeds), classes, device=start.device))
    draws = [randomness.generator(seed, "lads-probe-init") for seed in seeds]
    parts = [
        [
            torch.from_numpy(draw.uniform(-(dim**-0.5), dim**-0.5, shape)).float()
            for shape in ((classes, dim), (classes,))
        ]
        for draw in draws
    ]
    return Probe(*(torch.stack(part) for part in zip(*parts)))
