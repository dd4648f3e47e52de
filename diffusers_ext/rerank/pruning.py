"""Best-of-N pruned by previews: candidates are scored part-way, by the picture that the network predicts, and dropped.

All candidates of a prompt go through one call of the pipeline. At chosen steps the clean latent is read off the
network's own input z_t and output at time t, whatever the sampler (ᾱ_t of the training schedule):

    ε-prediction   x_0 = (z_t − √(1−ᾱ_t) ε) / √ᾱ_t            (Ho et al. 2020, eq. 15)
    v-prediction   x_0 = √ᾱ_t z_t − √(1−ᾱ_t) v                (Salimans & Ho 2022, appendix D)
    x-prediction   x_0 itself

It is decoded and scored, and the callback hands the pipeline the latents of the better ones only.

Shapes: N candidates, M of them left; latents (M, c, h, w).
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ..diffusion.bases import network_of
from ..diffusion.hooks import Chunked, hooked
from ..diffusion.paths import PREDICTIONS, Coefficients, split
from ..errors import InputError
from .request import Request


def check_pipeline(pipe: Any, parameters: Collection[str]) -> None:
    """Raise InputError unless candidates of this pipeline can be pruned: a network, a VAE, a discrete schedule, a callback.

    parameters: the names of its arguments.
    """
    network = network_of(pipe)
    missing = [] if network is not None else ["network of a base that is known"]
    missing += [name for name in ("vae", "scheduler") if getattr(pipe, name, None) is None]
    missing += [name for name in ("callback_on_step_end", "num_images_per_prompt") if name not in parameters]
    if missing:
        raise InputError(f"{type(pipe).__name__} cannot be pruned: it has no {missing[0]}")
    apart = [name for name in ("mask_image", "pag_scale") if name in parameters]
    if apart or network.config.in_channels != network.config.out_channels:
        why = f"its {apart[0]}" if apart else "its network's further inputs"
        raise InputError(f"{type(pipe).__name__} cannot be pruned by previews: {why} would not be cut; prune by drafts")
    scheduler, kind = pipe.scheduler, pipe.scheduler.config.get("prediction_type")
    if (
        kind not in PREDICTIONS
        or getattr(scheduler, "alphas_cumprod", None) is None
        or scheduler.config.get("use_flow_sigmas")
    ):
        raise InputError(f"{type(scheduler).__name__} cannot be pruned: no discrete schedule of ε, v or x prediction")
    if "noise_sampler" in vars(scheduler):  # one stream of noise for the whole batch
        raise InputError(f"{type(scheduler).__name__} cannot be pruned: it draws the noise of all candidates at once")


class Pruning:
    """One pipeline call that loses candidates on the way; `active` stands around it, `step_end` is its callback.

    Args:
        request: schedule, number of candidates, how many stay at least, and how many go through the networks at a time.
        generators: the list that the pipeline was given. It is cut with the candidates, since samplers that draw noise
            take a generator per sample from it.
        score: pictures (M, 3, H, W) in [0, 1] -> (M,) float64, NaN where there is none.
        decoder: what decodes predictions, such as an AutoencoderTiny for these latents, or the pipeline's VAE.

    kept: numbers of the candidates left. dropped: {number: (steps done, its last score)}.
    """

    def __init__(
        self,
        pipe: Any,
        request: Request,
        generators: list[torch.Generator],
        score: Callable[[torch.Tensor], np.ndarray],
        decoder: Any,
    ):
        self.pipe, self.request, self.generators, self.score, self.decoder = pipe, request, generators, score, decoder
        self.kept: list[int] = list(range(len(generators)))
        self.dropped: dict[int, tuple[int, float]] = {}
        self.network = network_of(pipe)
        parts = [self.network, getattr(pipe, "controlnet", None)]
        self.networks = {part: Chunked(len(self.kept), request.chunk_size) for part in parts if part is not None}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Chunk the networks, and remember what the network saw and said."""
        with ExitStack() as stack:
            for network, hook in self.networks.items():
                stack.enter_context(hooked(network, hook))
            stack.callback(self.network.register_forward_hook(self._see, with_kwargs=True).remove)
            yield

    def _see(self, network: Any, args: tuple, kwargs: dict, output: Any) -> None:
        named = dict(zip(("sample", "timestep"), args)) | kwargs
        self.seen = (named["sample"], named["timestep"], output[0])

    def step_end(self, step: int, steps: int, latents: torch.Tensor) -> torch.Tensor:
        """Return the latents (M, c, h, w) that go on after step `step` of `steps`, counted from 0."""
        share = math.prod(kept for done, kept in self.request.schedule if max(1, round(done * steps)) == step + 1)
        left = self.request.left(len(self.kept), share)
        if left >= len(self.kept) or step + 1 == steps:
            return latents
        scores = self.score(self.preview())
        rows = sorted(np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:left].tolist())
        for row in set(range(len(self.kept))) - set(rows):
            self.dropped[self.kept[row]] = (step + 1, float(scores[row]))
        self._keep(rows, latents.shape)
        return latents[rows]

    def _keep(self, rows: list[int], shape: torch.Size) -> None:
        self.kept = [self.kept[row] for row in rows]
        self.generators[:] = [self.generators[row] for row in rows]
        for hook in self.networks.values():
            hook.kept = self.kept
        for name, value in vars(self.pipe.scheduler).items():  # what a multistep sampler remembers of the samples
            setattr(self.pipe.scheduler, name, _rows(value, rows, shape))

    @torch.no_grad()
    def preview(self) -> torch.Tensor:
        """Return the pictures that the network predicts at the last step taken, (M, 3, H, W) in [0, 1]."""
        sample, timestep, output = self.seen
        count = len(self.kept)
        if len(output) > count:  # guided: without prompt first (Ho & Salimans 2022)
            unguided, output = output[:count], output[-count:]
            guided = unguided + self.pipe.guidance_scale * (output - unguided)
            rescale = getattr(self.pipe, "guidance_rescale", 0.0)
            output = rescale_noise_cfg(guided, output, rescale) if rescale else guided
        clean = predicted_clean(self.pipe.scheduler, sample[-count:], timestep, output)
        return torch.cat([decode(self.decoder, chunk) for chunk in clean.split(self.networks[self.network].size)])


