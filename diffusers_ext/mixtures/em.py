"""Expansion of a mixture by a session's data: new components are seeded in each class, and fitted beside the old ones.

Shapes: N samples of dimension d, K components of all classes together. Old components take part with their counts and
resultants, as a prior that has already seen its data (Xie, Yan & He 2022, section on expansion; how many and where new
components start is not in the paper: here as many as `k_new`, by k-means++ away from the old ones).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..randomness import uniforms
from .blocks import blocks, gather, rows_of
from .reduction import log_evidence, reduce
from .vmf import pooled_concentration

ITERATIONS = 20  # of EM at most; it stops when no sample changes its component
ROUNDS = 3  # of EM and reduction; most classes settle in the second
FIRST = 8192  # samples, of whole classes, on which the first κ is looked for
ROWS = 2048  # summed at once in double precision


@dataclass
class Statistics:
    """Sufficient statistics of components, sorted by class: counts (K,), resultants (K, d) float64, classes (K,) int64."""

    counts: torch.Tensor
    resultants: torch.Tensor
    classes: torch.Tensor

    @property
    def means(self) -> torch.Tensor:
        """Unit means, (K, d)."""
        return F.normalize(self.resultants, dim=1)

    def add(self, features: torch.Tensor, places: torch.Tensor) -> "Statistics":
        """Return the statistics with features (N, d) counted to the components at places (N,)."""
        counts = self.counts + torch.bincount(places, minlength=len(self.counts))
        return Statistics(counts, add_rows(self.resultants, features, places), self.classes)

    def merged(self, target: torch.Tensor) -> "Statistics":
        """Return the statistics summed over components of one target (K,); targets are 0 .. K'−1, and −1 drops."""
        kept = target >= 0
        size = int(target.max()) + 1 if len(target) else 0
        classes = torch.zeros(size, dtype=torch.int64).index_copy(0, target[kept], self.classes[kept])
        counts, resultants = (_sum(value, kept, target, size) for value in (self.counts, self.resultants))
        return Statistics(counts, resultants, classes)


def _sum(values: torch.Tensor, kept: torch.Tensor, target: torch.Tensor, size: int) -> torch.Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_add(0, target[kept], values[kept])


