"""Which prompts are worth annotating? Graph-based selection: "vote-k" (Su et al. 2022), as ImageReward chose its prompts
from DiffusionDB (Xu et al. 2023, section 2.1).

    chosen = select_prompts(embeddings, count=1000)     # indices in order of selection

Each prompt v points to its k nearest neighbours N(v) by cosine similarity and votes for them. A prompt u gains

    score(u) = Σ 10^-c(v)  over all v with u ∈ N(v) that are not chosen,   c(v) = neighbours of v that are chosen,

and the one with the highest score is chosen next. Scores only ever fall, and the first m of a selection are the
selection of m.

Shapes: n prompts, d dimensions, k neighbours, m chosen. A graph is (n, k), int32, N(v) in row v.
"""

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import randomness
from ..data.feature_arrays import as_matrix
from ..errors import InputError

ROWS, COLUMNS = 1024, 16384  # similarities in memory at a time: 64 MiB
LEVELS = 10**9  # a voter's weight is 10^(9-c), an integer, and zero from c = 10 on: no order of summation can matter
POINTS, PROBES = 39, 32  # approximate graphs: prompts per list that k-means wants, and lists searched per prompt
NEAR = 0.9  # cosine similarity of near-duplicates
SAMPLE = 20_000  # prompts that a report looks at


def select_prompts(
    embeddings: np.ndarray | torch.Tensor,
    count: int,
    k: int = 150,
    *,
    shards: np.ndarray | None = None,
    centre: bool = False,
    approximate: bool = False,
    device: str = "cpu",
    show: bool = False,
) -> np.ndarray:
    """Return the indices of `count` prompts in order of selection, (m,), int64; ties go to the lowest index.

    embeddings: (n, d), any floating type, any length. shards: a label per prompt; graph and selection are then each
    shard's own, `count` from each, in order of the labels, as ImageReward's authors ran it. centre: subtract the mean
    embedding first, as they did. approximate: find neighbours with faiss. device: where similarities are computed.
    Raises InputError for embeddings without direction (zero, NaN, infinite), count > n or k >= n.

    >>> vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    >>> select_prompts(vectors, 3, k=5).shape
    (3,)
    """
    unit = unit_rows(embeddings, centre)
    chosen, show_each = [], show and shards is None
    groups = check(len(unit), count, k, shards)
    for indices in tqdm(groups, desc="shards", dynamic_ncols=True, disable=not show or shards is None):
        part = unit if len(indices) == len(unit) else unit[torch.from_numpy(indices)]
        graph = (
            approximate_neighbours(part, k, show_each)
            if approximate
            else nearest_neighbours(part, k, device, show_each)
        )
        chosen.append(indices[vote_k(graph, count, show_each)])
    return np.concatenate(chosen)


def check(n: int, count: int, k: int, shards: np.ndarray | None = None) -> list[np.ndarray]:
    """Return the indices of each shard's prompts, or of all, in order of the labels.

    Raises InputError unless `count` can be chosen of each, on a graph of k neighbours.
    """
    if shards is None:
        labels, groups = np.array([""]), [np.arange(n)]
    elif len(shards) != n:
        raise InputError(f"{len(shards):,} shard labels for {n:,} embeddings; give one each")
    else:
        labels, places = np.unique(np.asarray(shards), return_inverse=True)
        groups = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))[:-1])
    for label, indices in zip(labels, groups):
        where, size = "" if shards is None else f"shard '{label}': ", len(indices)
        if not 1 <= count <= size:
            raise InputError(f"{where}count is {count}, of {size:,} prompts; choose between 1 and {size:,}")
        if not 1 <= k < size:
            raise InputError(f"{where}k is {k}, but {size:,} prompts have {size - 1:,} neighbours each; lower k")
    return groups


