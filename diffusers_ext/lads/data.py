"""Embeddings with class and domain, checked, and split as LADS is trained and measured.

    train        images of the source domain
    val          every other held-out source image: the best epoch and nothing else is chosen on it
    tests        the remaining held-out source images, in domain, and each unseen domain, all of it, out of domain

In the bias setting the domains are all there, but in training and validation classes go with domains; the test images are
in domain where they obey that rule and out of domain where they break it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from ..data.files import File
from ..data.samples import LabelledImages, Sample
from ..data.splits import halve, on_one_side, with_splits
from ..errors import InputError

FRACTIONS = {"train": 0.8, "test": 0.2}  # of a source domain that comes without splits


@dataclass(frozen=True)
class Embedded:
    """N images as unit embeddings: x (N, D) float32, labels and domains (N,) positions in `classes` and `domain_names`.

    files: the pictures, where they are known, else empty.
    """

    x: torch.Tensor
    labels: torch.Tensor
    domains: torch.Tensor
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]
    files: tuple[File, ...] = ()

    @classmethod
    def of(
        cls,
        x: torch.Tensor,
        labels: torch.Tensor,
        classes: Sequence[str],
        domains: torch.Tensor | None = None,
        domain_names: Sequence[str] = ("source",),
        files: Sequence[File] = (),
    ) -> "Embedded":
        """Check and normalise. Raises InputError for NaN or zero rows, sizes that differ, and labels that are no class."""
        domains = torch.zeros(len(labels), dtype=torch.long) if domains is None else domains.long()
        if x.ndim != 2 or not len(x) == len(labels) == len(domains):
            raise InputError(
                f"embeddings {tuple(x.shape)}, {len(labels)} labels, {len(domains)} domains: give one row each"
            )
        if not len(x):
            raise InputError("no embeddings: a split or domain is empty")
        for name, values, names in (("label", labels, classes), ("domain", domains, domain_names)):
            if not 0 <= int(values.min()) <= int(values.max()) < len(names):
                raise InputError(f"{name} {int(values.max())} is out of range; there are {len(names)}: 0 is the first")
        return cls(unit_rows(x), labels.long(), domains, tuple(classes), tuple(domain_names), tuple(files))

    def __len__(self) -> int:
        return len(self.x)

    def where(self, kept: torch.Tensor) -> "Embedded":
        """Return the rows of a mask or of positions."""
        at = kept.nonzero().flatten() if kept.dtype == torch.bool else kept
        files = tuple(self.files[i] for i in at.tolist()) if self.files else ()
        return replace(self, x=self.x[at], labels=self.labels[at], domains=self.domains[at], files=files)

    def to(self, device: torch.device | str) -> "Embedded":
        return replace(self, x=self.x.to(device), labels=self.labels.to(device), domains=self.domains.to(device))


@dataclass(frozen=True)
class Splits:
    """Embeddings to train on, to choose epochs on, and to measure on: in domain, and out of domain by name."""

    train: Embedded
    val: Embedded
    in_domain: Embedded
    out_of_domain: dict[str, Embedded]

    def __post_init__(self) -> None:
        check_classes(self.train, {"val": self.val, "in domain": self.in_domain, **self.out_of_domain})

    @property
    def tests(self) -> dict[str, Embedded]:
        """All test sets by name, the one in domain first."""
        return {"in domain": self.in_domain, **self.out_of_domain}

    def to(self, device: torch.device | str) -> "Splits":
        outside = {name: test.to(device) for name, test in self.out_of_domain.items()}
        return Splits(self.train.to(device), self.val.to(device), self.in_domain.to(device), outside)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1, float32. Raises InputError, naming the first, for a row that is not finite or is zero.

    >>> unit_rows(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    x = x.float()
    lengths = x.norm(dim=-1)
    bad = (~(lengths.isfinite() & (lengths > 0))).nonzero()
    if len(bad):
        raise InputError(
            f"embedding {bad[0].item()} is zero or not finite, and {len(bad) - 1} more; embed the images again, in float32"
        )
    return F.normalize(x, dim=-1)


def check_classes(train: Embedded, others: dict[str, Embedded]) -> None:
    """Raise InputError unless every class has a training image, and every test set only classes of the training set."""
    seen = set(train.labels.unique().tolist())
    for name, other in others.items():
        if other.classes != train.classes:
            raise InputError(f"{name}: its classes are not those of the training set; read them as one table")
        missing = sorted(set(other.labels.unique().tolist()) - seen)
        if missing:
            raise InputError(
                f"{name}: class {train.classes[missing[0]]!r} has no training image; add some, or leave the class out"
            )
    unseen = sorted(set(range(len(train.classes))) - seen)
    if unseen:
        raise InputError(f"class {train.classes[unseen[0]]!r} has no training image; add some, or leave the class out")


def split_by_domain(
    table: LabelledImages, source: str, targets: Sequence[str], embed: Callable[[LabelledImages], torch.Tensor]
) -> Splits:
    """Train on the source domain, measure on what is held out of it and on each of the target domains.

    Where the source has no splits a fifth of it is held out. embed: the pictures of a table as (N, D). Raises InputError for
    a domain without pictures.
    """
    absent = [name for name in (source, *targets) if name not in table.domains]
    if absent:
        raise InputError(f"no picture of domain {absent[0]!r}; the data have {', '.join(table.domains)}")
    held_out = table.where(domain=source)
    if not any(sample.split for sample in held_out.samples):
        held_out = with_splits(held_out, FRACTIONS)
    pool = [replace(sample, split="train" if sample.split == "train" else "test") for sample in held_out.samples]
    parts = halve(replace(held_out, samples=tuple(pool)), "test", lambda sample: True)
    outside = {name: table.where(domain=name) for name in targets}
    parts = _apart(parts, [sample for part in outside.values() for sample in part.samples])
    wanted = {name: parts.where(split=name) for name in ("train", "val", "test")}
    wanted |= {f"target {name}": part for name, part in outside.items()}
    found = {name: embedded(part, embed) for name, part in wanted.items()}
    return Splits(found["train"], found["val"], found["test"], {name: found[f"target {name}"] for name in targets})


def _apart(parts: LabelledImages, tests: Sequence[Sample]) -> LabelledImages:
    """Return the parts of the source with each picture in one split, that of the tests where a test of any domain equals it."""
    samples = (*parts.samples, *(replace(sample, split="test") for sample in tests))
    return replace(parts, samples=on_one_side(replace(parts, samples=samples)).samples[: len(parts)])


def embedded(table: LabelledImages, embed: Callable[[LabelledImages], torch.Tensor]) -> Embedded:
    """Embed the pictures of a table."""
    labels, domains = torch.from_numpy(table.label_index), torch.from_numpy(table.domain_index)
    return Embedded.of(embed(table), labels, table.labels, domains, table.domains, table.files)


def split_by_rule(table: LabelledImages, embed: Callable[[LabelledImages], torch.Tensor]) -> Splits:
    """The bias setting: the table's own splits; test pictures of (class, domain) pairs seen in training are in domain.

    Raises InputError where nothing in the test split breaks the rule, or the training split has no rule.
    """
    parts = {name: table.where(split=name) for name in ("train", "val", "test")}
    seen = {(sample.label, sample.domain) for sample in parts["train"].samples}
    obeys = torch.tensor([(sample.label, sample.domain) in seen for sample in parts["test"].samples])
    if obeys.all():
        raise InputError(
            "every class and domain of the test split occur together in training: there is no bias to undo"
        )
    found = {name: embedded(part, embed) for name, part in parts.items()}
    test = found["test"]
    return Splits(found["train"], found["val"], test.where(obeys), {"conflicting": test.where(~obeys)})
