"""Denoising as a differentiable function: DDIM steps on the base's own path, each sample at a step of its own.

    z_t = α_t z_0 + σ_t ε; `paths` has α and σ. On a straight path a DDIM step is Euler's.

Shapes: B samples, N steps, latents (B, c, h, w).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch.utils.checkpoint import checkpoint

from .. import randomness
from ..randomness import Key
from .paths import Coefficients, Straight, check_scheduler, split

# (latents, timesteps (B,), what each sample is conditioned on) -> what the network predicts, in the latents' shape
Predict = Callable[[torch.Tensor, torch.Tensor, dict], torch.Tensor]


@dataclass(frozen=True)
class Sampler:
    """N steps of DDIM (Song et al. 2021, equation 12); eta 0 adds no noise, eta 1 is ancestral sampling.

    timesteps (N,); alpha2, sigma2 (N, 2): α² and σ² before and after each step; variance (N,): s² of the noise that each step
    adds; all on the CPU. Noise belongs to a sample's key and step, so a sample's path does not depend on the batch it is in. Latents are never clipped, whatever the
    scheduler's configuration says or leaves out.

    >>> from diffusers import DDIMScheduler
    >>> sampler = Sampler.of(DDIMScheduler(), steps=4, seed=0)
    >>> sampler.timesteps.tolist()
    [750, 500, 250, 0]
    >>> noise = sampler.noise("start", [(0, 0), (0, 1)], torch.empty(2, 4, 8, 8))
    >>> sampler.advance(lambda z, t, batch: z, noise, {"key": [(0, 0), (0, 1)]}, first=0, last=4).shape
    torch.Size([2, 4, 8, 8])
    """

    prediction_type: str
    timesteps: torch.Tensor
    alpha2: torch.Tensor
    sigma2: torch.Tensor
    variance: torch.Tensor
    seed: int

    @classmethod
    def of(cls, scheduler: SchedulerMixin, steps: int, seed: int, eta: float = 0.0) -> "Sampler":
        """Take noise schedule, spacing of timesteps and prediction type from any scheduler of the base.

        Raises InputError for schedulers of another process than DDPM's, such as flow matching.
        """
        check_scheduler(scheduler)
        ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
        ddim.set_timesteps(steps)
        after = ddim.timesteps - ddim.config.num_train_timesteps // steps
        clean = torch.where(after >= 0, ddim.alphas_cumprod[after.clamp(min=0)], ddim.final_alpha_cumprod)
        alpha_bar = torch.stack([ddim.alphas_cumprod[ddim.timesteps], clean], dim=1)
        before, after = alpha_bar.unbind(1)
        variance = eta**2 * (1 - after) / (1 - before) * (1 - before / after)
        return cls(ddim.config.prediction_type, ddim.timesteps, alpha_bar, 1 - alpha_bar, variance, seed)

    @classmethod
    def straight(cls, sigmas: torch.Tensor, path: Straight, seed: int, eta: float = 0.0) -> "Sampler":
        """Take steps on a straight path; sigmas: (N + 1,) float32, σ before each step and after the last, falling to 0."""
        sigma = torch.stack([sigmas[:-1], sigmas[1:]], dim=1)
        alpha2, sigma2 = (1 - sigma) ** 2, sigma**2
        lost = sigma2[:, 0] - alpha2[:, 0] / alpha2[:, 1] * sigma2[:, 1]
        variance = eta**2 * sigma2[:, 1] / sigma2[:, 0] * lost
        return cls(path.prediction, sigmas[:-1] * path.steps, alpha2, sigma2, variance, seed)

    def __len__(self) -> int:
        return len(self.timesteps)

    def noise(self, stream: str, keys: Sequence[tuple[int, ...]], like: torch.Tensor) -> torch.Tensor:
        """Draw ε ~ N(0, 1) of the samples' keys, in the shape and type and on the device of `like`."""
        return randomness.normal(self.seed, stream, keys, like.shape[1:]).to(like)

    def coefficients(self, steps: torch.Tensor, latents: torch.Tensor) -> Coefficients:
        """Return α and σ before steps (B,), as (B, 1, 1, 1)."""
        alpha2, sigma2 = (square[steps, 0].to(latents)[:, None, None, None] for square in (self.alpha2, self.sigma2))
        return Coefficients(alpha2.sqrt(), sigma2.sqrt())

    def clean(self, latents: torch.Tensor, prediction: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Return ẑ_0, the one-step estimate of the clean latents from those before steps (B,)."""
        return split(self.prediction_type, latents, prediction, self.coefficients(steps, latents)).clean

    def step(
        self, latents: torch.Tensor, prediction: torch.Tensor, steps: torch.Tensor, keys: list[Key]
    ) -> torch.Tensor:
        """Return the latents after steps (B,): α' ẑ_0 + √(σ'² − s²) ε̂ + s n, s² = η² σ'²/σ² (σ² − (α/α')² σ'²)."""
        clean, noise = split(self.prediction_type, latents, prediction, self.coefficients(steps, latents))
        squares = (self.alpha2[steps, 1], self.sigma2[steps, 1], self.variance[steps])
        alpha2, sigma2, variance = (values.to(latents)[:, None, None, None] for values in squares)
        moved = alpha2.sqrt() * clean + (sigma2 - variance).sqrt() * noise
        if self.variance.any():
            fresh = [(*key, int(step)) for key, step in zip(keys, steps)]
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

            def one_step(own: torch.Tensor, part: dict, steps: torch.Tensor) -> torch.Tensor:
                return self.step(own, predict(own, self.timesteps[steps].to(own.device), part), steps, part["key"])

            part = batch if len(under_way) == len(latents) else take(batch, under_way)
            rows = under_way.to(latents.device)
            arguments = (latents[rows], part, torch.full_like(under_way, number))
            if recompute and torch.is_grad_enabled():
                moved = checkpoint(one_step, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                moved = one_step(*arguments)
            # Float32 latents, whatever the network's type: rounding would add up over the steps.
            latents = moved if len(moved) == len(latents) else latents.index_copy(0, rows, moved)
        return latents


def take(batch: dict, which: torch.Tensor) -> dict:
    """Return some samples of a batch of tensors and lists.

    >>> take({'z': torch.arange(3.0), 'prompt': ['a', 'b', 'c']}, torch.tensor([2, 0]))
    {'z': tensor([2., 0.]), 'prompt': ['c', 'a']}
    """
    numbers = which.tolist()
    return {
        name: values[which.to(values.device)]
        if isinstance(values, torch.Tensor)
        else [values[number] for number in numbers]
        for name, values in batch.items()
    }
