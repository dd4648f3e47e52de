"""Incremental learning: does the mixture keep up with every baseline, on real pictures and planted streams, and at what cost?

    python benchmarks/incremental.py --parts real --pacs path/to/pacs --emoji path/to/emoji \\
        --backbones timm:tf_efficientnet_lite0@weights.safetensors,mean=127/255,std=128/255,size=160
    python benchmarks/incremental.py --parts planted speed growth        # half an hour on a core
    python benchmarks/incremental.py --parts planted --streams balanced --learners "vMF mixture" "ridge"

real: folders with metadata.jsonl of `label` and `domain`; the label of the emoji is their `group`, and no emoji is in both
halves, in whichever style. Sessions bring new classes (NC), new domains (ND) or both (NCD), in several orders, on frozen
features. Columns: average incremental accuracy and final accuracy in percent, over orders; of NCD also forgetting, the
worst domain, numbers stored, seconds to fit, microseconds to predict. Finished runs are kept in rows.jsonl of the output
folder: the same command resumes after an interruption.
planted: final accuracies and recovered modes on streams whose truth is known, means over seeds 10 to 12.
speed: a session of 50,000 x 512 features in 100 classes of 10 modes, and predictions a second at 1,000 components, of the
mixture in one space and in both, and of head="pooled".
growth: microseconds of CPU time to predict a row against the number of components, up to 100,000.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness import BenchmarkOptions, Journal, Report, run, timed
from spreads import deviation

from diffusers_ext.options import COUNT, NATURAL, option

PARTS = ("real", "planted", "speed", "growth")
OURS = "vMF mixture"
RECOVERED = ("modes_per_class", "kappa_ratio", "rand_index")


@dataclass
class Options(BenchmarkOptions):
    parts: list[str] = option(list(PARTS[1:]), "parts to run", PARTS)
    pacs: str | None = option(None, "real: folder of PACS with metadata.jsonl")
    emoji: str | None = option(None, "real: folder of emoji in several styles with metadata.jsonl")
    backbones: list[str] | None = option(None, "real: references of frozen backbones, see embeddings/backbones.py")
    stages: int = option(
        5,
        "real: stages of the first backbone, an EfficientNet, whose pooled features are measured too; 0: none",
        NATURAL,
    )
    cache_dir: str | None = option(None, "real: folder of features; default: a temporary one")
    output_dir: str = option("runs/incremental-benchmark", "real: folder of finished rows")
    orders: int = option(5, "real: orders of classes, domains and blocks, seeds 0 ..", COUNT)
    learners: list[str] | None = option(None, "real, planted: only these learners; default: all")
    projections: list[int] = option(
        [2000], "of RanPAC, and of what is pooled with it; each number is a learner, the paper's is 10000", COUNT
    )
    streams: list[str] | None = option(None, "planted: only these streams; default: all of streams/planted.py")
    components: list[int] = option(
        [1000, 3000, 10_000, 30_000, 100_000], "growth: numbers of components, multiples of ten", COUNT
    )
    rows: int = option(50_000, "speed: features of the session", COUNT)


class Set(NamedTuple):
    """A data set as one backbone sees it: features (N, d), labels, domains and test half (N,), groups of classes."""

    data: str
    backbone: str
    features: Any
    labels: Any
    domains: Any
    test: Any
    groups: int
    texts: dict | None  # embeddings of class names, for the zero-shot row


def main(options: Options, report: Report) -> None:
    measures: dict[str, Callable] = dict(zip(PARTS, (real, planted_streams, speed, growth)))
    for part in PARTS:
        if part in options.parts:
            measures[part](options, report)


def real(options: Options, report: Report) -> None:
    """Measure every learner on every stream of real pictures that has no row yet."""
    import torch

    from diffusers_ext.streams.measures import evaluate_stream
    from diffusers_ext.streams.sessions import SETTINGS, build_sessions

    selecting = (*("parts", "orders", "learners", "streams", "cache_dir", "backbones", "pacs", "emoji"), "projections")
    journal = Journal(Path(options.output_dir) / "rows.jsonl", options, (*selecting, "components", "rows"))
    with tempfile.TemporaryDirectory() as scratch:
        sets = list(read_sets(options, options.cache_dir or scratch))
    rows = []
    for seed in range(options.orders):
        for data in sets:
            for setting in SETTINGS:
                sessions = build_sessions(data.labels, data.domains, setting, data.groups, seed)
                makers = learners(data.features.shape[1], seed, tuple(options.projections), data.texts)
                for learner, make in makers.items():
                    if options.learners and learner not in options.learners:
                        continue
                    about = {"data": data.data, "backbone": data.backbone, "setting": setting, "order": seed}
                    features = torch.from_numpy(data.features)
                    measure = lambda: evaluate_stream(make(), features, sessions, data.test)  # noqa: B023, E731
                    rows.append(journal.once({**about, "learner": learner}, measure))
    real_tables(rows, report)


def learners(dim: int, seed: int, projections: tuple[int, ...] = (2000,), texts: dict | None = None) -> dict:
    """Return every learner by name, made when it is called; texts: embeddings of class names, for the zero-shot row."""
    from diffusers_ext import VMFMixtureClassifier
    from diffusers_ext.streams.baselines import ZeroShot, baselines

    names = list(baselines(2, seed, projections=projections))
    made = {name: lambda name=name: baselines(dim, seed, projections=projections)[name] for name in names}
    if texts:
        made["zero-shot"] = lambda: ZeroShot(dim, texts=texts)
    return {
        OURS: lambda: VMFMixtureClassifier(dim, seed=seed),
        **{
            f"{OURS}, head pooled {count}": lambda count=count: VMFMixtureClassifier(
                dim, seed=seed, head="pooled", projections=count
            )
            for count in projections
        },
        f"{OURS}, head auto": lambda: VMFMixtureClassifier(dim, seed=seed, head="auto"),
        **made,
    }


def read_sets(options: Options, cache: str) -> Iterator[Set]:
    """Yield every data set under every backbone."""
    from diffusers_ext.data.labelled import read_labelled
    from diffusers_ext.embeddings.backbones import features, load_backbone

    tables = {}
    if options.pacs:
        tables["PACS"] = (read_labelled(options.pacs), 3)
    if options.emoji:
        tables["emoji"] = (read_labelled(options.emoji, label_column="group"), 4)
    for number, reference in enumerate(options.backbones or []):
        whole = load_backbone(reference)
        parts = [cut(whole, options.stages)] if number == 0 and options.stages else []
        for backbone in [whole, *parts]:
            for name, (table, groups) in tables.items():
                embedded = features(backbone, table.files, cache, show=True)
                texts = class_texts(backbone, table.labels) if name == "PACS" and backbone.has_text else None
                indices, test = (table.label_index, table.domain_index), test_half(table, name)
                yield Set(name, short(backbone.name), embedded, *indices, test, groups, texts)


def class_texts(backbone, names) -> dict:
    """Return embeddings of the classes' names under four templates, their unit mean: {class: (d,)}."""
    from torch.nn import functional as F

    forms = ("a photo of a {}", "a painting of a {}", "a cartoon of a {}", "a sketch of a {}")
    means = [backbone.embed_texts([form.format(name) for form in forms]).mean(0) for name in names]
    return {label: F.normalize(mean, dim=0) for label, mean in enumerate(means)}


