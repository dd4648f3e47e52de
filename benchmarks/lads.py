"""What does training LADS' augmentation networks cost, beside loops that follow the official one, and with the domains?

    python benchmarks/lads.py                       # both parts; some five minutes on an idle core
    python benchmarks/lads.py --parts peer          # one of peer, growth
    python benchmarks/lads.py --threads 2           # wall clock instead of CPU seconds

peer: `train_bank` for 4 domains at once, against networks trained one after another in two ways. "Directions row by row"
follows the official code: a data set that hands out single rows, a Python loop over each batch for its directions,
batches of 256 through the network, transformers' AdamW, a validation pass after each epoch. "All row by row" also sends
each row alone through network and losses. Networks, losses and steps are the same on all sides. The matrix products
that any of them needs, four networks at once, are timed alone too: no implementation with them can be faster.
growth: an epoch with 1 to 16 domains.

The case is 20,000 x 768 embeddings in 40 classes, 2,000 to choose the epoch by, and 50 epochs. A fraction is timed, in
turns, and multiplied: an epoch of --timed_rows for ours, for one of 4 networks of the first peer, and a tenth of that for
the second; cost is linear in rows, epochs and, for the peers, networks. Seconds are CPU time of one thread, or with more
threads wall clock: the Python of the peers uses one of them, the products of all sides use each.
"`train_bank` / it" is the ratio within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import BenchmarkOptions, Report, Timing, run, take_turns, timed
from spreads import paired_ratio, quartiles

from diffusers_ext import randomness
from diffusers_ext.options import COUNT, SEED, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from diffusers_ext.lads.data import Embedded
    from diffusers_ext.lads.domains import DomainText

PARTS = ("peer", "growth")
CLASSES, BATCH, EPOCHS, ROWS, WIDTH, HIDDEN, DOMAINS = 40, 256, 50, 20_000, 768, 384, 4
OURS = "`train_bank`"


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] | None = option(None, "parts to run; default: all", PARTS)
    timed_rows: int = option(ROWS, "embeddings of the fraction that is timed", COUNT)
    repeats: int = option(3, "rounds of all sides", COUNT)
    seed: int = option(0, "seed of the embeddings", SEED)


@dataclass
class Case:
    """Embeddings to train on and to choose the epoch by, and the texts of classes and domains."""

    train: Embedded
    val: Embedded
    text: DomainText


def main(options: Options, report: Report) -> None:
    parts = options.parts or PARTS
    if "peer" in parts:
        peer(options, report)
    if "growth" in parts:
        growth(options, report)


def peer(options: Options, report: Report) -> None:
    case, tenth = drawn(options, options.timed_rows, DOMAINS), drawn(options, options.timed_rows // 10, DOMAINS)
    sides = {
        "all row by row": lambda: one_after_another(tenth, alone),
        "directions row by row, as the official code": lambda: one_after_another(case, row_by_row),
        OURS: lambda: bank_epoch(case),
        "the matrix products alone": lambda: products(case),
    }
    tiny = drawn(options, BATCH, DOMAINS)
    one_after_another(tiny, alone), bank_epoch(tiny)  # imports are not timed
    factors = dict(zip(sides, (10 * DOMAINS, DOMAINS, 1, 1)))
    turns = take_turns(sides, options.repeats)
    whole = EPOCHS * ROWS / options.timed_rows
    seconds = {
        name: [whole * factors[name] * seconds_of(turn, options) for turn in timings] for name, timings in turns.items()
    }
    unit = f"{clock(options)} (multiplied)"
    rows = [
        {"side": name, unit: quartiles(values), f"{OURS} / it": paired_ratio(seconds[OURS], values)}
        for name, values in seconds.items()
    ]
    report.table("peer: 4 domains, 20,000 rows, 50 epochs", rows, {unit: ",.0f", f"{OURS} / it": ".2f"})


def growth(options: Options, report: Report) -> None:
    rows = []
    for domains in (1, 2, 4, 8, 16):
        case = drawn(options, options.timed_rows, domains)
        turns = [timed(lambda case=case: bank_epoch(case)) for _ in range(options.repeats)]
        seconds = [ROWS / options.timed_rows * seconds_of(turn, options) for turn in turns]
        per_domain = quartiles([value / domains for value in seconds])
        unit = f"{clock(options)} (multiplied)"
        rows.append({"domains": domains, unit: quartiles(seconds), "per domain": per_domain})
    report.table("growth: an epoch of 20,000 rows", rows, ".2f")


def clock(options: Options) -> str:
    return "CPU s" if options.threads == 1 else f"wall clock s of {options.threads} threads"


def seconds_of(turn: Timing, options: Options) -> float:
    """Return the seconds of a call: of CPU time where there is one thread."""
    return turn.cpu if options.threads == 1 else turn.wall


def drawn(options: Options, rows: int, domains: int) -> Case:
    """Draw classes as directions, images around them, and text beside both."""
    import torch
    from torch.nn import functional as F

    from diffusers_ext.lads.data import Embedded
    from diffusers_ext.lads.domains import DomainText

    draw = torch.Generator().manual_seed(int(randomness.generator(options.seed, "benchmark").integers(2**31)))
    centres = torch.randn(CLASSES, WIDTH, generator=draw)
    names = tuple(map(str, range(CLASSES)))

    def images(count: int) -> Embedded:
        labels = torch.randint(CLASSES, (count,), generator=draw)
        return Embedded.of(centres[labels] + torch.randn(count, WIDTH, generator=draw), labels, names)

    def text(count: int) -> torch.Tensor:
        return F.normalize(centres + torch.randn(count, CLASSES, WIDTH, generator=draw), dim=-1)

    classes = text(1)[0]
    return Case(images(rows), images(rows // 10), DomainText(text(1), text(domains), *[classes] * 3))


def bank_epoch(case: Case) -> None:
    from diffusers_ext.lads.options import AugmentationOptions
    from diffusers_ext.lads.training import train_bank

    train_bank(case.train, case.val, case.text, AugmentationOptions(num_train_epochs=1, train_batch_size=BATCH))


def products(case: Case) -> None:
    """The products of an epoch of all networks: two a layer pass forwards, three backwards, two to measure."""
    import torch

    draw = torch.Generator().manual_seed(0)
    x, o = (torch.randn(DOMAINS, WIDTH, BATCH, generator=draw) for _ in range(2))
    h, first = torch.randn(DOMAINS, HIDDEN, BATCH, generator=draw), torch.randn(DOMAINS, HIDDEN, WIDTH, generator=draw)
    second = first.mT.contiguous()
    for step in range((len(case.train) + len(case.val)) // BATCH):
        first.bmm(x), second.bmm(h)
        if step < len(case.train) // BATCH:
            o.bmm(h.mT), second.mT.bmm(o), h.bmm(x.mT)


class SingleRows:
    """One row at a time, with its label and domain."""

    def __init__(self, data: Embedded):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        return self.data.x[index], self.data.labels[index], self.data.domains[index]


def one_after_another(case: Case, losses_of: Callable) -> None:
    """An epoch of the first network, and its validation pass."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from diffusers_ext.engine.optimizers import TransformersAdamW
    from diffusers_ext.lads.objective import class_weights

    network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
    weights = class_weights(case.train.labels, CLASSES)
    optimizer = TransformersAdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    for data, training in ((case.train, True), (case.val, False)):
        for x, labels, _ in DataLoader(SingleRows(data), BATCH, shuffle=True):
            optimizer.zero_grad()
            with torch.set_grad_enabled(training):
                for loss in losses_of(network, x, labels, case.text, weights):
                    if training:
                        loss.backward()
            if training:
                optimizer.step()


