"""Training many small independent problems at once, each keeping its own best epoch, whole or resumed.

The first dimension of every parameter is the problem: an augmentation network for each seed and domain, a probe for each
seed. Their gradients do not meet, so a step on the sum of the losses is a step on each.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from .. import randomness
from ..cache import write_atomically
from ..engine.optimizers import TransformersAdamW
from ..errors import InputError

Orders = Callable[[int], list[torch.Tensor]]  # epoch -> its batches of row numbers, (R, B) each, the last may be short
Rows = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # row numbers (R, B) -> what the objective reads


@dataclass
class Fitted:
    """What `fit` saw: a row per epoch, and the epoch each problem's weights are of, (G,)."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: list[int] = field(default_factory=list)


class Watch(NamedTuple):
    """How a fit is looked after: the checkpoint that it is resumed from and saved to, and the name of its progress bar."""

    checkpoint: "Checkpoint | None" = None
    show: str | None = None


def fit(
    objective: torch.nn.Module,
    rows: Rows,
    orders: Orders,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    measure: Callable[[int], torch.Tensor],
    watch: Watch = Watch(),  # noqa: B008, it is immutable
) -> Fitted:
    """Train independent problems at once, and leave each with the weights of the epoch where it measured lowest.

    objective: gives "loss" (G,), and G is the first dimension of all its parameters, so that one step on the sum is a
    step on each. measure: epoch -> (G,), of the current weights; the earliest of equal epochs counts. Raises
    FloatingPointError where a loss is not finite.
    """
    checkpoint, show = watch
    parameters = list(objective.parameters())
    best = [parameter.detach().clone() for parameter in parameters]
    lowest = torch.full((len(parameters[0]),), math.inf, device=parameters[0].device)
    fitted = Fitted(best_epoch=[-1] * len(lowest))
    if checkpoint:
        fitted = checkpoint.load(parameters, best, lowest, optimizer) or fitted
    for epoch in tqdm(range(len(fitted.history), epochs), desc=show, unit="epoch", disable=show is None):
        total, steps = torch.zeros_like(lowest), 0
        for index in orders(epoch):
            loss = objective(rows(index))["loss"]
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            total, steps = total + loss.detach(), steps + 1
        if not total.isfinite().all():
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}; lower the learning rate")
        with torch.no_grad():
            score = measure(epoch)
            better = score < lowest
            lowest[better] = score[better]
            for kept, parameter in zip(best, parameters):
                kept[better] = parameter[better]
        for problem in better.nonzero().flatten().tolist():
            fitted.best_epoch[problem] = epoch
        fitted.history.append({"epoch": epoch, "loss": (total / steps).tolist(), "score": score.tolist()})
        if checkpoint and (epoch + 1 == epochs or (epoch + 1) % checkpoint.every == 0):
            checkpoint.save(fitted, parameters, best, lowest, optimizer)
    with torch.no_grad():
        for kept, parameter in zip(best, parameters):
            parameter.copy_(kept)
    return fitted


@dataclass
class Checkpoint:
    """A file with all of a fit's state, written whole or not at all every so many epochs.

    made_of: what the fit depends on; a file of another fit is refused. read: whether to resume from it.
    """

    path: Path
    made_of: str
    every: int = 10
    read: bool = True

    def save(self, fitted: Fitted, parameters, best, lowest, optimizer) -> None:
        tensors = {"lowest": lowest}
        for at, (parameter, kept) in enumerate(zip(parameters, best)):
            tensors |= {f"{at}.now": parameter.detach(), f"{at}.best": kept}
            tensors |= {f"{at}.optimizer.{name}": value for name, value in optimizer.state[parameter].items()}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        about = {"made_of": self.made_of, "fitted": json.dumps(vars(fitted))}
        about["sha256"] = digest_of_state(tensors, about)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(tensors, about))

    def load(self, parameters, best, lowest, optimizer) -> Fitted | None:
        """Put a state back, in place; None where there is no file, or none is wanted."""
        if not self.read or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            whole = about.pop("sha256", None) == digest_of_state(tensors, about)
        except (SafetensorError, AttributeError):
            whole = False
        if not whole:
            print(f"passing over {self.path}: damaged")
            return None
        if about["made_of"] != self.made_of:
            raise InputError(f"{self.path}: of other data or options; give those of the run, or another --output_dir")
        lowest.copy_(tensors["lowest"])
        with torch.no_grad():
            for at, (parameter, kept) in enumerate(zip(parameters, best)):
                parameter.copy_(tensors[f"{at}.now"])
                kept.copy_(tensors[f"{at}.best"])
        for at, parameter in enumerate(parameters):
            start = f"{at}.optimizer."
            state = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
            optimizer.state[parameter] = {name: value.to(parameter.device) for name, value in state.items()}
        return Fitted(**json.loads(about["fitted"]))


def digest_of_state(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> str:
    """Return the SHA-256 of a state: what is said about it, and its values."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def shuffled(samples: int, batch_size: int, seeds: Sequence[int], stream: str) -> Orders:
    """Return the batches of each epoch, one order for every seed; the last batch holds what is left.

    >>> orders = shuffled(4, batch_size=2, seeds=[0], stream='example')
    >>> [batch.shape for batch in orders(0)]
    [torch.Size([1, 2]), torch.Size([1, 2])]
    """

    def orders(epoch: int) -> list[torch.Tensor]:
        each = [randomness.generator(seed, stream, epoch).permutation(samples) for seed in seeds]
        return list(torch.stack([torch.from_numpy(order) for order in each]).split(batch_size, dim=1))

    return orders


def adamw(parameters: list[torch.nn.Parameter], rate: float, decay: float, official: bool) -> torch.optim.Optimizer:
    """AdamW with constant rate, decaying biases too, as published; official: by the update it was published with."""
    if official:
        return TransformersAdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, eps=1e-6, fused=True)
