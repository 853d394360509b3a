"""Weights as a replay has them, compared with the checkpoints of the run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flor_plugins.records import Grade, Position
from flor_plugins.records.sections import MODEL
from flor_plugins.replayer.verification.comparison import Comparison
from flor_plugins.replayer.worker_session.prefetch import StatePrefetcher
from flor_plugins.store import checkpoints, ranks
from flor_plugins.store.checkpoints.hashes import PRESENT, hash_tensor
from flor_plugins.store.run_index import RunIndex


class WeightCheck:
    """Compares a process' weights with its own part of the run, tensor by tensor.

    saved: where that has a checkpoint.
    """

    def __init__(self, index: RunIndex, rank: int, states: StatePrefetcher) -> None:
        self.rank, self._states = rank, states
        self._path = ranks.folder(index.run.path, rank)
        own = checkpoints.list_checkpoints(self._path) if rank else index.saved.values()
        self.saved = {checkpoint.position for checkpoint in own}

    def grade(
        self, position: Position, weights: Mapping[str, torch.Tensor], comparison: Comparison
    ) -> Grade:
        """Compare the weights with the checkpoint at a position; `comparison` counts them."""
        # What was read ahead is of the run, so of the first process.
        recorded = None if self.rank else self._states.hashes(position)
        if recorded is None:
            recorded = checkpoints.tensor_hashes(self._path, position, MODEL)
        recomputed = {
            name: hash_tensor(tensor.detach().cpu().contiguous(), recorded.get(name, PRESENT))
            for name, tensor in weights.items()
        }
        return comparison.hashes(position, recorded, recomputed)
