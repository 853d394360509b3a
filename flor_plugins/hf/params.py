"""Hyper-parameters of an HF training, flat, with dots."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from flor_plugins.recorder.launch_environment import flatten


def params_of(trainer: Trainer) -> dict[str, Any]:
    """TrainingArguments by their own names, the model's config under `model.`."""
    arguments = {k: v for k, v in trainer.args.to_dict().items() if not k.startswith("_")}
    params = flatten("", arguments)
    config = getattr(trainer.model, "config", None)
    if config is not None and hasattr(config, "to_diff_dict"):
        params.update(flatten("model", config.to_diff_dict()))
    return params
