"""What a stream's training asks for: data, classifier, and how the backbone learns."""

from dataclasses import dataclass

from ..options import (
    COUNT,
    NATURAL,
    POSITIVE,
    WEIGHT,
    OptimizerOptions,
    Range,
    TrainingOptions,
    depends,
    group,
    option,
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
class StreamTraining(DataOptions, ClassifierOptions, TrainableOptions, TrainingOptions):
    """Everything that a stream's training asks for."""

    output_dir: str = option("runs/incremental", "the run folder: classifier, card, metrics, protocol, plots, sessions")
    seed: int = option(0, "of the order of classes, domains and blocks, and of all that is drawn")
    baselines: bool = option(True, "run every baseline on the same stream's frozen features, for the table")
    projections: int = option(
        2000, "random projections of RanPAC, as a head and as a baseline; its paper has 10000", COUNT
    )
    resume_from_checkpoint: str | None = option(
        None, "'latest': resume after the last whole session, and inside the next at its last checkpoint", ("latest",)
    )
    dry_run: bool = option(False, "print the options, the data and the sessions, then stop")
