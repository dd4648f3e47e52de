"""Best-of-N: draw several candidates of a prompt, score them, return the best, around any pipeline that returns images.

    reranker = RewardReranker(pipe, load_reward("models/image-reward"))
    best = reranker("a red circle", num_candidates=16, keep=4, chunk_size=4, seed=0)
    best.images[0], best.scores[0], best.seeds[0]

Every candidate has a generator of its own and is drawn by the pipeline itself, in chunks, so that the pixels are those
of `pipe(prompt, num_images_per_prompt=4, generator=[...])`; the prompt goes through the text encoders once. With
`prune`, candidates are dropped on the way (`diffusers_ext.pruning`).

Shapes: P prompts, N candidates of each.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.hooks import CpuOffload
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers import MultiControlNetModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import unwrap_module
from transformers import PreTrainedModel

from .candidates import Candidate, RerankOutput, as_pictures, gathered, ranked, score_pictures
from .errors import InputError
from .hooks import Remember, hooked
from .pruning import Pruning, Schedule, check_pipeline, check_schedule

SEEDS = 2**63 - 1  # seeds are drawn below this
OF_PROMPT = ("prompt", "negative_prompt", "pooled_", "negative_pooled_")  # arguments that belong to a prompt begin so
IMAGES = ("image", "mask_image", "control_image")  # and these, where a list has one per prompt


@dataclass
class Request:
    """A checked call: what to draw, how often, and what is handed on to the pipeline."""

    arguments: dict[str, Any]
    prompts: list[str]
    seeds: list[list[int]]
    device: torch.device
    keep: int
    chunk_size: int
    schedule: Schedule
    decoder: Any


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
        self.pipeline, self.reward, self.draw = pipeline, reward, draw or pipeline.__call__
        self.parameters = inspect.signature(self.draw).parameters
        self.evaluations = 0

    def __call__(
        self,
        *args: Any,
        num_candidates: int = 16,
        keep: int = 4,
        chunk_size: int = 4,
        seed: int | Sequence[int] | None = None,
        prune: bool | Schedule | None = None,
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
            prune: True for successive halving (`pruning.HALVING`), or pairs (share of the steps done, share of the
                candidates left that go on). Default: every candidate is drawn to the end.
            preview_decoder: decodes the predictions that pruning scores, such as an AutoencoderTiny; default: the VAE.
            reward_prompt: what the reward reads, one text or one per prompt; default: the prompt.
            return_dict: False returns the tuple (images, candidates, evaluations).

        A list argument that begins with `prompt` or `negative_prompt` has an entry per prompt; `latents` has P·N rows. A
        callback sees each chunk as its own run; one that sets `pipe._interrupt` ends the search, and what was drawn is
        ranked, the unfinished chunk with it.

        Raises InputError for what cannot be done, before anything is drawn.
        """
        call = inspect.signature(self.draw).bind(*args, **kwargs)
        request = self._request(call.arguments, num_candidates, keep, chunk_size, seed, reward_prompt)
        request.schedule, request.decoder = check_schedule(prune), preview_decoder
        if request.schedule:
            check_pipeline(self.pipeline, self.parameters)
        self.evaluations = 0
        candidates: list[list[Candidate]] = []
        with self._session(request) as bar:
            for prompt in range(len(request.prompts)):
                draw_prompt = self._pruned if request.schedule else self._in_chunks
                candidates.append(draw_prompt(request, prompt, bar))
                if self._interrupted():
                    break
        images = [each.image for best_first in candidates for each in best_first if each.image is not None]
        output = RerankOutput(gathered(images), candidates, self.evaluations)
        return output if return_dict else output.to_tuple()

    # ------------------------------------------------------------------ what is asked for

    def _request(self, given: dict, number: int, keep: int, chunk_size: int, seed: Any, reward_prompt: Any) -> Request:
        arguments = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
        if min(number, keep, chunk_size) < 1:
            raise InputError(f"num_candidates {number}, keep {keep}, chunk_size {chunk_size}: 1 at least")
        if self.reward is None:
            raise InputError("no reward to rank by: set reward_model (diffusers_ext.load_reward gives one)")
        if arguments.pop("num_images_per_prompt", 1) not in (None, 1):
            raise InputError(
                "num_images_per_prompt: num_candidates says how many are drawn, keep how many are returned"
            )
        if arguments.get("output_type", "pil") == "latent":
            raise InputError("output_type 'latent' has no picture to score; ask for 'pil', 'np' or 'pt'")
        if "generator" not in self.parameters:
            raise InputError(f"{type(self.pipeline).__name__} takes no generator: its images cannot be drawn again")
        prompts = _prompts(arguments, reward_prompt)
        generator = arguments.pop("generator", None)
        seeds, device = _seeds(seed, generator, len(prompts), number)
        latents = arguments.get("latents")
        if latents is not None and len(latents) != len(prompts) * number:
            raise InputError(f"latents: {len(latents)} rows for {len(prompts)} x {number} candidates; give one each")
        return Request(arguments, prompts, seeds, device, min(keep, number), chunk_size, (), None)

    def _of_prompt(self, request: Request, prompt: int) -> dict[str, Any]:
        """The pipeline's arguments for one prompt."""
        several = isinstance(unwrap_module(getattr(self.pipeline, "controlnet", None)), MultiControlNetModel)
        images = () if several else IMAGES  # the list of several ControlNets has one per net
        return {
            name: _entry(value, prompt, len(request.prompts)) if name.startswith(OF_PROMPT) or name in images else value
            for name, value in request.arguments.items()
        }

    # ------------------------------------------------------------------ drawing

    def _in_chunks(self, request: Request, prompt: int, bar: Any) -> list[Candidate]:
        """Draw and score all candidates of a prompt, a chunk at a time; only the pictures of the best stay in memory."""
        seeds, done, found = request.seeds[prompt], 0, []
        while done < len(seeds) and not (found and self._interrupted()):
            numbers = range(done, min(done + request.chunk_size, len(seeds)))
            try:
                found = ranked(found + self._chunk(request, prompt, numbers, bar), request.keep)
                done = numbers.stop
                continue
            except RuntimeError as error:
                if len(numbers) == 1 or not should_reduce_batch_size(error):
                    raise
            # Outside the handler, where nothing holds the failed chunk's tensors any more.
            request.chunk_size = (len(numbers) + 1) // 2
            warnings.warn(f"out of memory at {len(numbers)} images; going on with {request.chunk_size}", stacklevel=4)
            clear_device_cache(garbage_collection=True)
        return found

    def _chunk(self, request: Request, prompt: int, numbers: range, bar: Any) -> list[Candidate]:
        chunk = tuple(request.seeds[prompt][number] for number in numbers)
        output = self._call(request, prompt, numbers, _generators(chunk, request.device), bar)
        blanks = getattr(output, "nsfw_content_detected", None) or [False] * len(numbers)
        scores = self._scores(request, prompt, as_pictures(output.images), blanks)
        return [
            Candidate(number, chunk[at], chunk, nsfw=bool(blanks[at]), image=output.images[at], **_of(scores, at))
            for at, number in enumerate(numbers)
        ]

    def _pruned(self, request: Request, prompt: int, bar: Any) -> list[Candidate]:
        """Draw all candidates of a prompt in one call, which loses the worse ones on the way."""
        seeds = tuple(request.seeds[prompt])
        generators = _generators(seeds, request.device)

        def score(pictures: torch.Tensor) -> np.ndarray:
            return self._scores(request, prompt, list(pictures), [False] * len(pictures))["score"]

        pruning = Pruning(
            self.pipeline,
            request.schedule,
            len(seeds),
            request.chunk_size,
            generators,
            score,
            request.decoder,
            request.keep,
        )
        with pruning.active():
            output = self._call(request, prompt, range(len(seeds)), generators, bar, pruning)
        blanks = getattr(output, "nsfw_content_detected", None) or [False] * len(pruning.kept)
        scores = self._scores(request, prompt, as_pictures(output.images), blanks)
        found = [
            Candidate(number, seeds[number], seeds, nsfw=bool(blanks[at]), image=output.images[at], **_of(scores, at))
            for at, number in enumerate(pruning.kept)
        ]
        found += [
            Candidate(number, seeds[number], seeds, score, dropped_after=steps)
            for number, (steps, score) in pruning.dropped.items()
        ]
        return ranked(found, request.keep)

    def _call(
        self,
        request: Request,
        prompt: int,
        numbers: range,
        generators: list,
        bar: Any,
        pruning: Pruning | None = None,
    ) -> Any:
        """Call the pipeline for some candidates of a prompt."""
        progress = _progress(bar, prompt * len(request.seeds[prompt]) + numbers.start, len(numbers))
        arguments = self._of_prompt(request, prompt) | {"generator": generators}
        if "num_images_per_prompt" in self.parameters:
            arguments["num_images_per_prompt"] = len(numbers)
        else:
            texts = {name: value for name, value in arguments.items() if isinstance(value, str)}
            arguments |= {name: [text] * len(numbers) for name, text in texts.items() if name.startswith(OF_PROMPT[:2])}
        if request.arguments.get("latents") is not None:
            first = prompt * len(request.seeds[prompt])
            arguments["latents"] = request.arguments["latents"][first + numbers.start : first + numbers.stop]
        if "callback_on_step_end" in self.parameters:
            arguments |= _callback(request.arguments, progress, pruning)
        with ExitStack() as stack:
            for encoder, answers in self._remembered.values():
                stack.enter_context(hooked(encoder, Remember(answers)))
            output = self.draw(**arguments)
        progress(1.0)
        if not hasattr(output, "images"):
            raise InputError(f"{type(self.pipeline).__name__} returned {type(output).__name__}, which has no images")
        return output

    def _scores(self, request: Request, prompt: int, pictures: list, blanks: Sequence[bool]) -> dict[str, np.ndarray]:
        """Score what was not blanked; the rest is NaN."""
        shown = [picture for picture, blank in zip(pictures, blanks) if not blank]
        reward = self.reward[prompt] if isinstance(self.reward, list) else self.reward
        with _onloaded(reward):
            found = score_pictures(reward, request.prompts[prompt], shown)
        where = np.flatnonzero(~np.array(blanks, dtype=bool))
        scores = {name: np.full(len(pictures), np.nan) for name in found}
        for name, values in found.items():
            scores[name][where] = values
        return scores

    def _interrupted(self) -> bool:
        return bool(getattr(self.pipeline, "interrupt", False))

    @contextmanager
    def _session(self, request: Request) -> Iterator[Any]:
        """One bar instead of the pipeline's own, texts remembered, network evaluations counted."""
        pipe = self.pipeline
        total = sum(map(len, request.seeds))
        encoders = {
            name: part for name, part in getattr(pipe, "components", {}).items() if name.startswith("text_encoder")
        }
        self._remembered = {name: (part, []) for name, part in encoders.items() if isinstance(part, PreTrainedModel)}
        settings = dict(getattr(pipe, "_progress_bar_config", {}))
        bar = pipe.progress_bar(total=total) if hasattr(pipe, "progress_bar") else None
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        with ExitStack() as stack:
            if bar is not None:
                stack.enter_context(bar)
                stack.callback(pipe.set_progress_bar_config, **settings)
                pipe.set_progress_bar_config(**settings | {"disable": True})
            if isinstance(network, torch.nn.Module):
                stack.callback(network.register_forward_pre_hook(self._count, with_kwargs=True).remove)
            yield bar

    def _count(self, network: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.evaluations += len(next(each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)))


