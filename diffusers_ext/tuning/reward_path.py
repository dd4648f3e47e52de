"""From latents to rewards with a gradient, in bounded memory: decode, bring the pixels into range, score.

Shapes: B samples, latents (B, c, h, w), pixels (B, 3, H, W).
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderTiny
from torch import nn

from ..diffusion.bases.encoders import Encoders
from ..errors import InputError

SCALES = [2.0**power for power in (16, 12, 8, 4, 0)]  # of a reward, the first whose gradient is finite


class RewardPath(nn.Module):
    """Frozen decoder and frozen reward. `forward` gives rewards whose gradient reaches the latents.

    Decoder and reward look at one sample at a time, and both are frozen. So the gradient of each reward is computed
    together with it, `batch_size` samples at a time, and only that gradient, as large as the latents, is kept for the
    backward pass. Memory is that of `batch_size` pictures, and nothing is computed twice, as checkpointing would.

    Args:
        reward: anything with `score(prompts, images)`; None where pictures are only looked at.
        encoders: those whose normalisation the latents have.
        decoder: a tiny one made for the base's latents (Bohan 2023, TAESD), which takes them as they are; by default the
            base's VAE.
    """

    def __init__(
        self,
        reward: nn.Module | None,
        encoders: Encoders,
        decoder: nn.Module | None = None,
        batch_size: int = 1,
    ):
        super().__init__()
        self.reward, self.encoders, self.batch_size = reward, encoders, batch_size
        self.decoder = encoders.vae if decoder is None else decoder
        for part in (self.decoder, reward):
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pixels in [0, 1], float32. A gradient that leads back into the range passes, one that leads out does not."""
        if isinstance(self.decoder, AutoencoderTiny):
            latents = latents / self.decoder.config.scaling_factor
        else:
            latents = self.encoders.denormalise(latents)
        pixels = self.decoder.decode(latents.to(self.decoder.dtype)).sample.float()
        return _IntoRange.apply(pixels / 2 + 0.5)

    def score(self, pixels: torch.Tensor, given: list[str]) -> torch.Tensor:
        """Return the rewards of decoded pictures, (B,)."""
        assert self.reward is not None, "a path without reward draws only"
        return self.reward.score(given, pixels)

    @torch.compiler.disable
    def forward(self, latents: torch.Tensor, given: list[str]) -> torch.Tensor:
        """Return rewards (B,) float32; given: the prompts. Raises InputError where one is not finite, or has no gradient."""

        def score(part: torch.Tensor, at: slice) -> torch.Tensor:
            pixels = self.decode(part)
            with torch.autocast(latents.device.type, enabled=False):  # rewards are small differences
                return self.score(pixels, given[at]).to(latents.device)

        return in_chunks(score, latents, self.batch_size)


def in_chunks(
    score: Callable[[torch.Tensor, slice], torch.Tensor], latents: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Return score(latents[at], at) of all, where each score depends on its own sample; a gradient is kept if asked for.

    >>> latents = torch.ones(3, 4, 2, 2, requires_grad=True)
    >>> in_chunks(lambda part, at: part.sum((1, 2, 3)), latents, batch_size=2).tolist()
    [16.0, 16.0, 16.0]
    """
    return _Chunks.apply(latents, score, batch_size)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, score, batch_size):
        spans = [slice(first, first + batch_size) for first in range(0, len(latents), batch_size)]
        if not ctx.needs_input_grad[0]:
            return torch.cat([score(latents[position], position) for position in spans])
        scores, gradients = [], []
        for index in spans:
            for scale in SCALES:
                values, gradient = _differentiate(score, latents[index], index, scale)
                if gradient.isfinite().all():
                    break
            scores.append(values)
            gradients.append(gradient)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(scores)

    @staticmethod
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient)[:, None, None, None], None, None


def _differentiate(
    score: Callable, latents: torch.Tensor, at: slice, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores, and their gradient in float32, which goes through the decoder `scale` times as large.

    The gradient of one pixel of a large picture is below float16's smallest number. The loss scaling of mixed precision
    comes too late, for this gradient is taken in the forward pass.
    """
    with torch.enable_grad():
        part = latents.detach().requires_grad_()
        scores = score(part, at)
        if not scores.requires_grad:
            raise InputError("the reward gives no gradient: it leaves torch on its way, through PIL or NumPy")
        (gradient,) = torch.autograd.grad(scale * scores.sum(), part)
    return scores.detach(), gradient.float() / scale


class _IntoRange(torch.autograd.Function):
    """clamp(x, 0, 1), whose gradient is that of projected ascent: a value outside is moved back but never further out.

    Under clamp's own gradient, which is 0 outside, an overexposed region could never be corrected.
    """

    @staticmethod
    def forward(ctx, pixels):
        ctx.save_for_backward(pixels)
        return pixels.clamp(0, 1)

    @staticmethod
    def backward(ctx, upward):
        (pixels,) = ctx.saved_tensors
        outward = ((pixels > 1) & (upward > 0)) | ((pixels < 0) & (upward < 0))
        return upward.masked_fill(outward, 0)


def check_gradient(path: RewardPath, latents: torch.Tensor, given: Sequence, margin: float | None) -> str | None:
    """Make sure, before any training, that the reward can teach: score some latents of pictures.

    given: what the path takes beside latents, prompts or conditions.

    Raises InputError where the reward has no gradient, is not finite, has a gradient that is zero or not finite, or lies above
    the margin everywhere. Returns a warning where it does so for half of the pictures, or cannot tell any two apart.
    """
    name = getattr(path.reward, "__name__", type(path.reward).__name__)
    if not getattr(path.reward, "differentiable", True):
        raise InputError(
            f"{name} has no gradient with respect to the image, so nothing can be learned from it here: take a differentiable "
            "one (docs/rewards.md), and this one as --held_out_reward; or learn from rankings, --method dpo"
        )
    latents = latents.detach().clone().requires_grad_()
    with torch.enable_grad():
        rewards = path(latents, given)
        (gradient,) = torch.autograd.grad(rewards.sum(), latents)
    rewards = rewards.detach()
    sizes = gradient.flatten(1).norm(dim=1)
    if not sizes.isfinite().all():
        raise InputError(f"{name}: its gradient is not finite; a division by zero or a square root of zero in it")
    if not sizes.any():
        raise InputError(
            f"{name}: its gradient is zero for all of {len(rewards)} pictures: it rounds, or has saturated"
        )
    if margin is not None and (rewards >= margin).all():
        raise InputError(
            f"{name}: all of {len(rewards)} pictures of the base score {float(rewards.min()):.3g} at least, above "
            f"--reward_margin {margin:g}, so there is no gradient left; raise it, or --no-use_margin"
        )
    if margin is not None and (rewards >= margin).float().mean() >= 0.5:
        return f"half of the base's pictures score above --reward_margin {margin:g} already and teach nothing; raise it"
    if len(rewards) > 1 and rewards.max() == rewards.min():
        return f"{name} scores {len(rewards)} pictures of the base alike, {float(rewards[0]):.4g}: does it see them?"
    return None
