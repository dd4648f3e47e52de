"""Teach a classifier a stream of sessions, new classes, new domains or both, and measure what it keeps.

From any folder of pictures with classes and domains (diffusers_ext/data/labelled.py), on the frozen features of any backbone, in
seconds a session:
    accelerate launch training/train_incremental.py --data path/to/pacs --setting NCD \\
        --backbone timm:tf_efficientnet_lite0@weights.safetensors --output_dir runs/stream

Domains from several places, in their own order:
    accelerate launch training/train_incremental.py --domains photo=data/photos sketch=hub/sketches --setting ND \\
        --backbone ViT-B-32/laion2b_s34b_b79k --output_dir runs/stream

A backbone that learns too, as a whole or by LoRA, with replay from a memory of pictures:
    accelerate launch training/train_incremental.py --data path/to/pacs --setting NCD --regime trainable --lora_rank 8 \\
        --backbone timm:tf_efficientnet_lite0@weights.safetensors --output_dir runs/stream

Digits of several sources, as iDigits, and CIFAR-100's superclasses, as iCIFAR-20, are read from local copies:
    accelerate launch training/train_incremental.py --data_format digits --domains mnist=data/mnist svhn=data/svhn \\
        --setting ND --backbone timm:resnet18.a1_in1k --output_dir runs/digits

Run the same command with --resume_from_checkpoint latest to go on after the last whole session. The run folder is itself the
classifier: VMFMixtureClassifier.from_pretrained("runs/stream").partial_fit(features, labels) learns the next session.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import (
    COUNT,
    NATURAL,
    POSITIVE,
    WEIGHT,
    OptimizerOptions,
    Range,
    TrainingOptions,
    check_used,
    depends,
    group,
    option,
    run,
)

_FROZEN, _TRAINABLE = {"regime": ("frozen",)}, ("trainable",)
_TABLE = {"data_format": ("labelled",)}
_OF_STEPS = (  # of `RunOptions`, what only `loop.train` reads
    *("max_train_steps", "gradient_accumulation_steps", "dataloader_num_workers", "torch_compile", "allow_tf32"),
    *("logging_steps", "checkpointing_steps", "report_to", "logging_dir", "tracker_project_name"),
)


@group("data")
@dataclass
class DataOptions:
    data: str | None = option(
        None, "folder or table of labelled pictures, in any form that data/labelled.py reads", path="read"
    )
    domains: list[str] | None = option(
        None, "instead of data: name=folder for each domain, in the order of arrival for ND", path="read"
    )
    data_format: str = option(
        "labelled",
        "labelled folders or tables; digits: MNIST's idx files, SVHN's .mat or folders, given as domains; "
        "cifar20: CIFAR-100's binary version",
        ("labelled", "digits", "cifar20"),
    )
    label_column: str = option("label", "column of the class, where the data are a table", requires=_TABLE)
    domain_column: str = option("domain", "column of the domain", requires=_TABLE)
    split_column: str = option(
        "split", "column of the split: train, val or test; test pictures are never learnt", requires=_TABLE
    )
    image_column: str = option("image", "column of the picture; file_name is read too", requires=_TABLE)
    setting: str = option(
        "NCD", "what a session brings: new classes, new domains, or a block of both", ("NC", "ND", "NCD")
    )
    groups: int = option(5, "groups of classes in NC and NCD", COUNT, requires={"setting": ("NC", "NCD")})
    test_fraction: float = option(
        0.2,
        "held out of each class and domain by content, where a domain names no test split",
        Range(0, 1, above=True, below=True),
    )
    backbone: str | None = option(
        None, "the backbone, a reference that embeddings/backbones.py reads; timm's where it is to learn", path="read"
    )
    encoder_cache_dir: str | None = option(
        None, "keep features here, for all runs; default: in the run folder", path="folder"
    )
    batch_size: int = option(16, "pictures encoded at once", COUNT)


@group("classifier")
@dataclass
class ClassifierOptions:
    memory: int = option(2000, "exemplars kept in all, as features", NATURAL)
    jury: int = option(
        500,
        "frozen: samples kept out of learning, as features, to choose space, shrinkage, head and temperature",
        NATURAL,
        requires=_FROZEN,
    )
    head: str = option(
        "mixture",
        "what predicts: the mixture, linear discriminants or ridge regression from the same sums, ridge regression on random "
        "projections (ranpac), mixture and ranpac together (pooled), or of these what the jury finds best (auto); linear: with a "
        "trainable backbone, a linear layer that replays, for comparison",
        ("mixture", "lda", "ridge", "ranpac", "pooled", "auto", "linear"),
    )
    transform: str = option(
        "auto", "the space that is clustered; auto lets the jury choose", ("auto", "none", "whiten"), requires=_FROZEN
    )
    k_new: int = option(16, "components proposed per class and session", COUNT)
    max_components: int = option(32, "components of a class", COUNT)
    estep: str = option("soft", "how samples are shared among components", ("soft", "hard"))
    reduction: str = option("evidence", "when two components become one", ("evidence", "icl", "kl", "cosine"))
    alpha: float = option(
        1.0, "of reduction by evidence: above 1 more components stay", POSITIVE, requires={"reduction": ("evidence",)}
    )
    threshold: float | None = option(
        None, "of reduction by kl or cosine; default: 1 nat and 0.8", WEIGHT, requires={"reduction": ("kl", "cosine")}
    )
    weights: str = option("uniform", "of a class's components", ("uniform", "counts"))
    score: str = option(
        "auto",
        "a component's density: at its mean, or over the means that its count allows; frozen, auto lets the jury choose",
        ("auto", "plugin", "predictive"),
    )
    shrinkage: float | None = option(
        None,
        "of components to their class, in pseudo-samples; default: the jury chooses",
        WEIGHT,
        instead="leave it out for the jury's choice",
    )


@group("trainable backbone")
@dataclass
class TrainableOptions:
    regime: str = option("frozen", "whether the backbone learns with the mixture", ("frozen", "trainable"))
    lora_rank: int = option(0, "trainable: learn adapters of this rank; 0 learns all weights", NATURAL)
    component_weight: float = option(1.0, "trainable: of the component term of the classification loss", WEIGHT)
    distillation: float = option(
        1.0, "trainable: weight of the old components' posterior on what the teacher says; 0: none", WEIGHT
    )
    regulariser: float = option(0.1, "trainable: weight of the mixture regulariser; 0: none", WEIGHT)
    memory_balance: str = option(
        "components",
        "trainable: whether the components of a class share its memory evenly; classes: they do not, for comparison",
        ("components", "classes"),
    )
    num_train_epochs: int = option(10, "trainable: passes over each session and its memory")
    train_batch_size: int = option(32, "trainable: pictures per process and forward pass")
    learning_rate: float = option(1e-4, "trainable: after warm-up, before decay")
    checkpoints_total_limit: int | None = option(1, "trainable: keep only so many checkpoints of a session, the newest")


@depends(
    {*OptimizerOptions.__dataclass_fields__, *TrainableOptions.__dataclass_fields__} - {"regime"}, regime=_TRAINABLE
)
@depends(_OF_STEPS, regime=_TRAINABLE)
@dataclass
class Options(DataOptions, ClassifierOptions, TrainableOptions, TrainingOptions):
    output_dir: str = option("runs/incremental", "the run folder: classifier, card, metrics, protocol, plots, sessions")
    seed: int = option(0, "of the order of classes, domains and blocks, and of all that is drawn")
    baselines: bool = option(True, "run every baseline on the same stream's frozen features, for the table")
    projections: int = option(
        2000, "random projections of RanPAC, as a head and as a baseline; its paper has 10000", COUNT
    )
    resume_from_checkpoint: str | None = option(
        None, "'latest': go on after the last whole session, and inside the next at its last checkpoint", ("latest",)
    )
    dry_run: bool = option(False, "print the options, the data and the sessions, then stop")


def main(options: Options) -> None:
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.engine.loop import check, start
    from diffusers_ext.streams.run import Run

    check(options)
    check_regime(options)
    table, test = read_data(options)
    sessions = make_sessions(options, table, test)
    if options.dry_run:
        print(plan(options, table, test, sessions))
        return
    accelerator = start(options)
    stream = Run(options, accelerator, table, test, sessions)
    stream.encode()
    stream.learn()
    stream.sheet()
    if accelerator.is_main_process:
        stream.compare()
        stream.finish()
        publish(Path(options.output_dir), options)
    accelerator.end_training()


def check_regime(options: Options) -> None:
    """Raise InputError where a regime lacks what it needs."""
    from diffusers_ext.mixtures.heads import HEADS

    if not options.backbone:
        raise InputError(
            "--backbone is missing: name a backbone, such as timm:resnet50.a1_in1k; see embeddings/backbones.py"
        )
    if options.regime == "trainable" and not options.backbone.startswith("timm:"):
        raise InputError(f"--backbone {options.backbone}: of the trainable regime it must be timm's; write timm:...")
    heads = ["mixture", "linear"] if options.regime == "trainable" else list(HEADS)
    if options.head not in heads:
        raise InputError(f"--head {options.head}: the {options.regime} regime has {', '.join(heads)}")
    if not options.baselines:
        check_used(options, {"encoder_cache_dir": {"regime": ("frozen",)}})
    if options.validation_steps != Options.validation_steps:
        raise InputError("--validation_steps: a session is measured when it ends; leave it out")
    if options.regime == "trainable" and options.memory < 1:
        raise InputError("--memory 0: a backbone that learns needs pictures to replay; give 1 or more")


def read_data(options: Options):
    """Return the labelled pictures and their test half, (N,) bool, drawn in each domain that names none."""
    import numpy as np

    from diffusers_ext.data.splits import with_tests

    if bool(options.data) == bool(options.domains):
        raise InputError("give either --data FOLDER or --domains name=folder ..., the labelled pictures to learn")
    table = with_tests(_table(options), options.test_fraction, options.seed)
    return table, np.array([sample.split == "test" for sample in table.samples])


def _table(options: Options):
    from diffusers_ext.data.labelled import LabelledImages, columns_of, read_labelled
    from diffusers_ext.data.published import cifar20, digits

    columns = columns_of(options)
    parts = [_domain(given) for given in options.domains or []]
    if options.data_format != "labelled" and bool(parts) != (options.data_format == "digits"):
        raise InputError("--data_format digits takes --domains name=folder ..., cifar20 takes --data FOLDER")
    if options.data_format == "digits":
        return digits(dict(parts))
    if options.data_format == "cifar20":
        return cifar20(options.data)
    if options.data:
        return read_labelled(options.data, **columns)
    read = [read_labelled(folder, **columns, domain=name) for name, folder in parts]
    return LabelledImages.of(sample for part in read for sample in part.samples)


def _domain(given: str) -> tuple[str, str]:
    name, separator, folder = given.partition("=")
    if not separator or not name or not folder:
        raise InputError(f"--domains {given}: write name=folder")
    return name, folder


def make_sessions(options: Options, table, test):
    from diffusers_ext.data.splits import check_learnable
    from diffusers_ext.streams.sessions import build_sessions

    order = [_domain(given)[0] for given in options.domains or []]
    for name in order:
        if name not in table.domains:
            raise InputError(
                f"--domains {name}=...: its table names other domains ({', '.join(table.domains)}); "
                "give it by --data, or name another --domain_column"
            )
    check_learnable(table)
    order = [table.domains.index(name) for name in order] or None
    sessions = build_sessions(
        table.label_index, table.domain_index, options.setting, options.groups, options.seed, order
    )
    if not len(sessions.rows(0, test)):
        cells = ", ".join(f"{table.labels[label]} in {table.domains[domain]}" for label, domain in sessions.cells[0])
        raise InputError(f"the first session ({cells}) has no picture to test on; raise --test_fraction")
    return sessions


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
