"""From a base's scheduler to the noise that a training adds: only where the two are the same process.

    z_t = √ᾱ_t z + √(1−ᾱ_t) ε,  ᾱ_t the product of 1 − β_s (Ho et al. 2020, equation 4)

diffusers fills what a configuration lacks with defaults. A scheduler of another process, such as flow matching, would so
become ε-prediction on linear betas without a word; here it is refused.
"""

import torch
from accelerate import PartialState
from diffusers import DDPMScheduler, SchedulerMixin

from ..errors import InputError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
WHAT_FITS = "train on a base of DDPM noise (ε, v or x prediction on a schedule of betas), such as Stable Diffusion 1.x, 2.x or XL"


def noising(scheduler: SchedulerMixin) -> DDPMScheduler:
    """Return the forward process of a base's scheduler. Raises InputError for schedulers of another process."""
    check_noising(scheduler)
    ddpm = DDPMScheduler.from_config(scheduler.config)
    if ddpm.config.prediction_type == "epsilon" and ddpm.alphas_cumprod[-1] == 0:
        PartialState().print(
            "warning: scheduler_config.json has rescale_betas_zero_snr with prediction_type epsilon: at the last timestep the input is"
            " the noise itself, so predicting it teaches nothing, and samplers divide by zero there. Set prediction_type to"
            " v_prediction if the base was trained so, or rescale_betas_zero_snr to false"
        )
    return ddpm


def check_noising(scheduler: SchedulerMixin) -> None:
    """Raise InputError unless the scheduler's process is that of `noising`."""
    problem = noising_problem(scheduler)
    if problem:
        raise InputError(f"{type(scheduler).__name__}: {problem}; {WHAT_FITS}")


def noising_problem(scheduler: SchedulerMixin) -> str | None:
    """Say why a scheduler's process is not that of `noising`; None where it is."""
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
    theirs = getattr(scheduler, "alphas_cumprod", None)
    if theirs is None or "beta_schedule" not in config:
        return "has no schedule of betas"
    return _other_schedule(config, torch.as_tensor(theirs))


def _other_schedule(config: dict, theirs: torch.Tensor) -> str | None:
    """Say how ᾱ of a configuration, read as DDPM, differs from the scheduler's own."""
    try:
        ours = DDPMScheduler.from_config(config).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError) as error:
        return f"its schedule of betas cannot be read ({error})"
    # Some keep the last ᾱ of zero terminal SNR at 2⁻²⁴ instead of 0.
    if ours.shape != theirs.shape or not torch.allclose(ours.double(), theirs.double(), atol=1e-6):
        return "its ᾱ are not those of its betas"
    return None
