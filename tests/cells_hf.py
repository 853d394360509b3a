"""Trainings with an HF Trainer that use what makes a restoration hard: the cells of the
exactness matrix.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset, IterableDataset, RandomSampler
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SIZE, BATCH = 40, 4  # 10 batches an epoch
BEST = {"metric_for_best_model": "loss", "greater_is_better": False}
PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
PERSISTENT = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}

# Arguments of the training by cell.
CELLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2},
    "persistent_workers": PERSISTENT,
    "persistent_workers_by_steps": {**PERSISTENT, "eval_strategy": "steps", "eval_steps": 4},
    "accumulate": {"gradient_accumulation_steps": 3},
    "accumulate_workers": {"gradient_accumulation_steps": 3, "dataloader_num_workers": 2},
    "plateau": PLATEAU,
    "warm_up": {"lr_scheduler_type": "linear", "warmup_steps": 6},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 4},
    "onecycle": {},
    "sgd": {},
    "foreach": {},
    "fused": {"optim": "adamw_torch_fused"},
    "adafactor": {"optim": "adafactor"},
    "clipped": {"max_grad_norm": 0.1},
    "unclipped": {"max_grad_norm": 0.0},
    "smoothed": {"label_smoothing_factor": 0.1},
    "bfloat16": {"bf16": True},
    "activation_checkpointing": {"gradient_checkpointing": True},
    "evaluated_by_steps": {"eval_strategy": "steps", "eval_steps": 7},
    "evaluated_in_the_epoch": {"eval_strategy": "steps", "eval_steps": 4, **PLATEAU},
    "two_evaluations": {},
    "random_evaluation": {},
    "global_sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "own_sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "data_seed": {"data_seed": 11},
    "grouped_by_length": {
        "train_sampling_strategy": "group_by_length",
        "gradient_accumulation_steps": 3,
    },
    "stream": {},
    "stream_workers": {"dataloader_num_workers": 2},
    "endless_name": {"max_steps": 36},
    "endless_accumulate": {"max_steps": 14, "gradient_accumulation_steps": 3},
    "max_steps_short": {"max_steps": 7},
    "max_steps_long": {"max_steps": 29},
    "best_model": {
        "load_best_model_at_end": True,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        **BEST,
    },
    "early_stopping": BEST,
    "frozen": {},
    "lora": {},
    "noisy_embeddings": {"neftune_noise_alpha": 5.0},
    "evaluated_at_the_start": {"eval_on_start": True, "include_num_input_tokens_seen": "all"},
    "batch_size_found": {"auto_find_batch_size": True},
    "rebalanced": {"train_sampling_strategy": "batch_rebalance"},
    "short_epochs": PERSISTENT,
    "average": {},
    "own_callback": {},
}

# One for each mechanism: those of the default run. The others differ in a value, or combine two.
FEW = (
    "plain",  # the generators of this process
    "persistent_workers_by_steps",  # those of loader workers that outlive an epoch
    "accumulate_workers",  # an epoch that ends inside an update
    "plateau",  # a schedule that looks at a metric
    "onecycle",  # the script's own optimizer and schedule
    "adafactor",
    "bfloat16",
    "evaluated_in_the_epoch",
    "random_evaluation",
    "own_sampler",
    "grouped_by_length",
    "stream_workers",  # a dataset that can't be indexed
    "endless_accumulate",  # one without a length
    "max_steps_short",  # an end inside an epoch
    "best_model",  # weights that are loaded at the end
    "early_stopping",
    "lora",  # tied, frozen and added weights
    "noisy_embeddings",  # a hook on a layer that draws
    "evaluated_at_the_start",
    "batch_size_found",
    "rebalanced",
    "short_epochs",
    "average",
    "own_callback",
)


class Tokens(Dataset):
    """Sequences of 12 tokens; augmented with all three global generators."""

    def __init__(self, n: int, augment: bool, generator: torch.Generator | None = None) -> None:
        self.x = torch.randint(0, 50, (n, 12), generator=torch.Generator().manual_seed(1))
        self.augment, self.generator = augment, generator

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = self.x[i].clone()
        if self.augment:
            x[torch.randint(0, 12, (1,), generator=self.generator)] = 51
            x[np.random.randint(12)] = 52
            x[random.randrange(12)] = 53
        return {"input_ids": x, "labels": x.clone()}


class Endless(IterableDataset):
    """Shuffles by itself and has no length, though it ends."""

    def __init__(self, items: Tokens) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(len(self.items)).tolist():
            yield self.items[i]


class Stream(Endless):
    def __len__(self) -> int:
        return len(self.items)


class OwnSampler(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(5))


class Average(TrainerCallback):
    """Keeps an average of the weights and pulls the model towards it every third update."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.shadow[name].lerp_(p, 0.3)
                if self.count % 3 == 0:
                    p.copy_(self.shadow[name])


