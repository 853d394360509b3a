"""A replayed HF epoch equals the recorded one to the last bit, whatever the training uses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from flor_plugins.store.checkpoints import list_checkpoints
from flor_plugins.store.layout import Store
from flor_plugins.store.runs import list_runs

pytestmark = pytest.mark.filterwarnings("ignore")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"dataloader_num_workers": 2},
    "accumulate": {"gradient_accumulation_steps": 3},
    "plateau": {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"},
    "cosine": {"lr_scheduler_type": "cosine", "warmup_steps": 4},
    "evaluated_by_steps": {"eval_strategy": "steps", "eval_steps": 5},
    "global_sampler": {"accelerator_config": {"use_seedable_sampler": False}},
    "data_seed": {"data_seed": 11},
    "adafactor": {"optim": "adafactor"},
    "fused": {"optim": "adamw_torch_fused"},
    "unclipped": {"max_grad_norm": 0.0},
    "smoothed": {"label_smoothing_factor": 0.1},
    "bfloat16": {"bf16": True},
    "stream": {},
    "max_steps": {"max_steps": 19},
    "best_model": {"load_best_model_at_end": True, "save_strategy": "epoch", "save_total_limit": 1},
}


class Tokens(Dataset):
    """Sequences of 12 tokens; augmented with all three global generators."""

    def __init__(self, n: int, augment: bool) -> None:
        self.x = torch.randint(0, 50, (n, 12), generator=torch.Generator().manual_seed(1))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x = self.x[i].clone()
        if self.augment:
            x[torch.randint(0, 12, (1,))] = 51
            x[np.random.randint(12)] = 52
            x[random.randrange(12)] = 53
        return {"input_ids": x, "labels": x.clone()}


class Stream(IterableDataset):
    def __init__(self, items: Tokens) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        for i in torch.randperm(len(self.items)).tolist():
            yield self.items[i]


def train(name: str, folder: Path, callback: Any) -> tuple[Any, Callable[[], Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=54, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    settings = {
        "output_dir": str(folder),
        "num_train_epochs": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    tokens = Tokens(60, True)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(**{**settings, **VARIANTS[name]}),
        train_dataset=Stream(tokens) if name == "stream" else tokens,
        eval_dataset=Tokens(20, False),
        callbacks=[callback],
    )
    return trainer, trainer.train


@pytest.mark.parametrize("name", list(VARIANTS))
def test_replayed_epochs_are_bit_equal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flor_plugins.hf import FlorCallback, drive
    from tests.variants import session_of

    monkeypatch.chdir(tmp_path)
    train(name, tmp_path / "out", FlorCallback(store=tmp_path / "store"))[1]()
    (run,) = list_runs(Store(tmp_path / "store"))
    assert run.gaps[1:] == () and "no code" not in str(run.error)
    last = list_checkpoints(run.path)[-1].position.epoch
    before = sorted((tmp_path / "out").rglob("*"))

    session, events = session_of(run, {"train": tuple(sorted({1, 2, last})), "validate": (last,)})
    torch.manual_seed(99)
    drive.drive(*train(name, tmp_path / "out", FlorCallback()), session)

    passed = {event["way"]: (event["grade"], event["detail"]) for event in events if event["event"] == "passed"}
    assert passed.pop("train") == ("exact", "")
    expected = ("exact", "unverified") if name in ("evaluated_by_steps", "max_steps") else ("exact",)
    assert passed["validate"][0] in expected
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_epoch_without_a_checkpoint_before_it_is_reached_by_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flor_plugins.hf import FlorCallback, drive
    from tests.variants import session_of

    monkeypatch.chdir(tmp_path)
    train("plain", tmp_path / "out", FlorCallback(store=tmp_path / "store", every_n_epochs=3))[1]()
    (run,) = list_runs(Store(tmp_path / "store"))
    session, events = session_of(run, {"train": (1, 2, 3)})
    drive.drive(*train("plain", tmp_path / "out", FlorCallback()), session)
    (passed,) = [event for event in events if event["event"] == "passed"]
    assert (passed["grade"], passed["detail"]) == ("exact", "")
