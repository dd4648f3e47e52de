"""Learn from rankings without a reward model: Diffusion-DPO (Wallace et al. 2023)."""

import torch
from torch.nn import functional as F

from ..diffusion.noising import Diffusion
from .policy import Policy
from .reward_tuning import TunedObjective


def dpo_loss(errors: torch.Tensor, base_errors: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return −log σ(−β/2 [(e_w − e_w,base) − (e_l − e_l,base)]), averaged, and how much the model prefers winners, (B,).

    errors, base_errors (2, B): squared errors of the prediction for the winner and the loser, means over positions, of the
    model and of its frozen base; equation 14 of the paper, with βTω(λ) as one constant.

    >>> errors = torch.tensor([[0.3], [0.2]])
    >>> loss, preference = dpo_loss(errors, errors, beta=5000.0)
    >>> round(float(loss), 4)
    0.6931
    """
    winner, loser = errors - base_errors
    preference = loser - winner
    return F.softplus(-beta / 2 * preference).mean(), preference


class DPO(TunedObjective):
    """Diffusion-DPO: denoise the preferred picture better, and the other worse, than the frozen base does.

    Winner and loser get the same noise and timestep, of the pair's key. The base of a model with adapters is free.
    """

    def __init__(self, policy: Policy, diffusion: Diffusion, beta: float = 5000.0):
        super().__init__(policy, diffusion)
        self.beta = beta

    @torch.compiler.disable  # the network is compiled, by `compile_network`
    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """batch: "key" and the prompts' embeddings; and as "winner_…" and "loser_…" the "time_ids" (B, 6) of each picture, and
        its "pixel_values" (B, 3, H, W) in [-1, 1] or "moments"."""
        noisy, timesteps, targets = zip(*[self._diffuse(batch, side) for side in ("winner", "loser")])
        both = {name: torch.cat([batch[name]] * 2) for name in self.policy.embeddings}
        both["time_ids"] = torch.cat([batch["winner_time_ids"], batch["loser_time_ids"]])
        arguments = (torch.cat(noisy), torch.cat(timesteps), both)
        target = torch.cat(targets).float()
        errors, base_errors = (
            (predict(*arguments, guided=False) - target).square().mean(dim=(1, 2, 3)).view(2, -1)
            for predict in (self.policy, self.policy.base)
        )
        loss, preference = dpo_loss(errors, base_errors, self.beta)
        return {"loss": loss, "preferred": (preference > 0).float().mean(), "winner_error": errors[0].mean()}

    @torch.no_grad()
    def _diffuse(self, batch: dict, side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = {name.removeprefix(f"{side}_"): values for name, values in batch.items() if name.startswith(f"{side}_")}
        latents = self.policy.encoders.latents({"key": batch["key"], **own}, self.diffusion.seed)
        return self.diffusion.diffuse(latents, batch["key"])
