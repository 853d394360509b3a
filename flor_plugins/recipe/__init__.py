"""recipes/*.yaml to a `Recipe`; every mistake with its file, its line and the nearest right key."""

from __future__ import annotations

from flor_plugins.recipe.check import check_recipe
from flor_plugins.recipe.schema import About, Recipe, Replay, Version, load_recipe
from flor_plugins.recipe.trainer import build_trainer

__all__ = ["About", "Recipe", "Replay", "Version", "build_trainer", "check_recipe", "load_recipe"]
