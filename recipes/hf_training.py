"""What all recipes for the Hugging Face Trainer have in common."""

from __future__ import annotations

from typing import Any

import prepared
from transformers import TrainingArguments


def arguments(
    recipe: str, *, scale: str, epochs: int, batch_size: int, **others: Any
) -> TrainingArguments:
    """Evaluated and logged at each epoch, nothing saved or reported elsewhere; at scale: tiny
    on the CPU.

    others: of TrainingArguments.
    """
    is_tiny = scale == "tiny"
    return TrainingArguments(
        output_dir=str(prepared.folder(recipe) / "output"),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=is_tiny,
        dataloader_pin_memory=not is_tiny,
        **others,
    )
