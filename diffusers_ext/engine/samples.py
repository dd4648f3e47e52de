"""What a run draws and measures while it trains: on the main process, within the averaged weights, never ending the run."""

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from .lock import Interrupted, Sigterm
from .run_folder import Metrics, read_metrics


class Preview(Protocol):
    """Draws samples of the current weights. It may have an attribute `stop`: whether no more is to be learned."""

    def __call__(self, step: int) -> dict[str, Any]:
        """Return what was measured, numbers by name, and what was drawn, lists of pictures by tag."""
        ...


@dataclass(frozen=True)
class SampleDrawing:
    """Calls the preview of a run, if it has one; weights: the context in which samples are drawn."""

    accelerator: Accelerator
    preview: Preview | None
    metrics: Metrics
    weights: Callable[[], AbstractContextManager[None]]

    def catch_up(self, step: int, sigterm: Sigterm) -> None:
        """Draw the samples of a step whose drawing was interrupted; leave those that were measured."""
        if not self.accelerator.is_main_process or self.preview is None:
            return
        rows = [row for row in read_metrics(self.metrics.path.parent) if row["step"] == step]
        if rows and all("loss" in row for row in rows):
            self.draw(step, sigterm)

    def draw(self, step: int, sigterm: Sigterm) -> None:
        """Draw and measure; a failure is printed, SIGTERM ends drawing and leaves no trace of it."""
        if not self.accelerator.is_main_process or self.preview is None:
            return
        seen: dict[str, Any] = {}
        try:
            with self.weights(), torch.inference_mode(), self.accelerator.autocast(), sigterm.interrupts():
                seen = self.preview(step)
        except Interrupted:
            print(f"SIGTERM: drawing the samples of step {step} is interrupted; a resumed run draws them")
            return
        except Exception:
            print(f"the samples of step {step} could not be drawn; training continues\n{traceback.format_exc()}")
        self.metrics.note(step, seen)

    @property
    def wants_to_stop(self) -> bool:
        """Whether the preview says that no more is to be learned; every rank gets the main process's answer."""
        mine = self.accelerator.is_main_process and getattr(self.preview, "stop", False)
        return on_any_rank(self.accelerator, mine)


def on_any_rank(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it is so on any rank; every rank calls this."""
    if accelerator.num_processes == 1:
        return bool(mine)
    return bool(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum") > 0)
