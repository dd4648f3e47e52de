"""Teach a text-to-image model what a differentiable reward prefers: the reward's gradient flows into the denoiser.

    ReFL       one random late step, its one-step estimate of the clean picture       Xu et al. 2023, algorithm 1
    DRaFT      the last K steps of sampling                                           Clark et al. 2023, section 4.2
    DRaFTLV    the last step, and again from fresh noise: less variance               Clark et al. 2023, section 4.2
    AlignProp  a random number of last steps, K ~ U{1 .. max}                         Prabhudesai et al. 2023, section 4

Each makes pictures from noise in `generate`, and differs in which steps carry a gradient. What all minimise is in
`RewardObjective.forward`. Learning from rankings, without a reward: `preference`.

Shapes: B samples, N steps of the sampler, latents (B, c, h, w).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from .. import randomness
from ..diffusion.lora import adapters_merged, has_lora, restore_lora, save_lora
from ..diffusion.noising import Diffusion
from ..diffusion.paths import mix
from ..diffusion.sampler import Sampler, take
from ..engine.objective import Objective
from .policy import Policy
from .reward_path import RewardPath


@dataclass(frozen=True)
class Weights:
    """The terms of the loss.

    reward: w of w·φ(r). margin: φ(r) = max(0, margin − r), as published, with no gradient from a picture that is good
    enough; None: φ(r) = −r. drift: β of the squared distance to the base's prediction. pretraining: weight of the
    denoising loss on pictures. AdamW does not feel a factor on the whole loss: only their ratios matter.

    >>> Weights(reward=1.0, margin=None, drift=0.5).pretraining
    0.0
    """

    reward: float = 1.0
    margin: float | None = 2.0
    drift: float = 0.0
    pretraining: float = 0.0


class TunedObjective(Objective):
    """What a tuned model's objectives share: what is saved. A network with adapters saves them alone."""

    def __init__(self, policy: Policy, diffusion: Diffusion):
        super().__init__()
        self.policy, self.diffusion = policy, diffusion
        network = policy.model.family.network
        self.trainable = {} if has_lora(policy.network) else {network: policy.network}

    def save(self, folder: Path) -> None:
        """Write a network that learns whole to the folder of its name, adapters to lora/."""
        super().save(folder)
        if has_lora(self.policy.network):
            save_lora(self.policy.network, folder / "lora")

    def load(self, folder: Path) -> None:
        super().load(folder)
        if has_lora(self.policy.network):
            restore_lora(self.policy.network, folder / "lora")

    def pretraining_loss(self, batch: dict) -> torch.Tensor:
        """E ‖target − f(z_t, t, text)‖² on the batch's pictures, whose entries begin with "pretrain_"."""
        own = {name.removeprefix("pretrain_"): values for name, values in batch.items() if name.startswith("pretrain_")}
        own["key"] = batch["key"]
        with torch.no_grad():
            latents = self.policy.encoders.latents(own, self.diffusion.seed)
        noisy, timesteps, target = self.diffusion.diffuse(latents, batch["key"])
        return self.diffusion.loss(self.policy(noisy, timesteps, own, guided=False), target, timesteps)


