"""recipes/*.yaml to a `Recipe`; every mistake with its file, its line and the nearest right key."""

from __future__ import annotations

from flor_plugins.recipe.check import check_recipe
from flor_plugins.recipe.schema import (
    Recipe,
    RecipeSummary,
    RecipeVersion,
    ReplaySection,
    load_recipe,
)
from flor_plugins.recipe.trainer import build_trainer

__all__ = [
    "Recipe",
    "RecipeSummary",
    "RecipeVersion",
    "ReplaySection",
    "build_trainer",
    "check_recipe",
    "load_recipe",
]
