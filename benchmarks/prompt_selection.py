"""What does choosing prompts cost, how does it grow, and what does an approximate graph lose?

    python benchmarks/prompt_selection.py                      # all parts; about ten minutes on an idle core
    python benchmarks/prompt_selection.py --parts peers        # one of peers, selection, graphs, growth

Parts:
    peers      vote_k, a heap with lazy updates, and a loop that recounts all votes, on one graph, in turns; all must
               choose the same prompts
    selection  1,000 of 20,000 and 10,000 of 100,000 prompts, after the graph is there
    graphs     exact and approximate neighbours: CPU seconds, the share of true neighbours found, and the votes that a
               selection on either graph collects on the exact graph, after 100, 200 and 1,000 choices
    growth     up to 1.8 million prompts, on graphs drawn directly; "before" is the time until the first choice

Embeddings are drawn in clusters of uneven size, with 384 dimensions, or 64 where only the selection is timed; k is 150.
Seconds are CPU time of one thread.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from harness import BenchmarkOptions, Report, peak_memory, run, take_turns, timed
from spreads import paired_ratio, quartiles

from diffusers_ext import randomness
from diffusers_ext.options import COUNT, SEED, option

if TYPE_CHECKING:
    import torch

PARTS = ("peers", "selection", "graphs", "growth")
CLUSTER = 997  # a prime, so that any stride visits all members


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] | None = option(None, "parts to run; default: all", PARTS)
    k: int = option(150, "neighbours in a graph", COUNT)
    repeats: int = option(3, "rounds of a comparison", COUNT)
    growth: list[int] | None = option(None, "numbers of prompts; default: 112,500, 450,000 and 1,800,000", COUNT)
    seed: int = option(0, "seed of embeddings and graphs", SEED)


def main(options: Options, report: Report) -> None:
    measures = dict(zip(PARTS, (peers, selection, graphs, growth)))
    for part in options.parts or PARTS:
        measures[part](options, report)


def peers(options: Options, report: Report) -> None:
    from diffusers_ext.preferences.select import approximate_neighbours, vote_k

    rows = []
    for n, count, choosers in ((3000, 30, (vote_k, lazy_heap, recount)), (20_000, 1000, (vote_k, lazy_heap))):
        graph = approximate_neighbours(clustered(n, options.seed), options.k)
        sides = {choose.__name__: lambda choose=choose: list(choose(graph, count)) for choose in choosers}  # noqa: B023
        turns = take_turns(sides, options.repeats, warm_up=1)
        assert all(turn.result == turns["vote_k"][0].result for timings in turns.values() for turn in timings)
        seconds = {name: [turn.cpu for turn in timings] for name, timings in turns.items()}
        row = {"prompts": n, "chosen": count, **{f"{name}, s": quartiles(values) for name, values in seconds.items()}}
        for name in list(seconds)[1:]:
            row[f"{name} / vote_k"] = paired_ratio(seconds[name], seconds["vote_k"])
        rows.append(row)
    report.table("peers: one graph, the same choices", rows, ".2f")


def selection(options: Options, report: Report) -> None:
    from diffusers_ext.preferences.select import approximate_neighbours, vote_k

    rows = []
    for n, count in ((20_000, 1000), (100_000, 10_000)):
        graph = approximate_neighbours(clustered(n, options.seed, 64), options.k)
        seconds = [timed(lambda: vote_k(graph, count)).cpu for _ in range(options.repeats)]  # noqa: B023
        voters = int(np.bincount(graph.ravel()).max())
        rows.append({"prompts": n, "chosen": count, "most voters of a prompt": voters, "s": quartiles(seconds)})
    report.table("selection, after the graph", rows, ".2f")


def graphs(options: Options, report: Report) -> None:
    from diffusers_ext.preferences import select

    unit = clustered(20_000, options.seed)
    exact = timed(lambda: select.nearest_neighbours(unit, options.k))
    near = timed(lambda: select.approximate_neighbours(unit, options.k))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(exact.result[::20], near.result[::20])]
    best = select.vote_k(exact.result, 1000)
    sides = {
        "exact": (exact.cpu, 100.0, best),
        "approximate": (near.cpu, 100 * np.mean(shared) / options.k, select.vote_k(near.result, 1000)),
        "none: random choice": (None, None, select.random_choice(len(unit), 1000, options.seed)),
    }
    rows = []
    for name, (seconds, share, chosen) in sides.items():
        row = {"graph": name, "s": seconds, "neighbours found, %": share}
        for m in (100, 200, 1000):
            row[f"votes of {m:,}, %"] = (
                100 * select.votes(exact.result, chosen[:m]) / select.votes(exact.result, best[:m])
            )
        rows.append(row)
    report.table(f"graphs of {len(unit):,} prompts", rows, ".1f")


def growth(options: Options, report: Report) -> None:
    from diffusers_ext.preferences.select import vote_k

    rows = []
    for n in options.growth or (112_500, 450_000, 1_800_000):
        graph = drawn_graph(n, options.k, options.seed)
        before = timed(lambda: vote_k(graph, 1)).cpu  # noqa: B023
        whole = timed(lambda: vote_k(graph, 10_000)).cpu  # noqa: B023
        row = {"prompts": len(graph), "chosen": 10_000, "s": whole, "before, s": before}
        rows.append({**row, "peak memory, GiB": peak_memory() / 1024})
    report.table("growth", rows, {"s": ".1f", "before, s": ".1f", "peak memory, GiB": ".2f"})


def clustered(n: int, seed: int, dimensions: int = 384) -> torch.Tensor:
    """Draw unit embeddings around n/100 centres, of which the first have most: (n, d)."""
    from diffusers_ext.preferences.select import unit_rows

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
    from diffusers_ext.preferences.select import LEVELS

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
    from diffusers_ext.preferences.select import LEVELS, voters_of

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
