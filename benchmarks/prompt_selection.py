"""What does choosing prompts cost, how does it grow, and what does an approximate graph lose?

    python benchmarks/prompt_selection.py                      # all parts; some ten minutes on a core of its own
    python benchmarks/prompt_selection.py --parts peers        # one of peers, selection, graphs, growth

peers: vote_k, a heap with lazy updates and a loop that recounts all votes, on one graph, in turn; all must choose the same.
selection: 1,000 of 20,000 and 10,000 of 100,000 prompts, once the graph is there.
graphs: exact and approximate neighbours: time, and the votes that selections on either collect on the exact graph.
growth: up to 1.8 million prompts, on graphs drawn directly.

Embeddings are drawn in clusters of uneven size, of 384 dimensions, of 64 where only the selection is timed; k is 150.
Seconds are CPU time of one thread. Prints markdown tables.
"""

import heapq
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from diffusers_ext import randomness
from diffusers_ext.options import COUNT, SEED, option, run
from diffusers_ext.preferences.select import (
    LEVELS,
    approximate_neighbours,
    nearest_neighbours,
    random_choice,
    unit_rows,
    vote_k,
    voters_of,
    votes,
)

PARTS = ("peers", "selection", "graphs", "growth")
CLUSTER = 997  # a prime, so that any stride visits all its members


@dataclass
class Options:
    parts: list[str] | None = option(None, "which to run; default: all", PARTS)
    k: int = option(150, "neighbours in a graph", COUNT)
    repeats: int = option(3, "times each side of a comparison runs, in turn; the median counts", COUNT)
    growth: list[int] | None = option(None, "numbers of prompts; default: 112,500, 450,000 and 1,800,000", COUNT)
    seed: int = option(0, "of embeddings and graphs", SEED)


def main(options: Options) -> None:
    torch.set_num_threads(1)
    shows = dict(zip(PARTS, (show_peers, show_selection, show_graphs, show_growth)))
    for part in options.parts or PARTS:
        shows[part](options)


def show_peers(options: Options) -> None:
    print(
        "\n| prompts | chosen | vote_k | lazy heap | recount | heap / vote_k | recount / vote_k |\n" + "|---" * 7 + "|"
    )
    for n, count, peers in ((3000, 30, (vote_k, lazy_heap, recount)), (20_000, 1000, (vote_k, lazy_heap))):
        graph = approximate_neighbours(clustered(n, options.seed), options.k)
        seconds: dict[Callable, list[float]] = {peer: [] for peer in peers}
        for _ in range(options.repeats):
            results = []
            for peer in peers:
                spent, chosen = timed(peer, graph, count)
                seconds[peer].append(spent)
                results.append(list(chosen))
            assert all(result == results[0] for result in results)
        cost = [median(each) for each in seconds.values()]
        ratios = [value / cost[0] for value in cost[1:]]
        cells = [f"{value:.3f} s" for value in cost] + ["–"] * (3 - len(cost))
        cells += [f"{value:.1f}" for value in ratios] + ["–"] * (2 - len(ratios))
        print(f"| {n:,} | {count:,} | " + " | ".join(cells) + " |", flush=True)


def show_selection(options: Options) -> None:
    print("\n| prompts | chosen | most voters of a prompt | seconds after the graph |\n|---|---|---|---|")
    for n, count in ((20_000, 1000), (100_000, 10_000)):
        graph = approximate_neighbours(clustered(n, options.seed, 64), options.k)
        spent = median(timed(vote_k, graph, count)[0] for _ in range(options.repeats))
        print(f"| {n:,} | {count:,} | {np.bincount(graph.ravel()).max():,} | {spent:.2f} |", flush=True)


def show_graphs(options: Options) -> None:
    print(
        "\n| prompts | graph | seconds | neighbours found | votes collected: 100 | 200 | 1,000 |\n" + "|---" * 7 + "|"
    )
    unit = clustered(20_000, options.seed)
    exact_seconds, exact = timed(nearest_neighbours, unit, options.k)
    near_seconds, near = timed(approximate_neighbours, unit, options.k)
    found = np.mean([len(np.intersect1d(a, b)) for a, b in zip(exact[::20], near[::20])]) / options.k
    best = vote_k(exact, 1000)
    sides = {
        "exact": (f"{exact_seconds:.1f}", "100 %", best),
        "approximate": (f"{near_seconds:.1f}", f"{found:.1%}", vote_k(near, 1000)),
        "none: random choice": ("–", "–", random_choice(len(unit), 1000, options.seed)),
    }
    for name, (spent, share, chosen) in sides.items():
        kept = [votes(exact, chosen[:m]) / votes(exact, best[:m]) for m in (100, 200, 1000)]
        print(f"| {len(unit):,} | {name} | {spent} | {share} | " + " | ".join(f"{each:.1%}" for each in kept) + " |")


