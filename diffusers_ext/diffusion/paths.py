"""The path from a clean latent to noise, z_t = α_t z_0 + σ_t ε: of a base's scheduler, and only where it is understood.

    variance preserving    α_t = √ᾱ_t,  σ_t = √(1 − ᾱ_t),  ᾱ_t the product of 1 − β_s    Ho et al. 2020, equation 4
    straight               α_t = 1 − σ_t,  σ_t = t / 1000                                 Lipman et al. 2023; Liu et al. 2023

A network predicts ε ("epsilon"), z_0 ("sample"), the velocity v = α_t ε − σ_t z_0 ("v_prediction", Salimans & Ho 2022), or
ε − z_0 ("flow_prediction").

diffusers fills what a configuration lacks with defaults. A scheduler of another process, such as flow matching in a folder of
Stable Diffusion, would so become ε-prediction on linear betas without a word; here it is refused.

Shapes: B samples, latents (B, c, h, w), timesteps (B,).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, SchedulerMixin

from ..errors import InputError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
REMEDY = "train on a base of DDPM noise: ε, v or x prediction on a schedule of betas"


class Coefficients(NamedTuple):
    """α_t and σ_t of B samples, each (B, 1, 1, 1)."""

    alpha: torch.Tensor
    sigma: torch.Tensor


class Split(NamedTuple):
    """The clean latents ẑ_0 and the noise ε̂ that a prediction stands for, each (B, c, h, w)."""

    clean: torch.Tensor
    noise: torch.Tensor


class Path(Protocol):
    """A path: how many timesteps it was trained on, what its network predicts, and its coefficients."""

    @property
    def steps(self) -> int: ...

    @property
    def prediction(self) -> str: ...

    def coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> Coefficients:
        """Return α_t and σ_t at timesteps, in the type and on the device of `like`."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """The path of DDPM. alphas_cumprod: ᾱ_t of each training timestep, (T,). prediction: one of PREDICTIONS.

    >>> path = VariancePreserving(torch.tensor([0.9, 0.5, 0.1]), "epsilon")
    >>> alpha, sigma = path.coefficients(torch.tensor([1]), torch.zeros(1, 4, 8, 8))
    >>> round(float(alpha**2), 4), round(float(sigma**2), 4)
    (0.5, 0.5)
    """

    alphas_cumprod: torch.Tensor
    prediction: str

    @property
    def steps(self) -> int:
        """The number of training timesteps."""
        return len(self.alphas_cumprod)

    def coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> Coefficients:
        """Return α_t and σ_t at timesteps (B,) int64."""
        alpha_bar = self.alphas_cumprod.to(like)[timesteps.to(like.device)][:, None, None, None]
        return Coefficients(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


@dataclass(frozen=True)
class Straight:
    """The path of flow matching, whose timestep is `steps` · σ and need not be whole. σ is kept in float32.

    >>> Straight().coefficients(torch.tensor([250.0]), torch.zeros(1, 16, 8, 8)).sigma.flatten().tolist()
    [0.25]
    """

    steps: int = 1000
    prediction: str = "flow_prediction"

    def coefficients(self, timesteps: torch.Tensor, like: torch.Tensor) -> Coefficients:
        """Return 1 − σ and σ at timesteps (B,)."""
        sigma = (timesteps.to(like.device, torch.float32) / self.steps)[:, None, None, None]
        return Coefficients((1 - sigma).to(like), sigma.to(like))


def mix(clean: torch.Tensor, noise: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """Return z_t = α_t z_0 + σ_t ε.

    >>> at = Straight().coefficients(torch.tensor([250.0]), torch.zeros(1, 4, 8, 8))
    >>> float(mix(torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), at).mean())
    0.75
    """
    return at.alpha * clean + at.sigma * noise


def target(kind: str, clean: torch.Tensor, noise: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """Return what a network of this kind of prediction should say of z_t. Raises ValueError for an unknown kind.

    >>> at = Straight().coefficients(torch.tensor([250.0]), torch.zeros(1, 4, 8, 8))
    >>> float(target('flow_prediction', torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), at).mean())
    -1.0
    """
    match kind:
        case "epsilon":
            return noise
        case "v_prediction":
            return at.alpha * noise - at.sigma * clean
        case "sample":
            return clean
        case "flow_prediction":
            return noise - clean
    raise ValueError(f"the prediction type {kind!r} is not epsilon, v_prediction, sample or flow_prediction")


def split(kind: str, noisy: torch.Tensor, prediction: torch.Tensor, at: Coefficients) -> Split:
    """Return the clean latents and the noise that a prediction for z_t stands for: the inverse of `mix` and `target`.

    >>> clean, noise = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    >>> at = Straight().coefficients(torch.tensor([250.0]), clean)
    >>> said = target("flow_prediction", clean, noise, at)
    >>> bool(torch.allclose(split("flow_prediction", mix(clean, noise, at), said, at).clean, clean))
    True

    Raises ValueError for an unknown kind.
    """
    alpha, sigma = at
    match kind:
        case "epsilon":
            return Split((noisy - sigma * prediction) / alpha, prediction)
        case "v_prediction":
            return Split(alpha * noisy - sigma * prediction, alpha * prediction + sigma * noisy)
        case "sample":
            return Split(prediction, (noisy - alpha * prediction) / sigma)
        case "flow_prediction":
            return Split(noisy - sigma * prediction, noisy + alpha * prediction)
    raise ValueError(f"the prediction type {kind!r} is not epsilon, v_prediction, sample or flow_prediction")


def path_of(scheduler: SchedulerMixin) -> VariancePreserving:
    """Return the path of a base's scheduler. Raises InputError for schedulers of another process.

    >>> from diffusers import EulerDiscreteScheduler
    >>> path_of(EulerDiscreteScheduler(prediction_type="v_prediction")).prediction
    'v_prediction'
    """
    check_scheduler(scheduler)
    ddpm = DDPMScheduler.from_config(scheduler.config)
    path = VariancePreserving(ddpm.alphas_cumprod, ddpm.config.prediction_type)
    if path.prediction == "epsilon" and path.alphas_cumprod[-1] == 0:
        PartialState().print(
            "warning: scheduler_config.json has rescale_betas_zero_snr with prediction_type epsilon: at the last timestep the input is"
            " the noise itself, so predicting it teaches nothing, and samplers divide by zero there. Set prediction_type to"
            " v_prediction if the base was trained so, or rescale_betas_zero_snr to false"
        )
    return path


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise InputError unless the scheduler's path is one that `path_of` understands."""
    problem = scheduler_problem(scheduler)
    if problem:
        raise InputError(f"{type(scheduler).__name__}: {problem}; {REMEDY}")


