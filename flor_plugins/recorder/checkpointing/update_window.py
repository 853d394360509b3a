"""The time in which a training changes none of its parameters: from one update of an optimizer
to the next.

A copy of parameters and optimizer states may be made at any moment of it, beside validation,
forward and backward. `UpdateWindow` knows those tensors, and calls when an update is about to end it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch


class UpdateWindow:
    """The optimizers of a training.

    about_to_close: called before each update, in the training's own thread.
    """

    def __init__(self, about_to_close: Callable[[], None]) -> None:
        self._about_to_close = about_to_close
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[Any] = []

    def attach(self, optimizers: Iterable[Any]) -> None:
        """Watch these optimizers; a wrapper that keeps the real one as `optimizer` is looked
        through.
        """
        for one in optimizers:
            real = one
            while not isinstance(real, torch.optim.Optimizer) or hasattr(real, "optimizer"):
                real = getattr(real, "optimizer", None)
                if real is None:
                    break
            if real is not None and not any(real is known for known in self._optimizers):
                self._optimizers.append(real)
                self._handles.append(real.register_step_pre_hook(self._before_step))

    def detach(self) -> None:
        """Let go of them."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []

    def constants(self) -> set[int]:
        """The addresses of all tensors that only an update changes: trained parameters and
        optimizer states.
        """
        return {
            one.data_ptr()
            for held in self._optimizers
            for one in chain(_parameters(held), _states(held))
        }

    def nbytes(self) -> tuple[int, int]:
        """Bytes of the trained parameters, and of the optimizers' states."""
        parameters = sum(one.nbytes for held in self._optimizers for one in _parameters(held))
        return parameters, sum(one.nbytes for held in self._optimizers for one in _states(held))

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # args begin with the optimizer itself (torch/optim/optimizer.py, `profile_hook_step`)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        # torch's own optimizers call the closure (with Lightning it is the whole forward and
        # backward) before they change anything; what others do is not known.
        if closure is None or not type(optimizer).__module__.startswith("torch.optim"):
            self._about_to_close()
            return None

        def closes_after() -> Any:
            result = closure()
            self._about_to_close()
            return result

        if len(args) > 1:
            return (args[0], closes_after, *args[2:]), kwargs
        return args, {**kwargs, "closure": closes_after}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from (parameter for parameter in group["params"] if parameter.requires_grad)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for state in optimizer.state.values():
        if isinstance(state, dict):
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
