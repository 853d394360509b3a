"""Hyper-parameters of a hand-written loop, flat, with dots."""

from __future__ import annotations

from typing import Any

from flor_plugins.recorder.launch_environment import flatten
from flor_plugins.records import Launch


def params_of(launch: Launch | None) -> dict[str, Any]:
    """Return the parameters of a recipe; those of `flor.arg` come by themselves."""
    return {} if launch is None else flatten("", launch.params)
