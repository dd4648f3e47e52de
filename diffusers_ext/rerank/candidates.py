"""The candidates of a prompt, their scores and their order: what best-of-N returns."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.hooks import CpuOffload
from diffusers.utils import BaseOutput
from PIL import Image

from ..errors import InputError
from ..rewards.reward_values import NotFiniteError, WrongNumberError, as_rewards


@dataclass
class Candidate:
    """One picture that was drawn, or was being drawn when it was dropped.

    number: its place among the prompt's candidates, from 0. seed: of its generator. chunk: the seeds that were drawn in
    one batch with it; `pipe(prompt, generator=[one per seed of the chunk], num_images_per_prompt=len(chunk))` of the
    pipeline without reranking draws the same pixels again, unless previews pruned the batch. score: its reward, NaN where there is none. parts: what the
    score is made of, by name. nsfw: blanked by the safety checker. dropped_after: the steps it was given when it was
    pruned; its score is then that of its draft, or of the picture predicted there. image: None unless kept.
    """

    number: int
    seed: int
    chunk: tuple[int, ...]
    score: float = math.nan
    parts: dict[str, float] = field(default_factory=dict)
    nsfw: bool = False
    dropped_after: int | None = None
    image: Any = None

    @property
    def rank(self) -> tuple:
        """What candidates are sorted by: finished ones by their scores, then those without a score, blanked ones, and
        pruned ones, the last pruned first."""
        unscored = math.isnan(self.score)
        pruned = 0 if self.dropped_after is None else -self.dropped_after
        return (
            self.dropped_after is not None,
            pruned,
            self.nsfw,
            unscored,
            0.0 if unscored else -self.score,
            self.number,
        )


@dataclass
class RerankOutput(BaseOutput):
    """Best-of-N of one prompt or several.

    images: the kept pictures, in order of reward, those of the first prompt first; a list of PIL images, an array
        (K, H, W, 3) or a tensor (K, 3, H, W), as `output_type` said.
    candidates: for each prompt all that were drawn, in order of reward.
    evaluations: samples that went through the U-Net or transformer; classifier-free guidance sends each through twice.
    """

    images: Any
    candidates: list[list[Candidate]]
    evaluations: int

    def _each(self, name: str) -> list:
        return [getattr(candidate, name) for candidates in self.candidates for candidate in candidates]

    @property
    def scores(self) -> list[float]:
        """Every candidate's score in order of reward, prompt by prompt; with one prompt, scores[i] is that of images[i]."""
        return self._each("score")

    @property
    def seeds(self) -> list[int]:
        """Every candidate's seed, in the order of `scores`."""
        return self._each("seed")

    @property
    def order(self) -> list[int]:
        """Every candidate's number, in the order of `scores`."""
        return self._each("number")

    @property
    def chunks(self) -> list[tuple[int, ...]]:
        """The seeds each candidate was drawn together with, in the order of `scores`."""
        return self._each("chunk")

    @property
    def nsfw_content_detected(self) -> list[bool]:
        """Which candidates the safety checker blanked, in the order of `scores`."""
        return self._each("nsfw")


def ranked(candidates: Sequence[Candidate], keep: int) -> list[Candidate]:
    """Sort candidates, best first, and let go of the pictures behind the first `keep`.

    >>> low, high = Candidate(0, 0, (0,), 0.1), Candidate(1, 1, (1,), 0.9)
    >>> [candidate.number for candidate in ranked([low, high], keep=1)]
    [1, 0]
    """
    best_first = sorted(candidates, key=lambda candidate: candidate.rank)
    for candidate in best_first[keep:]:
        candidate.image = None
    return best_first


