"""Moving image embeddings to unseen domains by words: the losses of LADS (Dunlap et al. 2023).

    d_i   = unit(T[k, y_i] − S[s*, y_i]),   s* = argmax_s x_i·S[s, y_i]          the move in text
    L_DA  = mean_i 1 − cos(o_i − x_i, d_i),  o_i = f_k(x_i)                       domain alignment
    L_CC  = Σ_i w_i·CE(scale·unit(o_i)·E, y_i) / Σ_i w_i                          class consistency
    L     = α·L_DA + (1 − α)·L_CC

In the bias setting one network moves each image to the other of two domains:

    d_i   = unit(S[1 − b_i, y_i] − S[b_i, y_i]),   b_i the domain of image i
    L_NN  = CE(e^0.007·unit(o)·unit(x)ᵀ, nearest row to x_i itself),  added with weight λ.

Many networks are many problems: losses are (G,), and `lads.fit.fit` steps on their sum. With the defaults these are
the official code's, which normalises o in L_CC and not in L_DA and has scale 1.

Shapes: G networks, R runs of G/R networks each, B rows, D the width, C classes, n_s source sentences.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .bank import AugmentationBank, each_network

NEIGHBOUR_SCALE = math.exp(0.007)  # the official factor
SHORT = 0.1  # of residual networks: a move shorter than this counts by its length, since at zero it has no direction


def direction_loss(moves: torch.Tensor, directions: torch.Tensor, kind: str = "cosine") -> torch.Tensor:
    """Compare moves with directions, (..., D) each: 1 − cos (...,), or the mean squared or absolute difference, a scalar."""
    if kind == "cosine":
        return misalignment(moves, F.normalize(directions, dim=-1))
    return {"mse": F.mse_loss, "mae": F.l1_loss}[kind](moves, directions)


def misalignment(moves: torch.Tensor, directions: torch.Tensor, short: float = 1e-8) -> torch.Tensor:
    """Return 1 − cos of moves and unit directions, (..., D) -> (...,).

    short: the length below which a move's cosine is scaled down to its length.
    """
    return 1 - (moves * directions).sum(-1) / lengths(moves, short)


def lengths(x: torch.Tensor, least: float = 1e-12) -> torch.Tensor:
    """Return row norms, (..., D) -> (...,); their gradient is one product, where that of `norm` is four."""
    return (x * x).sum(-1).clamp_min(least**2).sqrt()


def class_logits(x: torch.Tensor, classes: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Return scale·cos of rows with class text: (..., B, D), classes (..., C, D) of unit rows -> (..., B, C)."""
    return scale * (classes @ x.mT).mT / lengths(x)[..., None]


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (1/n_c) / max_c(1/n_c), (C,): each class counts alike, the rarest with weight 1; 0 for a class without rows.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.3333, 1.0000])
    """
    inverse = 1 / labels.bincount(minlength=classes).clamp_min(1)
    inverse = inverse * (labels.bincount(minlength=classes) > 0)
    return inverse / inverse.max()


def move_table(source: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return unit(T[k, y] − S[s, y]), the moves from each source sentence to each target, (K, n_s, C, D)."""
    return F.normalize(targets[:, None] - source, dim=-1)


def swap_table(text: torch.Tensor) -> torch.Tensor:
    """Return unit(S[1 − b, y] − S[b, y]), the move of one network out of each of two domains, (1, 2, C, D)."""
    return F.normalize(text.flip(0) - text, dim=-1)[None]


