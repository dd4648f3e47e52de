"""Mixins that add arguments to a pipeline's call, with signatures that say so.

A mixin does not know the pipeline that it will stand before, so its `__call__` takes (*args, **kwargs). But diffusers, editors
and `inspect` read signatures. So every class that is made with such a mixin gets a `__call__` whose signature names the
pipeline's arguments and the mixin's.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipeline
else:
    Pipeline = object  # a mixin: the pipeline comes behind it in the bases of a class


class CallMixin(Pipeline):
    """A mixin that stands before a pipeline in the bases of a class and whose `__call__` takes more than the pipeline's.

    A mixin that defines `__call__` defines `added` too: functions whose keyword-only parameters it takes beside the
    pipeline's; and `refused`, those of the pipeline's that it does not take.
    """

    added: ClassVar[tuple[Callable, ...]] = ()
    refused: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own, *behind = [kind for kind in cls.__mro__ if "__call__" in vars(kind)]
        if own is not cls and "added" in vars(own) and (signature := _signature([own, *behind])):
            setattr(cls, "__call__", _signed(cls, signature))  # noqa: B010, mypy knows no other way


def call_behind(pipe: Any, mixin: type) -> Callable:
    """Return `super(mixin, pipe).__call__`, the call that a mixin adds to, with its true signature."""
    call: Callable = getattr(super(mixin, pipe), "__call__")  # noqa: B004, B009
    order = type(pipe).__mro__
    behind = [kind for kind in order[order.index(mixin) + 1 :] if "__call__" in vars(kind)]
    if "added" not in vars(behind[0]):
        return call
    signature = _signature(behind)
    assert signature is not None, "a pipeline stands behind its mixins"

    @functools.wraps(call)
    def signed(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return _with(signed, signature.replace(parameters=list(signature.parameters.values())[1:]))


def joined(call: inspect.Signature, added: Iterable[Callable], refused: Collection[str] = ()) -> inspect.Signature:
    """Return the signature of a call that also takes the keyword-only parameters of other functions.

    Where both have a name, the parameter is the other function's; refused ones are left out. What follows a
    parameter that was taken out is keyword-only, for its position in the call is another.
    """
    more: dict[str, inspect.Parameter] = {}
    returns = call.return_annotation
    for function in added:
        signature = inspect.signature(function)
        returns = signature.return_annotation
        more |= {name: value for name, value in signature.parameters.items() if value.kind is value.KEYWORD_ONLY}
    kept, moved = [], False
    for name, value in call.parameters.items():
        if name in more or name in refused:
            moved = True
        else:
            positional = value.kind is value.POSITIONAL_OR_KEYWORD
            kept.append(value.replace(kind=value.KEYWORD_ONLY) if moved and positional else value)
    parameters = sorted([*kept, *more.values()], key=lambda value: value.kind)
    return call.replace(parameters=parameters, return_annotation=returns)


def _signature(callers: Sequence[type]) -> inspect.Signature | None:
    """The signature of mixins before a pipeline, classes that define `__call__` in their order; None without a pipeline."""
    mixins = cast("list[type[CallMixin]]", list(itertools.takewhile(lambda kind: "added" in vars(kind), callers)))
    if len(mixins) == len(callers):
        return None
    signature = inspect.signature(vars(callers[len(mixins)])["__call__"])
    for mixin in reversed(mixins):
        signature = joined(signature, mixin.added, mixin.refused)
    return signature


def _signed(cls: type, signature: inspect.Signature) -> Callable:
    @functools.wraps(getattr(cls, "__call__"))  # noqa: B004, B009
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(cls, self), "__call__")(*args, **kwargs)  # noqa: B004, B009

    return _with(__call__, signature)


def _with(function: Callable, signature: inspect.Signature) -> Callable:
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
