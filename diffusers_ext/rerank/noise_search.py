"""Search beyond best-of-N: the initial noise itself is improved, by trial or by the gradient of the reward.

    search = NoiseSearch(pipe, load_reward("ensemble.json"))
    found = search("a red circle", method="local", num_candidates=16, keep=1, seed=0, held_out=load_reward("pickscore"))
    found.images[0], found.scores[0], found.held_out[0], found.latents[0]

Both methods draw a few candidates first, and the best one's noise n is the pivot. `num_candidates` is the budget, in
pictures of full cost, so that methods compare with best-of-N of the same number.

local (Ma et al. 2025, arXiv:2501.09732, zero-order search): neighbours of the pivot are drawn and scored, and the best of
all becomes the pivot. They lie on the sphere of the pivot's norm, at the distance λ‖n‖:

    y = (1 − λ²/2) n + sqrt(λ² − λ⁴/4) ‖n‖ u,     u uniform on the unit sphere, u ⊥ n

gradient (ReNO, Eyring et al. 2024, arXiv:2406.04312; for models of one or a few steps): ascent on

    r(prompt, G(n)) + w K(n),     K(n) = (D − 1) log ‖n‖ − ‖n‖²/2

K is the log density of the norm of D normal numbers (Samuel et al. 2023). The gradient is clipped to a norm of 0.1; steps are
those of Nesterov's momentum. G is the pipeline's own loop, its network checkpointed.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.utils import logging
from torch.utils.checkpoint import checkpoint
from tqdm.auto import tqdm

from ..diffusion.bases import network_of
from ..diffusion.hooks import Remember, hooked
from ..diffusion.signatures import CallMixin, call_behind, joined
from ..errors import InputError
from ..rewards.ensemble import EnsembleReward
from .candidates import Candidate, RerankOutput, as_pictures, gathered, ranked, score_pictures
from .noise import first_noise, log_density_of_norm, neighbours
from .pruning import decode
from .request import Choices
from .reranker import RewardReranker

GRADIENT_COST = 4  # evaluations per forward one: itself, again for the checkpoint, and a backward pass as two
MOMENTUM, CLIP = 0.9, 0.1  # ReNO's
OWN = (
    "latents",
    "generator",
    "num_images_per_prompt",
    "prune",
    "prune_by",
    "preview_decoder",
    "reward_prompt",
    "return_dict",
)
MANY = 16  # candidates from which on one reward alone is worth a warning
logger = logging.get_logger(__name__)


@dataclass
class NoiseSearchOutput(RerankOutput):
    """What a search found; images, candidates, scores and seeds as best-of-N returns them.

    latents: (K, c, h, w), the noise of the kept images: the plain pipeline draws them again from `latents=`. Seeds are
        those of the first candidates, from which the others descend.
    history: after the first draws and after every round, {"evaluations", "score", "held_out"} of the best so far.
    """

    latents: torch.Tensor = None
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def held_out(self) -> list[float]:
        """The held-out reward of every candidate, in the order of `scores`; NaN without one."""
        return [candidate.parts.get("held_out", math.nan) for candidate in self.candidates[0]]


class NoiseSearch:
    """Search over the initial noise of a pipeline; arguments as those of `RewardReranker`.

    The pipeline has the network of a known base and takes `latents`. Samplers that add noise on the way draw it from the seed that a
    candidate descends from.
    """

    def __init__(self, pipeline: Any, reward: Any, draw: Callable | None = None):
        self.pipeline, self.reward = pipeline, reward
        self.draw = draw or getattr(pipeline, "plain_call", pipeline.__call__)
        self.__signature__ = joined(inspect.signature(self.draw), (NoiseSearch.__call__,), OWN)  # of this object

    def __call__(
        self,
        prompt: str,
        *,
        method: str = "local",
        num_candidates: int = 16,
        keep: int = 1,
        chunk_size: int = 4,
        seed: int = 0,
        starts: int = 4,
        radius: float = 0.5,
        learning_rate: float = 5.0,
        regularization: float = 0.01,
        held_out: Any = None,
        **arguments: Any,
    ) -> NoiseSearchOutput:
        """Search for one prompt; all other arguments are the pipeline's.

        Args:
            method: local or gradient.
            num_candidates: the budget, in pictures. A gradient step costs as much as 4.
            keep, chunk_size: as for best-of-N.
            seed: candidate n of the first draws starts from seed + n, as it does in best-of-N.
            starts: pictures of the first draws, and of every round of a local search.
            radius: λ of a local search, in (0, 2): the distance of a neighbour from the pivot, in norms of the pivot.
            learning_rate, regularization: η and w of a gradient search.
            held_out: another reward, which chooses nothing and is told of every candidate.

        Raises InputError for what cannot be done, before anything is drawn.
        """
        self._check(prompt, method, num_candidates, starts, radius, arguments)
        if num_candidates >= MANY and held_out is None and not isinstance(self.reward, EnsembleReward):
            _warn_of_one_reward()
        watched = WatchedReward(self.reward, held_out)
        run = _Run(
            self.pipeline, RewardReranker(self.pipeline, watched, self.draw), prompt, arguments, seed, keep, chunk_size
        )
        with _silenced(self.pipeline), tqdm(total=num_candidates, desc=f"{method} search", leave=False) as bar:
            run.evaluate(first_noise(self.pipeline, seed, starts, **_size(arguments)), range(seed, seed + starts), bar)
            if method == "local":
                run.local(num_candidates, starts, radius, bar)
            else:
                run.gradient((num_candidates - starts - 1) // GRADIENT_COST, learning_rate, regularization, bar)
        return run.output()

    def _check(self, prompt: Any, method: str, budget: int, starts: int, radius: float, arguments: dict) -> None:
        if self.reward is None:
            raise InputError("no reward to rank by: set reward_model (diffusers_ext.load_reward gives one)")
        if not isinstance(prompt, str):
            raise InputError("a search is for one prompt: give a text")
        if method not in ("local", "gradient"):
            raise InputError(f"method {method!r}: choose local or gradient")
        if not 1 <= starts <= budget or not 0 < radius < 2:
            raise InputError(f"starts {starts}: 1 to num_candidates, {budget}; radius {radius}: between 0 and 2")
        if method == "gradient" and not getattr(self.reward, "differentiable", True):
            raise InputError(f"{type(self.reward).__name__} has no gradient; search with method='local'")
        if network_of(self.pipeline) is None or "latents" not in inspect.signature(self.draw).parameters:
            raise InputError(f"{type(self.pipeline).__name__} has no network that starts from given latents")
        if taken := {*OWN} & arguments.keys():
            raise InputError(f"{', '.join(sorted(taken))}: a search sets that itself, or cannot do it")


class NoiseSearchMixin(CallMixin):
    """Put it before a diffusers pipeline in the bases of a class that has the component `reward_model`, which may be None."""

    added, refused = (NoiseSearch.__call__,), OWN

    @property
    def plain_call(self) -> Callable:
        """The call of the pipeline that this one extends."""
        return call_behind(self, NoiseSearchMixin)

    def __call__(self, *args: Any, **kwargs: Any) -> NoiseSearchOutput:
        """Search the noise for one prompt; arguments as in `NoiseSearch.__call__`."""
        given = inspect.signature(self.plain_call).bind_partial(*args).arguments
        return NoiseSearch(self, self.reward_model, self.plain_call)(**given, **kwargs)


class _Run:
    """One search: every candidate so far, best first, and the noise that each was drawn from."""

    def __init__(
        self, pipe: Any, reranker: RewardReranker, prompt: str, arguments: dict, seed: int, keep: int, chunk_size: int
    ):
        self.pipe, self.network, self.reranker = pipe, network_of(pipe), reranker
        self.prompt, self.arguments, self.seed = prompt, arguments, seed
        self.keep, self.chunk_size = keep, chunk_size
        self.candidates: list[Candidate] = []
        self.noise: list[torch.Tensor] = []  # by the candidates' numbers
        self.evaluations = 0
        self.history: list[dict[str, float]] = []
        self.texts: dict[str, list] = {}  # what the text encoders answered

    def evaluate(self, noise: torch.Tensor, seeds: Sequence[int], bar: Any) -> None:
        """Draw and score one picture from each noise, (B, c, h, w)."""
        count, latents = len(noise), noise.to(self.network.dtype)
        choices = Choices(num_candidates=count, keep=count, chunk_size=self.chunk_size, seed=list(seeds))
        drawn = self.reranker.rank({"prompt": self.prompt, "latents": latents, **self.arguments}, choices)
        for candidate in drawn.candidates[0]:
            candidate.number += len(self.noise)
        self._add(drawn.candidates[0], noise, drawn.evaluations)
        bar.update(count)

    def local(self, budget: int, width: int, radius: float, bar: Any) -> None:
        """Draw neighbours of the best, `width` at a time, until `budget` pictures were drawn."""
        for number, drawn in enumerate(range(len(self.noise), budget, width)):
            pivot, count = self.candidates[0], min(width, budget - drawn)
            noise = neighbours(self.noise[pivot.number], count, radius, self.seed, number)
            self.evaluate(noise, [pivot.seed] * count, bar)

    def gradient(self, steps: int, learning_rate: float, regularization: float, bar: Any) -> None:
        """Take gradient steps from the best; every picture on the way, and the one after the last step, is a candidate."""
        pivot, network = self.candidates[0], _Checkpointed()
        noise = torch.nn.Parameter(self.noise[pivot.number][None].clone().to(self.network.device))
        optimizer = torch.optim.SGD([noise], learning_rate, momentum=MOMENTUM, nesterov=True)
        reward = self.reranker.reward.reward
        score = getattr(reward, "score", reward)
        for step in range(steps):
            with torch.enable_grad(), self._hooked(network):
                picture = self._draw_with_gradient(noise, pivot.seed)
                gain = score([self.prompt], picture).sum() + regularization * log_density_of_norm(noise)
                (noise.grad,) = torch.autograd.grad(-gain, [noise])
            evaluations, network.rows = GRADIENT_COST * network.rows, 0
            # The first picture is the pivot's, which is known: its forward pass serves the gradient alone.
            self._add([self._candidate(picture.detach(), pivot.seed)] if step else [], noise.detach(), evaluations)
            torch.nn.utils.clip_grad_norm_([noise], CLIP)
            optimizer.step()
            bar.update(GRADIENT_COST)
        if steps > 0:
            self.evaluate(noise.detach().cpu(), [pivot.seed], bar)

    def output(self) -> NoiseSearchOutput:
        kept = self.candidates[: self.keep]
        images = gathered([candidate.image for candidate in kept])
        latents = torch.stack([self.noise[candidate.number] for candidate in kept])
        return NoiseSearchOutput(images, [self.candidates], self.evaluations, latents, self.history)

    def _add(self, candidates: list[Candidate], noise: torch.Tensor, evaluations: int) -> None:
        if candidates:
            self.noise += list(noise.float().cpu().clone())
        self.candidates = ranked(self.candidates + candidates, self.keep)
        self.evaluations += evaluations
        best = self.candidates[0]
        held_out = best.parts.get("held_out", math.nan)
        self.history.append({"evaluations": self.evaluations, "score": best.score, "held_out": held_out})

    @contextmanager
    def _hooked(self, network: "_Checkpointed") -> Iterator[None]:
        """The network checkpointed and counted; texts, which do not change, encoded once per search."""
        with ExitStack() as stack:
            stack.enter_context(hooked(self.network, network))
            for name, part in self.pipe.components.items():
                if name.startswith("text_encoder") and part is not None:
                    stack.enter_context(hooked(part, Remember(self.texts.setdefault(name, []))))
            yield

    def _draw_with_gradient(self, noise: torch.Tensor, seed: int) -> torch.Tensor:
        """Run the pipeline's own loop and decode: (1, c, h, w) -> (1, 3, H, W) in [0, 1], with a gradient."""
        call: Any = self.reranker.draw
        draw = inspect.unwrap(call.__func__).__get__(call.__self__)  # under `torch.no_grad` there is no gradient
        arguments = {**self.arguments, "output_type": "latent", "latents": noise.to(self.network.dtype)}
        latents = draw(self.prompt, generator=[torch.Generator().manual_seed(seed)], **arguments).images
        if not latents.requires_grad:
            raise InputError(f"{type(self.pipe).__name__} draws without a gradient; search with method='local'")
        return decode(self.pipe.vae, latents)

    def _candidate(self, picture: torch.Tensor, seed: int) -> Candidate:
        """A candidate of one picture (1, 3, H, W), checked and converted as the pipeline does."""
        flagged = [False]
        if getattr(self.pipe, "safety_checker", None) is not None:
            blanked, flagged = self.pipe.run_safety_checker(2 * picture - 1, picture.device, self.network.dtype)
            picture = picture * 0 if flagged[0] else blanked / 2 + 0.5
        kind = self.arguments.get("output_type", "pil")
        images = self.pipe.image_processor.postprocess(picture, output_type=kind, do_denormalize=[False])
        scores = {} if flagged[0] else score_pictures(self.reranker.reward, self.prompt, as_pictures(images))
        parts = {name: float(values[0]) for name, values in scores.items()}
        score = parts.pop("score", math.nan)
        return Candidate(len(self.noise), seed, (seed,), score, parts, bool(flagged[0]), image=images[0])