def cut(backbone, stages: int):
    """Return EfficientNet's first stages, pooled, as a backbone of their own."""
    import dataclasses

    from torch import nn

    model = backbone.model
    part = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:stages], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return dataclasses.replace(backbone, name=f"{short(backbone.name)}, {stages} stages", model=part)


def short(reference: str) -> str:
    return Path(reference.removeprefix("timm:").split("@")[0]).name


def test_half(table, name: str):
    """Return the split that the data name, or a fifth of the emoji, each in all its styles: (N,) bool."""
    import numpy as np

    from diffusers_ext.randomness import generator

    if name == "PACS":
        return np.array([sample.split == "test" for sample in table.samples])
    names = sorted({Path(file).stem for file in table.files})
    chosen = set(np.array(names)[generator(0, "emoji test", 0).permutation(len(names))[: len(names) // 5]])
    return np.array([Path(file).stem in chosen for file in table.files])


def real_tables(rows: list[dict], report: Report) -> None:
    """Report each learner on each data set and backbone, over orders."""
    costs = {"stored_floats": "floats", "fit_seconds": "fit s", "predict_microseconds": "predict µs"}
    for data, backbone in dict.fromkeys((row["data"], row["backbone"]) for row in rows):
        lines = []
        for name in dict.fromkeys(row["learner"] for row in rows):
            runs: dict[str, list[dict]] = {"NC": [], "ND": [], "NCD": []}
            for row in rows:
                if (row["data"], row["backbone"], row["learner"]) == (data, backbone, name):
                    runs[row["setting"]].append(row)
            line = {"learner": name, **accuracies(runs)}
            for cost, label in costs.items():
                line[label] = statistics.fmean(row[cost] for row in runs["NCD"])
            lines.append(line)
        report.table(
            f"{data}, {backbone}", lines, {**ACCURACIES, "floats": ",.0f", "fit s": ".1f", "predict µs": ".0f"}
        )


ACCURACIES = {f"{setting} {name}": ".1f" for setting in ("NC", "ND", "NCD") for name in ("average", "final")}
ACCURACIES |= {"NCD forgetting": ".1f", "NCD worst domain": ".1f"}


def accuracies(runs: dict[str, list[dict]]) -> dict:
    """Return the accuracies of runs by setting, over orders or seeds, as columns of a table."""
    line: dict[str, Any] = {}
    for setting, rows in runs.items():
        for measure, label in (("average_incremental_accuracy", "average"), ("final_accuracy", "final")):
            line[f"{setting} {label}"] = deviation([row[measure] for row in rows]) if rows else None
    for measure, label in (("forgetting", "forgetting"), ("worst_domain", "worst domain")):
        rows = runs.get("NCD")
        line[f"NCD {label}"] = deviation([row[measure] for row in rows]) if rows else None
    return line


def planted_streams(options: Options, report: Report) -> None:
    """Report final accuracies on planted streams, and what the mixture recovers."""
    from diffusers_ext.streams.planted import KINDS
    from diffusers_ext.streams.sessions import SETTINGS

    finals, recovered = [], []
    for kind in options.streams or KINDS:
        for setting in SETTINGS if kind != "single" else ("NC",):
            runs, bounds = on_seeds(kind, setting, options.learners)
            about = {"stream": kind, "setting": setting}
            means = {name: mean(rows, "final_accuracy") for name, rows in runs.items()}
            finals.append({**about, **means, "oracle": mean(bounds, "final_accuracy")})
            names = (*RECOVERED, "forgetting", "fit_seconds", "predict_microseconds", "stored_floats")
            if OURS in runs:
                recovered.append({**about, **{name.replace("_", " "): mean(runs[OURS], name) for name in names}})
    report.table("planted: final accuracy", finals, ".1f")
    report.table("planted: what the mixture recovers and costs", recovered)


def on_seeds(kind: str, setting: str, names: list[str] | None) -> tuple[dict[str, list[dict]], list[dict]]:
    """Return the measures of every learner, and of the oracle, on a planted stream with seeds 10 to 12."""
    from diffusers_ext.streams.planted import planted
    from diffusers_ext.streams.planted_checks import on_planted, oracle

    runs: dict[str, list[dict]] = {}
    bounds = []
    for seed in (10, 11, 12):
        halves = planted(kind, seed)
        bounds.append(oracle(halves, setting, seed))
        for learner, make in learners(halves[0].features.shape[1], seed).items():
            if names is None or learner in names:
                runs.setdefault(learner, []).append(on_planted(make(), halves, setting, seed))
    return runs, bounds


def mean(rows: list[dict], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def speed(options: Options, report: Report) -> None:
    """Time a large session, and predictions at 1,000 components."""
    import numpy as np
    import torch

    from diffusers_ext import VMFMixtureClassifier
    from diffusers_ext.randomness import generator
    from diffusers_ext.streams.planted import sample

    draw = generator(0, "speed", 0)
    means = draw.standard_normal((1000, 512))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    mode = np.arange(options.rows) % 1000
    features, labels = torch.from_numpy(sample(draw, means[mode], 500.0)).float(), torch.from_numpy(mode // 10)
    rows = []
    for name, settings in (("one space", {"transform": "none"}), ("both spaces", {}), ("pooled", {"head": "pooled"})):
        classifier = VMFMixtureClassifier(512, **settings)
        session = timed(lambda: classifier.partial_fit(features, labels))  # noqa: B023
        classifier.predict(features[:1000])
        prediction = timed(lambda: classifier.predict(features))  # noqa: B023
        row = {"mixture": name, "session, CPU s": session.cpu, "session, wall s": session.wall}
        row |= {
            "components": len(classifier.space.counts),
            "accuracy, %": 100 * float((prediction.result == labels.numpy()).mean()),
        }
        row |= {
            "rows a CPU second": round(len(labels) / prediction.cpu),
            "rows a second": round(len(labels) / prediction.wall),
        }
        rows.append(row)
    report.table(f"speed: {options.rows:,} features, {options.threads} threads", rows, ".1f")


def growth(options: Options, report: Report) -> None:
    """Report microseconds a prediction, by components of which a class has ten; 512 dimensions, clear winners."""
    import torch

    torch.manual_seed(0)
    report.table("growth: CPU µs to predict a row", [at_size(components) for components in options.components], ".1f")


def at_size(components: int) -> dict[str, float]:
    import torch

    from diffusers_ext.mixtures.em import Statistics
    from diffusers_ext.mixtures.prediction import CHUNK, Predictor
    from diffusers_ext.mixtures.scores import ComponentScores

    means = torch.nn.functional.normalize(torch.randn(components, 512))
    statistics_ = Statistics(torch.ones(components).double(), means.double(), torch.arange(components) // 10)
    scores = ComponentScores(statistics_, 500.0, components // 10, "uniform", "plugin")
    predictor = Predictor(scores, lambda part: part)
    noise = torch.randn(max(64, 4_000_000 // components), 512) / 512**0.5
    part = torch.nn.functional.normalize(means[torch.arange(len(noise)) % components] + noise)  # cosine 0.7
    directions = predictor.scores.directions.T
    calls = {
        "winners": predictor.winners,
        "exact scores": predictor.class_scores,
        "the product alone": lambda rows: [chunk @ directions for chunk in rows.split(CHUNK)],
    }
    row: dict[str, float] = {"components": components}
    for name, call in calls.items():
        call(part[:64])
        row[name] = 1e6 * timed(lambda: call(part)).cpu / len(part)  # noqa: B023
    return row


if __name__ == "__main__":
    run(main, Options)