def score_pictures(reward: Any, prompt: str, pictures: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return {"score": (M,) float64} and, by name, the parts that the score is made of.

    reward: has `score(prompts, images) -> (M,)`, and perhaps `score_parts`, which returns such a dict; or is itself such
    a function. Where it refuses the pictures together, each is scored alone, and one it refuses alone is NaN. So is one
    whose score is not finite, which would win or lose every comparison; a warning names it.
    Raises InputError where it refuses all, returns another number of scores, or none of several that is finite.
    """
    if not pictures:
        return {"score": np.empty(0)}
    score = getattr(reward, "score_parts", None) or getattr(reward, "score", reward)
    try:
        scores = _scores(score, prompt, list(pictures))
    except WrongNumberError:
        raise
    except InputError as error:
        if len(pictures) == 1 and not isinstance(error, NotFiniteError):
            raise
        if len(pictures) == 1:
            warnings.warn(f"{error}; ranked last", stacklevel=2)
            return {"score": np.array([math.nan])}
        return _one_by_one(score, prompt, pictures)
    return scores | {"score": _finite(scores["score"], prompt, _name(score))}


def _one_by_one(score: Callable, prompt: str, pictures: Sequence[Any]) -> dict[str, np.ndarray]:
    """Score each picture alone; one that is refused is NaN. InputError where all are."""
    parts, refusals = [], []
    for picture in pictures:
        try:
            parts.append(_scores(score, prompt, [picture]))
        except InputError as error:
            parts.append({})
            refusals.append(error)
    if len(refusals) == len(pictures):
        raise refusals[0]
    if refusals:
        warnings.warn(f"{len(refusals)} of {len(pictures)} pictures rank last: {refusals[0]}", stacklevel=4)
    names = next(filter(None, parts))
    scores = {name: np.array([part[name][0] if part else math.nan for part in parts]) for name in names}
    return scores | {"score": np.where(np.isfinite(scores["score"]), scores["score"], math.nan)}


def _scores(score: Callable, prompt: str, pictures: list) -> dict[str, np.ndarray]:
    owner = getattr(score, "__self__", score)
    with torch.no_grad(), _onloaded(owner):
        found = score([prompt] * len(pictures), pictures)
    found = found if isinstance(found, dict) else {"score": found}
    return {
        name: as_rewards(values, len(pictures), f"{_name(score)}, {name}").detach().cpu().double().numpy()
        for name, values in found.items()
    }


def _name(reward: Any) -> str:
    """What messages call a reward, or its `score`."""
    owner = getattr(reward, "__self__", reward)
    return str(getattr(owner, "name", None) or getattr(owner, "__name__", None) or type(owner).__name__)


def _finite(scores: np.ndarray, prompt: str, reward: str) -> np.ndarray:
    """Turn what is not finite to NaN, which ranks last, and say so; InputError where that is all of several."""
    bad = np.flatnonzero(~np.isfinite(scores))
    if not len(bad):
        return scores
    found = f"{reward}: {scores[bad[0]]} for picture {bad[0]} of {len(scores)} of the prompt {prompt[:60]!r}"
    if len(bad) == len(scores) > 1:
        raise NotFiniteError(f"{found}, and no finite score for any other: there is nothing to rank by")
    warnings.warn(f"{found}: {len(bad)} not finite, ranked last", stacklevel=3)
    return np.where(np.isfinite(scores), scores, math.nan)


def check_ranked(candidates: Sequence[Candidate], reward: Any) -> None:
    """Raise InputError where no candidate of a prompt has a score, though not all were blanked: they are in no order."""
    shown = [candidate for candidate in candidates if not candidate.nsfw]
    if shown and all(math.isnan(candidate.score) for candidate in shown):
        raise NotFiniteError(
            f"{_name(reward)}: no finite score for any of {len(shown)} candidates, the first from seed {shown[0].seed}"
        )


@contextmanager
def _onloaded(reward: Any) -> Iterator[None]:
    """Bring an offloaded reward to its device, and back: `score` is no `forward`, which accelerate's hook stands around."""
    hook = getattr(reward, "_hf_hook", None)
    if not isinstance(hook, CpuOffload) or next(reward.parameters(), None) is None:
        yield
        return
    hook.pre_forward(reward)
    try:
        yield
    finally:
        hook.init_hook(reward)


def as_pictures(images: Any) -> list:
    """The images of a pipeline, of any output type, in a form that rewards take: PIL images or tensors (3, H, W) in [0, 1].

    >>> as_pictures(np.zeros((2, 8, 8, 3)))[0].shape
    torch.Size([3, 8, 8])
    """
    if isinstance(images, (list, tuple)) and all(isinstance(image, Image.Image) for image in images):
        return list(images)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(torch.from_numpy(images).permute(0, 3, 1, 2).clamp(0, 1))
    if isinstance(images, torch.Tensor) and images.ndim == 4 and images.shape[1] == 3:
        return list(images.float().clamp(0, 1))
    raise InputError("the pipeline returned no pictures to score: ask for output_type 'pil', 'np' or 'pt'")


def gathered(images: list) -> Any:
    """The kept images in the form that the pipeline returns them.

    >>> gathered([torch.zeros(3, 8, 8)] * 2).shape
    torch.Size([2, 3, 8, 8])
    """
    if images and isinstance(images[0], np.ndarray):
        return np.stack(images)
    if images and isinstance(images[0], torch.Tensor):
        return torch.stack(images)
    return images
