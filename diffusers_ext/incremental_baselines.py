"""Baselines of incremental learning on frozen features, all with `partial_fit(features, labels)` and `predict(features)`.

What a mixture has to be compared with, in every table. Features are (N, d), labels (N,) any integers; every baseline sees the
sessions that the mixture sees, and `stored_floats` counts the numbers that it carries from one session to the next. JointLinear keeps all data: it is
the bound of a linear classifier, not an incremental learner.
"""

import math

import torch
from torch.nn import functional as F

from .mixture_em import k_means
from .mixture_memory import select
from .mixture_spaces import TiedCovariance
from .randomness import generator, normal

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

    def _sums(self, features: torch.Tensor, places: torch.Tensor, size: int) -> torch.Tensor:
        return torch.zeros(size, features.shape[1], dtype=torch.float64).index_add(0, places, features.double())


class NearestMean(Learner):
    """Cosine with the mean of a class's unit features, exact over sessions."""

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
        means = self.covariance.sums / self.covariance.counts[:, None]
        self.weights = torch.cholesky_solve(means.T, self.covariance.factor())
        self.bias = -0.5 * (means.T * self.weights).sum(0)

    def scores(self, features):
        return features @ self.weights.float() + self.bias.float()

    @property
    def stored_floats(self) -> int:
        return self.covariance.sums.numel() + self.dim**2


class Ridge(Learner):
    """Least squares on one-hot labels; the ridge is chosen on a fifth of each session, as RanPAC's."""

    def __init__(self, dim: int, seed: int = 0):
        super().__init__(dim, seed)
        self.gram, self.target = None, None

    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def _learn(self, features, places):
        order = torch.from_numpy(generator(self.seed, "ridge", self.sessions).permutation(len(features)))
        held, rest = order[: len(order) // 5], order[len(order) // 5 :]
        embedded, hot = self._embed(features).double(), F.one_hot(places, len(self.classes)).double()
        width = embedded.shape[1]
        gram = torch.zeros(width, width).double() if self.gram is None else self.gram
        target = torch.zeros(width, len(self.classes)).double()
        if self.target is not None:
            target[:, : self.target.shape[1]] = self.target
        gram, target = gram + embedded[rest].T @ embedded[rest], target + embedded[rest].T @ hot[rest]
        errors = [(embedded[held] @ _solve(gram, target, each) - hot[held]).square().mean() for each in RIDGES]
        ridge = RIDGES[min(range(len(RIDGES)), key=errors.__getitem__)] if len(held) else RIDGES[0]
        self.gram = gram + embedded[held].T @ embedded[held]
        self.target = target + embedded[held].T @ hot[held]
        self.weights = _solve(self.gram, self.target, ridge).float()

    def scores(self, features):
        return self._embed(features) @ self.weights

    @property
    def stored_floats(self) -> int:
        return self.gram.numel() + self.target.numel()


def _solve(gram: torch.Tensor, target: torch.Tensor, ridge: float) -> torch.Tensor:
    """(G + λI)^{-1} Q, with λ the ridge times G's mean diagonal."""
    system = gram.clone()
    system.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.cholesky_solve(target, torch.linalg.cholesky(system))


class RanPAC(Ridge):
    """Ridge on M rectified random projections (McDonnell et al. 2023, without their tuning of the backbone)."""

    def __init__(self, dim: int, seed: int = 0, projections: int = 2000):
        super().__init__(dim, seed)
        self.projection = normal(seed, "projection", [(0, 0)], (dim, projections))[0]

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
        self.weights = F.normalize(torch.stack([self.texts[int(each)] for each in self.classes])).T

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
