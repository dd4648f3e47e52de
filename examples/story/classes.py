"""The report's chapters about classifiers, the Hub, and what everything took. Every number is read from a run folder."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from colours import COLOURS, STYLES, picture
from estimates import read_json
from page import curves, figure, table, text

from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.figures import labelled_grid

OUTSIDE = "out_of_domain"  # the mean of all styles that were only described
SHOWN = ("zero-shot, adaptive", "linear probe", "WiSE", "probe + SLERP", "probe + text delta", "LADS")


def words(folder: Path) -> str:
    rows = [row for row in read_metrics(folder / "image-text") if any(name.startswith("zero_shot/") for name in row)]
    measures = {name.removeprefix("zero_shot/"): value for name, value in rows[-1].items() if "zero_shot/" in name}
    images = [[picture("test", colour, style, 0)[0] for colour in COLOURS] for style in STYLES]
    kinds = [[name, f"{100 * value:.1f}"] for name, value in measures.items()]
    return "".join(
        [
            text(
                "No CLIP can be downloaded here, so one is made: two towers with random weights that never learn, joined by "
                f"projections that learn from captioned drawings of all styles. The classes are {len(COLOURS)} colours, the "
                f"domains {len(STYLES)} styles of drawing; no drawing occurs twice."
            ),
            figure(
                labelled_grid(images, list(COLOURS), list(STYLES), cell=72),
                "One test drawing of each class and domain.",
            ),
            table(["told by the classes' names alone", "% right"], kinds),
            text(
                f"Chance is {100 / len(COLOURS):.1f} %. This is no test of zero-shot learning: captions named these very "
                "colours and styles, of other drawings.",
                "short",
            ),
        ]
    )


def extend(folder: Path) -> str:
    found = read_json(folder / "lads" / "results.json")["accuracy"]
    measures = [name for name in next(iter(found.values())) if name not in ("worst_group", "extended_micro")]
    rows = [[method, *(spread(found[method][name]) for name in measures)] for method in SHOWN if method in found]
    lads, probe = (found[method][OUTSIDE] for method in ("LADS", "linear probe"))
    gains = [one - other for one, other in zip(lads, probe)]
    inside = fmean(found["LADS"]["in domain"]) - fmean(found["linear probe"]["in domain"])
    best = max(found, key=lambda method: fmean(found[method][OUTSIDE]))
    gained = min(gains) > 0
    return "".join(
        [
            text(
                f"Told in words what other styles there are, the classifier of filled drawings "
                f"{'gains' if gained else 'does not gain with every seed:'} {spread(gains)} points out of domain over the "
                f"plain probe, and changes by {inside:+.1f} in domain.",
                "found",
            ),
            table(["percent right", *(name.replace("_", " ") for name in measures)], rows),
            figure(
                sorted((folder / "lads" / "samples").glob("*.png"))[-1],
                "Training drawings, and under each the test drawings nearest to where its embedding was moved.",
            ),
            text(
                f"Means and deviations over {len(gains)} seeds of the training; the drawings are the same. Out of domain the "
                f"best of all methods in the run's table is {best}: {spread(found[best][OUTSIDE])}. The image-text model has "
                "seen captioned drawings of all styles, as CLIP has of paintings and sketches; where words alone already "
                "classify well, use them.",
                "short",
            ),
        ]
    )


def grow(folder: Path) -> str:
    run = folder / "stream"
    rows, others = read_metrics(run), read_lines(run / "baselines.jsonl")
    steps = [row["step"] for row in rows]
    ours = [row["accuracy"] for row in rows]
    ranked = sorted(others, key=lambda row: -row["final_accuracy"])
    learners = [["vMF mixture", f"{fmean(ours):.1f}", f"{ours[-1]:.1f}"]]
    learners += [
        [row["learner"], f"{row['average_incremental_accuracy']:.1f}", f"{row['final_accuracy']:.1f}"] for row in ranked
    ]
    ahead = [row["learner"] for row in ranked if row["final_accuracy"] > ours[-1]]
    lines = {"vMF mixture": (steps, ours)}
    lines |= {row["learner"]: (steps, row["accuracy"]) for row in ranked[:3]}
    return "".join(
        [
            text(
                f"After {len(rows)} sessions of new colours and new styles the mixture classifies {ours[-1]:.1f} % of all "
                f"test drawings. " + (f"Ahead of it: {', '.join(ahead)}." if ahead else "No baseline is ahead of it."),
                "found",
            ),
            curves(
                lines, "session", "% right of all seen", "Accuracy on the test drawings of all that was seen so far."
            ),
            table(["learner", "mean over sessions", "at the end"], learners),
            text(
                f"One order of classes and domains, {rows[-1]['tested']} test drawings: differences of few points mean "
                "nothing. docs/incremental.md has five orders of real pictures.",
                "short",
            ),
        ]
    )


def load(folder: Path) -> str:
    here, hub = read_json(folder / "here.json"), read_json(folder / "hub.json")
    rows = [[what, "the same" if hub[what] == here[what] else "ANOTHER", brief(here[what])] for what in here]
    stored = sorted(path for path in (folder / "hub").glob("*/*") if path.is_dir())
    sizes = [[path.relative_to(folder / "hub"), *size(path)] for path in stored]
    return "".join(
        [
            text(
                f"{sum(row[1] == 'the same' for row in rows)} of {len(rows)} answers of a process that knows names only are "
                "those of the files here: pixels by SHA-256, scores to 1e-5, classes by name.",
                "found",
            ),
            table(["from the Hub", "against here", "answer"], rows, left=(0, 1, 2)),
            table(["repository", "files", "MB"], sizes),
            text("The Hub is one on this machine that speaks the Hub's protocol; the real one was not tried.", "short"),
        ]
    )


def brief(answer) -> str:
    return answer if isinstance(answer, str) else ", ".join(map(str, answer[:4])) + (", ..." if len(answer) > 4 else "")


def size(folder: Path) -> tuple[int, str]:
    """Files below a folder, and their megabytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(files), f"{sum(path.stat().st_size for path in files) / 1e6:.1f}"


def read_lines(path: Path) -> list[dict]:
    import json

    from diffusers_ext.lines import journal_lines

    return [json.loads(line) for line in journal_lines(path)]


def spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
