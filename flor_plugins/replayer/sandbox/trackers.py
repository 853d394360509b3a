"""Trackers and hubs hear nothing of a replay, however its script speaks to them."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from flor_plugins.replayer.sandbox.import_hooks import ImportHook, ModuleChange

# Arguments that make a tracker's own entrance do nothing.
FORCED: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "wandb": (("init", {"mode": "disabled"}),),
    "swanlab": (("init", {"mode": "disabled"}),),
    "neptune": tuple(
        (f"init_{name}", {"mode": "debug"}) for name in ("run", "model", "model_version", "project")
    ),
    "comet_ml": (("Experiment", {"disabled": True}), ("ExistingExperiment", {"disabled": True})),
}
# Of huggingface_hub.HfApi: what changes something there begins with one of these.
WRITES = re.compile(
    r"(accept|add|batch|cancel|change|comment|copy|create|delete|disable|duplicate|edit|enable|"
    r"grant|hide|like|merge|move|pause|permanently|preupload|reject|rename|request|rerun|restart|"
    r"resume|run_job|run_uv|scale|set|super|suspend|sync|trigger|unlike|update|upload)(_|$)"
)
COMMITS = re.compile(r"create_commit$|upload_|delete_(file|files|folder)$")
HUB = "https://huggingface.co"


def silence(folder: Path) -> None:
    """Silence all trackers in this process; what a tracker writes to files goes to `folder`.

    A script that speaks to them goes on: MLflow has a store of its own in `folder`,
    TensorBoard's files lie there, the others and the hub answer and do nothing.
    """
    os.environ.update(
        MLFLOW_TRACKING_URI=(folder / "mlflow").as_uri(),
        MLFLOW_REGISTRY_URI=(folder / "mlflow").as_uri(),
        MLFLOW_ALLOW_FILE_STORE="true",  # MLflow 3 wants to be asked twice
        CLEARML_CACHE_DIR=str(folder / "clearml"),
        TRACKIO_DIR=str(folder / "trackio"),
    )
    changes: dict[str, ModuleChange] = dict.fromkeys(FORCED, _forced)
    changes["mlflow"] = _quiet_mlflow
    changes["mlflow.tracking.client"] = _quiet_mlflow_client
    changes["huggingface_hub.hf_api"] = _quiet_hub
    for name in ("tensorboard.summary.writer.event_file_writer", "tensorboardX.event_file_writer"):
        changes[name] = lambda module: _move_events(module, folder / "tensorboard")
    ImportHook(changes).put_on()


def silence_hub() -> None:
    """Silence the hub alone, if it was imported: `silence` is then spared a long search."""
    hub = sys.modules.get("huggingface_hub.hf_api")
    if hub is not None:
        _quiet_hub(hub)


def _forced(module: ModuleType) -> None:
    for name, forced in FORCED[module.__name__]:
        found = getattr(module, name, None)
        if found is not None:
            setattr(module, name, _with(found, forced))
    if module.__name__ == "wandb":
        # The real one would write ~/.netrc.
        module.login = lambda *args, **kwargs: True  # type: ignore[attr-defined]


def _with(call: Callable[..., Any], forced: dict[str, Any]) -> Callable[..., Any]:
    @wraps(call)
    def enter(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, **forced})

    return enter


def _quiet_mlflow(module: ModuleType) -> None:
    for name in ("set_tracking_uri", "set_registry_uri", "login"):
        if hasattr(module, name):
            setattr(module, name, _nothing)


def _quiet_mlflow_client(module: ModuleType) -> None:
    build = module.MlflowClient.__init__

    @wraps(build)
    def init(
        self: Any, tracking_uri: Any = None, registry_uri: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        build(self, None, None, *args, **kwargs)

    module.MlflowClient.__init__ = init


def _move_events(module: ModuleType, folder: Path) -> None:
    build = module.EventFileWriter.__init__
    numbers = itertools.count()

    @wraps(build)
    def init(self: Any, logdir: Any, *args: Any, **kwargs: Any) -> None:
        build(self, str(folder / f"{os.getpid()}-{next(numbers)}"), *args, **kwargs)

    module.EventFileWriter.__init__ = init


def _quiet_hub(module: ModuleType) -> None:
    """Replace what writes to the hub, on the class and wherever a method was imported by name."""
    if vars(module.HfApi).get("_is_quiet"):
        return
    module.HfApi._is_quiet = True  # type: ignore[attr-defined]
    replaced: dict[str, tuple[Any, Any]] = {}
    for name in dir(module.HfApi):
        found = getattr(module.HfApi, name)
        if WRITES.match(name) and callable(found):
            answer = _answering(module, name, found)
            setattr(module.HfApi, name, answer)
            replaced[name] = found, answer
    for holder in list(sys.modules.values()):
        known = getattr(holder, "__dict__", {})
        for name in replaced.keys() & known.keys():
            method, answer = known[name], replaced[name][1]
            if getattr(method, "__func__", None) is replaced[name][0]:
                setattr(holder, name, answer.__get__(method.__self__))


def _answering(module: ModuleType, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = None
        if name in ("create_repo", "duplicate_repo"):
            value = module.RepoUrl(
                f"{HUB}/{kwargs.get('repo_id') or (args[0] if args else 'nobody/nothing')}"
            )
        elif COMMITS.match(name):
            value = module.CommitInfo(
                commit_url=f"{HUB}/nobody/nothing/commit/{'0' * 40}",
                commit_message=str(kwargs.get("commit_message") or ""),
                commit_description="",
                oid="0" * 40,
            )
        if not kwargs.get("run_as_future"):
            return value
        future: Future[Any] = Future()
        future.set_result(value)
        return future

    return answer


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for what would reach a tracker."""