def show_growth(options: Options) -> None:
    print(
        "\n| prompts | chosen | seconds | of these before the first choice | most memory so far |\n|---|---|---|---|---|"
    )
    for n in options.growth or (112_500, 450_000, 1_800_000):
        graph = drawn_graph(n, options.k, options.seed)
        before, _ = timed(vote_k, graph, 1)
        spent, _ = timed(vote_k, graph, 10_000)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {len(graph):,} | 10,000 | {spent:.1f} | {before:.1f} | {memory:.2f} GiB |", flush=True)


def timed(function: Callable, *arguments) -> tuple[float, np.ndarray]:
    """Return the CPU seconds of a call, and its result."""
    began = time.process_time()
    result = function(*arguments)
    return time.process_time() - began, result


def clustered(n: int, seed: int, dimensions: int = 384) -> torch.Tensor:
    """Draw unit embeddings around n/100 centres, of which the first have most: (n, d)."""
    draw = randomness.generator(seed, "clustered", n)
    centres = draw.standard_normal((n // 100, dimensions), dtype=np.float32)
    nearest = (draw.random(n) ** 2 * len(centres)).astype(int)
    spread = draw.uniform(0.5, 1.5, (n, 1)).astype(np.float32)
    return unit_rows(centres[nearest] + spread * draw.standard_normal((n, dimensions), dtype=np.float32))


def drawn_graph(n: int, k: int, seed: int) -> np.ndarray:
    """Draw a graph whose prompts have k different neighbours in their own cluster of CLUSTER: (n', k), n' <= n.

    Neighbours are a walk of random stride; labels are shuffled, so that a cluster is not contiguous in memory.
    """
    draw = randomness.generator(seed, "graph", n)
    n -= n % CLUSTER
    labels, graph = draw.permutation(n).astype(np.int32), np.empty((n, k), np.int32)
    for first in range(0, n, CLUSTER):
        members = labels[first : first + CLUSTER]
        steps = draw.integers(1, CLUSTER, (CLUSTER, 1)) * np.arange(1, k + 1)
        graph[members] = members[(np.arange(CLUSTER)[:, None] + steps) % CLUSTER]
    return graph


def recount(graph: np.ndarray, count: int) -> list[int]:
    """Recount every prompt's votes before each choice, the published way, in integers."""
    lists, chosen, seen = graph.tolist(), [], [0] * len(graph)
    for _ in range(count):
        score, taken = [0] * len(graph), set(chosen)
        for v, neighbours in enumerate(lists):
            if v not in taken and seen[v] < 10:
                for u in neighbours:
                    score[u] += LEVELS // 10 ** seen[v]
        for u in chosen:
            score[u] = -1
        best = max(range(len(graph)), key=score.__getitem__)
        chosen.append(best)
        for v, neighbours in enumerate(lists):
            seen[v] += best in neighbours
    return chosen


def lazy_heap(graph: np.ndarray, count: int) -> list[int]:
    """Keep old scores, which are upper bounds, in a heap, and recount one when it comes to the top."""
    starts, voters = voters_of(graph)
    weight, chosen = np.full(len(graph), LEVELS), []
    heap = [(-int(votes) * LEVELS, u) for u, votes in enumerate(np.diff(starts))]
    heapq.heapify(heap)
    while len(chosen) < count:
        old, u = heap[0]
        mine = voters[starts[u] : starts[u + 1]]
        score = int(weight[mine].sum())
        if score != -old:
            heapq.heapreplace(heap, (-score, u))
            continue
        heapq.heappop(heap)
        chosen.append(u)
        weight[mine] //= 10
        weight[u] = 0
    return chosen


if __name__ == "__main__":
    run(main, Options)
