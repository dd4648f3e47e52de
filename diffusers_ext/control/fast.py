"""Exact ControlNet inference without the waste, for any diffusers pipeline that calls `self.controlnet` once per step.

diffusers runs a ControlNet at every step, also where its scale is 0 or its guidance window is closed, and embeds the
condition anew each time. Both are avoided here from the outside: for the length of one call, hooks of `diffusers.hooks`
(the mechanism of diffusers' own caches) stand around the ControlNet, and the pipeline's loop stays diffusers'.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.hooks import ModelHook
from diffusers.utils.torch_utils import is_compiled_module, unwrap_module
from torch import nn

from ..diffusion.base import family_of
from ..diffusion.bases import network_of
from ..diffusion.hooks import hooked
from ..diffusion.signatures import CallMixin, call_behind
from ..errors import InputError

ConnectionScales = Sequence[float] | Sequence[Sequence[float]]
OFF = 0.0  # what a control that does not act adds, as a number: it sums with residuals of any shape
REFERENCE_SIDE = 64  # latents of Stable Diffusion 1.5 at 512 px


class FastControlMixin(CallMixin):
    """Put it before a diffusers ControlNet pipeline in the bases of a class."""

    def __call__(
        self,
        *args: Any,
        connection_scales: ConnectionScales | None = None,
        guidance_resolution_weighting: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Draw as the diffusers pipeline does, with its arguments and its results, without calls that change nothing.

        Args:
            connection_scales: one factor per connection between ControlNet and U-Net, on top of
                `controlnet_conditioning_scale`: the skip connections from fine to coarse, then the middle block (13
                numbers for Stable Diffusion 1.5, 10 for XL). With several controls, one list for all or one list each.
            guidance_resolution_weighting: condition the half with the prompt only, and multiply connection i by
                `resolution_weight`. Use a lower `guidance_scale` with it.

        Raises InputError (a ValueError) for a wrong number of connection scales, and for resolution weighting without
        classifier-free guidance, with `guess_mode`, or with a ControlNet that pools its residuals.
        """
        call = inspect.signature(call_behind(self, FastControlMixin)).bind(*args, **kwargs)
        call.apply_defaults()
        if guidance_resolution_weighting:
            self._check_weighting(call.arguments)
            # In guess mode diffusers runs the ControlNet on the half with the prompt and pads the other with zeros.
            call.arguments["guess_mode"] = True
        with fast_control(self.controlnet, connection_scales, guidance_resolution_weighting):
            return super().__call__(*call.args, **call.kwargs)

    added = (__call__,)

    def _check_weighting(self, arguments: dict[str, Any]) -> None:
        if arguments["guess_mode"]:
            raise InputError("guess_mode and guidance_resolution_weighting both weight the connections; choose one")
        network = network_of(self)
        if not family_of(network).guided(network.config, arguments["guidance_scale"]):
            raise InputError("guidance_resolution_weighting needs classifier-free guidance: a guidance_scale above 1")
        if any(net.config.global_pool_conditions for net in _nets(self.controlnet)):
            raise InputError("guidance_resolution_weighting needs a resolution; this ControlNet pools its residuals")


@contextmanager
def fast_control(
    controlnet: ControlNetModel | MultiControlNetModel,
    connection_scales: ConnectionScales | None = None,
    resolution_weighting: bool = False,
) -> Iterator[None]:
    """Make every call of `controlnet` inside the block skip, reuse and weight; see `FastControlMixin.__call__`.

    Inside, a call whose controls are all off returns (None, None), or broadcastable zeros in guess mode. One block at a
    time per ControlNet: do not share it between threads meanwhile.
    """
    nets = _nets(controlnet)
    factors = _factors(connection_scales, nets)
    with ExitStack() as stack:
        for net in dict.fromkeys(nets):  # the same ControlNet may be listed twice
            hint = None
            if not is_compiled_module(net):  # inside a compiled graph the condition is embedded at each step
                hint = stack.enter_context(hooked(net.controlnet_cond_embedding, _HintHook(kept=nets.count(net))))
            stack.enter_context(hooked(net, _ControlHook(factors, resolution_weighting, hint)))
        stack.enter_context(hooked(controlnet, _EntryHook()))
        yield


def resolution_weight(residual: torch.Tensor) -> float:
    """w_i = 64 / h_i, CFG resolution weighting (Zhang & Agrawala 2023, section 3.4).

    residual: (B, C, h, w). h_i is the side of block i in latent positions; √(h·w) where it is not square. From fine to
    coarse 1 to 8 for Stable Diffusion 1.5 at 512 px, 1/2 to 2 for XL at 1024 px: the 64 is the paper's, not the model's.

    >>> resolution_weight(torch.zeros(1, 320, 64, 64)), resolution_weight(torch.zeros(1, 1280, 8, 8))
    (1.0, 8.0)
    """
    height, width = residual.shape[-2:]
    return REFERENCE_SIDE / (height * width) ** 0.5


