"""Best-of-N: draw several candidates of a prompt, score them, return the best, around any pipeline that returns images.

    reranker = RewardReranker(pipe, load_reward("models/image-reward"))
    best = reranker("a red circle", num_candidates=16, keep=4, chunk_size=4, seed=0)
    best.images[0], best.scores[0], best.seeds[0]

Every candidate has a generator of its own and is drawn by the pipeline itself, in chunks, so that the pixels are those
of `pipe(prompt, num_images_per_prompt=4, generator=[...])`; the prompt goes through the text encoders once. With
`prune`, the worse candidates are dropped before they cost their full number of steps: successive halving (Karnin et al.
2013; Jamieson & Talwalkar 2016), by drafts of fewer steps or by predictions part-way (`diffusers_ext.rerank.pruning`).

Shapes: P prompts, N candidates of each.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from transformers import PreTrainedModel

from ..diffusion.bases import network_of
from ..diffusion.hooks import Remember, hooked
from ..diffusion.signatures import CallMixin, call_behind, joined
from ..errors import InputError
from .candidates import Candidate, RerankOutput, as_pictures, check_ranked, gathered, ranked, score_pictures
from .pruning import Pruning, check_pipeline
from .request import Choices, Request, Schedule, read_request


class RewardReranker:
    """Best-of-N around a pipeline.

    Args:
        pipeline: any object that is called with a `prompt` and a `generator`, a list of one per image, and returns
            `.images`: every text-to-image pipeline of diffusers, and community ones.
        reward: an object with `score(prompts, images) -> (N,)`, such as `load_reward` returns, or such a function; or a
            list, one for each prompt of the call.
        draw: what to call instead of the pipeline itself.
    """

    def __init__(self, pipeline: Any, reward: Any, draw: Callable | None = None):
        # A pipeline that chooses by itself is drawn from as the pipeline that it extends.
        self.pipeline, self.reward = pipeline, reward
        self.draw = draw or getattr(pipeline, "plain_call", pipeline)
        signature = inspect.signature(self.draw)
        self.parameters = signature.parameters
        self.__signature__ = joined(
            signature, (RewardReranker.__call__,)
        )  # of this object, with its pipeline's arguments
        self.evaluations = 0
        self.chunk_size = 0  # of the call under way: halved where memory does not suffice
        self._encoders: list[tuple[PreTrainedModel, list]] = []  # with what they answered in this call

    def __call__(
        self,
        *args: Any,
        num_candidates: int = 16,
        keep: int = 4,
        chunk_size: int = 4,
        seed: int | Sequence[int] | None = None,
        prune: bool | Schedule | None = None,
        prune_by: str = "drafts",
        preview_decoder: Any = None,
        reward_prompt: str | Sequence[str] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> RerankOutput | tuple:
        """Draw and rank; all other arguments are the pipeline's, with its defaults.

        Args:
            num_candidates: N, of each prompt.
            keep: how many images of each prompt to return; more than N returns all.
            chunk_size: images drawn at a time. It bounds the memory; where that does not suffice the size is halved
                until it does. Scores change in their last digits with it, as batched kernels round differently.
            seed: candidate n of prompt p starts from seed + p·N + n; or all P·N seeds, prompt by prompt. Without, seeds
                are drawn from `generator`, or from torch's global one; a list of P·N generators stands for their
                initial seeds.
            prune: pairs (share of the steps, share of those left that continue), or True for the usual ones
                (`rerank.request.SCHEDULES`). Default: every candidate is drawn to the end.
            prune_by: drafts: pictures drawn in that share of the steps, from the same seeds; any pipeline, and a sampler
                without noise of its own. previews: pictures that the network predicts at that share of one run; a
                U-Net and a discrete schedule.
            preview_decoder: decodes previews, such as an AutoencoderTiny; default: the pipeline's VAE.
            reward_prompt: what the reward reads, one text or one per prompt; default: the prompt.
            return_dict: False returns the tuple (images, candidates, evaluations).

        A list argument that begins with `prompt` or `negative_prompt` has an entry per prompt; `latents` has P·N rows. A
        callback sees each chunk as its own run; one that sets `pipe._interrupt` ends the search, and what was drawn is
        ranked, the unfinished chunk with it.

        Raises InputError for what cannot be done, before anything is drawn.
        """
        given = inspect.signature(self.draw).bind_partial(*args, **kwargs).arguments
        output = self.rank(
            given,
            Choices(num_candidates, keep, chunk_size, seed, prune, prune_by, preview_decoder, reward_prompt),
        )
        return output if return_dict else output.to_tuple()

    def rank(self, given: dict[str, Any], choices: Choices) -> RerankOutput:
        """Draw and rank; given: the pipeline's arguments by name. Raises InputError as a call does."""
        if self.reward is None:
            raise InputError("no reward to rank by: set reward_model (diffusers_ext.load_reward gives one)")
        request = read_request(given, self.parameters, choices)
        previews = bool(request.schedule) and not request.by_drafts
        if previews:
            check_pipeline(self.pipeline, self.parameters)
        self.evaluations, self.chunk_size = 0, request.chunk_size
        ranking: list[list[Candidate]] = []
        with self._session(request.drawings()) as bar:
            for prompt in range(len(request.prompts)):
                if previews:
                    candidates = self._previewed(request, prompt, bar, choices.preview_decoder)
                else:
                    candidates = self._drafted(request, prompt, bar)
                ranking.append(ranked(candidates, request.keep))
                if self._interrupted():
                    break
                check_ranked(candidates, self._reward(prompt))
        images = [candidate.image for best_first in ranking for candidate in best_first if candidate.image is not None]
        return RerankOutput(gathered(images), ranking, self.evaluations)

    def _reward(self, prompt: int) -> Any:
        """The reward of a prompt."""
        return self.reward[prompt] if isinstance(self.reward, list) else self.reward

    # ------------------------------------------------------------------ the candidates of a prompt

    def _drafted(self, request: Request, prompt: int, bar: Any) -> list[Candidate]:
        """Draw the candidates in few steps and drop the worse, as often as the schedule says; then the rest in all steps."""
        left = list(range(len(request.seeds[prompt])))
        dropped: list[Candidate] = []
        for steps, count in request.drafts():
            drafts = ranked(self._in_chunks(request, prompt, left, bar, steps), request.keep)
            if self._interrupted():
                return drafts + dropped
            for draft in drafts:
                draft.image, draft.dropped_after = None, steps
            left, dropped = sorted(draft.number for draft in drafts[:count]), drafts[count:] + dropped
        return self._in_chunks(request, prompt, left, bar) + dropped

    def _in_chunks(
        self, request: Request, prompt: int, left: list[int], bar: Any, steps: int | None = None
    ) -> list[Candidate]:
        """Draw and score candidates, a chunk at a time; only the pictures of the best stay in memory."""
        done = 0
        candidates: list[Candidate] = []
        while done < len(left) and not (candidates and self._interrupted()):
            numbers, shown = left[done : done + self.chunk_size], bar and bar.n
            try:
                candidates = ranked(candidates + self._chunk(request, prompt, numbers, bar, steps), request.keep)
                done += len(numbers)
                continue
            except RuntimeError as error:
                if len(numbers) == 1 or not should_reduce_batch_size(error):
                    raise
            # Outside the handler, where nothing holds the failed chunk's tensors.
            self.chunk_size = (len(numbers) + 1) // 2
            if bar is not None:
                bar.n = shown
            warnings.warn(f"out of memory at {len(numbers)} images; continuing with {self.chunk_size}", stacklevel=6)
            clear_device_cache(garbage_collection=True)
        return candidates

    def _chunk(self, request: Request, prompt: int, numbers: list[int], bar: Any, steps: int | None) -> list[Candidate]:
        chunk = tuple(request.seeds[prompt][number] for number in numbers)
        changes = {} if steps is None else {"num_inference_steps": steps}
        output = self._call(request, prompt, numbers, request.generators(chunk), bar, changes)
        return self._candidates(request, prompt, numbers, [chunk] * len(numbers), output)

    def _previewed(self, request: Request, prompt: int, bar: Any, decoder: Any) -> list[Candidate]:
        """Draw all candidates of a prompt in one call, which loses the worse ones on the way."""
        seeds = tuple(request.seeds[prompt])
        generators, numbers = request.generators(seeds), list(range(len(seeds)))

        def score(pictures: torch.Tensor) -> np.ndarray:
            return self._scores(request, prompt, list(pictures), [False] * len(pictures))["score"]

        pruning = Pruning(self.pipeline, request, generators, score, decoder or self.pipeline.vae)
        with pruning.active():
            output = self._call(request, prompt, numbers, generators, bar, {}, pruning)
        finished = self._candidates(request, prompt, pruning.kept, [seeds] * len(pruning.kept), output)
        return finished + [
            Candidate(number, seeds[number], seeds, score, dropped_after=steps)
            for number, (steps, score) in pruning.dropped.items()
        ]

    def _candidates(
        self, request: Request, prompt: int, numbers: list[int], chunks: list[tuple], output: Any
    ) -> list[Candidate]:
        """Score the pictures of some candidates; those that the safety checker blanked have no score."""
        blanks = getattr(output, "nsfw_content_detected", None) or [False] * len(numbers)
        scores = self._scores(request, prompt, as_pictures(output.images), blanks)
        candidates = []
        for row, (number, chunk) in enumerate(zip(numbers, chunks)):
            parts = {name: float(values[row]) for name, values in scores.items()}
            score, seed = parts.pop("score"), request.seeds[prompt][number]
            candidates.append(Candidate(number, seed, chunk, score, parts, bool(blanks[row]), None, output.images[row]))
        return candidates

    def _scores(self, request: Request, prompt: int, pictures: list, blanks: Sequence[bool]) -> dict[str, np.ndarray]:
        """Score what was not blanked; the rest is NaN."""
        shown = [picture for picture, blank in zip(pictures, blanks) if not blank]
        known = score_pictures(self._reward(prompt), request.prompts[prompt], shown)
        scores = {name: np.full(len(pictures), np.nan) for name in known}
        for name, values in known.items():
            scores[name][~np.array(blanks, dtype=bool)] = values
        return scores

    # ------------------------------------------------------------------ the pipeline

    def _call(
        self,
        request: Request,
        prompt: int,
        numbers: list[int],
        generators: list[torch.Generator],
        bar: Any,
        changes: dict[str, Any],
        pruning: Pruning | None = None,
    ) -> Any:
        """Call the pipeline for some candidates of a prompt."""
        arguments = request.of_prompt(prompt, self.pipeline) | {"generator": generators} | changes
        if "num_images_per_prompt" in self.parameters:
            arguments["num_images_per_prompt"] = len(numbers)
        else:
            texts = {name: value for name, value in arguments.items() if name.endswith("prompt")}
            arguments |= {name: [text] * len(numbers) for name, text in texts.items() if isinstance(text, str)}
        if (latents := request.latents(prompt, numbers)) is not None:
            arguments["latents"] = latents
        if "callback_on_step_end" in self.parameters:
            arguments |= _callback(request.arguments, bar, len(numbers), pruning)
        with ExitStack() as stack:
            for encoder, answers in self._encoders:
                stack.enter_context(hooked(encoder, Remember(answers)))
            output = self.draw(**arguments)
        if "callback_on_step_end" not in self.parameters:
            _advance(bar, len(numbers))
        if not hasattr(output, "images"):
            raise InputError(f"{type(self.pipeline).__name__} returned {type(output).__name__}, which has no images")
        return output

    def _interrupted(self) -> bool:
        return bool(getattr(self.pipeline, "interrupt", False))

    @contextmanager
    def _session(self, total: int) -> Iterator[Any]:
        """One bar instead of the pipeline's own, texts remembered, network evaluations counted."""
        pipe = self.pipeline
        parts = getattr(pipe, "components", {}).items()
        encoders = [part for name, part in parts if name.startswith("text_encoder")]
        self._encoders += [(part, []) for part in encoders if isinstance(part, PreTrainedModel)]
        network = network_of(pipe)
        with ExitStack() as stack:
            bar = None
            if hasattr(pipe, "progress_bar"):
                settings = dict(getattr(pipe, "_progress_bar_config", {}))
                bar = stack.enter_context(pipe.progress_bar(total=total))
                stack.callback(pipe.set_progress_bar_config, **settings)
                pipe.set_progress_bar_config(**settings | {"disable": True})
            if isinstance(network, torch.nn.Module):
                stack.callback(network.register_forward_pre_hook(self._count, with_kwargs=True).remove)
            stack.callback(self._encoders.clear)
            yield bar

    def _count(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.evaluations += len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))


