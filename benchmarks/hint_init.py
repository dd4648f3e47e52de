"""How many steps until a ControlNet follows, under each initialisation of its hint network?

    python benchmarks/hint_init.py --output_dir runs/hint-init      # two hours on a core; bases x kinds x seeds x steps

The unchanged method, a frozen base, circles at 64 px; only the start of the hint network differs (`control.hint.init_hint`).
Followed means: mean IoU 0.5 of the drawn circle with the disc its condition shows, on held-out pairs. For each of four
bases (BASES of hint_training.py), a sweep finds the learning rate and batch that serve PyTorch's default initialisation
best; then every initialisation trains with those, on four kinds of condition, with five seeds.

Columns: the steps until the condition is followed, median (least to most) of the seeds, >N where it never is in N steps;
the ratio of another initialisation to `data`, geometric mean over seeds with Student's 95 % interval, where a run that
never followed counts with its limit ("≥").

Finished runs are kept in rows.jsonl of the output folder: the same command resumes after an interruption. hint_init.png
shows IoU against steps.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import BenchmarkOptions, Journal, Report, run
from hint_training import BASES, FOLLOWED, Run, train

from diffusers_ext.options import COUNT, POSITIVE, option

INITS, KINDS = ("default", "kaiming", "data"), ("outline", "canny", "softedge", "palette_grid")
Curve = list[list[float]]  # rows of (step, IoU, relative gap)


@dataclass
class Options(BenchmarkOptions):
    output_dir: str = option("runs/hint-init", "folder of finished rows, small bases and the plot")
    bases: list[str] = option(list(BASES), "bases to train on")
    kinds: list[str] = option(list(KINDS), "kinds of condition")
    inits: list[str] = option(list(INITS), "initialisations")
    seeds: int = option(5, "runs of each", COUNT)
    limit: int = option(1200, "steps after which a run is given up", COUNT)
    sweep_seeds: int = option(2, "seeds of the sweep of learning rate and batch for the default initialisation", COUNT)
    sweep_rates: list[float] = option([3e-4, 1e-3, 3e-3], "learning rates of the sweep", POSITIVE)
    sweep_batches: list[int] = option([8, 32], "batch sizes of the sweep", COUNT)
    base_steps: int = option(1500, "training steps of a small base", COUNT)


def main(options: Options, report: Report) -> None:
    folder = Path(options.output_dir)
    selecting = ("bases", "kinds", "inits", "seeds", "limit", "sweep_seeds", "sweep_rates", "sweep_batches")
    journal = Journal(folder / "rows.jsonl", options, selecting)
    sweeps: dict[Run, Curve] = {}
    settings = {}
    for base in options.bases:
        sweep = {trained: curve_of(trained, journal, options) for trained in sweep_of(base, options)}
        settings[base] = best_setting(sweep)
        sweeps |= sweep
    report.table(f"steps of the default initialisation to IoU {FOLLOWED}", sweep_rows(sweeps))
    runs = [
        Run(base, kind, init, *settings[base], seed, options.limit)
        for seed in range(options.seeds)  # outermost: an interrupted benchmark still compares like with like
        for base in options.bases
        for kind in options.kinds
        for init in options.inits
    ]
    curves = {trained: curve_of(trained, journal, options) for trained in runs}
    report.table(f"steps to IoU {FOLLOWED}", step_rows(curves))
    plot(folder / "hint_init.png", curves)


def sweep_of(base: str, options: Options) -> list[Run]:
    return [
        Run(base, options.kinds[0], "default", rate, batch, seed, options.limit * 8 // batch)
        for batch in options.sweep_batches
        for rate in options.sweep_rates
        for seed in range(options.sweep_seeds)
    ]


def curve_of(trained: Run, journal: Journal, options: Options) -> Curve:
    """Return the curve of a run, trained now if it never was."""
    gc.collect()  # networks and their graphs lie in cycles
    folder = Path(options.output_dir)
    return journal.once(asdict(trained), lambda: {"curve": train(trained, folder, options.base_steps)})["curve"]


def steps_to_follow(curve: Curve) -> float | None:
    """Return the step at which IoU crosses FOLLOWED, on the line between two looks; None if it never does."""
    before = tuple(curve[0][:2])
    for step, iou, _ in curve[1:]:
        if iou >= FOLLOWED:
            share = (FOLLOWED - before[1]) / (iou - before[1])
            return before[0] + share * (step - before[0])
        before = (step, iou)
    return None


def best_setting(sweep: dict[Run, Curve]) -> tuple[float, int]:
    """Return the learning rate and batch with which the default initialisation follows after the fewest samples."""

    def samples_needed(setting: tuple[float, int]) -> float:
        needed = [
            steps_to_follow(curve) or 2 * trained.limit  # never: counted as twice the limit
            for trained, curve in sweep.items()
            if (trained.rate, trained.batch) == setting
        ]
        return setting[1] * sum(needed) / len(needed)

    return min({(trained.rate, trained.batch) for trained in sweep}, key=samples_needed)


def sweep_rows(sweep: dict[Run, Curve]) -> list[dict]:
    rows: dict[tuple, dict] = {}
    for trained, curve in sweep.items():
        setting = {"base": trained.base, "learning rate": f"{trained.rate:g}", "batch": trained.batch}
        row = rows.setdefault(tuple(setting.values()), setting)
        row[f"seed {trained.seed}"] = shown(steps_to_follow(curve), trained.limit)
    return list(rows.values())


def step_rows(curves: dict[Run, Curve]) -> list[dict]:
    inits = list(dict.fromkeys(trained.init for trained in curves))
    rivals = [init for init in inits if init != "data"] if "data" in inits else []
    rows = []
    for base, kind in dict.fromkeys((trained.base, trained.kind) for trained in curves):
        steps: dict[str, list[float | None]] = {init: [] for init in inits}
        for trained, curve in curves.items():
            if (trained.base, trained.kind) == (base, kind):
                steps[trained.init].append(steps_to_follow(curve))
                limit = trained.limit
        cells = {init: summary(steps[init], limit) for init in inits}
        cells |= {f"{init} / data": ratio(steps[init], steps["data"], limit) for init in rivals}
        rows.append({"base": base, "condition": kind, **cells})
    return rows


def shown(steps: float | None, limit: int) -> str:
    return f">{limit}" if steps is None or steps > limit else f"{steps:.0f}"


def summary(steps: Sequence[float | None], limit: int) -> str:
    """Return the median of steps, with the least and the most."""
    values = sorted(limit + 1 if value is None else value for value in steps)
    return f"{shown(values[len(values) // 2], limit)} ({shown(values[0], limit)} to {shown(values[-1], limit)})"


def ratio(first: Sequence[float | None], second: Sequence[float | None], limit: int) -> str:
    """Return the geometric mean of paired ratios with Student's 95 % interval."""
    from scipy import stats

    logs = [math.log((a or limit) / (b or limit)) for a, b in zip(first, second)]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return f"{math.exp(mean):.1f}"
    half = stats.t.ppf(0.975, len(logs) - 1) * stats.tstd(logs) / len(logs) ** 0.5
    least = "≥ " if None in first else ""
    return f"{least}{math.exp(mean):.1f} ({math.exp(mean - half):.1f} to {math.exp(mean + half):.1f})"