class RerankMixin:
    """Put it before a diffusers pipeline in the bases of a class that has the component `reward_model`, which may be None."""

    def __call__(self, *args: Any, **kwargs: Any) -> RerankOutput | tuple:
        """Draw several candidates of each prompt and return the best; arguments as in `RewardReranker.__call__`."""
        return RewardReranker(self, self.reward_model, super().__call__)(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As diffusers does. Raises InputError for a reward that would be left out: it has neither files nor a name."""
        reward = self.reward_model
        if reward is not None and not isinstance(reward, PreTrainedModel):
            raise InputError(
                f"reward_model: a {type(reward).__name__} has no files to save; use rewards.named.NamedReward(NAME) with a"
                " name that load_reward takes, or set pipe.reward_model = None"
            )
        super().save_pretrained(save_directory, *args, **kwargs)


# ------------------------------------------------------------------ arguments


def _prompts(arguments: dict[str, Any], reward_prompt: Any) -> list[str]:
    """Return what the reward reads, one text per prompt; InputError where that is not known."""
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    count = (
        1 if isinstance(prompt, str) else len(prompt if prompt is not None else embeds if embeds is not None else ())
    )
    texts = prompt if reward_prompt is None else reward_prompt
    texts = [texts] * count if isinstance(texts, str) else list(texts or ())
    if not count or len(texts) != count:
        raise InputError(f"{count} prompts and {len(texts)} texts for the reward; with embeddings, give reward_prompt")
    return texts


def _entry(value: Any, prompt: int, count: int) -> Any:
    """The entry of one prompt in a list, or its row of embeddings; anything else belongs to all prompts."""
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[prompt]
    if isinstance(value, (torch.Tensor, np.ndarray)) and len(value) == count:
        return value[prompt : prompt + 1]
    return value


def _seeds(seed: Any, generator: Any, prompts: int, number: int) -> tuple[list[list[int]], torch.device]:
    """Return the seeds of every prompt's candidates, and the device that they are drawn on."""
    total, cpu = prompts * number, torch.device("cpu")
    if seed is not None and generator is not None:
        raise InputError("give seed or generator, not both")
    device = cpu
    if isinstance(generator, (list, tuple)):
        device, seed = generator[0].device, [each.initial_seed() for each in generator]
    if seed is None:
        device = generator.device if generator is not None else cpu
        seed = torch.randint(SEEDS, (total,), generator=generator, device=device).tolist()
    seeds = list(range(seed, seed + total)) if isinstance(seed, int) else [int(each) for each in seed]
    if len(seeds) != total:
        raise InputError(f"{len(seeds)} seeds for {prompts} x {number} candidates; give one each, or one number")
    return [seeds[start : start + number] for start in range(0, total, number)], device


def _generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _of(scores: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    """The score of one picture and its parts, as a Candidate has them."""
    values = {name: float(each[at]) for name, each in scores.items()}
    return {"score": values.pop("score"), "parts": values}


# ------------------------------------------------------------------ while the pipeline runs


def _progress(bar: Any, done: int, count: int) -> Callable[[float], None]:
    """Return what moves the bar: called with the share of this call that is done."""

    def move(share: float) -> None:
        if bar is not None:
            bar.update(round(done + share * count, 2) - bar.n)

    return move


def _callback(arguments: dict[str, Any], progress: Callable[[float], None], pruning: Pruning | None) -> dict[str, Any]:
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
        progress((step + 1) / steps)
        return changed

    return {"callback_on_step_end": step_end, "callback_on_step_end_tensor_inputs": names}


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
