"""The state of a training: optimiser, schedule and moving average of the parameters that learn. A checkpoint holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from ..errors import InputError
from ..options import OptimizerOptions, TrainingOptions
from . import checkpoints
from .objective import Objective
from .optimizers import adamw


class State:
    """What a step changes beside the weights.

    model: the objective, as accelerate wraps it. parameters: those that learn.
    """

    def __init__(self, accelerator: Accelerator, objective: Objective, options: TrainingOptions, stop: int):
        """stop: the run's last step, which the schedule's shape depends on."""
        objective.to(accelerator.device)
        self.accelerator = accelerator
        self.parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        optimizer = adamw(self.parameters, options, accelerator.num_processes)
        self.schedule = lr_schedule(optimizer, options, stop)
        self.average = EMAModel(self.parameters, decay=options.ema_decay, foreach=True) if options.use_ema else None
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        checkpoints.attach(accelerator, objective)
        if self.average:
            accelerator.register_for_checkpointing(self.average)

    def restore(self, checkpoint: Path) -> int:
        """Read a checkpoint and return its step.

        Learning rates and decays stay those of the options given now. Raises InputError for a checkpoint of other weights.
        """
        step, groups = checkpoints.step_of(checkpoint), self.optimizer.param_groups
        given = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        try:
            self.accelerator.load_state(str(checkpoint))
        except (
            Exception
        ) as error:  # of the file formats of torch, safetensors and accelerate, of which each has its own
            raise InputError(
                f"{checkpoint}: does not fit the options of this run ({error}); give those of its own"
            ) from error
        self.accelerator.step = 0  # its count of forward passes: a checkpoint is written between steps
        if self.average:
            self.average.to(self.accelerator.device)
        self.schedule.last_epoch = step
        shapes = zip(self.optimizer.param_groups, given, self.schedule.base_lrs, self.schedule.lr_lambdas)
        for group, values, base, shape in shapes:
            group.update({**values, "lr": base * shape(step)})
        return step

    @property
    def learning_rate(self) -> float:
        """The rate of the step under way."""
        return self.optimizer.param_groups[0]["lr"]

    def close_step(self) -> None:
        """Move schedule and average on, after the optimiser's step."""
        self.schedule.step()
        if self.average:
            self.average.step(self.parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the parameters are their moving average, where there is one."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)

    def finish(self) -> None:
        """Leave the average, where there is one, as the parameters."""
        if self.average:
            self.average.copy_to(self.parameters)


def lr_schedule(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, stop: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return diffusers' schedule of that name; one step of it is one optimiser step, on any number of ranks.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> schedule = lr_schedule(optimizer, OptimizerOptions(lr_scheduler="linear", lr_warmup_steps=2), stop=4)
    >>> [schedule.lr_lambdas[0](step) for step in range(4)]
    [0.0, 0.5, 1.0, 0.5]
    """
    return get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=stop,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )
