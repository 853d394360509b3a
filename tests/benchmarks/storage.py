"""What a run takes on disk: bytes per epoch over those of the whole state, for four kinds of
training.

python -m tests.benchmarks.storage [--scale full]

A byte-level GPT-2 on the texts and sources of the Python at hand: from scratch; then the same
one with a small learning rate on other text; a larger one of which a head alone is trained; and
the larger one with LoRA. AdamW, warm-up and linear decay. The callback is given a budget of
disk and chooses itself which checkpoints are full. The state is what torch would save of model
and optimizer: weights (tied ones once) and two moments of those that are trained. Ours is every
file of the run's checkpoints, and the state before the first epoch is not counted as one of
them. Afterwards the run is compressed as `gc` does it, the newest two checkpoints left as they
are, and then with those, too. At last the weights of every epoch are read back and compared
with hashes that another callback took while it trained. Sizes do not vary: each training is
recorded once, whatever --pairs says."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from flor_plugins.store.checkpoints import list_checkpoints, load_checkpoint
from flor_plugins.store.checkpoints.compression import compress_run
from tests.benchmarks.place import Place, place, remove, require, run_paths
from tests.benchmarks.ratios import Aim, Interval
from tests.benchmarks.report import Figure, answer, parser, quiet, table, tell

MB = 1e6
BYTES = 256  # the vocabulary
PADDING = 0  # a byte that no text has


@dataclass(frozen=True, slots=True)
class Course:
    """A model and how long it is trained.

    steps: of an epoch; length: of a text; share: disk, of the epochs' states.
    """

    layers: int
    width: int  # of the hidden states
    epochs: int
    steps: int
    batch: int
    length: int  # bytes
    share: float

    def config(self, **options: Any) -> GPT2Config:
        torch.manual_seed(0)
        return GPT2Config(
            vocab_size=BYTES, n_positions=self.length, n_embd=self.width, n_layer=self.layers,
            n_head=max(self.width // 64, 2), bos_token_id=PADDING, eos_token_id=PADDING, **options,
        )  # fmt: skip


# Weights are a third of the state: of the disk there is room for those of each epoch and for a
# few optimizers. What is frozen is written once, and the epochs share its cost. A tiny state is
# smaller than its description: it needs more.
SMALL = {
    "tiny": Course(2, 32, epochs=4, steps=4, batch=4, length=16, share=4),
    "small": Course(2, 128, epochs=30, steps=10, batch=4, length=64, share=0.4),
    "full": Course(4, 192, epochs=100, steps=20, batch=4, length=64, share=0.36),
}
LARGE = {
    "tiny": Course(2, 64, epochs=6, steps=2, batch=2, length=16, share=4),
    "small": Course(4, 256, epochs=150, steps=2, batch=2, length=32, share=1 / 45),
    "full": Course(7, 512, epochs=150, steps=2, batch=2, length=64, share=1 / 45),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """One training.

    aim: bytes on disk over those of the states. rate: the highest learning rate.
    """

    name: str
    aim: float
    rate: float
    model: Any
    texts: Dataset
    course: Course

    @property
    def state_bytes(self) -> int:
        """Of the model and its AdamW."""
        weights = {one.data_ptr(): one.nbytes for one in self.model.state_dict().values()}
        return sum(weights.values()) + 2 * sum(
            one.nbytes for one in self.model.parameters() if one.requires_grad
        )

    @property
    def budget(self) -> int:
        """Bytes of disk for the run, before anything is compressed."""
        return int(self.course.share * self.course.epochs * self.state_bytes)


class Texts(Dataset):
    """Places drawn at random from several texts in turn: an epoch is so many of them.

    is_labelled: the label says from which; else it is the text itself.
    """

    def __init__(self, texts: Sequence[str], course: Course, *, is_labelled: bool = False) -> None:
        self.texts = [torch.frombuffer(bytearray(one.encode()), dtype=torch.uint8) for one in texts]
        self.count, self.length, self.is_labelled = (
            course.steps * course.batch,
            course.length,
            is_labelled,
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        kind = i % len(self.texts)
        start = int(torch.randint(len(self.texts[kind]) - self.length, ()))
        x = self.texts[kind][start : start + self.length].long()
        return {"input_ids": x, "labels": torch.tensor(kind) if self.is_labelled else x}


def workloads(scale: str) -> Iterator[Workload]:
    """The four of them.

    The second goes on with the model of the first as the caller has left it.
    """
    small, large = SMALL[scale], LARGE[scale]
    manual, source = (
        "\n".join(topics.values()),
        inspect.getsource(argparse) + inspect.getsource(tokenize),
    )
    model = GPT2LMHeadModel(small.config())
    yield Workload("from scratch", 1 / 3.5, 1e-3, model, Texts([manual], small), small)
    yield Workload("fine-tuning", 1 / 4.2, 5e-5, model, Texts([source], small), small)
    kinds = Texts([manual, source], large, is_labelled=True)
    head = GPT2ForSequenceClassification(large.config(num_labels=2, pad_token_id=PADDING))
    head.transformer.requires_grad_(False)
    yield Workload("frozen backbone", 1 / 50, 1e-3, head, kinds, large)
    adapters = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["c_attn"],
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # of peft's code, not of ours
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        lora = get_peft_model(GPT2LMHeadModel(large.config()), adapters)
    yield Workload("LoRA", 1 / 50, 2e-4, lora, Texts([manual], large), large)


class Seen:
    """By another callback than ours. hashes: step to name to hash, of the first state and of
    that after each epoch.

    Not attributes of the callback: those of a user's callback are part of every checkpoint.
    """

    def __init__(self) -> None:
        self.hashes: dict[int, dict[str, str]] = {}
        self.losses: list[float] = []


class Witness(TrainerCallback):
    """Looks at the end of each epoch: a checkpoint is taken a little later, and no weight
    changes in between.
    """

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.hashes[state.global_step] = hashes_of(kwargs["model"].state_dict())

    on_train_begin = on_epoch_end

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.seen.losses += [logs["loss"]] if "loss" in logs else []


def hashes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """SHA-256 of the dtype, shape and bytes of each."""
    found = {}
    for name, one in weights.items():
        there = one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        found[name] = hashlib.sha256(
            f"{one.dtype} {tuple(one.shape)} ".encode() + there
        ).hexdigest()
    return found


@dataclass(slots=True)
class Found:
    """What a run takes: bytes as written, as `gc` leaves them, and with nothing left uncompressed.

    full_at: epochs that have an optimizer. parts: of what `gc` leaves. exact: how many epochs
    were read back."""

    state_bytes: int
    budget: int
    epochs: int
    losses: tuple[float, float] = (0.0, 0.0)
    cool_s: float = 0.0
    full_at: list[int] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    written: int = 0
    cooled: int = 0
    all_cooled: int = 0
    exact: int = 0

    def ratio(self, nbytes: int) -> float:
        """Of so many bytes on disk to those of a state for each epoch."""
        return nbytes / (self.epochs * self.state_bytes)


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    quiet()
    figures, found = [], {}
    with place(options.folder) as there:
        for workload in workloads(options.scale):
            one = found[workload.name] = _measure(there, workload, options.device)
            figures.append(figure(workload, one))
            tell(f"{workload.name}: 1/{1 / one.ratio(one.cooled):.2f}, {one.exact} epochs exact")
    print(_table(found), end="\n\n")
    answer("storage", options, figures, {name: asdict(one) for name, one in found.items()})


def _measure(there: Place, workload: Workload, device: str) -> Found:
    store, seen = there.folder(), Seen()
    found = Found(workload.state_bytes, workload.budget, workload.course.epochs)
    _train(
        workload, store, [Witness(seen), there.callback("hf", store, disk=workload.budget)], device
    )
    require(store, seen.hashes)
    [run] = run_paths(store)
    found.losses = (seen.losses[0], seen.losses[-1])
    found.full_at = [one.position.epoch for one in list_checkpoints(run) if one.is_full]
    found.written = sum(sizes(run).values())
    began = time.perf_counter()
    compress_run(run)
    found.cool_s = time.perf_counter() - began
    found.parts = sizes(run)
    found.cooled = sum(found.parts.values())
    compress_run(run, keep=0)
    found.all_cooled = sum(sizes(run).values())
    found.exact = verify(run, seen.hashes)
    remove(store)
    return found


def _train(workload: Workload, folder: Path, callbacks: Sequence[Any], device: str) -> None:
    course = workload.course
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=course.batch,
        num_train_epochs=course.epochs,
        learning_rate=workload.rate,
        lr_scheduler_type="linear",
        warmup_steps=course.epochs * course.steps // 10,
        weight_decay=0.01,
        logging_strategy="epoch",
        save_strategy="no",
        use_cpu=device == "cpu",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        workload.model, arguments, train_dataset=workload.texts, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def sizes(run: Path) -> dict[str, int]:
    """Bytes of all files of a run's checkpoints by section; `state` is that of the
    state.json files.
    """
    found: Counter[str] = Counter()
    for one in (run / "checkpoints").rglob("*"):
        if one.is_file():
            found[one.name.partition(".")[0]] += one.stat().st_size
    return dict(found)


def verify(run: Path, hashes: Mapping[int, Mapping[str, str]]) -> int:
    """Read the weights of every step that has hashes, to the last bit; returns how many epochs
    that are.

    Raises AssertionError, naming the weights, if some are not the same: then sizes mean nothing.
    """
    positions = {one.position.step: one.position for one in list_checkpoints(run)}
    for step, expected in hashes.items():
        there = hashes_of(load_checkpoint(run, positions[step], ["model"])["model"])
        wrong = sorted(
            name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name)
        )
        if wrong:
            raise AssertionError(
                f"{run}: at {positions[step]} these weights are not the trained ones: {wrong[:5]}"
            )
    return len(hashes) - 1


def figure(workload: Workload, found: Found) -> Figure:
    """A mean of all checkpoints there are, and no sample of them: it has no spread."""
    ratio = found.ratio(found.cooled)
    value, control = (Interval(one, one, one, found.epochs) for one in (ratio, 1.0))
    return Figure(workload.name, value, control, Aim(workload.aim))


def _table(found: Mapping[str, Found]) -> str:
    head = (
        "training",
        "epochs",
        "state MB",
        "loss",
        "budget",
        "written",
        "gc",
        "all packed",
        "full",
        "packed in",
    )
    rows = []
    for name, one in found.items():
        shares = [
            f"1/{1 / one.ratio(size):.2f}"
            for size in (one.budget, one.written, one.cooled, one.all_cooled)
        ]
        loss, full = (
            "{:.2f} to {:.2f}".format(*one.losses),
            str(sum(epoch > 0 for epoch in one.full_at)),
        )
        epochs, size, seconds = (
            str(one.epochs),
            f"{one.state_bytes / MB:.1f}",
            f"{one.cool_s:.1f} s",
        )
        rows.append((name, epochs, size, loss, *shares, full, seconds))
    return table(head, rows)


if __name__ == "__main__":
    main()
