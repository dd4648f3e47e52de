"""What does training LADS' augmentation networks cost, beside a loop that follows the official one, and with the domains?

    python benchmarks/lads.py                       # both parts; some five minutes on a core of its own
    python benchmarks/lads.py --parts growth        # one of peer, growth

peer: `train_bank` for 4 domains at once, against networks trained one after another by a loop as the official code's: a
data set that hands out single rows, a Python loop over each batch for its directions, transformers' AdamW, a validation
pass of the same kind after each epoch. Networks, losses, batches of 256 and products are the same; both sides' first
epochs are timed in turn and multiplied to 50 epochs and 4 networks, since an epoch costs what the next does.
growth: one epoch with 1 to 16 domains.

Embeddings are drawn: 20,000 x 768 in 40 classes, and 2,000 to choose the epoch by. Seconds are CPU time of one thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from diffusers_ext import randomness
from diffusers_ext.lads_data import Embedded
from diffusers_ext.lads_domains import DomainText
from diffusers_ext.lads_options import AugmentationOptions
from diffusers_ext.lads_training import train_bank
from diffusers_ext.objectives.latent_augmentation import class_weights
from diffusers_ext.optimizers import TransformersAdamW

PARTS = ("peer", "growth")
CLASSES, BATCH, EPOCHS = 40, 256, 50


@dataclass
class Case:
    train: Embedded
    val: Embedded
    text: DomainText


def main(options: "Options") -> None:
    torch.set_num_threads(1)
    parts = options.parts or PARTS
    if "peer" in parts:
        show_peer(options)
    if "growth" in parts:
        show_growth(options)


def show_peer(options: "Options") -> None:
    case, networks = drawn(options, 4), 4
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(timed(lambda: bank_epochs(case, options.timed_epochs)) / options.timed_epochs)
        theirs.append(timed(lambda: one_after_another(case, 1)))
    bank, loop = median(ours), median(theirs) * networks
    print("\n| | an epoch of 4 networks, CPU s | 50 epochs, CPU s (multiplied) | ratio |\n|---|---|---|---|")
    print(f"| one after another, row by row | {loop:.2f} | {EPOCHS * loop:.0f} | 1 |")
    print(f"| `train_bank` | {bank:.2f} | {EPOCHS * bank:.0f} | {bank / loop:.2f} |", flush=True)


def show_growth(options: "Options") -> None:
    print("\n| domains | an epoch, CPU s | per domain |\n|---|---|---|")
    for domains in (1, 2, 4, 8, 16):
        case = drawn(options, domains)
        spent = median(timed(lambda: bank_epochs(case, 1)) for _ in range(options.repeats))  # noqa: B023
        print(f"| {domains} | {spent:.2f} | {spent / domains:.2f} |", flush=True)


def timed(call: Callable) -> float:
    """Return the CPU seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def drawn(options: "Options", domains: int) -> Case:
    """Draw classes as directions, images around them, and text beside both."""
    draw = torch.Generator().manual_seed(int(randomness.generator(options.seed, "benchmark").integers(2**31)))
    centres = torch.randn(CLASSES, options.width, generator=draw)
    names = tuple(map(str, range(CLASSES)))

    def images(count: int) -> Embedded:
        labels = torch.randint(CLASSES, (count,), generator=draw)
        return Embedded.of(centres[labels] + torch.randn(count, options.width, generator=draw), labels, names)

    def text(count: int) -> torch.Tensor:
        return F.normalize(centres + torch.randn(count, CLASSES, options.width, generator=draw), dim=-1)

    classes = text(1)[0]
    return Case(images(options.rows), images(options.rows // 10), DomainText(text(1), text(domains), *[classes] * 3))


def bank_epochs(case: Case, epochs: int) -> None:
    train_bank(case.train, case.val, case.text, AugmentationOptions(num_train_epochs=epochs, train_batch_size=BATCH))


class SingleRows(Dataset):
    """One row at a time, with its label and domain."""

    def __init__(self, data: Embedded):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple:
        return self.data.x[index], self.data.labels[index], self.data.domains[index]


def one_after_another(case: Case, networks: int) -> None:
    """One epoch of each of the first networks, and its validation pass."""
    width = case.train.x.shape[1]
    weights = class_weights(case.train.labels, CLASSES)
    for domain in range(networks):
        network = nn.Sequential(nn.Linear(width, 384), nn.ReLU(), nn.Linear(384, width))
        optimizer = TransformersAdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
        for data, training in ((case.train, True), (case.val, False)):
            for x, labels, _ in DataLoader(SingleRows(data), BATCH, shuffle=True):
                with torch.set_grad_enabled(training):
                    loss = row_by_row(network, x, labels, case.text, domain, weights)
                if training:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()


def row_by_row(network: nn.Module, x, labels, text: DomainText, domain: int, weights) -> torch.Tensor:
    moved, wanted = network(x), []
    for row, label in zip(x, labels):
        nearest = torch.argmax(row @ text.source[:, label].T)
        direction = text.targets[domain, label] - text.source[nearest, label]
        wanted.append(direction / direction.norm())
    edit = moved - x
    aligned = (1 - F.cosine_similarity(edit / edit.norm(dim=-1, keepdim=True), torch.stack(wanted))).mean()
    logits = moved / moved.norm(dim=-1, keepdim=True) @ text.classes.T
    return 0.5 * aligned + 0.5 * F.cross_entropy(logits, labels, weight=weights)


if __name__ == "__main__":
    from diffusers_ext.options import option, run

    @dataclass
    class Options:
        parts: list[str] | None = option(None, "which to run; default: all", PARTS)
        rows: int = option(20_000, "embeddings to train on")
        width: int = option(768, "of the embeddings")
        timed_epochs: int = option(2, "epochs of ours that are timed")
        repeats: int = option(3, "times each side runs, in turn; the median counts")
        seed: int = option(0, "of the embeddings")

    run(main, Options)
