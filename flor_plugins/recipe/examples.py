"""Where the example recipes are: the installed package does not hold them."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = "https://github.com/flor-plugins/flor-plugins"


def example_recipe() -> str:
    """Return `recipes/bert.yaml` as it is written from here, or where it can be had."""
    checkout = Path(__file__).resolve().parents[2]
    recipe = checkout / "recipes" / "bert.yaml"
    if not recipe.is_file():
        return (
            f"recipes/bert.yaml of the repository (the installed package holds no recipes: "
            f"git clone {REPOSITORY})"
        )
    in_checkout = Path.cwd().resolve() == checkout
    return str(recipe.relative_to(checkout) if in_checkout else recipe)