def plot(path: Path, curves: dict[Run, Curve]) -> None:
    """Plot IoU against steps: a row per base, a column per kind, a line per run, a colour per initialisation."""
    import matplotlib.pyplot as plt

    from diffusers_ext.figures import PALETTE

    bases, kinds, inits = (
        list(dict.fromkeys(getattr(trained, name) for trained in curves)) for name in ("base", "kind", "init")
    )
    shape = {"figsize": (3 * len(kinds), 2.6 * len(bases)), "dpi": 110, "sharex": True, "sharey": True}
    figure, axes = plt.subplots(len(bases), len(kinds), squeeze=False, **shape)
    for trained, curve in curves.items():
        cell = axes[bases.index(trained.base), kinds.index(trained.kind)]
        steps, iou, _ = zip(*curve)
        label = trained.init if trained.seed == 0 and cell is axes[0, 0] else None
        cell.plot(steps, iou, ".-", color=PALETTE[inits.index(trained.init)], linewidth=1, markersize=3, label=label)
    for row, base in enumerate(bases):
        for column, kind in enumerate(kinds):
            axes[row, column].axhline(FOLLOWED, color="0.7", linewidth=0.8, zorder=0)
            axes[row, column].set(xscale="log", title=f"{kind}, {base}")
            axes[row, column].spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.supxlabel("optimiser steps")
    figure.supylabel("IoU with the condition's disc")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    run(main, Options)
