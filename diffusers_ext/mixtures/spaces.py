"""The two spaces in which features can be clustered: as they come, and whitened by their covariance within classes.

    plain       z = x / ‖x‖
    whitened    z = (x − m) S^{-1/2} up to a rotation, scaled to unit length

m is the mean and S the tied covariance within classes, shrunk towards a multiple of the identity. Both come from sums that
add up over sessions, so the map moves as data arrive, and components, whose sums are kept unwhitened, move with it.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .blocks import blocks, gather, rows_of
from .components import Components
from .em import Fit, Recipe, Statistics, add_rows, fit, reduced
from .vmf import pooled_concentration

Whitener = tuple[torch.Tensor, torch.Tensor]


class TiedCovariance(nn.Module):
    """Counts (C,) and sums (C, d) of each class and the second moment (d, d) of all, float64: the covariance within classes.

    They are exact sums, so the covariance is the same whatever the order of sessions.

    >>> covariance = TiedCovariance(2)
    >>> covariance.add(torch.eye(2), torch.tensor([0, 1]))
    >>> covariance.counts
    tensor([1., 1.], dtype=torch.float64)
    """

    counts: torch.Tensor
    sums: torch.Tensor
    moment: torch.Tensor

    def __init__(self, dim: int, classes: int = 0):
        super().__init__()
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(classes, dim, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(dim, dim, dtype=torch.float64))
        self._whitener: Whitener | None = None

    def add(self, features: torch.Tensor, classes: torch.Tensor) -> None:
        """Add features (N, d) of classes (N,), of which there may be new ones."""
        self._whitener = None
        self.grow(int(classes.max()) + 1)
        self.counts += torch.bincount(classes, minlength=len(self.counts))
        self.sums = add_rows(self.sums, features, classes)
        for part in features.double().split(8192):  # rounded singly, a scatter far smaller than the mean would be lost
            self.moment += part.T @ part

    def grow(self, classes: int) -> None:
        """Make room for so many classes."""
        more = max(0, classes - len(self.counts))
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        self.sums = torch.cat([self.sums, self.sums.new_zeros(more, self.sums.shape[1])])

    def merge(self, other: "TiedCovariance", places: torch.Tensor) -> None:
        """Add the sums of another learner, whose class i is class places[i] here."""
        self._whitener = None
        self.grow(int(places.max()) + 1 if len(places) else 0)
        self.counts = self.counts.index_add(0, places, other.counts)
        self.sums = self.sums.index_add(0, places, other.sums)
        self.moment += other.moment

    def drop(self, gone: int) -> None:
        """Take a class out of the covariance but for its second moment within, which is not kept by class."""
        self._whitener = None
        kept = torch.arange(len(self.counts)) != gone
        self.moment -= torch.outer(self.sums[gone], self.sums[gone]) / self.counts[gone]
        self.counts, self.sums = self.counts[kept], self.sums[kept]

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the classes' means, (d,): the classes weigh equally."""
        means = self.sums / self.counts.clamp_min(1)[:, None]
        return means.sum(0) / (self.counts > 0).sum().clamp_min(1)

    def factor(self) -> torch.Tensor:
        """Return the lower Cholesky factor L of the shrunk S, (d, d) float64; the identity before there is any scatter.

        Shrinkage is d / (d + degrees of freedom), towards the mean variance.
        """
        dim, seen = len(self.moment), self.counts > 0
        freedom = self.counts.sum() - seen.sum()
        if freedom < 1:
            return torch.eye(dim, dtype=torch.float64)
        between = (self.sums[seen] / self.counts[seen, None].sqrt()).double()
        covariance = (self.moment - between.T @ between) / freedom
        weight, level = dim / (dim + freedom), covariance.diagonal().mean().clamp_min(1e-6)  # duplicates have none
        return torch.linalg.cholesky((1 - weight) * covariance + weight * level * torch.eye(dim, dtype=torch.float64))

    def whitener(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean (d,) and the map M (d, d) of z = (x − mean) M, float64; rotations of S^{-1/2} cluster alike."""
        if self._whitener is None:
            identity = torch.eye(len(self.moment), dtype=torch.float64)
            self._whitener = self.mean, torch.linalg.solve_triangular(self.factor(), identity, upper=False).T
        return self._whitener


class MixtureSpace(nn.Module):
    """The components of all classes in one space, rows sorted by class, then age; grown by `learn`.

    counts (K,), sums (K, d) of features of unit length, unwhitened, and lengths (K,), ‖r‖/n in this space, are float64;
    classes (K,) and ids (K,) int64. With `whiten`, functions take the covariance's whitener, else None.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    lengths: torch.Tensor
    classes: torch.Tensor
    ids: torch.Tensor
    kappa: torch.Tensor
    next_id: torch.Tensor

    def __init__(self, dim: int, components: int, whiten: bool):
        super().__init__()
        self.whiten = whiten
        for name, shape, dtype in (
            ("counts", (components,), torch.float64),
            ("sums", (components, dim), torch.float64),
            ("lengths", (components,), torch.float64),
            ("classes", (components,), torch.int64),
            ("ids", (components,), torch.int64),
            ("kappa", (), torch.float64),
            ("next_id", (), torch.int64),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    def hold(self, components: Components) -> None:
        """Hold components that something else fitted, in place of what was learnt; of a space that is not whitened."""
        assert not self.whiten, "their resultants are of features that are not whitened"
        statistics = components.statistics
        self.counts, self.sums, self.classes = statistics.counts, statistics.resultants, statistics.classes
        self.lengths, self.ids = components.lengths, components.ids
        self.kappa = torch.tensor(components.kappa, dtype=torch.float64)
        self.next_id = torch.tensor(components.next_id)

    def embed(self, features: torch.Tensor, whitener: Whitener | None) -> torch.Tensor:
        """Return unit features (N, d) in this space, of unit length, in their type."""
        if not self.whiten:
            return features
        assert whitener is not None, "a whitened space has a whitener"
        mean, matrix = (value.to(features) for value in whitener)
        return F.normalize(torch.addmm(-mean @ matrix, features, matrix), dim=1)

    def statistics(self, whitener: Whitener | None) -> Statistics:
        """Return counts and resultants in this space; a whitened resultant has its direction now and its length then."""
        if not self.whiten:
            return Statistics(self.counts, self.sums, self.classes)
        directions = self.embed(self.sums / self.counts[:, None], whitener)
        return Statistics(self.counts, directions * (self.lengths * self.counts)[:, None], self.classes)

    def learn(self, features, classes, whitener: Whitener | None, recipe: Recipe, key: tuple[int, int]) -> Fit:
        """Learn a session of unit features (N, d) and classes (N,); key: (seed, session)."""
        embedded = self.embed(features, whitener)
        kappa = float(self.kappa) if len(self.counts) else None
        found = fit(embedded, classes, self.statistics(whitener), kappa, recipe, key)
        self.take(found, features)
        return found

    def take(self, found: Fit, features: torch.Tensor) -> None:
        """Take over a fit: components that merged add up under the oldest's id, new ones get new ids."""
        size, whole = len(found.statistics.counts), found.statistics
        untouched = torch.bincount(found.places, minlength=size) + torch.bincount(found.moved, minlength=size) == 1
        ids = torch.full((size,), torch.iinfo(torch.int64).max).scatter_reduce(0, found.moved, self.ids, "amin")
        fresh = ids == torch.iinfo(torch.int64).max
        ids[fresh] = self.next_id + torch.arange(int(fresh.sum()))
        lengths = whole.resultants.norm(dim=1) / whole.counts
        kept = untouched[found.moved]  # bit for bit as they were
        lengths[found.moved[kept]] = self.lengths[kept]
        sums = torch.zeros(size, features.shape[1], dtype=torch.float64).index_add(0, found.moved, self.sums)
        self.sums = add_rows(sums, features, found.places)
        self.next_id = self.next_id + int(fresh.sum())
        self.counts, self.lengths, self.classes, self.ids = whole.counts, lengths, whole.classes, ids
        self.kappa = torch.tensor(found.kappa, dtype=torch.float64)

    def drop(self, gone: int) -> None:
        """Remove the components of a class; later classes move up by one. κ is estimated from what is left."""
        kept = self.classes != gone
        for name in ("counts", "sums", "lengths", "classes", "ids"):
            setattr(self, name, getattr(self, name)[kept])
        self.classes = self.classes - (self.classes > gone).long()
        if self.whiten:  # lengths are of this space; directions do not matter to κ
            resultants = torch.zeros_like(self.sums)
            resultants[:, 0] = self.counts * self.lengths
        else:
            resultants = self.sums
        kappa = pooled_concentration(self.counts, resultants, self.sums.shape[1])
        self.kappa = self.kappa if kappa is None else torch.tensor(kappa, dtype=torch.float64)

    def absorb(
        self, other: "MixtureSpace", places: torch.Tensor, share: float, whitener: Whitener | None, recipe: Recipe
    ):
        """Add another space's components, its class i being class places[i] here, and reduce; share: its weight in κ."""
        self.kappa = torch.lerp(self.kappa, other.kappa, share)
        classes = torch.cat([self.classes, places[other.classes]])
        order = torch.argsort(classes, stable=True)
        for name in ("counts", "sums", "lengths"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)])[order])
        self.ids, self.classes = torch.cat([self.ids, self.next_id + other.ids])[order], classes[order]
        self.next_id = self.next_id + other.next_id
        found, target = reduced(self.statistics(whitener), float(self.kappa), recipe)
        nothing = torch.empty(0, dtype=torch.int64)
        self.take(Fit(found, nothing, target, float(self.kappa)), torch.zeros(0, self.sums.shape[1]))

    def nearest(self, embedded: torch.Tensor, classes: torch.Tensor, statistics: Statistics) -> torch.Tensor:
        """Return the component of each sample's class that is closest (equation 6), (N,) positions; classes all known."""
        means, places = statistics.means.to(embedded), torch.empty(len(embedded), dtype=torch.int64)
        for wanted, rows in blocks(classes):
            of_class = rows_of(self.classes, wanted)
            cosine = gather(embedded, rows) @ gather(means, of_class).transpose(1, 2)
            best = cosine.masked_fill((of_class < 0)[:, None], -torch.inf).argmax(2)
            places[rows[rows >= 0]] = of_class.gather(1, best)[rows >= 0]
        return places

    def count(self, features: torch.Tensor, classes: torch.Tensor, whitener: Whitener | None) -> None:
        """Count samples to their nearest components, without any change of their number."""
        embedded = self.embed(features, whitener)
        old = self.statistics(whitener)
        places = self.nearest(embedded, classes, old)
        whole = old.add(embedded, places)
        kappa = pooled_concentration(whole.counts, whole.resultants, features.shape[1])
        everywhere = torch.arange(len(self.counts))
        self.take(Fit(whole, places, everywhere, float(self.kappa) if kappa is None else kappa), features)
