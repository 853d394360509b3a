"""What all recipes for PyTorch Lightning have in common."""

from __future__ import annotations

import lightning


def make_trainer(*, scale: str, epochs: int) -> lightning.Trainer:
    """A Trainer that prints and saves nothing of its own accord; at scale: tiny on the CPU."""
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu" if scale == "tiny" else "auto",
        devices=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
