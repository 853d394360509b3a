"""The processes that train one model together: which one this is, what the first one says.

Words pass through torch's key-value store, not through a collective: where only some of the
processes have a FlorCallback, a collective would wait for the others, or meet one of the
training's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# a snapshot of the code, or a checkpoint that is compared, may take a while
WAIT = timedelta(minutes=10)


def rank() -> int:
    """The number of this process among those that train together; 0 for one that trains alone."""
    return dist.get_rank() if is_one_of_several() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_one_of_several() else 1


def is_one_of_several() -> bool:
    """Tell whether there are other processes that torch knows of."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leave() -> None:
    """End what torch runs to reach the other processes.

    A process that exits while its threads run may be aborted ("terminate called without an
    active exception").
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def from_first(topic: str, say: Callable[[], Any], *, wait: timedelta = WAIT) -> Any:
    """What `say()` gives in the first process, as JSON knows it, in all of them.

    The first process waits for nobody. The n-th call with a topic answers the n-th of the
    others. Raises torch.distributed.DistStoreError in a process that waited for so long in
    vain.
    """
    if not is_one_of_several():
        return say()
    store: Any = dist.distributed_c10d._get_default_store()
    number = store.add(f"flor/{topic}/{rank()}", 1)
    key = f"flor/{topic}/said/{number}"
    if rank() == 0:
        said = say()
        store.set(key, json.dumps(said))
        return said
    store.wait([key], wait)
    return json.loads(store.get(key))
