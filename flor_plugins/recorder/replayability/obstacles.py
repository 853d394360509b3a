"""What keeps a run from being replayed bit for bit, as far as it can be seen while recording.

Each function looks at one thing and answers with the obstacles that it found, none of them
if it found nothing. The adapters say what there is to look at (their `obstacles_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils import data

from flor_plugins.recorder.replayability.hidden_state import (
    is_iterator,
    of_object,
    reads_a_file,
    where,
)
from flor_plugins.records import Code, Launch, Obstacle
from flor_plugins.records.sections import MODEL

MOST_NAMED = 5  # paths that one reason names; checkpoints list them all

_OF_DATASETS = (data.Subset, data.ConcatDataset, data.StackDataset, data.ChainDataset)
# Collate functions that only put together: they draw nothing.
_FIXED_COLLATES = frozenset(
    ("default_collate", "default_convert", "default_data_collator", "DataCollatorWithPadding")
)


def of_launch(launch: Launch, code: Code | None, why: str = "") -> list[Obstacle]:
    """Return what keeps the script from being started again with its code.

    why: what the snapshot said when it failed.
    """
    found = []
    if code is None:
        reason = "there is no snapshot of the code" + (f": {why}" if why else "")
        found.append(
            Obstacle("none", reason, "mend what `flor-hf doctor` names, then record again")
        )
    if launch.kind == "interactive":
        reason = "it was started from a prompt or a notebook: there is no script to start again"
        remedy = (
            "put the training into a script, or into a function that a recipe names, and run that"
        )
        found.append(Obstacle("none", reason, remedy))
    return found


def of_kernels(device: torch.device | str) -> list[Obstacle]:
    """Return why the kernels of this device may round differently from run to run.

    It depends on the settings of this process.
    """
    return of_device(
        torch.device(device).type,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        benchmark=torch.backends.cudnn.benchmark,
    )


def of_device(
    kind: str, *, deterministic: bool, warn_only: bool, benchmark: bool
) -> list[Obstacle]:
    """kind: "cpu", "cuda", "mps" ...; the rest are torch's flags of these names."""
    if kind == "cpu":  # its kernels repeat for equal numbers of threads
        return []
    found = []
    remedy = "call torch.use_deterministic_algorithms(True) before the training"
    if kind == "cuda":
        remedy += ", and start it with CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"
    if not deterministic:
        reason = (
            f"it trains on {kind} without deterministic algorithms: kernels may add up in "
            f"another order"
        )
        found.append(Obstacle("close", reason, remedy))
    elif warn_only:
        reason = (
            f"it trains on {kind}, and use_deterministic_algorithms(warn_only=True) lets "
            f"all kernels through"
        )
        found.append(Obstacle("close", reason, f"{remedy}, without warn_only"))
    if kind == "cuda" and benchmark:
        reason = (
            "torch.backends.cudnn.benchmark is on: each process picks its convolution "
            "kernels by measuring them"
        )
        found.append(Obstacle("close", reason, "set torch.backends.cudnn.benchmark = False"))
    return found


def of_loader(role: str, loader: object) -> list[Obstacle]:
    """Return the obstacles in a loader.

    role: "training" or "validation". loader: a DataLoader, or any iterable that stands in for one.
    """
    loader = getattr(loader, "base_dataloader", loader)  # below accelerate's shard
    if not isinstance(loader, data.DataLoader):
        return list(of_stream(role, "loader", loader))
    found: list[Obstacle] = []
    for part in ("sampler", "batch_sampler"):
        sampler = getattr(loader, part, None)
        found += of_stream(role, part, sampler)
        found += of_sampler(role, part, sampler)
    found += of_dataset(role, loader.dataset, workers=loader.num_workers)
    found += of_workers(
        role,
        loader.dataset,
        loader.collate_fn,
        workers=loader.num_workers,
        persistent=loader.persistent_workers,
        in_order=getattr(loader, "in_order", True),
    )
    return found


def of_dataset(role: str, dataset: object, *, workers: int) -> list[Obstacle]:
    """A dataset that goes on where it stopped.

    In workers each epoch begins with the copy that they got.
    """
    if workers:
        return []
    inner = [one for part in _inside(dataset) for one in of_dataset(role, part, workers=0)]
    return [*of_stream(role, "dataset", dataset), *inner]


def of_stream(role: str, part: str, source: object) -> Iterator[Obstacle]:
    """Return an obstacle if a part of a loader, or what it keeps, is an iterator.

    Its position can be neither seen nor set.
    """
    remedy = (
        "use an object whose __iter__ begins again each time: a list, or a class with a "
        "generator as __iter__"
    )
    owner = f"the {part} for {role}, {where(type(source))},"
    if is_iterator(source):
        yield Obstacle("partial", f"{owner} is its own iterator: it can't be begun again", remedy)
        return
    for name, value in getattr(source, "__dict__", {}).items():
        kind = f"an iterator ({type(value).__name__})" if is_iterator(value) else ""
        # A dataset that is indexed seeks in its file; one that is iterated reads on.
        if reads_a_file(value) and isinstance(source, data.IterableDataset):
            kind = "an open file"
        if kind:
            yield Obstacle(
                "partial", f"{owner} keeps {kind} in `{name}`: its position is not recorded", remedy
            )


