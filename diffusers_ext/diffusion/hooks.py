"""What stands around a network for the length of a call, through `diffusers.hooks`, the mechanism of diffusers' own caches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

REMEMBERED = 4  # texts that an encoder keeps the answers for: a prompt and a negative prompt, each read in two ways


@contextmanager
def hooked(module: nn.Module, hook: ModelHook) -> Iterator[ModelHook]:
    """Hook a module and leave it as it was; the registry is this block's own, so nothing of it stays on the module."""
    inherited = "forward" not in vars(module)
    registry = HookRegistry(module)
    registry.register_hook(hook, "diffusers_ext")
    try:
        yield hook
    finally:
        registry.remove_hook("diffusers_ext", recurse=False)
        if inherited:
            del module.forward


class Remember(ModelHook):
    """Around a text encoder: what it has just read, it does not read again.

    answers: (arguments, result) of earlier calls, newest last; given again to the next hook, they outlive this one.
    """

    def __init__(self, answers: list[tuple[Any, Any]]):
        super().__init__()
        self.answers = answers

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for position, (known, _) in enumerate(self.answers):
            if _equal(known, (args, kwargs)):
                self.answers.append(self.answers.pop(position))
                return self.answers[-1][1]
        result = self.fn_ref.original_forward(*args, **kwargs)
        self.answers[:] = [*self.answers, ((args, kwargs), result)][-REMEMBERED:]
        return result


class Chunked(ModelHook):
    """Around a network that treats its rows apart: only the rows of `kept` candidates, at most `size` candidates at a time.

    Rows come in copies of all candidates, (copies, candidates): two under classifier-free guidance. What the caller still
    holds for all candidates (embeddings, control images) is cut to the kept ones here. Where memory does not suffice, the
    size is halved for good.
    """

    def __init__(self, candidates: int, size: int):
        super().__init__()
        self.candidates, self.kept, self.size = candidates, list(range(candidates)), size

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        rows = len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)))
        copies = rows // len(self.kept)
        wanted = [copy * self.candidates + number for copy in range(copies) for number in self.kept]
        given = (args, kwargs)
        if len(self.kept) < self.candidates:
            given = take(given, copies * self.candidates, wanted)
        while True:
            try:
                return self._in_chunks(*given, rows, copies * self.size)
            except RuntimeError as error:
                if self.size == 1 or not should_reduce_batch_size(error):
                    raise
            self.size = (min(self.size, len(self.kept)) + 1) // 2
            clear_device_cache(garbage_collection=True)

    def _in_chunks(self, args: tuple, kwargs: dict, rows: int, size: int) -> Any:
        results = []
        for start in range(0, rows, size):
            chunk = take((args, kwargs), rows, slice(start, start + size))
            results.append(self.fn_ref.original_forward(*chunk[0], **chunk[1]))
        return _joined(results)


def take(values: Any, rows: int, index: Sequence[int] | slice) -> Any:
    """Index the first dimension of every tensor that has `rows` rows, in nested lists, tuples and dicts."""
    if isinstance(values, torch.Tensor):
        return values[index] if values.ndim and len(values) == rows else values
    if isinstance(values, dict):
        return {name: take(value, rows, index) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(take(value, rows, index) for value in values)
    return values


def _joined(results: list) -> Any:
    """Join what a network returned for the chunks: tensors, or None, in lists, tuples and diffusers' outputs."""
    first = results[0]
    if len(results) == 1 or first is None:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(results)
    if isinstance(first, dict):
        return type(first)(**{name: _joined([result[name] for result in results]) for name in first})
    return type(first)(_joined(list(parts)) for parts in zip(*results))


def _equal(first: Any, second: Any) -> bool:
    """Compare nested arguments, tensors by their values."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[name], second[name]) for name in first)
    return type(first) is type(second) and bool(first == second)