def row_by_row(network: nn.Module, x: torch.Tensor, labels, text: DomainText, weights) -> Iterator[torch.Tensor]:
    """Yield the loss of a batch, whose directions are made one at a time."""
    aligned, consistent = terms(network, x, labels, text)
    yield 0.5 * aligned.mean() + 0.5 * (weights[labels] * consistent).sum() / weights[labels].sum()


def alone(network: nn.Module, x: torch.Tensor, labels, text: DomainText, weights) -> Iterator[torch.Tensor]:
    """Yield each row's share of the same loss."""
    shares = weights[labels] / weights[labels].sum()
    for row, label, share in zip(x[:, None], labels[:, None], shares):
        aligned, consistent = terms(network, row, label, text)
        yield (0.5 * aligned / len(x) + 0.5 * share * consistent).sum()


def terms(network: nn.Module, x: torch.Tensor, labels, text: DomainText) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both losses of each row, (B,)."""
    import torch
    from torch.nn import functional as F

    moved, wanted = network(x), []
    for row, label in zip(x, labels):
        nearest = torch.argmax(row @ text.source[:, label].T)
        direction = text.targets[0, label] - text.source[nearest, label]
        wanted.append(direction / direction.norm())
    edit = moved - x
    aligned = 1 - F.cosine_similarity(edit / edit.norm(dim=-1, keepdim=True), torch.stack(wanted))
    logits = moved / moved.norm(dim=-1, keepdim=True) @ text.classes.T
    return aligned, F.cross_entropy(logits, labels, reduction="none")


if __name__ == "__main__":
    run(main, Options)
