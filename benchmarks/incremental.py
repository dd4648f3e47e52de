"""Incremental learning: the mixture beside every baseline, on real pictures and planted streams; cost and its growth.

    python benchmarks/incremental.py --parts real --pacs path/to/pacs --emoji path/to/emoji \\
        --backbones timm:tf_efficientnet_lite0@weights.safetensors,mean=127/255,std=128/255,size=160
    python benchmarks/incremental.py --parts planted speed growth

real: folders with metadata.jsonl of `label` and `domain` (the emoji's label is their `group`, and no emoji is in both halves, in
whichever style). NC, ND and NCD over several orders, frozen features; a row of --output for each run, so that an interrupted
benchmark goes on; then the table. planted: final accuracies and recovered modes on streams whose truth is known, seeds 10 to 12.
speed: a session of 50,000 x 512 features in 100 classes of 10 modes, and predictions a second at 1,000 components, CPU and wall
clock, of the mixture in one space and in both, and of head="pooled". growth: the cost of predicting against the number of components, up to 100,000.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, NATURAL, option, run

OURS = "vMF mixture"
RECOVERED = ("modes_per_class", "kappa_ratio", "rand_index")


@dataclass
class Options:
    parts: list[str] = option(["planted", "speed", "growth"], "what to measure: real, planted, speed, growth")
    pacs: str | None = option(None, "real: folder of PACS with metadata.jsonl")
    emoji: str | None = option(None, "real: folder of emoji in several styles with metadata.jsonl")
    backbones: list[str] | None = option(None, "real: references of frozen backbones, see embeddings/backbones.py")
    stages: int = option(
        5, "real: of the first backbone, if EfficientNet's, the pooled features of so many stages too; 0: not", NATURAL
    )
    cache_dir: str | None = option(None, "real: where features are kept; default: a folder that is removed")
    output: str = option("incremental.jsonl", "real: a row per learner, stream and order")
    orders: int = option(5, "real: orders of classes, domains and blocks, seeds 0 ..", COUNT)
    learners: list[str] | None = option(None, "real, planted: only these learners; default: all")
    projections: list[int] = option(
        [2000], "of RanPAC, and of what is pooled with it; each number is a learner, the paper's is 10000", COUNT
    )
    streams: list[str] | None = option(None, "planted: only these streams; default: all of streams/planted.py")
    threads: int = option(1, "threads of torch", COUNT)


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(options.threads)
    if "real" in options.parts:
        real(options)
        print(table(Path(options.output)))
    if "planted" in options.parts:
        for row in planted_streams(options.streams, options.learners):
            print(json.dumps(row), flush=True)
    if "speed" in options.parts:
        print(json.dumps(speed()), flush=True)
    if "growth" in options.parts:
        for row in growth():
            print(json.dumps(row), flush=True)


def real(options: Options) -> None:
    """Run what has no row yet."""
    import torch

    from diffusers_ext.streams.measures import evaluate_stream
    from diffusers_ext.streams.sessions import SETTINGS, build_sessions

    output = Path(options.output)
    done = {key(json.loads(line)) for line in output.read_text().splitlines()} if output.exists() else set()
    with tempfile.TemporaryDirectory() as scratch:
        sets = list(read_sets(options, options.cache_dir or scratch))
    for seed in range(options.orders):
        for name, backbone, features, labels, domains, test, groups, texts in sets:
            for setting in SETTINGS:
                sessions = build_sessions(labels, domains, setting, groups, seed)
                made = learners(features.shape[1], seed, tuple(options.projections), texts)
                for learner, make in made.items():
                    row = {"data": name, "backbone": backbone, "setting": setting, "order": seed, "learner": learner}
                    if key(row) in done or (options.learners and learner not in options.learners):
                        continue
                    result = evaluate_stream(make(), torch.from_numpy(features), sessions, test)
                    row.update(result)
                    with open(output, "a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


def key(row: dict) -> tuple:
    return tuple(row[name] for name in ("data", "backbone", "setting", "order", "learner"))


def learners(dim: int, seed: int, projections: tuple[int, ...] = (2000,), texts: dict | None = None) -> dict:
    """Every learner by name, made when it is called; texts: embeddings of class names, for the zero-shot row."""
    from diffusers_ext import VMFMixtureClassifier
    from diffusers_ext.streams.baselines import ZeroShot, baselines

    names = list(baselines(2, seed, projections=projections))
    made = {name: lambda name=name: baselines(dim, seed, projections=projections)[name] for name in names}
    if texts:
        made["zero-shot"] = lambda: ZeroShot(dim, texts=texts)
    return {
        OURS: lambda: VMFMixtureClassifier(dim, seed=seed),
        **{
            f"{OURS}, head pooled {each}": lambda each=each: VMFMixtureClassifier(
                dim, seed=seed, head="pooled", projections=each
            )
            for each in projections
        },
        f"{OURS}, head auto": lambda: VMFMixtureClassifier(dim, seed=seed, head="auto"),
        **made,
    }


def read_sets(options: Options, cache: str):
    """Yield (name, backbone, features, labels, domains, test half, groups of classes, embeddings of class names or None)."""
    from diffusers_ext.data.labelled import read_labelled
    from diffusers_ext.embeddings.backbones import features, load_backbone

    tables = {}
    if options.pacs:
        tables["PACS"] = (read_labelled(options.pacs), 3)
    if options.emoji:
        tables["emoji"] = (read_labelled(options.emoji, label_column="group"), 4)
    for reference in options.backbones or []:
        whole = load_backbone(reference)
        for backbone in [
            whole,
            *([cut(whole, options.stages)] if reference == options.backbones[0] and options.stages else []),
        ]:
            for name, (read, groups) in tables.items():
                test = test_half(read, name)
                found = features(backbone, read.files, cache, show=True)
                texts = class_texts(backbone, read.labels) if name == "PACS" and backbone.has_text else None
                yield name, short(backbone.name), found, read.label_index, read.domain_index, test, groups, texts


def class_texts(backbone, names) -> dict:
    """Embeddings of the classes' names under four templates, their unit mean: {class: (d,)}."""
    from torch.nn import functional as F

    forms = ("a photo of a {}", "a painting of a {}", "a cartoon of a {}", "a sketch of a {}")
    found = [backbone.embed_texts([form.format(name) for form in forms]).mean(0) for name in names]
    return {label: F.normalize(each, dim=0) for label, each in enumerate(found)}


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
    """The split that the data name, or a fifth of the emoji, each in all its styles: (N,) bool."""
    import numpy as np

    from diffusers_ext.randomness import generator

    if name == "PACS":
        return np.array([sample.split == "test" for sample in table.samples])
    names = sorted({Path(file).stem for file in table.files})
    chosen = set(np.array(names)[generator(0, "emoji test", 0).permutation(len(names))[: len(names) // 5]])
    return np.array([Path(file).stem in chosen for file in table.files])


def table(path: Path) -> str:
    """Average incremental and final accuracy, mean and standard deviation over orders, as Markdown."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = list(dict.fromkeys(row["learner"] for row in rows))
    lines = []
    for data, backbone in dict.fromkeys((row["data"], row["backbone"]) for row in rows):
        lines += [
            f"\n{data}, {backbone}\n",
            "| learner | NC | ND | NCD | forgetting NCD | worst domain NCD | floats | fit s | predict µs |",
        ]
        lines += ["|---" * 9 + "|"]
        for name in names:
            of = {
                s: [
                    r
                    for r in rows
                    if (r["data"], r["backbone"], r["learner"], r["setting"]) == (data, backbone, name, s)
                ]
                for s in ("NC", "ND", "NCD")
            }
            if not all(of.values()):
                continue
            cells = [f"{mean(of[s], 'average_incremental_accuracy')} / {mean(of[s], 'final_accuracy')}" for s in of]
            rest = [mean(of["NCD"], each) for each in ("forgetting", "worst_domain")]
            costs = [
                f"{statistics.mean(r[each] for r in of['NCD']):,.{digits}f}"
                for each, digits in (("stored_floats", 0), ("fit_seconds", 1), ("predict_microseconds", 0))
            ]
            lines.append("| " + " | ".join([name, *cells, *rest, *costs]) + " |")
    return "\n".join(lines)


def mean(rows: list[dict], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def planted_streams(kinds: list[str] | None, chosen: list[str] | None):
    """Yield final accuracies on planted streams, means over seeds 10 to 12."""
    from diffusers_ext.streams.planted import KINDS, planted
    from diffusers_ext.streams.planted_checks import on_planted, oracle
    from diffusers_ext.streams.sessions import SETTINGS

    for kind in kinds or KINDS:
        for setting in SETTINGS if kind != "single" else ("NC",):
            sums: dict[str, list] = {}
            bounds = [oracle(planted(kind, seed), setting, seed) for seed in (10, 11, 12)]
            for seed in (10, 11, 12):
                halves = planted(kind, seed)
                for learner, make in learners(halves[0].features.shape[1], seed).items():
                    if chosen is None or learner in chosen:
                        sums.setdefault(learner, []).append(on_planted(make(), halves, setting, seed))
            yield {
                "stream": kind,
                "setting": setting,
                "final": {
                    name: round(statistics.mean(each["final_accuracy"] for each in found), 1)
                    for name, found in sums.items()
                },
                "mixture": {
                    name: round(statistics.mean(each[name] for each in sums[OURS]), 3)
                    for name in (*RECOVERED, "forgetting", "fit_seconds", "predict_microseconds", "stored_floats")
                },
                "oracle": {
                    name: round(statistics.mean(each[name] for each in bounds), 1)
                    for name in ("final_accuracy", "forgetting")
                },
            }


def speed() -> dict:
    """A large session, and predictions at 1,000 components: seconds of CPU and of the clock."""
    import numpy as np
    import torch

    from diffusers_ext import VMFMixtureClassifier
    from diffusers_ext.randomness import generator
    from diffusers_ext.streams.planted import sample

    draw = generator(0, "speed", 0)
    means = draw.standard_normal((1000, 512))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    mode = np.arange(50_000) % 1000
    features, labels = torch.from_numpy(sample(draw, means[mode], 500.0)).float(), torch.from_numpy(mode // 10)
    result = {"threads": torch.get_num_threads()}
    for name, settings in (("one space", {"transform": "none"}), ("both spaces", {}), ("pooled", {"head": "pooled"})):
        classifier = VMFMixtureClassifier(512, **settings)
        start, clock = time.process_time(), time.perf_counter()
        classifier.partial_fit(features, labels)
        result[f"session, {name}"] = {
            "cpu": round(time.process_time() - start, 1),
            "clock": round(time.perf_counter() - clock, 1),
        }
        classifier.predict(features[:1000])
        start, clock = time.process_time(), time.perf_counter()
        right = (classifier.predict(features) == labels.numpy()).mean()
        cpu, clock = time.process_time() - start, time.perf_counter() - clock
        result[f"predict, {name}"] = {
            "components": len(classifier.space.counts),
            "accuracy": round(float(right), 4),
            "rows a CPU second": round(len(labels) / cpu),
            "rows a second": round(len(labels) / clock),
        }
    return result


def growth():
    """Yield microseconds a prediction, by components of which a class has ten; 512 dimensions, clear winners."""
    import torch

    from diffusers_ext.mixtures.em import Statistics
    from diffusers_ext.mixtures.prediction import CHUNK, Predictor
    from diffusers_ext.mixtures.scores import ComponentScores

    torch.manual_seed(0)
    for components in (1000, 3000, 10_000, 30_000, 100_000):
        means = torch.nn.functional.normalize(torch.randn(components, 512))
        statistics_ = Statistics(torch.ones(components).double(), means.double(), torch.arange(components) // 10)
        predictor = Predictor(
            ComponentScores(statistics_, 500.0, components // 10, "uniform", "plugin"), lambda part: part
        )
        noise = torch.randn(max(64, 4_000_000 // components), 512) / 512**0.5
        part = torch.nn.functional.normalize(means[torch.arange(len(noise)) % components] + noise)  # cosine 0.7
        found, directions = {"components": components}, predictor.scores.directions.T
        for name, act in (
            ("microseconds", predictor.winners),
            ("of exact scores", predictor.class_scores),
            ("of the product", lambda rows, by=directions: [each @ by for each in rows.split(CHUNK)]),
        ):
            act(part[:64])
            start = time.process_time()
            act(part)
            found[name] = round(1e6 * (time.process_time() - start) / len(part), 1)
        yield found


if __name__ == "__main__":
    run(main, Options)
