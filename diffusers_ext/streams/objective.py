"""Losses of a backbone that learns with its mixture: gradient M-steps (Xie, Yan & He 2022, equations 6 to 9).

Shapes: N samples, K components of all classes, D dimensions. One κ for all components, equal weights inside a class and equal
classes, so that a component's logit is s_k = κ μ_kᵀz − ln K_c. The paper's L_dis and L_reg are not known to us in
full; those here are ours, each switched off by a weight of 0.
"""

import copy

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from ..engine.objective import Objective


def component_logits(
    features: torch.Tensor, means: torch.Tensor, owners: torch.Tensor, kappa: torch.Tensor
) -> torch.Tensor:
    """Return s_k of features (N, D) for means (K, D) of classes owners (K,), both scaled to unit length: (N, K).

    >>> component_logits(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor(10.0))
    tensor([[10.,  0.],
            [ 0., 10.]])
    """
    sizes = torch.bincount(owners)[owners]
    return kappa * F.normalize(features, dim=1) @ F.normalize(means, dim=1).T - sizes.to(features).log()


def class_scores(logits: torch.Tensor, owners: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the logsumexp of each class's logits (N, K): (N, C), −inf where a class has no component.

    >>> class_scores(torch.zeros(1, 3), torch.tensor([0, 0, 1]), 2)
    tensor([[0.6931, 0.0000]])
    """
    logits_, nothing = logits.detach(), torch.full_like(logits[:, :1], -torch.inf).expand(-1, classes)
    top = nothing.scatter_reduce(
        1, owners.expand(len(logits), -1), logits_, "amax"
    )  # each class its own: none underflows
    total = torch.zeros_like(top).index_add(1, owners, (logits - top[:, owners]).exp())
    return total.log() + top


def assign(logits: torch.Tensor, owners: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Equation 6, the hard E-step: the closest mean of the true class, (N,) positions; ties to the first.

    >>> assign(torch.tensor([[0.1, 0.9, 5.0]]), torch.tensor([0, 0, 1]), torch.tensor([0]))
    tensor([1])
    """
    return logits.detach().masked_fill(owners[None] != labels[:, None], -torch.inf).argmax(1)


def classification_loss(
    logits: torch.Tensor,
    owners: torch.Tensor,
    labels: torch.Tensor,
    assigned: torch.Tensor,
    component_weight: float = 1.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """L_cls: −[ln p(y | z) + λ ln p(k | z, y)], the mean over samples or their weighted sum; equations 8 and 9.

    With λ = 1 it is the cross-entropy of the softmax over all components, as the joint likelihood of class and component splits.
    """
    of_class = class_scores(logits, owners, int(owners.max()) + 1)
    chosen = of_class.gather(1, labels[:, None]).squeeze(1)
    component = logits.gather(1, assigned[:, None]).squeeze(1) - chosen
    each = -(chosen - logits.logsumexp(1)) - component_weight * component
    return each.mean() if weights is None else (weights * each).sum()


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """L_dis: T² KL(teacher ‖ student) of posteriors over the components that the teacher has; both (N, K_old)."""
    target, own = (F.log_softmax(values / temperature, 1) for values in (teacher, logits))
    return temperature**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)


def mixture_regulariser(
    logits: torch.Tensor, owners: torch.Tensor, labels: torch.Tensor, cosine: torch.Tensor, spread: float = 0.1
) -> torch.Tensor:
    """L_reg: how far samples are from their component, 1 − cosine (N,), and how far a class is from using all of its own.

    The second part is KL(uniform ‖ mean responsibilities) of each class of the batch: it keeps components alive.
    """
    share = logits.masked_fill(owners[None] != labels[:, None], -torch.inf).softmax(1)
    present = F.one_hot(labels, int(owners.max()) + 1).to(share)
    mean = (present / present.sum(0).clamp_min(1)).T @ share  # (C, K)
    own = mean.gather(0, owners[None]).squeeze(0).clamp_min(1e-8)
    sizes = torch.bincount(owners)[owners].to(share)
    divergence = -((own * sizes).log() / sizes) * (present.sum(0)[owners] > 0)
    return (1 - cosine).mean() + spread * divergence.sum() / (present.sum(0) > 0).sum()


class MixtureHead(ModelMixin, ConfigMixin):
    """Means (K, D) of all classes' components and ln κ, what the gradient M-step moves; owners: each one's class."""

    @register_to_config
    def __init__(self, dim: int, owners: list[int], kappa: float = 16.0):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(len(owners), dim))
        self.log_kappa = nn.Parameter(torch.tensor(kappa).log())
        self.register_buffer("of_class", torch.tensor(owners, dtype=torch.int64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the components' logits, (N, K); κ is held in 1 to 200."""
        kappa = self.log_kappa.exp().clamp(1, 200)
        return component_logits(features, self.means, self.of_class, kappa)


class LinearHead(ModelMixin, ConfigMixin):
    """A linear layer in the place of the mixture, for comparison: logits of classes, (N, C), as of one component each."""

    @register_to_config
    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(dim, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("of_class", torch.arange(classes))

    @classmethod
    def grown(cls, old: "LinearHead | None", dim: int, classes: int) -> "LinearHead":
        """Return a head for so many classes that knows what an old one, of the first of them, knows."""
        head = cls(dim, classes)
        if old is not None:
            size = len(old.of_class)
            head.linear.weight.data[:size], head.linear.bias.data[:size] = old.linear.weight.data, old.linear.bias.data
        return head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear(features)


class MixtureObjective(Objective):
    """L_cls + L_dis + L_reg of a batch {"image" (N, 3, H, W), "label" (N,)}, drawn so that classes and components weigh equally.

    backbone: images to features (N, D), a module with save_pretrained. teacher: backbone and head before this session's
    components were added; its components are the head's first ones. The E-step is taken on every batch. A LinearHead has no
    means: it takes no regulariser.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: MixtureHead | LinearHead,
        teacher: tuple[nn.Module, MixtureHead] | None = None,
        component_weight: float = 1.0,
        distillation: float = 1.0,
        regulariser: float = 0.1,
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.trainable = {"backbone": backbone, "head": head}
        self.component_weight, self.distillation, self.regulariser = component_weight, distillation, regulariser
        self.teacher = nn.ModuleList(copy.deepcopy(teacher)).requires_grad_(False) if teacher and distillation else None

    def train(self, mode: bool = True) -> "MixtureObjective":
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        labels, owners = batch["label"], self.head.of_class
        features = self.backbone(batch["image"])
        logits = self.head(features)
        assigned = assign(logits, owners, labels)
        parts = {"classification": classification_loss(logits, owners, labels, assigned, self.component_weight)}
        if self.regulariser:
            cosine = (F.normalize(features, dim=1) * F.normalize(self.head.means[assigned], dim=1)).sum(1)
            parts["regulariser"] = self.regulariser * mixture_regulariser(logits, owners, labels, cosine)
        if self.teacher is not None:
            with torch.no_grad():
                old = self.teacher[1](self.teacher[0](batch["image"]))
            parts["distillation"] = self.distillation * distillation_loss(logits[:, : old.shape[1]], old)
        return {"loss": sum(parts.values()), **parts}