def modality_gap(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return unit(mean image − mean source sentence), (D,): what tells images from text (Liang et al. 2022).

    x (N, D) images, source (n_s, C, D). Differences of sentences go partly along it, as no change of an image does.
    """
    return F.normalize(x.mean(0) - source.mean((0, 1)), dim=0)


def without(moves: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """Return unit moves, (..., D), made orthogonal to a unit vector (D,)."""
    return F.normalize(moves - (moves @ gap)[..., None] * gap, dim=-1)


def nearest_sentences(x: torch.Tensor, labels: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Return s*_i, the source sentence of the own class nearest to each row: x (N, D), source (n_s, C, D) -> (N,)."""
    return torch.stack([(x * sentence[labels]).sum(-1) for sentence in source]).argmax(0)


def directions(table: torch.Tensor, starts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Look up d_i of rows that start at a sentence or domain: table (K, M, C, D), starts and labels (..., B) -> (K, ..., B, D)."""
    return table[:, starts, labels]


def nearest_domains(x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return the domain that text gives each row, (N,): argmax_k x·mean_c text[k, c]; x (N, D), text (K, C, D)."""
    return (x @ F.normalize(text.mean(1), dim=-1).T).argmax(-1)


def neighbour_logits(o: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return e^0.007·cos of all pairs: (..., B, D), (..., M, D) -> (..., B, M)."""
    return NEIGHBOUR_SCALE * F.normalize(o, dim=-1) @ F.normalize(x, dim=-1).mT


def neighbour_loss(o: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return L_NN per network, (G,): stay nearer to the own original than to others; o and x (G, B, D)."""
    own = neighbour_logits(x, x).argmax(-1)
    return F.cross_entropy(neighbour_logits(o, x).mT, own, reduction="none").mean(-1)


def pairwise_loss(o: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the mean squared change of the cosines among a batch's rows, (G,); it keeps a class from collapsing.

    o and x (G, B, D). A regulariser of LDFS' kind (2405.02586).
    """
    o, x = F.normalize(o, dim=-1), F.normalize(x, dim=-1)
    return (o @ o.mT - x @ x.mT).square().mean((-2, -1))


@dataclass
class Terms:
    """What the loss is made of. alpha: the share of L_DA. neighbour_weight: λ. The rest is not in the paper, and off:
    normalised_direction: o normalised in L_DA too; logit_scale: of L_CC, so that it ceases once the class is right;
    pairwise_weight: of `pairwise_loss`."""

    alpha: float = 0.5
    neighbour_weight: float = 0.0
    normalised_direction: bool = False
    logit_scale: float = 1.0
    pairwise_weight: float = 0.0


class LatentAugmentation(nn.Module):
    """The losses of a bank, network by network. batch: "x" (R, B, D) unit rows; "labels" and "starts" (R, B).

    classes: E, (C, D), or (G, C, D) for class text of each network's own domain. weights (C,) of the classes. table: the
    moves in text, (G/R, M, C, D), the same for every run; "starts" says from which of M sentences or domains a row starts.
    """

    def __init__(
        self,
        bank: AugmentationBank,
        table: torch.Tensor,
        classes: torch.Tensor,
        weights: torch.Tensor,
        terms: Terms | None = None,
    ):
        super().__init__()
        self.bank, self.terms = bank, terms or Terms()
        for name, value in (("table", table), ("classes", classes), ("weights", weights)):
            self.register_buffer(name, value)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {"loss": (G,), "direction": (G,), "class": (G,), "neighbour"?, "pairwise"?}, one entry per network."""
        terms, o = self.terms, self.bank(batch["x"])
        # The bank's output has its rows in columns of memory; what meets it element by element is laid out alike.
        x = each_network(batch["x"].mT.contiguous(), len(self.table)).mT
        wanted = directions(self.table, batch["starts"], batch["labels"]).transpose(0, 1).mT
        wanted = wanted.reshape(o.mT.shape).contiguous().mT
        labels = each_network(batch["labels"], len(self.table))
        moves = (F.normalize(o, dim=-1) if terms.normalised_direction else o) - x
        aligned = misalignment(moves, wanted, SHORT if self.bank.residual else 1e-8).mean(-1)
        logits = class_logits(o, self.classes, terms.logit_scale)
        consistent = weighted_cross_entropy(logits, labels, self.weights[labels])
        loss = terms.alpha * aligned + (1 - terms.alpha) * consistent
        parts = {"direction": aligned, "class": consistent}
        for name, term, weight in (
            ("neighbour", neighbour_loss, terms.neighbour_weight),
            ("pairwise", pairwise_loss, terms.pairwise_weight),
        ):
            if weight:
                parts[name] = term(o, x)
                loss = loss + weight * parts[name]
        return {"loss": loss, **parts}


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return Σ w·CE / Σ w of each problem, (G,); logits (G, B, C), labels and weights (G, B)."""
    losses = F.cross_entropy(logits.mT, labels, reduction="none")
    return (weights * losses).sum(-1) / weights.sum(-1).clamp_min(1e-12)


class Probe(nn.Module):
    """Linear classifiers of unit rows, one per run: weight (R, C, D), bias (R, C), trained by weighted cross-entropy.

    batch: "x" (R, B, D), "labels" (R, B), "weights" (R, B) of the rows. "loss" is (R,).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of rows, (R, N, D) -> (R, N, C)."""
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": weighted_cross_entropy(self.logits(batch["x"]), batch["labels"], batch["weights"])}
