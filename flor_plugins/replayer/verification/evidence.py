"""What a worker process knows about a divergence, for `causes` to weigh."""

from __future__ import annotations

from flor_plugins.records import Run
from flor_plugins.replayer.verification.causes import (
    BatchFingerprints,
    Evidence,
    causes,
    relative_difference,
)
from flor_plugins.replayer.verification.comparison import Comparison
from flor_plugins.replayer.verification.second_replay import RepeatedRange
from flor_plugins.state.environment import environment, variables


def likely_causes(run: Run, comparison: Comparison, repeat: RepeatedRange | None) -> list[str]:
    """Return one line per cause, most likely first; [] where nothing differs.

    Call it in the worker, after the replay.
    """
    first = comparison.earliest
    if first is None:
        return []
    return causes(
        run,
        Evidence(
            first=first.position,
            relative=relative_difference(first.was, first.now),
            batches=tuple(
                BatchFingerprints(*batch)
                for batch in comparison.batches
                if batch[0] <= first.position
            ),
            second=None if repeat is None else repeat.second,
            environment=environment(),
            variables=variables(),
            on_gpu=_computes_on_gpu(),
        ),
    )


def _computes_on_gpu() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_initialized()
