"""In which order DistributedDataParallel adds up gradients.

In its first backward a fresh module sums them in buckets of its own making; before its second
forward it puts them into buckets anew, in the order in which they came
(torch/csrc/distributed/c10d/reducer.cpp). From three processes on, buckets decide about the
order of additions, and so about the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


def capture(model: object) -> list[int] | None:
    """The parameters in the order in which their gradients came, as the reducer numbers them.

    None where the buckets are still the first ones (up to the second update), where they stay
    so (static_graph, find_unused_parameters), and for a model that is not a
    DistributedDataParallel.
    """
    if (
        not isinstance(model, DistributedDataParallel)
        or model.find_unused_parameters
        or model.static_graph
    ):
        return None
    known: Any = model._get_ddp_logging_data()
    found = known.get("rebuilt_per_bucket_param_indices") or known.get(
        "prev_iteration_grad_ready_order_indices"
    )
    return [int(number) for number in found.replace(",", " ").split()] if found else None


def restore(model: object, order: list[int] | None) -> None:
    """Let gradients of zero come in that order once. All processes call this together.

    Gradients are not as they were afterwards, and nothing else may have changed: call it before
    a State is restored.
    """
    if not order or not isinstance(model, DistributedDataParallel):
        return
    parameters = [one for one in model._module_parameters if one.requires_grad]
    if sorted(order) != list(range(len(parameters))):
        return  # trained with other parameters frozen: the buckets were made anew since
    model.reducer._rebuild_buckets()  # of a backward after which no forward has come
    model.reducer.prepare_for_forward()
    model.reducer.prepare_for_backward([])
    with torch.enable_grad():
        # Backward visits first what was computed last.
        nothing = torch.stack(
            [(parameters[number] * 0).sum().double() for number in reversed(order)]
        ).sum()
    nothing.backward()
    model.reducer._rebuild_buckets()  # as the next forward would; from then on nothing changes them
