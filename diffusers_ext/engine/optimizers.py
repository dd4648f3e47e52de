"""AdamW as every training here uses it: fused or in 8 bits, decaying towards zero or towards the initial weights.

`TransformersAdamW` is the update that transformers had until version 5, for results that were published with it.
"""

import importlib.util
from typing import Any

import torch

from ..errors import InputError
from ..options import TrainingOptions


def check_optimizer(options: TrainingOptions) -> None:
    """Raise InputError if the optimiser that options ask for cannot run here."""
    if options.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "--use_8bit_adam: bitsandbytes is not installed; pip install bitsandbytes, or leave it out: AdamW is fused"
        )


def adamw(parameters: list[torch.nn.Parameter], options: TrainingOptions, ranks: int) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused or in 8 bits (Dettmers et al. 2022); matrices decay, vectors do not.

    >>> weights = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    >>> [group['weight_decay'] for group in adamw(weights, TrainingOptions(), ranks=1).param_groups]
    [0.01, 0.0]
    """
    rate = options.learning_rate
    if options.scale_lr:
        rate *= options.gradient_accumulation_steps * options.train_batch_size * ranks
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": 0.0 if options.decay_to_initial else options.adam_weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    settings = {"lr": rate, "betas": (options.adam_beta1, options.adam_beta2), "eps": options.adam_epsilon}
    if options.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(groups, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, **settings, fused=True)
    if options.decay_to_initial:
        decay_to(matrices, optimizer, options.adam_weight_decay)
    return optimizer


def decay_to(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Decay the optimiser's first group towards the values it has now: θ ← θ − η λ (θ − θ₀), then the optimiser's step.

    With θ₀ = 0 this is AdamW's own decay. The group's own must be 0. A resumed run finds the same θ₀ as long as it
    starts as the first one did, before its checkpoint is read: the values are not saved. They take as much memory as
    `parameters`, in their type, on their device.
    """
    initial = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        torch._foreach_lerp_(parameters, initial, optimizer.param_groups[0]["lr"] * decay)

    optimizer.register_step_pre_hook(pull)


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW with ε added to the uncorrected √v, and the decay taken after the step, as in transformers before version 5.

    m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²
    θ ← θ − η·√(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + ε),  then  θ ← θ(1 − ηλ)
    """

    def __init__(self, params: Any, lr: float, betas=(0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                steps, m, v = state["step"].item(), state["exp_avg"], state["exp_avg_sq"]
                m.mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                size = rate * (1 - beta2**steps) ** 0.5 / (1 - beta1**steps)
                parameter.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-size)
                parameter.add_(parameter, alpha=-rate * group["weight_decay"])