def of_sampler(role: str, part: str, sampler: object) -> Iterator[Obstacle]:
    """A sampler of the user's that goes on from what it counted; generators in it are recorded."""
    # Both trainers call `set_epoch` at each epoch's beginning, in a replay as well.
    saved = ("epoch",) if hasattr(sampler, "set_epoch") else ()
    remedy = (
        "give it set_epoch(epoch), and compute the order from that or from a "
        "torch.Generator that it keeps"
    )
    yield from of_object(f"the {part} for {role}", sampler, saved, remedy)


def of_workers(
    role: str, dataset: object, collate: object, *, workers: int, persistent: bool, in_order: bool
) -> list[Obstacle]:
    """Worker processes whose order or random state is not repeated.

    Persistent workers that train are none: a replay draws the earlier epochs again. Those that
    validate keep their random state over epochs, too, and nothing draws for them.
    """
    if not workers:
        return []
    found = []
    if not in_order:
        grade = "partial" if role == "training" else "close"
        reason = (
            f"the DataLoader for {role} has in_order=False: batches come as the workers "
            f"happen to finish"
        )
        found.append(Obstacle(grade, reason, "use in_order=True"))
    if persistent and role == "validation" and _may_draw(dataset, collate):
        reason = (
            f"the DataLoader for {role} has persistent_workers=True: if {where(type(dataset))} "
            f"or its collate function "
            f"draws random numbers, their state in the workers is not recorded"
        )
        found.append(Obstacle("partial", reason, "use persistent_workers=False for validation"))
    return found


def of_lost(lost: Iterable[str]) -> list[Obstacle]:
    """Return the obstacle of a state that could not be stored whole.

    lost: "section/path: why" of each leaf, see `codec.encode`.
    """
    sections: dict[str, list[str]] = {}
    for leaf in lost:
        sections.setdefault(leaf.partition("/")[0], []).append(leaf)
    return [_of_section(section, leaves) for section, leaves in sections.items()]


def _of_section(section: str, leaves: list[str]) -> Obstacle:
    more = f" and {len(leaves) - MOST_NAMED} more" if len(leaves) > MOST_NAMED else ""
    reason = f"parts of the state can't be stored: {'; '.join(leaves[:MOST_NAMED])}{more}"
    if section == MODEL:  # then there are no weights to load
        return Obstacle(
            "none",
            reason,
            "keep such tensors out of the state_dict, or make them dense and unquantized",
        )
    remedy = (
        "keep plain Python data, tensors and arrays in the state, and build all else in the script"
    )
    return Obstacle("partial", reason, remedy)


def of_sharding(what: str) -> Obstacle:
    """what: the strategy or option that splits the model or the optimizer over processes."""
    return Obstacle(
        "weights",
        f"it trains with {what}: no part of the optimizer's state is recorded, so that only "
        f"metrics of the "
        f"weights can be replayed",
        "train with data parallelism (DDP) or in one process to replay updates",
    )


def of_spawned(what: str) -> Obstacle:
    """Return the obstacle of a script whose own process makes the others.

    what: the setting with which it does, in the middle of the script.
    """
    return Obstacle(
        "weights",
        f"its processes are made by {what}: a replay can't start them one by one",
        'start a script per process: strategy="ddp", or torchrun',
    )


def of_gradient_hook(what: str) -> Obstacle:
    """what: a communication hook that keeps something between updates, as PowerSGD does."""
    return Obstacle(
        "partial",
        f"gradients pass through {what}: what it keeps between updates is not recorded",
        "train without it, or with one that keeps nothing, as bf16_compress_hook",
    )


def _may_draw(dataset: object, collate: object) -> bool:
    """False only where it is known: nothing but data is held, and nothing but stacking is done."""
    collate = getattr(collate, "data_collator", collate)  # transformers' RemoveColumnsCollator
    if getattr(collate, "__name__", type(collate).__name__) not in _FIXED_COLLATES:
        return True
    if type(dataset) in _OF_DATASETS:
        return any(_may_draw(part, data.default_collate) for part in _inside(dataset))
    return type(dataset) not in (data.TensorDataset, list, tuple, range)


def _inside(dataset: object) -> list[object]:
    """The datasets that one is put together from."""
    if type(dataset) not in _OF_DATASETS:
        return []
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, dict):
        return list(parts.values())
    # Not list(parts): a chain may be given a generator, and looking must not use it up.
    return list(parts) if isinstance(parts, list | tuple) else [getattr(dataset, "dataset", None)]
