"""Pictures with a class and a domain, and tables of them."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import InputError
from .files import File


@dataclass(frozen=True)
class Sample:
    """One picture, its class and domain, and the split it belongs to where that is known: train, val or test."""

    file: File
    label: str
    domain: str
    split: str | None = None
    origin: str = ""


@dataclass(frozen=True)
class LabelledImages:
    """Samples in a stable order, and the names of their classes and domains, each sorted.

    A part of a table keeps the names of the whole, so that class 3 is class 3 in every part.

    >>> table = LabelledImages.of([Sample(Path('a.png'), 'cat', 'photo', None, 'a'), Sample(Path('b.png'), 'dog', 'photo', None, 'b')])
    >>> table.labels, table.label_index.tolist()
    (('cat', 'dog'), [0, 1])
    """

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    domains: tuple[str, ...]

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "LabelledImages":
        """Return the table of these samples; InputError if there is none."""
        samples = tuple(samples)
        if not samples:
            raise InputError("no labelled pictures: nothing to learn from")
        labels, domains = ({getattr(sample, name) for sample in samples} for name in ("label", "domain"))
        return cls(samples, tuple(sorted(labels)), tuple(sorted(domains)))

    def in_domain(self, domain: str | None) -> "LabelledImages":
        """Return a table whose pictures are all of one domain, where one is given."""
        if domain is None:
            return self
        return LabelledImages.of(replace(sample, domain=domain) for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def files(self) -> list[File]:
        return [sample.file for sample in self.samples]

    @cached_property
    def label_index(self) -> np.ndarray:
        """The class of each sample, a position in `labels`: (n,) int64."""
        return _positions([sample.label for sample in self.samples], self.labels)

    @cached_property
    def domain_index(self) -> np.ndarray:
        """The domain of each sample, a position in `domains`: (n,) int64."""
        return _positions([sample.domain for sample in self.samples], self.domains)

    def indices(
        self,
        split: str | Collection[str] | None = None,
        domain: str | Collection[str] | None = None,
        label: str | Collection[str] | None = None,
    ) -> np.ndarray:
        """Return the positions of the samples of these splits, domains and classes; None asks for all: (m,) int64.

        Raises InputError, listing what there is, for a name that no sample has.
        """
        kept = np.ones(len(self), bool)
        for field, wanted in (("split", split), ("domain", domain), ("label", label)):
            if wanted is not None:
                kept &= self._has(field, {wanted} if isinstance(wanted, str) else set(wanted))
        return kept.nonzero()[0]

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Return the samples at these positions, under the same names of classes and domains."""
        return replace(self, samples=tuple(self.samples[index] for index in indices))

    def where(self, **wanted: str | Collection[str]) -> "LabelledImages":
        """Return the part that `indices` finds."""
        return self.take(self.indices(**wanted))

    def counts(self) -> dict[tuple[str, str, str | None], int]:
        """Return the number of samples of each (domain, label, split) there is."""
        return dict(sorted(Counter((s.domain, s.label, s.split) for s in self.samples).items(), key=str))

    def _has(self, field: str, wanted: set[str]) -> np.ndarray:
        values = [getattr(sample, field) for sample in self.samples]
        if unknown := sorted(wanted - set(values)):
            there = ", ".join(sorted({str(value) for value in values}))
            raise InputError(f"no picture has {field} {unknown[0]!r}; there are {there}")
        return np.array([value in wanted for value in values], bool)


def checked(samples: Iterable[Sample], source: str | Path) -> list[Sample]:
    """Return samples as a list; InputError if there is none, or naming the files that are not there."""
    samples = list(samples)
    if not samples:
        raise InputError(f"{source}: holds no labelled pictures; see diffusers_ext/data/labelled.py for the forms")
    gone = [sample for sample in samples if isinstance(sample.file, Path) and not os.path.isfile(sample.file)]
    if gone:
        more = f", and {len(gone) - 1} more are" if len(gone) > 1 else " is"
        raise InputError(f"{gone[0].origin}: {gone[0].file}{more} missing; complete the folder or remove the rows")
    return samples


def _positions(values: list[str], names: tuple[str, ...]) -> np.ndarray:
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[value] for value in values], np.int64)
