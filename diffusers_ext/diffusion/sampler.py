"""Denoising as a differentiable function: DDIM steps on the base's own noise schedule, each sample at a step of its own.

    z_t = α_t z_0 + σ_t ε,  α_t = √ᾱ_t,  σ_t = √(1 − ᾱ_t)

Shapes: B samples, N steps, latents (B, c, h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch.utils.checkpoint import checkpoint

from .. import randomness
from ..randomness import Key
from .paths import check_noising

# (latents, timesteps (B,), what each sample is conditioned on) -> what the network predicts, in the latents' shape
Predict = Callable[[torch.Tensor, torch.Tensor, dict], torch.Tensor]


def split(
    kind: str, noisy: torch.Tensor, prediction: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ẑ_0, ε̂), the clean latents and the noise that a prediction of any kind stands for, in one step.

    kind: "epsilon" (Ho et al. 2020), "v_prediction", v = α ε − σ z_0 (Salimans & Ho 2022, appendix D), "sample", z_0 itself, or
    "flow_prediction", ε − z_0 on the path with α = 1 − σ (Lipman et al. 2023). alpha, sigma broadcast against the latents.
    """
    match kind:
        case "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        case "v_prediction":
            return alpha * noisy - sigma * prediction, alpha * prediction + sigma * noisy
        case "sample":
            return prediction, (noisy - alpha * prediction) / sigma
        case "flow_prediction":
            return noisy - sigma * prediction, noisy + alpha * prediction
    raise ValueError(f"the prediction type {kind!r} is not epsilon, v_prediction, sample or flow_prediction")


@dataclass(frozen=True)
class Sampler:
    """N steps of DDIM (Song et al. 2021, equation 12); eta 0 adds no noise, eta 1 is ancestral sampling.

    timesteps (N,), alpha_bar (N, 2): ᾱ before and after each step; all on the CPU. Noise belongs to a sample's key and step,
    so a sample's path does not depend on the batch it is in. Latents are never clipped, whatever the scheduler's
    configuration says or leaves out.
    """

    prediction_type: str
    timesteps: torch.Tensor
    alpha_bar: torch.Tensor
    seed: int
    eta: float = 0.0

    @classmethod
    def of(cls, scheduler: SchedulerMixin, steps: int, seed: int, eta: float = 0.0) -> "Sampler":
        """Take noise schedule, spacing of timesteps and prediction type from any scheduler of the base.

        Raises InputError for schedulers of another process than DDPM's, such as flow matching.
        """
        check_noising(scheduler)
        ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
        ddim.set_timesteps(steps)
        after = ddim.timesteps - ddim.config.num_train_timesteps // steps
        clean = torch.where(after >= 0, ddim.alphas_cumprod[after.clamp(min=0)], ddim.final_alpha_cumprod)
        alpha_bar = torch.stack([ddim.alphas_cumprod[ddim.timesteps], clean], dim=1)
        return cls(ddim.config.prediction_type, ddim.timesteps, alpha_bar, seed, eta)

    def __len__(self) -> int:
        return len(self.timesteps)

    def noise(self, stream: str, keys: Sequence[tuple[int, ...]], like: torch.Tensor) -> torch.Tensor:
        """Draw ε ~ N(0, 1) of the samples' keys, in the shape and type and on the device of `like`."""
        return randomness.normal(self.seed, stream, keys, like.shape[1:]).to(like)

    def coefficients(self, at: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return α and σ before steps `at` (B,), as (B, 1, 1, 1)."""
        alpha_bar = self.alpha_bar[at, 0].to(latents)[:, None, None, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def clean(self, latents: torch.Tensor, prediction: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return ẑ_0, the one-step estimate of the clean latents from those before steps `at` (B,)."""
        return split(self.prediction_type, latents, prediction, *self.coefficients(at, latents))[0]

    def step(self, latents: torch.Tensor, prediction: torch.Tensor, at: torch.Tensor, keys: list[Key]) -> torch.Tensor:
        """Return the latents after steps `at` (B,): √ᾱ' ẑ_0 + √(1 − ᾱ' − s²) ε̂ + s n."""
        clean, noise = split(self.prediction_type, latents, prediction, *self.coefficients(at, latents))
        before, after = self.alpha_bar[at].to(latents)[..., None, None, None].unbind(1)
        variance = self.eta**2 * (1 - after) / (1 - before) * (1 - before / after)
        moved = after.sqrt() * clean + (1 - after - variance).sqrt() * noise
        if self.eta:
            fresh = [(*key, int(step)) for key, step in zip(keys, at)]
            moved = moved + variance.sqrt() * self.noise("ancestral", fresh, latents)
        return moved

    def advance(
        self,
        predict: Predict,
        latents: torch.Tensor,
        batch: dict,
        first: torch.Tensor | int,
        last: torch.Tensor | int,
        recompute: bool = False,
    ) -> torch.Tensor:
        """Take sample b from before step first[b] to before step last[b]; N is after all steps.

        A sample costs only the steps that are its own. batch: "key", and tensors or lists of B entries, of which predict
        gets those of the samples under way. recompute keeps no more of a step than its latents for the backward pass
        (Chen et al. 2016).
        """
        first, last = (torch.as_tensor(bound).expand(len(latents)) for bound in (first, last))
        for number in range(int(first.min()), int(last.max())):
            under_way = ((first <= number) & (number < last)).nonzero().flatten()
            if not len(under_way):
                continue

            def one_step(own: torch.Tensor, part: dict, at: torch.Tensor) -> torch.Tensor:
                return self.step(own, predict(own, self.timesteps[at].to(own.device), part), at, part["key"])

            part = batch if len(under_way) == len(latents) else take(batch, under_way)
            arguments = (latents[under_way.to(latents.device)], part, torch.full_like(under_way, number))
            moved = (
                checkpoint(one_step, *arguments, use_reentrant=False, preserve_rng_state=False)
                if recompute and torch.is_grad_enabled()
                else one_step(*arguments)
            )
            # Float32 latents, whatever the network's type: rounding would add up over the steps.
            latents = (
                moved if len(moved) == len(latents) else latents.index_copy(0, under_way.to(latents.device), moved)
            )
        return latents


def take(batch: dict, which: torch.Tensor) -> dict:
    """Return some samples of a batch of tensors and lists."""
    numbers = which.tolist()
    return {
        name: values[which.to(values.device)]
        if isinstance(values, torch.Tensor)
        else [values[number] for number in numbers]
        for name, values in batch.items()
    }
