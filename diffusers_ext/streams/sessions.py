"""Streams of sessions from any table with classes and domains.

    NC     new classes: each session brings a group of classes, in all their domains
    ND     new domains: each session brings a domain, in all its classes
    NCD    both: each session brings one group of classes in one domain, in any order; classes come back in other domains

The order of classes, and from it the groups, is a permutation drawn by the seed, as is the order of domains or blocks;
`as_dict` is what a result file keeps of it. A learner sees features and labels, never domains.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..randomness import generator

SETTINGS = ("NC", "ND", "NCD")
Cell = tuple[int, int]  # class and domain, as positions in the table's names


@dataclass(frozen=True)
class Sessions:
    """Cells of each session, in order; labels and domains (N,) of the rows they are taken from."""

    setting: str
    seed: int
    cells: tuple[tuple[Cell, ...], ...]
    labels: np.ndarray
    domains: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def rows(self, session: int, chosen: np.ndarray) -> np.ndarray:
        """Return the rows of a session, (n,) int64, among the chosen, (N,) bool: the training or the test half."""
        inside = np.zeros(len(self.labels), bool)
        for label, domain in self.cells[session]:
            inside |= (self.labels == label) & (self.domains == domain)
        return (inside & chosen).nonzero()[0]

    def as_dict(self, label_names: Sequence[str], domain_names: Sequence[str]) -> dict:
        """The protocol as names, for a result file."""
        sessions = [[[label_names[label], domain_names[domain]] for label, domain in cells] for cells in self.cells]
        return {"setting": self.setting, "seed": self.seed, "sessions": sessions}


def build_sessions(
    labels: Sequence[int] | np.ndarray,
    domains: Sequence[int] | np.ndarray,
    setting: str,
    groups: int = 5,
    seed: int = 0,
    domain_order: Sequence[int] | None = None,
) -> Sessions:
    """Return the sessions of a setting; labels and domains (N,) are positions 0, 1, ...; groups: of classes, NC and NCD;
    domain_order: of ND, by default a draw.

    Cells without rows are left out, and so are sessions without cells. Raises InputError if there are more groups than classes, or a single domain where
    domains are to arrive one by one.

    >>> sessions = build_sessions([0, 0, 1, 1], [0, 1, 0, 1], 'NC', groups=2)
    >>> len(sessions), sessions.rows(0, np.ones(4, bool)).shape
    (2, (2,))
    """
    labels, domains = np.asarray(labels), np.asarray(domains)
    if setting not in SETTINGS:
        raise InputError(f"setting must be one of {', '.join(SETTINGS)}, got {setting!r}")
    classes, places = int(labels.max()) + 1, int(domains.max()) + 1
    if setting != "ND" and not 1 <= groups <= classes:
        raise InputError(f"groups must lie in 1 to {classes}, the number of classes, got {groups}")
    if setting != "NC" and places < 2:
        raise InputError(
            f"{setting} needs two domains or more; the data name one: give them a domain column, or use NC; "
            "weeks that come one by one are for diffusers-ext learn"
        )
    order = generator(seed, "class order", 0).permutation(classes)
    of_group = [order[group * classes // groups : (group + 1) * classes // groups] for group in range(groups)]
    blocks: list[tuple[np.ndarray, Iterable[int]]]
    if setting == "NC":
        blocks = [(group, range(places)) for group in of_group]
    elif setting == "ND":
        blocks = [
            (order, [domain]) for domain in domain_order or generator(seed, "domain order", 0).permutation(places)
        ]
    else:
        pairs = [(group, [domain]) for group in of_group for domain in range(places)]
        blocks = [pairs[index] for index in generator(seed, "block order", 0).permutation(len(pairs))]
    there = set(zip(labels.tolist(), domains.tolist()))
    cells = [
        tuple((int(c), int(d)) for c in sorted(group) for d in places if (int(c), int(d)) in there)
        for group, places in blocks
    ]
    return Sessions(setting, seed, tuple(part for part in cells if part), labels, domains)
