"""The names of the sections of a State. They are part of the format: they name files and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "model"  # the state_dict of the model
OPTIMIZER = "optimizer"  # the state_dicts of the optimizers
TRAINER = "trainer"  # what else a Trainer of a framework holds
LOOP = "loop"  # what stands there instead for a hand-written loop
MODULE = "module"  # what the modules hold besides their state_dicts
RNG = "rng"  # the random number generators, now and at the earlier moments that a replay needs
TIMELINE = "timeline"  # how far the rows of the run had come

Sections = Mapping[str, Any]  # of a State, by name, as `codec.encode` takes them
LoadedSections = dict[str, Any]  # the same, as `codec.decode` returns them
