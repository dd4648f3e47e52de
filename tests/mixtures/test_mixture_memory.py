"""Memory balanced at two levels: shares, invariants over random streams, herding."""

import numpy as np
import torch
from torch.nn import functional as F

from diffusers_ext.mixtures.memory import equal_shares, select


def check_invariants(
    classes: torch.Tensor, components: torch.Tensor, budget: int, seen: torch.Tensor, available: torch.Tensor
) -> None:
    """Assert the invariants. classes, components (M,) of the memory; seen (C,) classes so far; available (M', 2): (class,
    component) of every sample that could have been kept.
    """
    assert len(classes) <= budget
    kept = {int(each): classes == each for each in seen}
    sizes = {each: int(rows.sum()) for each, rows in kept.items()}
    stock = {each: int((available[:, 0] == each).sum()) for each in sizes}
    _check_level(sizes, stock)
    assert budget < len(seen) or all(sizes[each] >= 1 for each in sizes if stock[each])
    for each, rows in kept.items():
        of_class = available[available[:, 0] == each, 1]
        names = of_class.unique().tolist()
        _check_level(
            {name: int((components[rows] == name).sum()) for name in names},
            {name: int((of_class == name).sum()) for name in names},
        )


def _check_level(sizes: dict, stock: dict) -> None:
    """Sizes differ by at most one, except where everything there is was kept."""
    for name, size in sizes.items():
        assert size == stock[name] or size >= max(sizes.values()) - 1, (sizes, stock)


def test_shares_are_equal_until_somebody_has_no_more():
    available = torch.tensor([[10, 2, 10, 0], [1, 1, 1, 1]])
    shares = equal_shares(available, torch.tensor([11, 9]), torch.tensor([[0, 0, 1, 0]] * 2).double())
    assert shares.tolist() == [[4, 2, 5, 0], [1, 1, 1, 1]]
    assert equal_shares(available, torch.tensor([2, 0]), available.double()).tolist() == [[1, 0, 1, 0], [0] * 4]


def test_invariants_hold_over_random_streams():
    """Check 15, with budgets under the number of classes and of components, and classes that run out."""
    draw = np.random.default_rng(10)
    for _ in range(60):
        classes, budget = int(draw.integers(1, 9)), int(draw.integers(0, 60))
        features, labels, components = (
            torch.zeros(0, 6),
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, dtype=torch.int64),
        )
        seen = torch.empty(0, dtype=torch.int64)
        for _ in range(3):
            size = int(draw.integers(1, 50))
            new = torch.from_numpy(draw.integers(0, classes, size))
            features = torch.cat([features, F.normalize(torch.from_numpy(draw.standard_normal((size, 6))).float())])
            labels, seen = torch.cat([labels, new]), torch.cat([seen, new]).unique()
            components = torch.cat([components, 10 * new + torch.from_numpy(draw.integers(0, 4, size))])
            counts = torch.bincount(components)[components]
            kept = select(features, labels, components, counts, budget)
            assert len(set(kept.tolist())) == len(kept) == min(budget, len(labels))
            check_invariants(labels[kept], components[kept], budget, seen, torch.stack([labels, components], 1))
            features, labels, components = features[kept], labels[kept], components[kept]


def test_where_exemplars_are_fewer_than_components_the_largest_keep_one():
    features = F.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    components = torch.arange(60) % 6
    counts = torch.tensor([5.0, 50, 7, 40, 6, 30])[components]
    kept = select(features, torch.zeros(60, dtype=torch.int64), components, counts, 3)
    assert components[kept].tolist() == [1, 3, 5]


def test_herding_is_the_definition():
    """The step-by-step rule of iCaRL, written as it reads."""
    features = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(1)))
    kept = select(features, torch.zeros(40, dtype=torch.int64), torch.zeros(40, dtype=torch.int64), torch.ones(40), 7)
    mean, chosen = features.mean(0), []
    for step in range(7):
        distance = [
            float((mean - (features[chosen].sum(0) + features[row]) / (step + 1)).norm()) if row not in chosen else 9.0
            for row in range(40)
        ]
        chosen.append(int(np.argmin(distance)))
    assert kept.tolist() == chosen
