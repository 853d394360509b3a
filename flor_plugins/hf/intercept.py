"""Meeting an HF Trainer at `train`: to replay it, or to record it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from flor_plugins.adapter import Proceed
from flor_plugins.hf.callback import FlorCallback


def intercept(arrived: Callable[[Trainer, Proceed], Any], *, inject: bool) -> None:
    """From now on every recorded `Trainer.train` of this process goes to `arrived(trainer, go)`.

    inject: also trainers without a FlorCallback. Called once, in a worker process.
    """
    original = Trainer.train

    def train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not inject and not any(
            isinstance(c, FlorCallback) for c in self.callback_handler.callbacks
        ):
            return original(self, *args, **kwargs)
        # A checkpoint of the user's would be restored over ours.
        kwargs.pop("resume_from_checkpoint", None)
        return arrived(self, lambda: original(self, None, *args[1:], **kwargs))

    Trainer.train = train  # type: ignore[method-assign]


def train_alone() -> None:
    """From now on no Trainer of this process shards its model.

    That it is alone accelerate reads in the environment.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_USE_")]:
        del os.environ[name]  # `accelerate launch` says so what it was told to use
    original = TrainingArguments.__post_init__

    def post_init(self: Any) -> None:
        self.fsdp = self.fsdp_config = self.deepspeed = self.parallelism_config = None
        original(self)

    TrainingArguments.__post_init__ = post_init  # type: ignore[method-assign]


def train(built: Any, callback: FlorCallback | None) -> None:
    """Train what a recipe's function returned: a Trainer, with the callback on, if there is one."""
    if callback is not None:
        built.add_callback(callback)
    built.train()


def put_on(callback: Callable[[], FlorCallback]) -> None:
    """From now on every `Trainer.train` of this process without a FlorCallback gets one."""
    original = Trainer.train

    def train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(c, FlorCallback) for c in self.callback_handler.callbacks):
            self.add_callback(callback())
        return original(self, *args, **kwargs)

    Trainer.train = train  # type: ignore[method-assign]


def silence(trainer: Trainer) -> None:
    """No checkpoint is written or deleted, no tracker or hub hears of the replay."""
    reporters = tuple(INTEGRATION_TO_CALLBACK.values())
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, (FlorCallback, *reporters)):
            trainer.remove_callback(callback)
    savers = (
        "_save_checkpoint",
        "save_model",
        "save_state",
        "push_to_hub",
        "_push_from_checkpoint",
        "_load_best_model",
    )
    for name in savers:
        if hasattr(trainer, name):
            setattr(trainer, name, _nothing)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for a saver."""