class WatchedReward:
    """A reward that chooses, and another that is measured beside it."""

    def __init__(self, reward: Any, held_out: Any):
        self.reward, self.held_out = reward, held_out

    def score_parts(self, prompts: Sequence[str], images: Any) -> dict[str, torch.Tensor]:
        read = getattr(self.reward, "score_parts", None) or getattr(self.reward, "score", self.reward)
        scores = read(prompts, images)
        parts = dict(scores) if isinstance(scores, dict) else {"score": scores}
        if self.held_out is not None:
            parts["held_out"] = getattr(self.held_out, "score", self.held_out)(prompts, images)
        return parts


class _Checkpointed(ModelHook):
    """Around a network: keeps nothing for the backward pass but its input; rows counts the samples that went through."""

    rows = 0

    def new_forward(self, module: torch.nn.Module, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows += len(sample)
        return checkpoint(self.fn_ref.original_forward, sample, *args, use_reentrant=False, **kwargs)


def _size(arguments: dict) -> dict[str, int | None]:
    return {name: arguments.get(name) for name in ("height", "width")}


@contextmanager
def _silenced(pipe: Any) -> Iterator[None]:
    """No bars of the pipeline's own."""
    settings = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**settings | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**settings)


@cache
def _warn_of_one_reward() -> None:
    logger.warning(
        f"A search over {MANY} candidates or more finds what a single reward overlooks. Search with several as one"
        " (diffusers_ext.rewards.ensemble), and give a held_out reward to see whether the gain is real."
    )
