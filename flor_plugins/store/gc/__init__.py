"""Retention: what a store evicts to fit a budget, and what can be asked of its runs then.

First goes what costs no answer: what killed processes left, and lossless compression. Then
checkpoints are reduced one by one, such that the expected cost of reaching any epoch of any run
again grows least: `replay_cost` says what that is, `eviction` chooses, `checkpoint_sizes` knows
the bytes, `disk_usage` does it, `pins_and_holds` says what must stay.
"""

from __future__ import annotations

from flor_plugins.store.gc.gc import CheckpointTotals, GcPlan, RunShare, collect, plan_collection
from flor_plugins.store.gc.pins_and_holds import is_pinned, pin, unpin
from flor_plugins.store.gc.thinning import thin

__all__ = [
    "CheckpointTotals",
    "GcPlan",
    "RunShare",
    "collect",
    "is_pinned",
    "pin",
    "plan_collection",
    "thin",
    "unpin",
]