def add_rows(sums: torch.Tensor, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return sums (K, d) float64 with features (N, d) added to the rows at places (N,), without a double copy of all."""
    sums = sums.clone()
    for part, at in zip(features.split(ROWS), places.split(ROWS)):
        sums.index_add_(0, at, part.double())
    return sums


@dataclass
class Recipe:
    """How a session is learnt; the fields are those of VMFMixtureClassifier."""

    k_new: int = 16
    n_min: int = 4
    estep: str = "soft"
    reduction: str = "evidence"
    alpha: float = 1.0
    threshold: float | None = None
    max_components: int = 32


@dataclass
class Fit:
    """What a session gave: statistics of old and new data; the component of each sample (N,), of each old one (K,); κ."""

    statistics: Statistics
    places: torch.Tensor
    moved: torch.Tensor
    kappa: float


def fit(
    features: torch.Tensor,
    classes: torch.Tensor,
    old: Statistics,
    kappa: float | None,
    recipe: Recipe,
    key: tuple[int, int],
) -> Fit:
    """Expand, fit and reduce. features (N, d) float32 of unit length; classes (N,); key: (seed, session).

    Components of classes without samples come out as they went in. Where κ is not known yet, EM starts at the one of the grid
    d·2^−2 .. d·2^3 whose reduced mixture has the largest evidence, on 8,192 samples; in the end it is estimated again.
    """
    if kappa is None:
        kappa = _first_kappa(features, classes, recipe, key)
    session = _side_by_side(features, classes)
    prior, means, place = _with_seeds(session, old, recipe, key)
    found = _settle(session, features, prior, means, kappa, recipe, ROUNDS)
    found.moved = found.moved[place]
    return found


@dataclass
class _Block:
    """Some classes of a session side by side: which (C,), their samples' rows (C, n), −1 where there is none, (C, n, d)."""

    classes: torch.Tensor
    rows: torch.Tensor
    features: torch.Tensor


def _side_by_side(features: torch.Tensor, classes: torch.Tensor) -> list[_Block]:
    return [_Block(of, rows, gather(features, rows)) for of, rows in blocks(classes)]


def _first_kappa(features: torch.Tensor, classes: torch.Tensor, recipe: Recipe, key: tuple[int, int]) -> float:
    """Return κ of the grid's best mixture, estimated again, from the first classes that have enough samples together."""
    enough = int((torch.bincount(classes).cumsum(0) < FIRST).sum())
    few = classes <= enough
    features, classes = features[few], classes[few]
    session = _side_by_side(features, classes)
    prior, means, _ = _with_seeds(session, _nothing(features.shape[1]), recipe, key)
    tried = []
    for power in range(-2, 4):
        kappa = features.shape[1] * 2.0**power
        found = _settle(session, features, prior, means, kappa, recipe, rounds=1)
        whole = found.statistics
        tried.append((log_evidence(whole.counts, whole.resultants, kappa, recipe.alpha), found.kappa))
    return max(tried)[1]


def _nothing(dim: int) -> Statistics:
    zeros = torch.zeros(0, dim, dtype=torch.float64)
    return Statistics(zeros[:, 0], zeros, torch.zeros(0, dtype=torch.int64))


def _settle(
    session: list[_Block], features, prior: Statistics, means, kappa: float, recipe: Recipe, rounds: int
) -> Fit:
    """EM and reduction in turns, until reduction finds nothing more; then κ of what is left."""
    moved, classes = torch.arange(len(prior.counts)), torch.cat([block.classes for block in session])
    for _ in range(rounds):
        before = len(prior.counts)
        places = _expectation_maximization(session, len(features), prior, means, kappa, recipe)
        whole, target = reduced(prior.add(features, places), kappa, recipe, classes)
        prior, places, moved = prior.merged(target), target[places], target[moved]
        means = whole.means.float()
        if len(prior.counts) == before:
            break
    pooled = pooled_concentration(whole.counts, whole.resultants, features.shape[1])
    return Fit(whole, places, moved, kappa if pooled is None else pooled)


def reduced(
    whole: Statistics, kappa: float, recipe: Recipe, classes: torch.Tensor | None = None
) -> tuple[Statistics, torch.Tensor]:
    """Return the reduced statistics, and what each component becomes, (K,): its new position, or −1 if it was empty.

    classes: those whose components may be merged; default: all.
    """
    live = whole.counts > 0
    open_ = (live if classes is None else live & torch.isin(whole.classes, classes)).nonzero().squeeze(1)
    merged = reduce(
        whole.counts[open_],
        whole.resultants[open_],
        whole.classes[open_],
        kappa,
        recipe.reduction,
        recipe.alpha,
        recipe.threshold,
        recipe.max_components,
    )
    into = torch.arange(len(whole.counts))
    into[open_] = open_[merged]
    target = torch.full_like(into, -1)
    target[live] = torch.unique(into[live], return_inverse=True)[1]
    return whole.merged(target), target


def _with_seeds(
    session: list[_Block], old: Statistics, recipe: Recipe, key: tuple[int, int]
) -> tuple[Statistics, torch.Tensor, torch.Tensor]:
    """Return old components and empty new ones together, sorted by class, with means; and where the old ones are."""
    centres, owners = [], []
    for block in session:
        known = gather(old.means.float(), rows_of(old.classes, block.classes))
        chosen, live = _seed(block, known, recipe, key)
        centres.append(chosen[live])
        owners.append(block.classes[:, None].expand_as(live)[live])
    new = torch.cat(owners)
    order = torch.argsort(torch.cat([old.classes, new]), stable=True)
    zeros = torch.zeros(len(new), dtype=torch.float64)
    prior = Statistics(
        torch.cat([old.counts, zeros])[order],
        torch.cat([old.resultants, zeros[:, None].expand(-1, old.resultants.shape[1])])[order],
        torch.cat([old.classes, new])[order],
    )
    return prior, torch.cat([old.means.float(), *centres])[order], torch.argsort(order)[: len(old.counts)]


def _seed(block: _Block, known, recipe: Recipe, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means++ by cosine distance in each class of a block, the known means (C, k, d) being centres already.

    Returns new centres (C, k_new, d), samples themselves, and which of them are there (C, k_new).
    """
    inside, at = block.rows >= 0, torch.arange(len(block.rows))
    closest = torch.full(inside.shape, -1.0)
    if known.shape[1]:
        closest = (block.features @ known.transpose(1, 2)).amax(2)
    seed, session = key
    keys = [(session, int(each)) for each in block.classes]
    draws = torch.from_numpy(uniforms(seed, "mixture seeds", keys, recipe.k_new))
    quota = (-(-inside.sum(1) // recipe.n_min)).clamp(1, recipe.k_new)
    centres, live = [], []
    for step in range(recipe.k_new):
        weights = ((1 - closest).clamp_min(0) * inside).double().cumsum(1)
        total = weights[:, -1]
        live.append((step < quota) & (total > 1e-6))
        chosen = torch.searchsorted(weights, (draws[:, step] * total)[:, None]).squeeze(1)
        centres.append(block.features[at, chosen.clamp_max(inside.shape[1] - 1)])
        cosine = (block.features @ centres[-1][:, :, None]).squeeze(2)
        closest = torch.where(live[-1][:, None], torch.maximum(closest, cosine), closest)
    return torch.stack(centres, 1), torch.stack(live, 1)


def _expectation_maximization(
    session: list[_Block], samples: int, prior: Statistics, means, kappa: float, recipe: Recipe
) -> torch.Tensor:
    """Return the component of each sample, (N,), closest mean among those of its class (equation 6), once EM has settled."""
    places = torch.empty(samples, dtype=torch.int64)
    for block in session:
        of_class, inside = rows_of(prior.classes, block.classes), block.rows >= 0
        resultants = gather(prior.resultants.float(), of_class)
        chosen = _settle_block(
            block.features, inside, gather(means, of_class), resultants, of_class >= 0, kappa, recipe
        )
        places[block.rows[inside]] = of_class.gather(1, chosen)[inside]
    return places


def _settle_block(block, inside, means, prior, live, kappa: float, recipe: Recipe) -> torch.Tensor:
    """EM in each class of a block (C, n, d), with means and prior resultants (C, k, d); return the closest means, (C, n)."""
    chosen = None
    for _ in range(ITERATIONS):
        cosine = (block @ means.transpose(1, 2)).masked_fill(~live[:, None], -torch.inf)
        before, chosen = chosen, cosine.argmax(2)
        if before is not None and torch.equal(before, chosen):
            break
        if recipe.estep == "soft":
            share = torch.softmax(kappa * cosine, 2)  # equal κ and weights: C_d and π cancel
        else:
            share = F.one_hot(chosen, means.shape[1]).to(block.dtype)
        resultants = prior + (share * inside[..., None]).transpose(1, 2) @ block
        length = resultants.norm(dim=2, keepdim=True)
        means = torch.where(length > 1e-6, resultants / length.clamp_min(1e-6), means)
    return chosen


def k_means(
    features: torch.Tensor, classes: torch.Tensor, count: int, key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up to `count` spherical k-means centres of each class, (K, d), and their classes, (K,)."""
    recipe, session = Recipe(k_new=count, n_min=1, estep="hard"), _side_by_side(features, classes)
    prior, means, _ = _with_seeds(session, _nothing(features.shape[1]), recipe, key)
    whole = prior.add(features, _expectation_maximization(session, len(features), prior, means, 1.0, recipe))
    live = whole.counts > 0
    return whole.means[live].float(), whole.classes[live]