class RewardObjective(TunedObjective):
    """w·φ(r(D(ẑ_0))) + β ‖f − f_base‖² + w_p E ‖target − f(z_t, t, text)‖², in one sum.

    Children say in `generate` how ẑ_0 comes about and which steps carry a gradient. The drift is measured where the
    gradient enters, at a step drawn among those that carry it.

    resolution: the side of the pictures, in pixels. recompute: keep no activations of the steps that carry a gradient; see
    `Sampler.advance`.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        rewards: RewardPath,
        diffusion: Diffusion,
        resolution: int,
        weights: Weights,
        recompute: bool = False,
    ):
        super().__init__(policy, diffusion)
        self.sampler, self.rewards, self.resolution = sampler, rewards, resolution
        self.weights, self.recompute = weights, recompute

    def generate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ẑ_0, (B or a multiple, c, h, w), in the batch's order once or several times, and the drift, a scalar."""
        raise NotImplementedError

    @torch.compiler.disable  # else the sampler's loop would be compiled step by step; the network is, by `compile_network`
    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: "key", "prompt", the prompts' embeddings, "time_ids" (B, 6); and for the pre-training term the entries of
        `pretraining_loss`."""
        weights = self.weights
        clean, drift = self.generate(batch)
        rewards = self.rewards(clean, batch["prompt"] * (len(clean) // len(batch["prompt"])))
        phi = -rewards if weights.margin is None else (weights.margin - rewards).relu()
        parts = {"reward": rewards.mean(), "loss": weights.reward * phi.mean()}
        if weights.drift:
            parts |= {"drift": drift, "loss": parts["loss"] + weights.drift * drift}
        if weights.pretraining:
            denoising = self.pretraining_loss(batch)
            parts |= {"pretraining": denoising, "loss": parts["loss"] + weights.pretraining * denoising}
        return parts

    def start(self, batch: dict) -> torch.Tensor:
        """Draw z_T ~ N(0, 1), (B, c, h, w): a sample's picture of an epoch begins from its key's noise."""
        like = self.policy.noise_like(len(batch["key"]), self.resolution)
        return self.sampler.noise("start", batch["key"], like)

    @torch.no_grad()
    def roll_out(self, batch: dict, steps: torch.Tensor | int) -> torch.Tensor:
        """Return the latents before step `steps`, (B,) or one for all, with no gradient up to there."""
        with adapters_merged(self.policy.network):
            return self.sampler.advance(self.policy, self.start(batch), batch, 0, steps)

    def drift(self, prediction: torch.Tensor, latents: torch.Tensor, at: torch.Tensor, batch: dict) -> torch.Tensor:
        """‖f(z_t) − f_base(z_t)‖², the mean over samples and positions; 0 where it has no weight."""
        if not self.weights.drift:
            return prediction.new_zeros(())
        timesteps = self.sampler.timesteps[at].to(latents.device)
        return (prediction - self.policy.base(latents, timesteps, batch)).square().mean()

    def predict(self, latents: torch.Tensor, at: torch.Tensor, batch: dict) -> torch.Tensor:
        """The guided prediction before steps `at` (B,)."""
        return self.policy(latents, self.sampler.timesteps[at].to(latents.device), batch)

    def through_the_end(self, latents: torch.Tensor, first: torch.Tensor, batch: dict):
        """Return ẑ_0 after steps first[b] .. N − 1 with a gradient through all of them, and the drift at the first."""
        clean = self.sampler.advance(self.policy, latents, batch, first, len(self.sampler), self.recompute)
        if not self.weights.drift:
            return clean, latents.new_zeros(())
        return clean, self.drift(self.predict(latents, first, batch), latents, first, batch)


class ReFL(RewardObjective):
    """Reward feedback learning: max(0, margin − r(D(ẑ_0(z_t)))) with t one random late step (Xu et al. 2023, algorithm 1).

    Denoise to step s ~ U{first .. last} without a gradient; the gradient passes the one-step estimate ẑ_0 there and nothing
    else. window: (first, last) of N steps, counted from noise; published are 30 and 39 of 40. Every sample draws its own s.

    unit_gain: dẑ_0/df differs by an order of magnitude within the window, largest at its noisy end; divide it out.
    """

    def __init__(self, *args, window: tuple[int, int], unit_gain: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.window, self.unit_gain = window, unit_gain

    def generate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        at = randomness.integers(self.sampler.seed, "late_step", batch["key"], self.window[0], self.window[1] + 1)
        latents = self.roll_out(batch, at)
        prediction = self.predict(latents, at, batch)
        clean = self.sampler.clean(latents, prediction, at)
        if self.unit_gain:
            clean = clean.detach() + (clean - clean.detach()) / self.gain(latents, at)
        return clean, self.drift(prediction, latents, at, batch)

    def gain(self, latents: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """|dẑ_0/df| at steps `at`, (B, 1, 1, 1): the formula of ẑ_0 is linear in the prediction."""
        one = torch.ones_like(latents[:, :1, :1, :1])
        return (self.sampler.clean(0 * one, one, at)).abs()


class DRaFT(RewardObjective):
    """−r of the finished picture, differentiated through the last K of N sampling steps (DRaFT-K; K = N is DRaFT)."""

    def __init__(self, *args, steps: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = steps

    def generate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        first = torch.full((len(batch["key"]),), len(self.sampler) - self.steps)
        return self.through_the_end(self.roll_out(batch, first), first, batch)


class DRaFTLV(RewardObjective):
    """DRaFT-1, its gradient averaged with that of n more draws: z_0 noised again to the last step and denoised.

    One rollout serves 1 + n gradients, so their variance falls at little cost.
    """

    def __init__(self, *args, repeats: int = 2, **kwargs):
        super().__init__(*args, **kwargs)
        self.repeats = repeats

    def generate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        last = torch.full((len(batch["key"]),), len(self.sampler) - 1)
        latents = self.roll_out(batch, last)
        with torch.no_grad():
            finished = self.sampler.advance(self.policy, latents, batch, last, last + 1)
            at = self.sampler.coefficients(last, latents)
            keys = [[(*key, number) for key in batch["key"]] for number in range(self.repeats)]
            draws = [mix(finished, self.sampler.noise("noised_again", fresh, latents), at) for fresh in keys]
        several = take(batch, torch.arange(len(last)).repeat(1 + self.repeats))
        return self.through_the_end(torch.cat([latents, *draws]), last.repeat(1 + self.repeats), several)


class AlignProp(RewardObjective):
    """−r of the finished picture, differentiated through the last K steps, K ~ U{1 .. max} for each sample.

    Randomised truncation: few steps change detail, many composition, and a mixture avoids the collapse of either.
    """

    def __init__(self, *args, steps: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = steps

    def generate(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = randomness.integers(self.sampler.seed, "truncation", batch["key"], 1, self.steps + 1)
        first = len(self.sampler) - drawn
        return self.through_the_end(self.roll_out(batch, first), first, batch)