def predicted_clean(
    scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor | float, output: torch.Tensor
) -> torch.Tensor:
    """Return x_0 (M, c, h, w) from the network's input and output; the equations are this module's.

    sample: as the network saw it, that is scaled to unit variance also where the sampler counts in σ. A timestep between
    two of the schedule takes √ᾱ linearly from both.
    """
    signals = scheduler.alphas_cumprod.cpu().double().sqrt().numpy()
    signal = float(np.interp(float(torch.as_tensor(timestep).flatten()[0]), np.arange(len(signals)), signals))
    kind = scheduler.config.prediction_type
    alpha = max(signal, 1e-4) if kind == "epsilon" else signal  # by which ε is divided
    at = Coefficients(*(torch.tensor(value, dtype=torch.float64) for value in (alpha, math.sqrt(1 - signal**2))))
    return split(kind, sample, output, at).clean


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents (M, c, h, w) -> pictures (M, 3, H, W) float32 in [0, 1], in the VAE's own precision or a safe one."""
    kind, config = next(vae.parameters()).dtype, vae.config
    unsafe = kind == torch.float16 and config.get("force_upcast", False)
    latents = latents.to(torch.float32 if unsafe else kind) / config.scaling_factor
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (latents.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std))
        latents = latents * std + mean
    if unsafe:
        vae.to(dtype=torch.float32)
    pictures = vae.decode(latents, return_dict=False)[0]
    if unsafe:
        vae.to(dtype=kind)
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def _rows(value: Any, rows: list[int], shape: torch.Size) -> Any:
    """Cut tensors of the latents' own shape, also in lists; everything else is the same object."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.shape == shape else value
    if isinstance(value, list) and any(isinstance(each, torch.Tensor) for each in value):
        return [_rows(each, rows, shape) for each in value]
    return value
