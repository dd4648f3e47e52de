"""Baselines of incremental learning on frozen features, all with `partial_fit(features, labels)` and `predict(features)`.

What a mixture has to be compared with, in every table. Features are (N, d), labels (N,) any integers; every baseline sees the
sessions that the mixture sees, and `stored_floats` counts the numbers that it carries from one session to the next. JointLinear keeps all data: it is
the bound of a linear classifier, not an incremental learner.
"""

import math

import torch
from torch.nn import functional as F

from ..mixtures.em import k_means
from ..mixtures.heads import discriminants
from ..mixtures.memory import select
from ..mixtures.spaces import TiedCovariance
from ..randomness import generator, normal

CHUNK = 4096  # rows of a prediction
RIDGES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # of the mean square of an input
PENALTIES = (1e-4, 3e-3)


class Learner:
    """Classes in order of appearance, and prediction in chunks; a baseline adds `_learn` and `scores`."""

    def __init__(self, dim: int, seed: int = 0):
        self.dim, self.seed, self.sessions = dim, seed, 0
        self.classes = torch.empty(0, dtype=torch.int64)

    def partial_fit(self, features: torch.Tensor, labels: torch.Tensor) -> "Learner":
        """Learn one session."""
        new = torch.unique(labels)
        self.classes = torch.cat([self.classes, new[~torch.isin(new, self.classes)]])
        self._learn(features.float(), (labels[:, None] == self.classes).long().argmax(1))
        self.sessions += 1
        return self

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return the labels, (N,)."""
        return self.classes[torch.cat([self.scores(part.float()).argmax(1) for part in features.split(CHUNK)])]

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return the scores of classes, (N, C)."""
        raise NotImplementedError

    def _learn(self, features: torch.Tensor, places: torch.Tensor) -> None:
        """Learn features (N, d) float32 of the classes at places (N,)."""
        raise NotImplementedError

    def _sums(self, features: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
        return torch.zeros(size, features.shape[1], dtype=torch.float64).index_add(0, places, features.double())


class NearestMean(Learner):
    """Cosine with the mean of a class's unit features, exact over sessions.

    >>> learner = NearestMean(2).partial_fit(torch.eye(2), torch.tensor([3, 7]))
    >>> learner.predict(torch.tensor([[0.9, 0.1]]))
    tensor([3])
    """

    def __init__(self, dim: int, seed: int = 0):
        super().__init__(dim, seed)
        self.sums, self.owners = torch.zeros(0, dim, dtype=torch.float64), torch.empty(0, dtype=torch.int64)

    def _learn(self, features, places):
        fresh = torch.arange(len(self.sums), len(self.classes))
        self.owners = torch.cat([self.owners, fresh])
        self.sums = torch.cat([self.sums, torch.zeros(len(fresh), self.dim).double()])
        self.sums += self._sums(F.normalize(features), places, len(self.sums))

    def scores(self, features):
        cosine = F.normalize(features) @ F.normalize(self.sums).float().T
        best = torch.full((len(features), len(self.classes)), -torch.inf)
        return best.scatter_reduce(1, self.owners.expand_as(cosine), cosine, "amax")

    @property
    def stored_floats(self) -> int:
        return self.sums.numel()


class MeanPerSession(NearestMean):
    """The nearest of the means of each (class, session)."""

    def _learn(self, features, places):
        present, inverse = torch.unique(places, return_inverse=True)
        self.owners = torch.cat([self.owners, present])
        self.sums = torch.cat([self.sums, self._sums(F.normalize(features), inverse, len(present))])


class KMeansPrototypes(NearestMean):
    """The nearest of three k-means centres of each (class, session)."""

    def _learn(self, features, places):
        centres, owners = k_means(F.normalize(features), places, 3, (self.seed, self.sessions))
        self.owners = torch.cat([self.owners, owners])
        self.sums = torch.cat([self.sums, centres.double()])


class StreamingLDA(Learner):
    """Linear discriminants of class means and one covariance (Hayes & Kanan 2020), exact and in blocks."""

    def __init__(self, dim: int, seed: int = 0):
        super().__init__(dim, seed)
        self.covariance = TiedCovariance(dim)

    def _learn(self, features, places):
        self.covariance.add(features, places)
        self.weights, self.bias = discriminants(self.covariance)

    def scores(self, features):
        return features @ self.weights + self.bias

    @property
    def stored_floats(self) -> int:
        return self.covariance.sums.numel() + self.dim**2


class Ridge(Learner):
    """Least squares on one-hot labels; the ridge is chosen on a fifth of each session, as RanPAC's.

    While fewer samples than inputs were seen, their rows are kept in place of the larger Gram matrix and the dual system is solved,
    Xᵀ(XXᵀ + λI)⁻¹Y, which is the same solution.

    >>> learner = Ridge(4).partial_fit(torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5))
    >>> learner.predict(torch.eye(4))
    tensor([0, 1, 2, 3])
    """

    def __init__(self, dim: int, seed: int = 0):
        super().__init__(dim, seed)
        self.width = dim
        self.rows, self.places = torch.zeros(0, dim), torch.empty(0, dtype=torch.int64)
        self.products: torch.Tensor | None = None  # XXᵀ of the rows, so that no product is taken twice
        self.gram: torch.Tensor | None = None
        self.target = torch.zeros(dim, 0, dtype=torch.float64)

    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def _learn(self, features, places):
        order = torch.from_numpy(generator(self.seed, "ridge", self.sessions).permutation(len(features)))
        held, rest = order[: len(order) // 5], order[len(order) // 5 :]
        embedded, size = self._embed(features), len(self.classes)
        self._add(embedded[rest], places[rest], size)
        hot = F.one_hot(places[held], size)
        errors = [(embedded[held] @ weights - hot).square().mean() for weights in self._solutions(RIDGES, size)]
        ridge = RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)] if len(held) else RIDGES[0]
        self._add(embedded[held], places[held], size)
        self.weights = self._solutions([ridge], size)[0]

    def _add(self, rows: torch.Tensor, places: torch.Tensor, size: int) -> None:
        if self.gram is None and len(self.rows) + len(rows) <= self.width:
            old = torch.zeros(0, 0) if self.products is None else self.products
            across, own = (kept.double() @ rows.double().T for kept in (self.rows, rows))
            self.products = torch.cat([torch.cat([old, across], 1), torch.cat([across.T, own], 1)])
            self.rows, self.places = torch.cat([self.rows, rows]), torch.cat([self.places, places])
            return
        if self.gram is None:
            self.gram = torch.zeros(self.width, self.width, dtype=torch.float64)
            self.target = torch.zeros(self.width, 0, dtype=torch.float64)
            rows_kept, self.rows, self.products = self.rows, self.rows[:0], None
            self._add(rows_kept, self.places, size)
        rows, hot = rows.double(), F.one_hot(places, size).double()  # in single precision small ridges drown
        self.target = F.pad(self.target, (0, size - self.target.shape[1])) + rows.T @ hot
        self.gram += rows.T @ rows

    def _solutions(self, ridges: list[float], size: int) -> list[torch.Tensor]:
        """Return weights (width, C) float32 for each ridge, a share of the Gram matrix's mean diagonal."""
        if self.gram is not None:
            level = self.gram.diagonal().sum() / self.width
            return [_solve(self.gram, self.target, ridge * level).float() for ridge in ridges]
        assert self.products is not None, "rows are added before anything is solved"
        level, hot = self.products.diagonal().sum() / self.width, F.one_hot(self.places, size).double()
        return [self.rows.T @ _solve(self.products, hot, ridge * level).float() for ridge in ridges]

    def scores(self, features):
        return self._embed(features) @ self.weights

    @property
    def stored_floats(self) -> int:
        kept = (self.gram, self.target) if self.gram is not None else (self.rows, self.products)
        return sum(values.numel() for values in kept if values is not None)


