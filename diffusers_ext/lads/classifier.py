"""The classifier that LADS makes: a linear probe that was trained on images and on what words say of unseen domains.

    classifier = LADSClassifier.from_pretrained("runs/lads")
    labels, probabilities, domains = classifier.predict(["a.png", "b.png"])      # or embeddings, (N, D)

"Using Language to Extend to Unseen Domains", Dunlap et al., ICLR 2023. The probe alone classifies; the augmentation
networks are kept to look at. The backbone is a reference (see `backbones`), loaded when pictures are first given.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from huggingface_hub import ModelCard
from torch import nn

from ..data.feature_arrays import as_matrix, is_table
from ..embeddings.backbones import Backbone, check_batch_size
from ..embeddings.owner import BackboneOwner
from ..errors import InputError
from ..publish.carded import CardedModel
from .bank import AugmentationBank, augment
from .baselines import TEMPERATURE, temperatures
from .card import lads_card
from .data import Embedded, Splits, unit_rows
from .domains import Domains, DomainText
from .objective import Probe, nearest_domains
from .training import Trained

HEADS = ("probe", "zero_shot", "ensemble", "calibrated", "wise")


class Prediction(NamedTuple):
    """labels: the likeliest class of each image. probabilities (N, C) float32. domains: what text sees in each image."""

    labels: list[str]
    probabilities: torch.Tensor
    domains: list[str]


class LADSClassifier(BackboneOwner, CardedModel):
    """A probe, its augmentation networks, and the text they were made with.

    dim: D, of the embeddings. classes: names, in the order of the probabilities. domains: the declaration, see
    `lads.domains`. backbone: the reference of what embeds pictures; prepared: its preprocessing; weights_digest: of its
    weights, checked when it is loaded. hidden_dim, networks, residual: of the augmentation networks. domain_names: the domains
    that an image is told to be of, in order. temperatures: factors of zero-shot cosines and of the probe's logits for the
    calibrated head. training: options, counts, and the table; the card shows them.
    """

    named_by = ("backbone", "weights_digest")

    @register_to_config
    def __init__(
        self,
        dim: int,
        classes: Sequence[str],
        domains: Mapping[str, Any],
        backbone: str | None = None,
        prepared: Mapping[str, Any] | None = None,
        weights_digest: str | None = None,
        hidden_dim: int = 384,
        networks: int = 1,
        residual: bool = False,
        domain_names: Sequence[str] = ("source", "target"),
        training: Mapping[str, Any] | None = None,
        temperatures: Sequence[float] = (TEMPERATURE, 1.0),
    ):
        super().__init__()
        _check_shape(dim, classes)
        Domains.read(domains)
        self.probe = nn.Linear(dim, len(classes))
        self.bank = AugmentationBank(networks, dim, hidden_dim, residual)
        self.register_buffer("zero_shot_text", torch.zeros(len(classes), dim))
        self.register_buffer("domain_text", torch.zeros(len(domain_names), len(classes), dim))

    @classmethod
    def assemble(
        cls,
        trained: Trained,
        text: DomainText,
        domains: Domains,
        splits: Splits,
        backbone: Backbone | None = None,
        training: Mapping[str, Any] | None = None,
        run: int = 0,
    ) -> "LADSClassifier":
        """Put one run's trained parts together, calibrated on the validation images; `lads.training` makes them.

        training: options, counts and the table, for the card.
        """
        probe, bank = trained
        per_run = len(bank.weight1) // len(probe.bias)
        made = cls(
            splits.train.x.shape[1],
            list(splits.train.classes),
            domains.as_dict(),
            backbone.name if backbone else None,
            dict(backbone.prepared) if backbone else None,
            backbone.weights if backbone else None,
            bank.weight1.shape[1],
            per_run,
            bank.residual,
            domains.names,
            dict(training or {}),
            calibration(probe, text, splits.val, run),
        )
        with torch.no_grad():
            made.probe.weight.copy_(probe.weight[run])
            made.probe.bias.copy_(probe.bias[run])
            for parameter, values in zip(made.bank.parameters(), bank.parameters()):
                parameter.copy_(values[run * per_run : (run + 1) * per_run])
            made.zero_shot_text.copy_(text.adaptive)
            made.domain_text.copy_(text.domains)
        return made._with_backbone(backbone).eval()

    def card(self, name: str) -> ModelCard:
        """Return the card, written from the configuration alone."""
        return lads_card(self.config, name)

    @property
    def _backbone_device(self) -> torch.device:
        return self.device

    @torch.no_grad()
    def embed(self, images: Any, batch_size: int = 32) -> torch.Tensor:
        """Return unit embeddings of images in any form, or check and normalise embeddings: (N, D) float32.

        Embeddings may be any table of numbers that `data.feature_arrays` reads, such as a data frame. Raises InputError for
        those of another size, or that are not finite, and for one grey picture, which looks like a table.
        """
        if is_table(images):
            return unit_rows(self._embeddings(images)).to(self.device)
        if images is None or isinstance(images, (Mapping, set, int, float)):
            raise InputError(
                f"images: {type(images).__name__}; give pictures, paths, or embeddings (N, {self.config.dim})"
            )
        one = isinstance(images, (str, Path, bytes)) or hasattr(images, "convert") or getattr(images, "ndim", None) == 3
        images = [images] if one else list(images)
        check_batch_size(batch_size)
        parts = [
            self.backbone.embed_images(images[at : at + batch_size], batch_size)
            for at in range(0, len(images), batch_size)
        ]
        if not parts:
            raise InputError("no images to classify")
        if parts[0].shape[1] != self.config.dim:
            raise InputError(
                f"{self.backbone.name} gives embeddings of {parts[0].shape[1]} dimensions, this classifier has {self.config.dim}"
            )
        return unit_rows(torch.cat(parts)).to(self.device)

    @torch.no_grad()
    def predict(self, images: Any, head: str = "probe", share: float = 0.5, batch_size: int = 32) -> Prediction:
        """Classify images (PIL, paths, tensors (3, H, W), arrays (H, W, 3)) or embeddings (N, D), in float32.

        head: "probe"; "zero_shot", text alone; "ensemble", share·probe + (1 − share)·zero-shot probabilities; "calibrated",
        the same, each at the temperature that suits the validation images; "wise", the probe's weights interpolated with
        text likewise, for a probe that started there. Raises InputError for another head, or a share outside 0 to 1.
        """
        self._check_head(head, share)
        x = self.embed(images, batch_size)
        text = self.zero_shot_text.float()
        scale_text, scale_probe = self.config.temperatures if head == "calibrated" else (TEMPERATURE, 1.0)
        by_text = (scale_text * x @ text.T).softmax(-1)
        weight, bias = self.probe.weight.float(), self.probe.bias.float()
        if head == "wise":
            weight, bias = torch.lerp(text, weight, share), share * bias
        by_probe = (scale_probe * (x @ weight.T + bias)).softmax(-1)
        mix = {"probe": 1.0, "wise": 1.0, "zero_shot": 0.0}.get(head, share)
        probabilities = (mix * by_probe + (1 - mix) * by_text).cpu()
        domains = [self.config.domain_names[at] for at in nearest_domains(x, self.domain_text.float()).tolist()]
        return Prediction([self.config.classes[at] for at in probabilities.argmax(-1).tolist()], probabilities, domains)

    def augment(self, images: Any, batch_size: int = 32) -> torch.Tensor:
        """Return where each network moves images or embeddings to: unit rows (K, N, D), in the order of the targets."""
        return augment(copy.deepcopy(self.bank).float(), self.embed(images, batch_size))

    def _embeddings(self, table: Any) -> torch.Tensor:
        rows = as_matrix(table, "embeddings", f"(N, {self.config.dim})")
        if len(rows) and rows.shape[1] != self.config.dim:
            raise InputError(
                f"embeddings have {rows.shape[1]} dimensions, this classifier {self.config.dim}; embed with "
                f"{self.config.backbone or 'the backbone it was trained on'}"
            )
        if len(rows) > 1 and rows.min() >= 0 and not ((rows.norm(dim=1) - 1).abs() < 1e-2).all():
            raise InputError(
                f"an array {tuple(rows.shape)} without a negative value: a grey picture? Give pictures as a list, "
                "[array], and embeddings of unit length"
            )
        return rows if len(rows) else rows.new_zeros(0, self.config.dim)

    def _check_head(self, head: str, share: float) -> None:
        if head not in HEADS:
            raise InputError(f"head {head!r}: choose from {', '.join(HEADS)}")
        if not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise InputError(f"share {share!r}: it is the probe's, from 0 to 1")
        if head == "wise" and not (self.config.training or {}).get("options", {}).get("zero_shot_init"):
            raise InputError(
                "head 'wise': its probe did not start from class text, so the mean of the two is neither; "
                "train with --zero_shot_init, or take 'ensemble'"
            )


def _check_shape(dim: int, classes: Sequence[str]) -> None:
    """Raise InputError for a size that is none, and for classes that are no list of different names."""
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InputError(f"dim must be a whole number, 1 or more, got {dim!r}")
    names = [] if classes is None or isinstance(classes, str) else list(classes)
    if not names or len(set(names)) < len(names):
        raise InputError(f"classes must be a list of different names, got {classes!r:.60}")


def calibration(probe: Probe, text: DomainText, val: Embedded, run: int) -> tuple[float, float]:
    """Return one run's factors of zero-shot cosines and probe logits; see `lads.baselines.temperatures`."""
    by_text, by_probe = temperatures(probe, text.adaptive, val)
    return by_text.item(), by_probe[run].item()
