"""The Ray cluster that tasks are sent to: found, joined, or started and ended again."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from flor_plugins.errors import MissingDependency, ReplayError

# No report over the network, and no question whether there may be one. The last: what Ray 2.5x
# warns of otherwise, and newer ones do in any case: a task that asked for no GPU has the
# variables of its node.
SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 100 << 20  # events are small; Ray would reserve a third of the memory
LONGEST_SOCKET_FOLDER = (
    30  # Ray's sockets lie deep beneath it, and a socket's path has at most 107 bytes
)

# What Ray raises for a worker that is gone, and for one that its machine took along.
_LOST: Mapping[str, Literal["worker", "node"]] = {
    "WorkerCrashedError": "worker", "OutOfMemoryError": "worker",
    "NodeDiedError": "node", "LocalRayletDiedError": "node", "ObjectLostError": "node",
}  # fmt: skip


@contextmanager
def connected(workers: int | None) -> Iterator[Any]:
    """The module `ray`, connected. A connection that the caller made is used and stays.

    workers: CPUs of a cluster of our own; None: those of this machine.
    """
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address != "local" and _has_joined(ray, address):
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with _own(ray, workers):
        yield ray


def devices(ray: Any) -> int:
    """How many tasks the cluster can do at a time: one per GPU, or per CPU where there are none."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU") or resources.get("CPU") or 1))


def share_of(ray: Any, processes: int) -> dict[str, float]:
    """What a task takes of its node: a CPU per process, and a GPU where there are any.

    Never more than the largest node has: such a task would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {
        kind: int(max((node.get(kind, 0) for node in nodes), default=0)) for kind in ("CPU", "GPU")
    }
    share: dict[str, float] = {"num_cpus": max(1, min(processes, most["CPU"]))}
    return {**share, "num_gpus": min(processes, most["GPU"])} if most["GPU"] else share


def is_lost(ray: Any, error: Exception) -> Literal["worker", "node"] | None:
    """Which of the two is gone; None where the task itself failed."""
    for name, what in _LOST.items():
        kind = getattr(ray.exceptions, name, None)
        if kind is not None and isinstance(error, kind):
            return what
    return None


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise MissingDependency(
            f"a replay on Ray was asked for, and {error.name or 'ray'!r} can't be imported "
            f"({error}): "
            f"pip install 'flor-plugins[ray]'"
        ) from error
    return ray


def _has_joined(ray: Any, address: str) -> bool:
    """False if no cluster runs here. Raises ReplayError if one was named and is not there."""
    if address.startswith("ray://"):
        raise ReplayError(
            f"the Ray cluster {address} was asked for; events can't be streamed through Ray "
            f"Client. "
            f"Start the replay on a node of the cluster (`ray job submit`, RAY_ADDRESS=auto)."
        )
    try:
        ray.init(address=address, **_quiet())
    except ConnectionError as error:
        if address == "auto" and "RAY_ADDRESS" not in os.environ:
            return False
        raise ReplayError(
            f"the Ray cluster {address} (RAY_ADDRESS) was asked for; it can't be reached: {error}. "
            f"Start it with `ray start --head`, or unset RAY_ADDRESS for one of our own on "
            f"this machine."
        ) from error
    return True


@contextmanager
def _own(ray: Any, workers: int | None) -> Iterator[None]:
    """A cluster on this machine. All that it writes is gone with it."""
    place = tempfile.gettempdir()
    folder = tempfile.mkdtemp(
        prefix="flor-", dir=place if len(place) <= LONGEST_SOCKET_FOLDER else "/tmp"
    )
    with _environment(SILENT):
        try:
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **_quiet(),
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "configure_logging": True, "logging_level": logging.ERROR}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