def _solve(system: torch.Tensor, target: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """(S + λI)^{-1} Q."""
    system = system.clone()
    system.diagonal().add_(ridge)
    return torch.cholesky_solve(target, torch.linalg.cholesky(system))


class RanPAC(Ridge):
    """Ridge on M rectified random projections (McDonnell et al. 2023, without their tuning of the backbone)."""

    def __init__(self, dim: int, seed: int = 0, projections: int = 2000):
        super().__init__(dim, seed)
        self.projection = normal(seed, "projection", [(0, 0)], (dim, projections))[0]
        self.width, self.rows = projections, torch.zeros(0, projections)

    def _embed(self, features):
        return (features @ self.projection).relu()


class LinearReplay(Learner):
    """Logistic regression on the session and a class-balanced memory, from where it stood; penalty chosen on a fifth."""

    def __init__(self, dim: int, seed: int = 0, memory: int = 2000):
        super().__init__(dim, seed)
        self.budget, self.features, self.places = memory, torch.zeros(0, dim), torch.empty(0, dtype=torch.int64)

    def _learn(self, features, places):
        features, places = torch.cat([self.features, features]), torch.cat([self.places, places])
        order = torch.from_numpy(generator(self.seed, "replay", self.sessions).permutation(len(features)))
        held, rest = order[: len(order) // 5], order[len(order) // 5 :]
        size = len(self.classes)
        fits = {each: logistic(features[rest], places[rest], size, each) for each in PENALTIES}
        right = {
            each: (features[held] @ w + b).argmax(1).eq(places[held]).float().mean() for each, (w, b) in fits.items()
        }
        best = max(PENALTIES, key=right.__getitem__) if len(held) else PENALTIES[0]
        self.weights, self.bias = logistic(features, places, size, best)
        self._remember(features, places)

    def _remember(self, features, places):
        kept = select(F.normalize(features), places, places, torch.ones(len(places)), self.budget)
        self.features, self.places = features[kept], places[kept]

    def scores(self, features):
        return features @ self.weights + self.bias

    @property
    def stored_floats(self) -> int:
        return self.features.numel() + self.dim * len(self.classes)


class JointLinear(LinearReplay):
    """Logistic regression on everything seen so far: a bound, not an incremental learner."""

    def _remember(self, features, places):
        self.features, self.places = features, places


class NearestExemplars(LinearReplay):
    """The five nearest of the memory vote, by cosine."""

    def _learn(self, features, places):
        self._remember(torch.cat([self.features, features]), torch.cat([self.places, places]))

    def scores(self, features):
        cosine, nearest = (F.normalize(features) @ F.normalize(self.features).T).topk(min(5, len(self.features)))
        votes = torch.zeros(len(features), len(self.classes))
        return votes.scatter_add(1, self.places[nearest], 1 + 1e-3 * cosine)


class ZeroShot(Learner):
    """Cosine with the embeddings of class names; learns nothing. texts: {label: (d,)}."""

    def __init__(self, dim: int, seed: int = 0, texts: dict | None = None):
        super().__init__(dim, seed)
        self.texts = texts or {}

    def _learn(self, features, places):
        self.weights = F.normalize(torch.stack([self.texts[int(label)] for label in self.classes])).T

    def scores(self, features):
        return F.normalize(features) @ self.weights

    @property
    def stored_floats(self) -> int:
        return self.weights.numel()


def logistic(
    features: torch.Tensor, places: torch.Tensor, size: int, penalty: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression by L-BFGS, classes weighted equally; returns weights (d, C) and bias (C,)."""
    scale = math.sqrt(features.shape[1]) / features.norm(dim=1).mean().clamp_min(1e-12)
    weights = torch.zeros(features.shape[1], size, requires_grad=True)
    bias = torch.zeros(size, requires_grad=True)
    of_class = 1 / torch.bincount(places, minlength=size).clamp_min(1).float()
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=30, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(scale * features @ weights + bias, places, of_class) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return scale * weights.detach(), bias.detach()


def baselines(dim: int, seed: int, memory: int = 2000, projections: tuple[int, ...] = (2000,)) -> dict[str, Learner]:
    """Return every baseline by its name in the tables, untrained."""
    return {
        "nearest class mean": NearestMean(dim, seed),
        "mean per class and session": MeanPerSession(dim, seed),
        "k-means prototypes": KMeansPrototypes(dim, seed),
        "streaming LDA": StreamingLDA(dim, seed),
        "ridge": Ridge(dim, seed),
        **{f"RanPAC {each}": RanPAC(dim, seed, each) for each in projections},
        "linear with replay": LinearReplay(dim, seed, memory),
        "kNN on memory": NearestExemplars(dim, seed, memory),
        "joint linear (bound)": JointLinear(dim, seed),
    }
