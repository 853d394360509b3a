"""What is asked in hindsight of the recipe of ResNet-152, against torchmetrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from flor_plugins.hooks.hook_files import load
from flor_plugins.hooks.metric import Context
from flor_plugins.recipe import load_recipe

RECIPE = load_recipe(Path(__file__).parents[1] / "recipes" / "resnet152.yaml")


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
def test_metrics_are_those_of_torchmetrics(sharpness: float) -> None:
    """sharpness: how sure the model is; of 8 it takes most of its probabilities for 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (300,), generator=generator)
    logits = sharpness * (
        2 * functional.one_hot(labels, 10) + torch.randn(300, 10, generator=generator)
    )
    batches = list(zip(logits.split(128), labels.split(128), strict=True))
    ctx = Context(
        model=torch.nn.Identity(), device=torch.device("cpu"), make_val_dataloader=lambda: batches
    )
    found = {metric.name: metric(ctx) for metric in load(RECIPE.hook_paths[0]).metrics}

    assert set(found) == set(RECIPE.replay.metrics)
    assert found["cf_matrix"] == multiclass_confusion_matrix(logits, labels, 10).tolist()
    assert found["accuracy"] == (logits.argmax(dim=1) == labels).double().mean().item()
    expected = multiclass_calibration_error(
        logits.double().softmax(dim=1), labels, 10, n_bins=15, norm="l1"
    )
    assert found["calibration_error"] == pytest.approx(expected.item(), abs=1e-6)