def scheduler_problem(scheduler: SchedulerMixin) -> str | None:
    """Return why `path_of` does not understand a scheduler; None where it does.

    >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
    >>> scheduler_problem(DDIMScheduler())
    >>> scheduler_problem(FlowMatchEulerDiscreteScheduler())
    'is of flow matching, z_t = (1 − σ) z + σ ε; not supported'
    """
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith("EDM"):
        return "is of continuous-time diffusion (Karras et al. 2022); not supported"
    if (
        name.startswith("FlowMatch")
        or config.get("use_flow_sigmas")
        or config.get("prediction_type") == "flow_prediction"
    ):
        return "is of flow matching, z_t = (1 − σ) z + σ ε; not supported"
    if config.get("prediction_type") not in PREDICTIONS:
        return f"its prediction_type is {config.get('prediction_type')}, not one of {', '.join(PREDICTIONS)}"
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None or "beta_schedule" not in config:
        return "has no schedule of betas"
    return _schedule_problem(config, torch.as_tensor(alphas_cumprod))


def _schedule_problem(config: dict, alphas_cumprod: torch.Tensor) -> str | None:
    """Return how ᾱ of a configuration, read as DDPM, differs from the scheduler's own."""
    try:
        ddpm = DDPMScheduler.from_config(config).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError) as error:
        return f"its schedule of betas cannot be read ({error})"
    # Some keep the last ᾱ of zero terminal SNR at 2⁻²⁴ instead of 0.
    if ddpm.shape != alphas_cumprod.shape or not torch.allclose(ddpm.double(), alphas_cumprod.double(), atol=1e-6):
        return "its ᾱ are not those of its betas"
    return None