class _HintHook(ModelHook):
    """Around `controlnet_cond_embedding`: embeds a condition once, until another comes or it is changed in place."""

    def __init__(self, kept: int):
        super().__init__()
        self.kept = kept
        self.source: torch.Tensor | None = None  # set by _ControlHook: the condition before any change of channel order
        self.hints: list[tuple[torch.Tensor, int | None, torch.Tensor]] = []

    def new_forward(self, module: nn.Module, conditioning: torch.Tensor) -> torch.Tensor:
        version = _version(self.source)
        for source, known, hint in self.hints:
            if source is self.source and known == version:
                return hint
        hint = self.fn_ref.original_forward(conditioning)
        self.hints = [*self.hints, (self.source, version, hint)][-self.kept :]
        return hint

    def deinitalize_hook(self, module: nn.Module) -> nn.Module:
        self.source, self.hints = None, []  # hook and function reference form a cycle; do not wait for the collector
        return module


class _ControlHook(ModelHook):
    """Around one ControlNet: no computation where it is off, else its residuals times the connections' factors."""

    def __init__(self, factors: list[list[float] | None], resolution_weighting: bool, hint: _HintHook | None):
        super().__init__()
        self.factors, self.resolution_weighting, self.hint = factors, resolution_weighting, hint

    def new_forward(
        self,
        net: nn.Module,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditioning_scale: tuple[int, float],
        controlnet_cond: torch.Tensor,
        guess_mode: bool,
        **kwargs: Any,
    ) -> tuple[list, torch.Tensor | float]:
        """conditioning_scale: (which control, its scale at this step), as `_EntryHook` passes it."""
        control, scale = conditioning_scale
        factors = self.factors[control]
        if scale == 0 or (factors is not None and not any(factors)):
            return [OFF] * len(net.controlnet_down_blocks), OFF
        if self.hint is not None:
            self.hint.source = controlnet_cond
        down, middle = self.fn_ref.original_forward(
            sample,
            timestep,
            conditioning_scale=scale,
            controlnet_cond=controlnet_cond,
            guess_mode=guess_mode and not self.resolution_weighting,
            **kwargs,
        )
        *down, middle = self._weighted([*down, middle], factors)
        return down, middle

    def _weighted(self, residuals: list[torch.Tensor], factors: list[float] | None) -> list[torch.Tensor]:
        if factors is not None:
            residuals = [residual * factor for residual, factor in zip(residuals, factors)]
        if self.resolution_weighting:
            residuals = [residual * resolution_weight(residual) for residual in residuals]
        return residuals


class _EntryHook(ModelHook):
    """Around what the pipeline calls: numbers the controls, and says "none" in the way the pipeline can pass on."""

    def new_forward(
        self,
        module: nn.Module,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        conditioning_scale: float | list[float],
        guess_mode: bool,
        **kwargs: Any,
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        several = isinstance(unwrap_module(module), MultiControlNetModel)
        scales: Any = (0, conditioning_scale)
        if several:
            assert isinstance(conditioning_scale, list)
            scales = list(enumerate(conditioning_scale))
        down, middle = self.fn_ref.original_forward(
            sample, timestep, conditioning_scale=scales, guess_mode=guess_mode, **kwargs
        )
        if isinstance(middle, torch.Tensor):
            return down, middle
        if not guess_mode:
            return None, None
        # The pipeline concatenates zeros for the other half, so tensors they must be: x + 0 is x.
        zeros = sample.new_zeros((sample.shape[0], 1, 1, 1))
        return [zeros] * len(down), zeros


def _nets(controlnet: nn.Module) -> list[nn.Module]:
    several = isinstance(unwrap_module(controlnet), MultiControlNetModel)
    return list(controlnet.nets) if several else [controlnet]


def _factors(connection_scales: ConnectionScales | None, nets: list[nn.Module]) -> list[list[float] | None]:
    if connection_scales is None:
        return [None] * len(nets)
    rows: Sequence[Any] = connection_scales
    if not any(isinstance(row, Sequence) for row in rows):
        rows = [connection_scales] * len(nets)
    if len(rows) != len(nets):
        raise InputError(f"connection_scales has lists for {len(rows)} controls, but there are {len(nets)}")
    for row, net in zip(rows, nets):
        skips = len(cast("Any", net).controlnet_down_blocks)
        if len(row) != skips + 1:
            raise InputError(
                f"connection_scales has {len(row)} numbers, but this ControlNet has {skips + 1} connections:"
                f" {skips} skip connections from fine to coarse, then the middle block"
            )
    return [[float(factor) for factor in row] for row in rows]


def _version(tensor: torch.Tensor) -> int | None:
    """Return a number that changes when the tensor is written to; None where PyTorch keeps no count."""
    return None if tensor.is_inference() else tensor._version
