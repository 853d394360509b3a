"""The time in which a training changes none of its parameters: from one update to the next.

A copy of parameters and optimizer states may be made at any moment of it, beside validation,
forward and backward. `UpdateWindow` knows those tensors, and calls when an update is about to end
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from flor_plugins.state.optimizer import unwrapped

StepArguments = tuple[tuple[Any, ...], dict[str, Any]]  # of `Optimizer.step`


class UpdateWindow:
    """The optimizers of a training.

    about_to_close: called before each update, in the training's own thread.
    """

    def __init__(self, about_to_close: Callable[[], None]) -> None:
        self._about_to_close = about_to_close
        self._optimizers: list[torch.optim.Optimizer] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, optimizers: Iterable[object]) -> None:
        """Watch these optimizers, below their wrappers."""
        for optimizer in map(unwrapped, optimizers):
            is_known = any(optimizer is held for held in self._optimizers)
            if isinstance(optimizer, torch.optim.Optimizer) and not is_known:
                self._optimizers.append(optimizer)
                self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def detach(self) -> None:
        """Let go of the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._optimizers = [], []

    def constants(self) -> set[int]:
        """Return the addresses of what only an update changes: parameters and optimizer states."""
        parameters, states = self._parameters(), self._states()
        return {tensor.data_ptr() for tensors in (parameters, states) for tensor in tensors}

    def nbytes(self) -> tuple[int, int]:
        """Return the bytes of the trained parameters, and of the optimizers' states."""
        parameters = sum(tensor.nbytes for tensor in self._parameters())
        return parameters, sum(tensor.nbytes for tensor in self._states())

    def _parameters(self) -> Iterator[torch.Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from (p for p in group["params"] if p.requires_grad)

    def _states(self) -> Iterator[torch.Tensor]:
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                if isinstance(state, dict):
                    yield from (one for one in state.values() if isinstance(one, torch.Tensor))

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StepArguments | None:
        # args begin with the optimizer itself (torch/optim/optimizer.py, `profile_hook_step`)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        # torch's own optimizers call the closure (with Lightning it is the whole forward and
        # backward) before they change anything; what others do is not known.
        if closure is None or not type(optimizer).__module__.startswith("torch.optim"):
            self._about_to_close()
            return None

        def closes_after() -> object:
            result = closure()
            self._about_to_close()
            return result

        if len(args) > 1:
            return (args[0], closes_after, *args[2:]), kwargs
        return args, {**kwargs, "closure": closes_after}
