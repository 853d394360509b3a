"""`@flor.metric`: a function of a context whose name is the metric's name. No torch at import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

from flor_plugins.errors import HookError

HookMoment = Literal["epoch", "validation", "step"]
MOMENTS: tuple[HookMoment, ...] = ("epoch", "validation", "step")


@dataclass(slots=True)
class Context:
    """What a hook is given. Fields that a moment does not have are None.

    model:          the LightningModule or the HF model; in eval mode at "epoch"
    batch:          the current batch, on the device ("validation", "step")
    outputs:        what the validation step returned ("validation")
    loss:           0-d tensor, the loss of the update: the mean over its micro-batches ("step")
    optimizer:      the optimizer that makes the update ("step"), else the first one
    val_dataloader: an iterable of batches (CPU), or None where there is no validation data
    device:         torch.device of the model
    run:            the run's name
    epoch, step:    completed epochs and optimizer updates, as in the dataframe
    """

    model: Any
    batch: Any = None
    outputs: Any = None
    loss: Any = None
    optimizer: Any = None
    device: Any = None
    run: str = ""
    epoch: int = 0
    step: int = 0
    make_val_dataloader: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def val_dataloader(self) -> Any:
        """Made when a hook asks for it: most hooks do not, and it costs."""
        return None if self.make_val_dataloader is None else self.make_val_dataloader()


@dataclass(frozen=True, slots=True)
class Metric:
    """A decorated hook. Calling it calls the function."""

    function: Callable[[Any], Any]
    at: HookMoment
    reduce: str | Callable[[Sequence[Any]], Any] = "mean"
    grad: bool = False

    @property
    def name(self) -> str:
        """The name of the metric is that of the function."""
        return self.function.__name__

    @property
    def is_generator(self) -> bool:
        """Tell whether it yields at the update, with a part before and a part after it."""
        return inspect.isgeneratorfunction(self.function)

    @property
    def place(self) -> str:
        """`file:line` of the function, for messages."""
        code = self.function.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"

    def __call__(self, ctx: Any) -> Any:
        """Call the decorated function."""
        return self.function(ctx)


@overload
def metric(function: Callable[[Any], Any], /) -> Metric: ...
@overload
def metric(
    *,
    at: HookMoment = "epoch",
    reduce: str | Callable[[Sequence[Any]], Any] = "mean",
    grad: bool = False,
) -> Callable[[Callable[[Any], Any]], Metric]: ...


def metric(
    function: Callable[[Any], Any] | None = None,
    /,
    *,
    at: HookMoment = "epoch",
    reduce: str | Callable[[Sequence[Any]], Any] = "mean",
    grad: bool = False,
) -> Metric | Callable[[Callable[[Any], Any]], Metric]:
    """Make a function of a `Context` a metric; its name is the metric's name.

    at: "epoch": once per completed epoch, with the weights after it, in eval mode.
        "validation": once per validation batch; the values are reduced over the batches.
        "step": right after each optimizer update, gradients still there. A generator
        function runs up to its `yield` just before the update, and returns the value after it.
    reduce: "mean" (of the batches, unweighted), "sum", or a function of the list of values.
    grad: the hook needs autograd; its gradients are put back afterwards.

    Whatever the hook does to RNG, train/eval mode and gradients is undone. A hook that draws
    random numbers gets the same ones live and in hindsight: they are seeded from its
    name and position. Raises HookError when `at` or the signature is wrong.
    """
    if function is None:
        return lambda inner: _checked(inner, at, reduce, grad)
    return _checked(function, at, reduce, grad)


def _checked(function: object, at: Any, reduce: Any, grad: bool) -> Metric:
    if not inspect.isfunction(function):
        raise HookError(f"@flor.metric decorates a function of one context, not {function!r}")
    made = Metric(function, at, reduce, grad)
    if at not in MOMENTS:
        raise HookError(
            f"{made.place}: metric {made.name!r} asks for at={at!r}; there are "
            f"{', '.join(map(repr, MOMENTS))}"
        )
    if not callable(reduce) and reduce not in ("mean", "sum"):
        raise HookError(
            f"{made.place}: metric {made.name!r} has reduce={reduce!r}; use 'mean', 'sum' or a "
            f"function of a list"
        )
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise HookError(
            f"{made.place}: metric {made.name!r} must take one argument, the context ({error}): "
            f"def {made.name}(ctx): ..."
        ) from error
    if made.is_generator and at != "step":
        raise HookError(
            f"{made.place}: metric {made.name!r} yields; only at='step' has a before and an "
            f"after the update"
        )
    return made