class RerankMixin(CallMixin):
    """Put it before a diffusers pipeline in the bases of a class that has the component `reward_model`, which may be None."""

    added: ClassVar[tuple[Callable, ...]] = (RewardReranker.__call__,)

    @property
    def plain_call(self) -> Callable:
        """The call of the pipeline that this one extends."""
        return call_behind(self, RerankMixin)

    def __call__(self, *args: Any, **kwargs: Any) -> RerankOutput | tuple:
        """Draw several candidates of each prompt and return the best; arguments as in `RewardReranker.__call__`."""
        return RewardReranker(self, self.reward_model, self.plain_call)(*args, **kwargs)


def _callback(arguments: dict[str, Any], bar: Any, count: int, pruning: Pruning | None) -> dict[str, Any]:
    """The pipeline's two callback arguments: the caller's callback, then pruning, then the bar."""
    theirs = arguments.get("callback_on_step_end")
    names = list(arguments.get("callback_on_step_end_tensor_inputs") or ["latents"])
    if isinstance(theirs, (PipelineCallback, MultiPipelineCallbacks)):
        names = list(theirs.tensor_inputs)
    names += [name for name in ["latents"] if pruning and name not in names]

    def step_end(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        latents = given.get("latents")
        changed = dict(theirs(pipe, step, timestep, given) or {}) if theirs else {}
        steps = getattr(pipe, "num_timesteps", None) or len(pipe.scheduler.timesteps)
        if pruning:
            changed["latents"] = pruning.step_end(step, steps, changed.get("latents", latents))
        _advance(bar, count / steps)
        return changed

    return {"callback_on_step_end": step_end, "callback_on_step_end_tensor_inputs": names}


def _advance(bar: Any, candidates: float) -> None:
    if bar is not None:
        bar.n = min(round(bar.n + candidates, 3), bar.total)
        bar.update(0)
