"""Read each tensor of a checkpoint once: into the memory where it stays, and hash it there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flor_plugins.records import JsonObject
from flor_plugins.store.checkpoints.hashes import bytes_of
from flor_plugins.store.checkpoints.manifest import TensorRecord, read_manifest, records
from flor_plugins.store.checkpoints.tensor_reader import MissingTensorFile, TensorReader
from flor_plugins.store.checkpoints.tensor_references import ManifestCache

if TYPE_CHECKING:
    import torch


def read_tensors(
    folder: Path,
    state: JsonObject,
    keys: Collection[str],
    into: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors by key, on the CPU, each with the hash that state.json gives for it.

    into: contiguous CPU tensors by key: those of the right dtype and shape are filled in place
    and handed out, which saves the page faults of fresh memory. Raises DamagedCheckpoint,
    naming the file; then some of `into` may be filled.
    """
    while True:
        manifests = ManifestCache(folder, state)
        try:
            return _read(manifests, records(state), keys, into or {})
        except MissingTensorFile:
            # A checkpoint may be compressed at any time: what state.json named a moment ago is
            # elsewhere now.
            state = read_manifest(folder)
            now = ManifestCache(folder, state)
            for key in records(state).keys() & set(keys):
                now.chain(key)
            if now.versions == manifests.versions:
                raise


def _read(
    manifests: ManifestCache,
    held: Mapping[str, TensorRecord],
    keys: Collection[str],
    into: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    chains = {key: manifests.chain(key) for key in held if key in keys}
    with TensorReader() as reader:
        reader.open(chains.values())  # before any memory is taken
        loaded = {key: place_for(held[key], into.get(key)) for key in chains}
        # an empty tensor has no bytes; its record is checked all the same
        memory = {
            key: bytes_of(one).cast("B") if one.numel() else memoryview(b"")
            for key, one in loaded.items()
        }
        reader.fetch_all([(chains[key], memory[key]) for key in chains])
    return loaded


def place_for(one: TensorRecord, into: torch.Tensor | None) -> torch.Tensor:
    """Memory for a tensor: `into` where it fits, else fresh."""
    import torch

    dtype = getattr(torch, one.dtype)
    if (
        into is not None
        and into.dtype == dtype
        and tuple(into.shape) == one.shape
        and into.is_contiguous()
    ):
        return into
    # the device is named: the user may have set another default
    return torch.empty(one.shape, dtype=dtype, device="cpu")
