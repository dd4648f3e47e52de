"""What training LADS asks for. The defaults are the paper's; training/presets/lads_balanced.json is found better here."""

from dataclasses import dataclass

from ..options import COUNT, NATURAL, POSITIVE, SEED, SHARE, WEIGHT, Range, group, option

_LABELLED = {"dataset_format": ("labelled",)}
USED_BY: dict[str, dict] = {  # see `options.check_used`; it is the kind of --domains, known when they are read
    **{name: {"domains": ("targets",)} for name in ("source_domain", "few_images", "domain_class_text")},
    "true_domains": {"domains": ("swap",)},
}


@group("augmentation networks")
@dataclass
class AugmentationOptions:
    """The networks that move images to unseen domains; the defaults are the paper's."""

    hidden_dim: int = option(384, "hidden units of each network", COUNT)
    learning_rate: float = option(
        1e-3, "of the networks; the paper's, the official configuration has 0.1 for CUB", POSITIVE
    )
    weight_decay: float = option(0.05, "of the networks, biases too", WEIGHT)
    num_train_epochs: int = option(50, "passes over the images", COUNT)
    train_batch_size: int = option(256, "images in a step, of networks and probe", COUNT)
    alpha: float = option(0.5, "share of domain alignment in the loss; the rest is class consistency", SHARE)
    neighbour_weight: float = option(
        0.0, "weight of staying nearest to the own original; 0.1 to 1 in the bias setting", WEIGHT
    )
    domain_class_text: bool = option(False, "class consistency with each domain's own templates")
    residual: bool = option(False, "networks add to the image, and start by adding nothing")
    normalised_direction: bool = option(False, "normalise what a network gives before its direction is measured")
    logit_scale: float = option(1.0, "of class consistency; 100 lets it cease once the class is right", POSITIVE)
    without_gap: bool = option(False, "directions of text without what tells the source's images from its text")
    image_directions: bool = option(
        False,
        "directions of mean images instead of words: to --few_images of each target, or of the bias setting's domains",
    )
    pairwise_weight: float = option(0.0, "weight of keeping the cosines among the images of a batch", WEIGHT)
    random_strength: bool = option(False, "augment by a random share of the way instead of all of it")
    latent_filter: bool = option(False, "leave out augmented images whose class changed in text or that did not move")
    original_share: float | None = option(
        None,
        "share of the images themselves in the probe's loss; default: by their number, 1 in target domains + 1",
        Range(0, 1, above=True),
        instead="leave it out for the share by number",
    )
    compat: str | None = option(None, "official: the update and the selection of the official code", ("official",))


@group("probe")
@dataclass
class ProbeOptions:
    """The linear classifier that is deployed."""

    probe_learning_rate: float = option(1e-3, "of the linear probe", POSITIVE)
    probe_weight_decay: float = option(0.05, "of the linear probe, its bias too", WEIGHT)
    probe_epochs: int = option(200, "passes over originals and augmented images", COUNT)
    zero_shot_init: bool = option(False, "start the probe from class text instead of at random")


@dataclass
class LADSOptions(AugmentationOptions, ProbeOptions):
    """All that a classifier is trained with, beside its data."""


@group("data")
@dataclass
class LADSDataOptions:
    """The images, the words, and what embeds both."""

    train_data_dir: str | None = option(
        None, "labelled pictures with domains, in any form that diffusers_ext/data/labelled.py reads", path="read"
    )
    dataset_format: str = option(
        "labelled",
        "or a folder of Waterbirds, or of MNIST to make ColoredMNIST of",
        ("labelled", "waterbirds", "colored_mnist"),
    )
    label_column: str = option("label", "column of the classes, in a table", requires=_LABELLED)
    domain_column: str = option("domain", "column of the domains, in a table", requires=_LABELLED)
    split_column: str = option("split", "column of the splits, in a table: train, val or test", requires=_LABELLED)
    image_column: str = option("image", "column of the pictures, in a table; file_name is read too", requires=_LABELLED)
    mnist_cut: list[int] | None = option(
        None,
        "train, validation and test digits to take from MNIST's test file, where there is no training file",
        COUNT,
        requires={"dataset_format": ("colored_mnist",)},
    )
    domains: str | None = option(
        None,
        'JSON or a file of it: {"source": ["a photo of a {}"], "targets": {"painting": ["a painting of a {}"]}}',
        path="text",
    )
    source_domain: str | None = option(None, "the domain to train on; not in the bias setting")
    backbone: str | None = option(
        None, "what embeds images and words; see diffusers_ext/embeddings/backbones.py", path="read"
    )
    true_domains: bool = option(
        False, "in the bias setting, believe the data's domains instead of predicting them by text"
    )
    encoder_cache_dir: str | None = option(
        None, "keep image embeddings here, for all runs; default: in output_dir", path="folder"
    )
    runs: int = option(
        1, "seeds to train with, from --seed on, for the table's deviations; the first run is saved", COUNT
    )
    baselines: bool = option(True, "train and measure what LADS is compared with too")
    few_images: int = option(
        0,
        "images of each target domain, without labels, for baseline and --image_directions; they leave its test set",
        NATURAL,
    )


@group("run")
@dataclass
class LADSRunOptions:
    """What is left behind."""

    output_dir: str = option("runs/lads", "the run folder: classifier, card, options, metrics, samples", path="folder")
    seed: int = option(
        0,
        "same seed, same result, whatever the ranks and interruptions",
        SEED,
        instead="for a random one draw it yourself",
    )
    checkpointing_epochs: int = option(10, "write the state every so many epochs", COUNT)
    resume_from_checkpoint: str | None = option(None, "continue the run in output_dir, if there is one", ("latest",))
    push_to_hub: bool = option(False, "upload classifier and card when done")
    hub_model_id: str | None = option(
        None, "owner/name of the repository to push to; default: the name of output_dir", requires={"push_to_hub": True}
    )
    hub_token: str | None = option(
        None, "token for the push; default: the one you logged in with", requires={"push_to_hub": True}
    )
    dry_run: bool = option(False, "print the resolved options, data, domains and parameters, then stop")


@dataclass
class LADSTraining(LADSOptions, LADSDataOptions, LADSRunOptions):
    """Everything that a LADS training asks for."""
