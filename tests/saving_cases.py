"""A training whose tensors are changed in every way, and what its checkpoints should hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flor_plugins.recorder.checkpointing.staging import CheckpointStaging
from flor_plugins.recorder.checkpointing.update_window import UpdateWindow
from flor_plugins.records import Position

Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "sgd": lambda of: torch.optim.SGD(of, 0.1, momentum=0.9),
    "adamw": lambda of: torch.optim.AdamW(of, 0.1, foreach=False),
    "foreach": lambda of: torch.optim.AdamW(of, 0.1, foreach=True),
    "fused": lambda of: torch.optim.AdamW(of, 0.1, fused=True),
}
SHAPES = [(5,), (3, 7), (), (40, 50), (2, 3, 4, 4)]


class Told:
    """What the saver said of each position."""

    def __init__(self) -> None:
        self.written_: list[Position] = []
        self.errors: dict[Position, str] = {}

    def copied(self, seconds: float) -> None:
        pass

    def written(self, position: Position, files: Mapping[str, int], freed: int) -> None:
        self.written_.append(position)

    def not_written(self, position: Position, error: Exception) -> None:
        self.errors[position] = str(error)


class Training:
    """Tensors that optimizers and others change, its saver, and a deep copy of each state
    that was taken.
    """

    def __init__(self, folder: Path, *, in_process: bool = False) -> None:
        torch.manual_seed(1)
        self.run, self.told, self.synced = folder, Told(), 0
        self.saver = CheckpointStaging(
            folder, self.told, put=lambda job: job(), sync=self._sync, in_process=in_process
        )
        self.window = UpdateWindow(self.saver.close_window)
        self.models = {name: self._model() for name in OPTIMIZERS}
        self.optimizers = {
            name: make(self.models[name].values()) for name, make in OPTIMIZERS.items()
        }
        self.window.attach(self.optimizers.values())
        self.buffers = {"running": torch.zeros(3, 4), "counted": torch.tensor(0)}
        self.rows = torch.zeros(6).numpy()
        self.taken: dict[Position, Any] = {}

    def state(self) -> dict[str, Any]:
        return {
            "model": {**self.models, "buffers": self.buffers},
            "optimizer": {name: one.state_dict() for name, one in self.optimizers.items()},
            "rng": {"torch": torch.get_rng_state(), "rows": self.rows},
        }

    def tensors(self) -> list[torch.Tensor]:
        held = [one for model in self.models.values() for one in model.values()]
        states = [state for one in self.optimizers.values() for state in one.state.values()]
        moments = [
            one for state in states for one in state.values() if isinstance(one, torch.Tensor)
        ]
        return [*held, *moments, *self.buffers.values(), torch.from_numpy(self.rows)]

    def save(self) -> None:
        position = Position(0, len(self.taken))
        expected = copy.deepcopy(self.state())
        assert self.saver.save(position, self.state(), self.window.constants(), wait=True) == ()
        self.taken[position] = expected

    def step(self, name: str, with_closure: bool) -> None:
        optimizer = self.optimizers[name]

        def closure() -> torch.Tensor:
            for one in self.models[name].values():
                one.grad = torch.randn_like(one) if one.requires_grad else None
            self.buffers["running"].add_(0.5)  # as batch norm does in its forward
            return torch.zeros(())

        if with_closure:
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()

    def finish(self) -> None:
        self.window.detach()
        self.saver.close_window()
        self.saver.close()

    def _model(self) -> dict[str, torch.nn.Parameter]:
        made = {
            f"w{number}": torch.nn.Parameter(torch.randn(shape))
            for number, shape in enumerate(SHAPES)
        }
        made["w4"].data = made["w4"].data.contiguous(memory_format=torch.channels_last)
        return made

    def _sync(self) -> None:
        self.synced += 1


@contextmanager
def training(folder: Path, **options: Any) -> Iterator[Training]:
    made = Training(folder, **options)
    try:
        yield made
    finally:
        made.finish()


def equal(one: Any, other: Any) -> bool:
    """The same to the last bit."""
    if isinstance(one, torch.Tensor):
        bits = [
            tensor.detach().clone(memory_format=torch.contiguous_format).view(-1)
            for tensor in (one, other)
        ]
        return one.shape == other.shape and bits[0].numpy().tobytes() == bits[1].numpy().tobytes()
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "tobytes"):
        return one.tobytes() == other.tobytes()
    return bool(one == other)
