"""Teach a classifier a stream of sessions, new classes, new domains or both, and measure what it keeps.

From any folder of pictures with classes and domains (diffusers_ext/data/labelled.py), on the frozen features of any backbone, in
seconds a session:
    accelerate launch training/train_incremental.py --data path/to/pacs --setting NCD \\
        --backbone timm:tf_efficientnet_lite0@weights.safetensors --output_dir runs/stream

Domains from several places, in their own order:
    accelerate launch training/train_incremental.py --domains photo=data/photos sketch=hub/sketches --setting ND \\
        --backbone ViT-B-32/laion2b_s34b_b79k --output_dir runs/stream

Run the same command with --resume_from_checkpoint latest to go on after the last whole session. The run folder is itself the
classifier: VMFMixtureClassifier.from_pretrained("runs/stream").partial_fit(features, labels) learns the next session.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import group, option, run


@group("data")
@dataclass
class DataOptions:
    data: str | None = option(None, "folder or table of labelled pictures, in any form that data/labelled.py reads")
    domains: list[str] | None = option(
        None, "instead of data: name=folder for each domain, in the order of arrival for ND"
    )
    label_column: str = option("label", "column of the class, where the data are a table")
    domain_column: str = option("domain", "column of the domain")
    setting: str = option(
        "NCD", "what a session brings: new classes, new domains, or a block of both", ("NC", "ND", "NCD")
    )
    groups: int = option(5, "groups of classes in NC and NCD")
    test_fraction: float = option(
        0.2, "held out of each class and domain by content, where the data name no test split"
    )
    backbone: str | None = option(None, "the frozen backbone, a reference that backbones.py reads")
    encoder_cache_dir: str | None = option(None, "keep features here, for all runs; default: in the run folder")
    batch_size: int = option(16, "pictures encoded at once")


@group("classifier")
@dataclass
class ClassifierOptions:
    memory: int = option(2000, "exemplars kept in all, as features")
    transform: str = option(
        "auto", "the space that is clustered; auto chooses on held-out samples", ("auto", "none", "whiten")
    )
    k_new: int = option(16, "components proposed per class and session")
    max_components: int = option(32, "components of a class")
    estep: str = option("soft", "how samples are shared among components", ("soft", "hard"))
    reduction: str = option("evidence", "when two components become one", ("evidence", "icl", "kl", "cosine"))
    alpha: float = option(1.0, "of reduction by evidence: above 1 more components stay")
    threshold: float | None = option(None, "of reduction by kl or cosine; default: 1 nat and 0.8")
    weights: str = option("uniform", "of a class's components", ("uniform", "counts"))
    score: str = option(
        "plugin",
        "a component's density: at its mean, or over the means that its count allows",
        ("plugin", "predictive"),
    )
    shrinkage: float | None = option(
        None, "of components to their class, in pseudo-samples; default: chosen on held-out samples"
    )


@dataclass
class Options(DataOptions, ClassifierOptions):
    output_dir: str = option("runs/incremental", "the run folder: classifier, card, metrics, protocol, plots, sessions")
    seed: int = option(0, "of the order of classes, domains and blocks, and of what the classifier draws")
    baselines: bool = option(True, "run every baseline on the same stream, for the table")
    projections: int = option(2000, "random projections of the baseline RanPAC; the paper has 10000")
    resume_from_checkpoint: str | None = option(None, "'latest': go on after the last whole session", ("latest",))
    push_to_hub: bool = option(False, "upload classifier and card when done")
    hub_model_id: str | None = option(None, "owner/name of the repository to push to; default: the name of output_dir")
    hub_token: str | None = option(None, "token for the push; default: the one you logged in with")
    dry_run: bool = option(False, "print the options, the data and the sessions, then stop")


def main(options: Options) -> None:
    from accelerate import Accelerator

    from diffusers_ext.hub import publish
    from diffusers_ext.incremental_run import Run
    from diffusers_ext.run_folder import check_run_folder

    check_run_folder(options)
    table, test = read_data(options)
    sessions = make_sessions(options, table)
    if options.dry_run:
        print(plan(options, table, test, sessions))
        return
    accelerator = Accelerator()
    stream = Run(options, accelerator, table, test, sessions)
    stream.encode()
    stream.learn()
    if accelerator.is_main_process:
        stream.compare()
        stream.finish()
        publish(Path(options.output_dir), options)
    accelerator.end_training()


def read_data(options: Options):
    """Return the labelled pictures and their test half, (N,) bool."""
    import numpy as np

    from diffusers_ext.data.labelled import LabelledImages, read_labelled, with_splits

    if bool(options.data) == bool(options.domains):
        raise InputError("give either --data FOLDER or --domains name=folder ..., the labelled pictures to learn")
    if not options.backbone:
        raise InputError(
            "--backbone is missing: name a frozen backbone, such as timm:resnet50.a1_in1k; see backbones.py"
        )
    columns = (options.label_column, options.domain_column)
    if options.data:
        table = read_labelled(options.data, *columns)
    else:
        parts = [_domain(given) for given in options.domains]
        read = [read_labelled(folder, *columns, domain=name) for name, folder in parts]
        table = LabelledImages.of(sample for part in read for sample in part.samples)
    if not any(sample.split == "test" for sample in table.samples):
        if not 0 < options.test_fraction < 1:
            raise InputError(f"--test_fraction must lie between 0 and 1, got {options.test_fraction}")
        table = with_splits(table, {"train": 1 - options.test_fraction, "test": options.test_fraction}, options.seed)
    return table, np.array([sample.split == "test" for sample in table.samples])


def _domain(given: str) -> tuple[str, str]:
    name, separator, folder = given.partition("=")
    if not separator or not name or not folder:
        raise InputError(f"--domains {given}: write name=folder")
    return name, folder


def make_sessions(options: Options, table):
    from diffusers_ext.data.sessions import build_sessions

    order = [table.domains.index(_domain(given)[0]) for given in options.domains or []]
    return build_sessions(
        table.label_index, table.domain_index, options.setting, options.groups, options.seed, order or None
    )


def plan(options: Options, table, test, sessions) -> str:
    """What `--dry_run` prints."""
    from diffusers_ext.options import as_dict

    lines = ["options", *(f"  {name}: {value}" for name, value in as_dict(options).items())]
    lines += ["data", f"  {len(table):,} pictures, {int(test.sum()):,} of them to test on"]
    lines += [f"  {len(table.labels)} classes, {len(table.domains)} domains: {', '.join(table.domains)}", "sessions"]
    for number, cells in enumerate(sessions.cells):
        classes = sorted({table.labels[label] for label, _ in cells})
        domains = sorted({table.domains[domain] for _, domain in cells})
        rows = len(sessions.rows(number, ~test))
        lines.append(f"  {number + 1}: {rows:,} pictures of {', '.join(classes)} in {', '.join(domains)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Options)
