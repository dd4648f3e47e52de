"""Gradient M-steps: the losses of a backbone and its mixture."""

import torch
from torch import nn
from torch.nn import functional as F

from diffusers_ext.streams.objective import (
    MixtureHead,
    MixtureObjective,
    assign,
    class_scores,
    classification_loss,
    component_logits,
    distillation_loss,
    mixture_regulariser,
)

OWNERS = torch.tensor([0, 0, 0, 1, 2, 2])


def drawn(samples: int = 32, dim: int = 16):
    torch.manual_seed(0)
    features, means, labels = torch.randn(samples, dim), torch.randn(6, dim), torch.randint(0, 3, (samples,))
    return features, means, labels, component_logits(features, means, OWNERS, torch.tensor(16.0))


def test_class_and_component_terms_are_the_joint_cross_entropy():
    """Check 20: −ln softmax over all components, class by class and component by component."""
    _, _, labels, logits = drawn()
    assigned = assign(logits, OWNERS, labels)
    assert torch.allclose(
        classification_loss(logits, OWNERS, labels, assigned), F.cross_entropy(logits, assigned), atol=1e-6
    )
    weights = torch.rand(32)
    each = F.cross_entropy(logits, assigned, reduction="none")
    weighted = classification_loss(logits, OWNERS, labels, assigned, 1.0, weights)
    assert torch.allclose(weighted, (weights * each).sum(), atol=1e-5)
    alone = classification_loss(logits, OWNERS, labels, assigned, 0.0)
    assert torch.allclose(alone, F.cross_entropy(class_scores(logits, OWNERS, 3), labels), atol=1e-6)


def test_one_component_a_class_is_a_cosine_classifier():
    """Check 21, for the gradient path."""
    features, means, _, _ = drawn()
    owners = torch.arange(6)
    scores = class_scores(component_logits(features, means, owners, torch.tensor(16.0)), owners, 6)
    assert torch.allclose(scores, 16 * F.cosine_similarity(features[:, None], means[None], dim=2), atol=1e-5)


def test_a_class_far_below_the_best_one_has_a_finite_loss_and_gradient():
    logits = torch.tensor([[150.0, 149.0, 1.0, 3.0, 2.0, 0.0]], requires_grad=True)
    loss = classification_loss(logits, OWNERS, torch.tensor([2]), torch.tensor([5]))
    assert torch.allclose(loss, logits.logsumexp(1) - logits[0, 5])
    loss.backward()
    assert logits.grad.isfinite().all()


def test_the_e_step_takes_the_closest_mean_of_the_true_class():
    features, means, labels, logits = drawn()
    cosine = F.cosine_similarity(features[:, None], means[None], dim=2)
    for row, chosen in enumerate(assign(logits, OWNERS, labels).tolist()):
        own = (labels[row] == OWNERS).nonzero().squeeze(1)
        assert chosen == int(own[cosine[row, own].argmax()])


def test_distillation_is_least_at_the_teacher():
    _, _, _, logits = drawn()
    assert distillation_loss(logits, logits).abs() < 1e-6
    assert distillation_loss(logits + torch.randn_like(logits), logits) > 0.01


def test_the_regulariser_wants_tight_and_live_components():
    logits, labels = torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)
    even = mixture_regulariser(logits, OWNERS, labels, torch.ones(4))
    assert even.abs() < 1e-6
    logits[:, 0] = 20.0  # two components of class 0 are dead
    assert mixture_regulariser(logits, OWNERS, labels, torch.ones(4)) > even + 0.1
    assert mixture_regulariser(torch.zeros(4, 6), OWNERS, labels, torch.full((4,), 0.5)) > even + 0.4


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 8)

    def forward(self, images):
        return self.linear(images.flatten(1))


def test_an_objective_learns_and_its_teacher_stays(tmp_path):
    torch.manual_seed(0)
    backbone, old, head = Backbone(), MixtureHead(8, [0, 1]), MixtureHead(8, [0, 1, 0, 2])
    for each in (old, head):
        nn.init.normal_(each.means)
    objective = MixtureObjective(backbone, head, (backbone, old))
    before = [value.clone() for value in objective.teacher.parameters()]
    batch = {"image": torch.randn(24, 3, 2, 2), "label": torch.arange(24) % 3}
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 0.02)
    losses = []
    for _ in range(40):
        parts = objective(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
    assert losses[-1] < 0.7 * losses[0] and {"classification", "distillation", "regulariser"} < set(parts)
    assert all(torch.equal(value, was) for value, was in zip(objective.teacher.parameters(), before))
    head.save_pretrained(tmp_path)
    loaded = MixtureHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.means, head.means) and loaded.of_class.tolist() == [0, 1, 0, 2]
