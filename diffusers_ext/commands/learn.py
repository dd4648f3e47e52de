"""Learn new pictures in a run folder, measure what changed, and keep the state before: the weekly job.

    diffusers-ext learn runs/stream --data week12
    diffusers-ext learn runs/new --data week1 --backbone ViT-B-32/laion2b_s34b_b79k --head pooled
    diffusers-ext learn runs/stream --data week13 --domain sketches
    diffusers-ext learn runs/stream --rollback

RUN is a folder of train_incremental.py, or of this command, which starts one from a single week where --backbone is given.
Pictures are labelled as for training. A part of each class and domain is held out, by content, and never learnt; pictures
that were given before are noticed and not learnt again. The state is saved whole or not at all, so that a killed command is
simply run again. `diffusers-ext classify PICTURES --model RUN` uses it.
"""

from dataclasses import dataclass

from ..options import COUNT, SEED, Range, option

_LEARNING = {"rollback": False}


@dataclass
class Options:
    run: str | None = option(None, "the run folder", positional=True, path="folder")
    data: str | None = option(None, "folder or table of the new labelled pictures", path="read")
    domain: str | None = option(None, "domain of all these pictures; default: as the data say", requires=_LEARNING)
    rollback: bool = option(False, "return to the state before the last week, instead of learning")
    backbone: str | None = option(
        None,
        "folder or name of the backbone; needed for a new run, else only if it was moved; the same weights",
        requires=_LEARNING,
    )
    head: str | None = option(
        None,
        "what predicts, in a new run; default: mixture",
        ("mixture", "lda", "ridge", "ranpac", "pooled", "auto"),
        requires=_LEARNING,
    )
    test_fraction: float = option(
        0.2, "share of each class and domain that is held out to measure on", Range(0.05, 0.9), requires=_LEARNING
    )
    on_bad_sample: str = option(
        "error",
        "what to do with pictures that cannot be read: refuse all, or skip them",
        ("error", "skip"),
        requires=_LEARNING,
    )
    label_column: str = option("label", "column of the class, where the data are a table", requires=_LEARNING)
    domain_column: str = option("domain", "column of the domain", requires=_LEARNING)
    encoder_cache_dir: str | None = option(
        None, "folder of the cached features; default: that of the run, or the run folder", requires=_LEARNING
    )
    batch_size: int = option(16, "pictures encoded at once", COUNT, requires=_LEARNING)
    seed: int = option(0, "seed of what is held out, and of a new run", SEED, requires=_LEARNING)
    device: str | None = option(
        None, "cpu, cuda, mps ...; default: the accelerator, where there is one", requires=_LEARNING
    )


def main(options: Options) -> None:
    from pathlib import Path

    from ..errors import InputError

    if not options.run or options.rollback == bool(options.data):
        raise InputError(
            "give RUN and either --data FOLDER or --rollback: diffusers-ext learn RUN --data FOLDER; see --help"
        )
    from ..engine.lock import claim
    from ..streams.weeks import Weeks

    folder = Path(options.run).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    if options.rollback and not folder.exists():
        raise InputError(f"{folder}: no such run folder")
    table = None if options.rollback else _table(options)
    _check_start(folder, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); name another folder") from None
    claim(folder, options)
    weeks = Weeks(folder, _cache(folder, options))
    if options.rollback:
        print(f"{folder}: as after week {weeks.roll_back()}")
        return
    _learn(weeks, table, options)


def _learn(weeks, table, options: Options) -> None:
    import torch

    from ..embeddings.backbones import check_device, load_backbone
    from ..mixtures.classifier import VMFMixtureClassifier
    from ..streams.weeks import Settings

    device = options.device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    check_device(device)
    if weeks.exists:
        classifier = weeks.load()
        if options.backbone:
            classifier.backbone = load_backbone(options.backbone, device)
        classifier.backbone.model.to(device)
    else:
        assert options.backbone, "_check_start asks for it"
        backbone = load_backbone(options.backbone, device)
        classifier = VMFMixtureClassifier.of(backbone, head=options.head or "mixture", seed=options.seed)
    skip = options.on_bad_sample == "skip"
    row = weeks.learn(table, classifier, Settings(options.test_fraction, options.seed, options.batch_size, skip))
    if row is None:
        print(f"{weeks.folder}: nothing is new, nothing was changed")
        return
    print(report(row, str(weeks.folder)))
    if weeks.can_roll_back:
        print(f"back to the state before: diffusers-ext learn {weeks.folder} --rollback")


def report(row: dict, folder: str) -> str:
    """Return what a week brought, in lines."""
    lines = [f"{folder}, week {row['week']}: {row['learnt']} pictures learnt, {row['held_out']} held out"]
    lines.append(
        f"classes {row['classes']}, components {row['components_before']} -> {row['components']}, head {row['head']}"
    )
    if row["after"]:
        lines.append(f"{'held-out pictures of':<24}{'number':>8}{'before':>9}{'now':>9}")
    for name, now in row["after"].items():
        before = f"{100 * row['before'][name]['accuracy']:.1f} %" if name in row["before"] else "-"
        lines.append(f"{name:<24}{now['pictures']:>8}{before:>9}{100 * now['accuracy']:>7.1f} %")
    lines.append(row["probabilities"])
    return "\n".join(lines)


def _table(options: Options):
    from ..data.labelled import read_labelled

    assert options.data, "main asks for it"
    table = read_labelled(options.data, options.label_column, options.domain_column)
    return table.in_domain(options.domain)


def _check_start(folder, options: Options) -> None:
    """Raise InputError where a run cannot be started, or where an option is of starting one only."""
    from ..errors import InputError

    there = (folder / "config.json").is_file() or (folder / "weeks").is_dir()
    if there and options.head:
        raise InputError(f"--head {options.head}: {folder} has its head already; leave it out, or start another run")
    if there or options.rollback:
        return
    if not options.backbone:
        raise InputError(f"{folder}: holds no classifier; give --backbone to start one there")
    if folder.exists() and any(path.name not in (".lock", "cache") for path in folder.iterdir()):
        raise InputError(f"{folder}: is not empty and holds no classifier; name another folder")


def _cache(folder, options: Options):
    """Where the run keeps features: as given, as it did when it was trained, or None for its own folder."""
    import json
    from pathlib import Path

    if options.encoder_cache_dir:
        return Path(options.encoder_cache_dir)
    try:
        recorded = json.loads((folder / "options.json").read_text(encoding="utf-8"))["options"]["encoder_cache_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(recorded) if recorded and Path(recorded).is_dir() else None