def unit_rows(embeddings: np.ndarray | torch.Tensor, centre: bool = False, source: str = "embeddings") -> torch.Tensor:
    """Return embeddings of length 1, (n, d), float32; InputError names the source and the first without direction.

    >>> unit_rows(np.array([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    if "int" in str(getattr(embeddings, "dtype", "")):
        raise InputError(f"{source}: {embeddings.dtype}; give floating-point rows, (prompts, dimensions)")
    rows = as_matrix(embeddings, source, "floating-point rows, (prompts, dimensions)")
    if centre:
        rows = rows - rows.mean(0, dtype=torch.float64).float()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    wrong = (~(torch.isfinite(lengths) & (lengths > 0))).nonzero()[:, 0]
    if len(wrong):
        what = "zero" if lengths[wrong[0]] == 0 else "not finite"
        raise InputError(f"{source}: row {wrong[0]} is {what} ({len(wrong)} such rows); embed those prompts again")
    return rows / lengths


def nearest_neighbours(unit: torch.Tensor, k: int, device: str = "cpu", show: bool = False) -> np.ndarray:
    """Return each row's k nearest other rows, nearest first, (n, k), int32; equally near ones by index.

    unit: (n, d), float32, rows of length 1, k < n. Time O(n² d), memory O(n d) and one block of similarities.
    """
    graph, unit = np.empty((len(unit), k), np.int32), unit.to(device)
    with tqdm(total=len(unit), desc="neighbours", unit="prompt", dynamic_ncols=True, disable=not show) as bar:
        for rows in torch.arange(len(unit), device=device).split(ROWS):
            graph[rows.cpu().numpy()] = _nearest(unit, rows, k)
            bar.update(len(rows))
    return graph


def _nearest(unit: torch.Tensor, rows: torch.Tensor, k: int) -> np.ndarray:
    """Search all columns for the neighbours of some rows, carrying the best k along."""
    best, places = unit.new_empty(len(rows), 0), rows.new_empty(len(rows), 0)
    for first in range(0, len(unit), COLUMNS):
        similar = unit[rows] @ unit[first : first + COLUMNS].T
        own = (rows >= first) & (rows < first + COLUMNS)
        similar[own.nonzero()[:, 0], rows[own] - first] = -torch.inf
        found, columns = _top(similar, min(k, similar.shape[1]))
        # What was found before has lower indices and stands first, so that a stable sort keeps ties in order.
        best, order = torch.cat([best, found], 1).sort(dim=1, descending=True, stable=True)
        places = torch.cat([places, columns + first], 1).gather(1, order[:, :k])
        best = best[:, :k]
    return places.int().cpu().numpy()


def _top(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`topk` along rows, but of equal values it takes and lists first the one of lower index."""
    top, columns = values.topk(min(k + 1, values.shape[1]))
    tied = (top[:, k - 1] == top[:, -1]).nonzero()[:, 0] if k < values.shape[1] else []
    top, columns = top[:, :k], columns[:, :k]
    if len(tied):  # topk took any of those that are as near as the last
        columns[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(1).values
    top, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return top, columns.gather(1, order)


def approximate_neighbours(unit: torch.Tensor, k: int, show: bool = False) -> np.ndarray:
    """Return k near other rows of each, (n, k), int32, as an inverted file of faiss finds them.

    Rows are clustered, and each is compared with those of the nearest PROBES clusters only. Where these hold fewer than k,
    all are searched. Raises InputError if faiss is not installed.
    """
    faiss = load_faiss()
    rows, n = np.ascontiguousarray(unit.cpu().numpy()), len(unit)
    lists = max(1, min(int(4 * n**0.5), n // POINTS))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.nprobe = 2 * POINTS, PROBES
    index.train(rows)
    index.add(rows)
    graph = np.empty((n, k), np.int32)
    with tqdm(total=n, desc="near neighbours", unit="prompt", dynamic_ncols=True, disable=not show) as bar:
        for first in range(0, n, ROWS):
            found = index.search(rows[first : first + ROWS], k + 1)[1]
            graph[first : first + ROWS] = _others(found, np.arange(first, first + len(found)))
            bar.update(len(found))
    for missing in torch.from_numpy((graph < 0).any(1).nonzero()[0]).split(ROWS):
        graph[missing.numpy()] = _nearest(unit, missing, k)
    return graph


def load_faiss():
    """Return the module; InputError with the remedy if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise InputError(
            "approximate neighbours need faiss: pip install faiss-cpu, or compute the exact ones"
        ) from None
    return faiss


def _others(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Drop each row's own index from its k + 1 results, or the last one where duplicates crowded it out."""
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    return found[~own].reshape(len(found), -1)


def vote_k(graph: np.ndarray, count: int, show: bool = False) -> np.ndarray:
    """Return the vote-k selection on a graph, (m,), int64, in order; equal scores go to the lowest index.

    graph: (n, k), integers, k different neighbours in each row, none its own. Choosing u costs O(n + |voters of u|·k):
    the change of each voter's weight is taken off the scores of its neighbours, and the next is a plain argmax. That
    beats a heap with lazy updates, most of whose entries are stale whenever they come up.
    """
    starts, voters = voters_of(graph)
    weight = np.full(len(graph), LEVELS)
    score = np.diff(starts).astype(np.int64) * LEVELS
    chosen = np.empty(count, np.int64)
    for turn in tqdm(range(count), desc="choosing", unit="prompt", dynamic_ncols=True, disable=not show):
        u = chosen[turn] = score.argmax()
        changed = np.append(voters[starts[u] : starts[u + 1]], u)
        changed = changed[weight[changed] > 0]
        left = weight[changed] // 10
        left[changed == u] = 0  # a chosen prompt no longer votes
        lost = weight[changed] - left
        weight[changed] = left
        # `subtract.at` is fast for indices of the machine's own width only.
        np.subtract.at(score, graph[changed].ravel().astype(np.intp), lost.repeat(graph.shape[1]))
        score[u] = -1
    return chosen


def voters_of(graph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the graph's transpose: those who vote for u are voters[starts[u] : starts[u + 1]]."""
    from scipy.sparse import csr_array

    n, k = graph.shape
    votes = csr_array((np.ones(n * k, np.int8), graph.ravel(), np.arange(0, n * k + 1, k)), (n, n)).tocsc()
    return votes.indptr, votes.indices


def votes(graph: np.ndarray, chosen: np.ndarray) -> float:
    """Return F(L) = Σ_v Σ_{j < c(v)} 10^-j, c(v) = |N(v) ∩ L|: what vote-k collects greedily.

    Every prompt gives its first chosen neighbour one vote, the second 0.1, the third 0.01. F grows with L and its gains
    diminish; vote-k adds the prompt of the highest gain, counted over prompts that are not chosen themselves.
    """
    marked = np.zeros(len(graph), bool)
    marked[chosen] = True
    return float(np.sum((1 - 10.0 ** -marked[graph].sum(1)) * 10 / 9))


def coverage(unit: torch.Tensor, chosen: np.ndarray) -> dict[str, float]:
    """Measure a selection without its graph.

    "nearest": mean cosine similarity of a prompt to the nearest chosen one, over at most SAMPLE prompts, evenly spaced;
    "near_duplicates": how many of the chosen have one chosen earlier within NEAR.
    """
    index = torch.as_tensor(chosen)
    seen = torch.linspace(0, len(unit) - 1, min(len(unit), SAMPLE)).long()
    nearest = torch.cat([(unit[rows] @ unit[index].T).amax(1) for rows in seen.split(ROWS)])
    twins = sum(
        int((unit[index[first : first + ROWS]] @ unit[index[: first + ROWS]].T).tril(first - 1).ge(NEAR).any(1).sum())
        for first in range(0, len(index), ROWS)
    )
    return {"nearest": float(nearest.mean()), "near_duplicates": twins}


def random_choice(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` of n indices at random: what a selection is compared with.

    >>> random_choice(10, 3, seed=0).shape
    (3,)
    """
    return randomness.generator(seed, "random_choice").permutation(n)[:count]
