"""What training LADS asks for, and the presets."""

from dataclasses import dataclass

from .options import group, option


@group("augmentation networks")
@dataclass
class AugmentationOptions:
    """The networks that move images to unseen domains; the defaults are the paper's."""

    hidden_dim: int = option(384, "hidden units of each network")
    learning_rate: float = option(1e-3, "of the networks; the paper's, the official configuration has 0.1 for CUB")
    weight_decay: float = option(0.05, "of the networks, biases too")
    num_train_epochs: int = option(50, "passes over the images")
    train_batch_size: int = option(256, "images in a step, of networks and probe")
    alpha: float = option(0.5, "share of domain alignment in the loss; the rest is class consistency")
    neighbour_weight: float = option(0.0, "weight of staying nearest to the own original; 0.1 to 1 in the bias setting")
    domain_class_text: bool = option(False, "class consistency with each domain's own templates")
    residual: bool = option(False, "networks add to the image, and start by adding nothing")
    normalised_direction: bool = option(False, "normalise what a network gives before its direction is measured")
    logit_scale: float = option(1.0, "of class consistency; 100 lets it cease once the class is right")
    pairwise_weight: float = option(0.0, "weight of keeping the cosines among the images of a batch")
    random_strength: bool = option(False, "augment by a random share of the way instead of all of it")
    latent_filter: bool = option(False, "leave out augmented images whose class changed in text or that did not move")
    compat: str | None = option(None, "official: the update and the selection of the official code", ("official",))


@group("probe")
@dataclass
class ProbeOptions:
    """The linear classifier that is deployed."""

    probe_learning_rate: float = option(1e-3, "of the linear probe")
    probe_weight_decay: float = option(0.05, "of the linear probe, its bias too")
    probe_epochs: int = option(200, "passes over originals and augmented images")
    zero_shot_init: bool = option(False, "start the probe from class text instead of at random")


@dataclass
class LADSOptions(AugmentationOptions, ProbeOptions):
    """All that a classifier is trained with, beside its data."""