class Noise(TrainerCallback):
    """Disturbs the weights by what it has seen: a queue, generators of its own, a module of
    its own.
    """

    def __init__(self) -> None:
        self.generator, self.numbers = torch.Generator().manual_seed(3), np.random.default_rng(4)
        self.last: deque[float] = deque(maxlen=3)
        self.net = nn.Linear(1, 1)
        self.epochs: list[int] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs.append(len(self.epochs))

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.last.append(
            float(torch.rand((), generator=self.generator)) + float(self.numbers.random())
        )
        with torch.no_grad():
            self.net.weight.mul_(0.9).add_(sum(self.last) + sum(self.epochs))
            next(model.parameters()).add_(1e-3 * float(self.net.weight))


class Short(TrainerCallback):
    """Leaves every epoch before its data are used up."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step % 6 == 0


def every_n_steps(name: str) -> int:
    """So that two updates inside the third epoch have checkpoints."""
    if CELLS[name].get("gradient_accumulation_steps"):
        return 1
    return {"max_steps_short": 3, "short_epochs": 2}.get(name, 4)


def train(name: str, folder: Path, callback: Any) -> tuple[Trainer, Callable[[], Any]]:
    """A trainer and the call that trains it."""
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=54,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    # its input and output embeddings are one tensor; it has dropout
    model: Any = GPT2LMHeadModel(config)
    if name == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model, LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)
        )
    if name == "frozen":
        model.transformer.h[0].attn.requires_grad_(False)
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    make = OwnSampler if name == "own_sampler" else Trainer
    trainer = make(
        model=model,
        args=TrainingArguments(**{**settings, **CELLS[name]}),
        train_dataset=_training_data(name),
        eval_dataset=_evaluation_data(name),
        callbacks=[callback, *_callbacks(name, model)],
        optimizers=_optimizers(name, model),
    )
    return trainer, trainer.train


def _training_data(name: str) -> Any:
    tokens = Tokens(SIZE, True)
    if name.startswith("stream"):
        return Stream(tokens)
    return Endless(tokens) if name.startswith("endless") else tokens


def _evaluation_data(name: str) -> Any:
    if name == "two_evaluations":
        return {"one": Tokens(8, True), "two": Tokens(12, False)}
    return Tokens(12, name == "random_evaluation", torch.Generator().manual_seed(8))


def _callbacks(name: str, model: nn.Module) -> list[TrainerCallback]:
    made: dict[str, Callable[[], TrainerCallback]] = {
        "early_stopping": lambda: EarlyStoppingCallback(2, 10.0),
        "short_epochs": Short,
        "average": lambda: Average(model),
        "own_callback": Noise,
    }
    return [made[name]()] if name in made else []


def _optimizers(name: str, model: nn.Module) -> Any:
    parameters = list(model.parameters())
    if name == "sgd":
        return torch.optim.SGD(parameters, 0.05, momentum=0.9), None
    if name == "foreach":
        return torch.optim.AdamW(parameters, 1e-3, foreach=True), None
    if name == "onecycle":
        optimizer = torch.optim.AdamW(parameters, 1e-3)
        return optimizer, OneCycleLR(optimizer, 3e-3, total_steps=60)
    return None, None
