"""The optimiser: its groups, its decay, 8 bits."""

import sys
import types
from dataclasses import dataclass

import pytest
import torch

from diffusers_ext.engine.loop import check
from diffusers_ext.engine.optimizers import adamw
from diffusers_ext.errors import InputError
from diffusers_ext.options import TrainingOptions


@dataclass
class Options(TrainingOptions):
    pass


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4)


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_decay_and_vectors_do_not():
    optimizer = adamw([*layer().parameters()], Options(adam_weight_decay=0.3, learning_rate=0.1), 1)
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.3), (1, 0.0)]


def test_decay_to_initial_is_its_formula():
    """θ ← θ − η λ (θ − θ₀), then Adam without decay, written out by hand."""
    rate, decay, model, plain = 0.1, 0.5, layer(), layer()
    options = Options(learning_rate=rate, adam_weight_decay=decay, decay_to_initial=True)
    steps(model, adamw([*model.parameters()], options, 1), 5)

    initial = plain.weight.detach().clone()
    adam = torch.optim.AdamW(plain.parameters(), lr=rate, weight_decay=0.0)

    def by_hand() -> None:
        with torch.no_grad():
            plain.weight -= rate * decay * (plain.weight - initial)

    stepped = types.SimpleNamespace(step=lambda: (by_hand(), adam.step()), zero_grad=adam.zero_grad)
    steps(plain, stepped, 5)
    torch.testing.assert_close(model.weight, plain.weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model.bias, plain.bias, atol=1e-6, rtol=1e-6)


def test_decay_to_initial_from_zero_is_adamws_own():
    models = [layer(), layer()]
    for model, towards_initial in zip(models, (False, True)):
        torch.nn.init.zeros_(model.weight)
        options = Options(learning_rate=0.1, adam_weight_decay=0.5, decay_to_initial=towards_initial)
        torch.nn.init.ones_(model.bias)
        steps(model, adamw([*model.parameters()], options, 1), 5)
    torch.testing.assert_close(models[0].weight, models[1].weight, atol=1e-6, rtol=1e-6)


def test_weights_that_nothing_pushes_stay_where_they_began():
    """Plain decay erodes a copied weight before any gradient reaches it; this one does not."""
    model = layer()
    before = model.weight.detach().clone()
    optimizer = adamw([*model.parameters()], Options(learning_rate=0.1, decay_to_initial=True), 1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.weight, before)


def test_the_rate_of_the_decay_follows_the_schedule():
    model = layer()
    optimizer = adamw(
        [*model.parameters()], Options(learning_rate=0.1, adam_weight_decay=1.0, decay_to_initial=True), 1
    )
    with torch.no_grad():
        initial, model.weight[:] = model.weight.clone(), model.weight + 1
    for group in optimizer.param_groups:
        group["lr"] = 0.25
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, initial + 0.75)


def test_8_bits_without_bitsandbytes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        check(Options(use_8bit_adam=True, output_dir=str(tmp_path / "out")))


def test_8_bits_take_the_same_groups(monkeypatch):
    """A stand-in for bitsandbytes, which few machines have: the call is what is tested."""
    calls, fake = [], types.ModuleType("bitsandbytes.optim")

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, params, **settings):
            calls.append(settings)
            super().__init__(params, **settings)

    fake.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", fake)
    optimizer = adamw([*layer().parameters()], Options(use_8bit_adam=True, adam_beta1=0.8, scale_lr=True), 2)
    assert isinstance(optimizer, AdamW8bit)
    assert calls == [{"lr": pytest.approx(4e-5), "betas": (0.8, 0.999), "eps": 1e-8}]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_8_bits_train():
    """Where bitsandbytes is there."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = torch.nn.Linear(128, 64)
    options = Options(use_8bit_adam=True, learning_rate=1e-2, decay_to_initial=True)
    optimizer, x = adamw([*model.parameters()], options, 1), torch.randn(8, 128)
    losses = []
    for _ in range(5):
        losses.append(model(x).square().mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert optimizer.state[model.weight]["state1"].dtype == torch.uint8
