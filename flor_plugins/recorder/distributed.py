"""Recording by several processes that train one model: the first records the run, each other
one its part of it.

A part is laid out as a run is, in `ranks/<r>/`: the rows of that process, and at each
checkpoint what of the State is its own. No frame reads it; a replay compares each of its
processes with its part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from flor_plugins.hooks import log
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.recorder import Recorder
from flor_plugins.recorder.resume import Resumption
from flor_plugins.recorder.start_run import begin, warn
from flor_plugins.records import Framework, Launch, Position, Run
from flor_plugins.records.sections import MODEL, OPTIMIZER
from flor_plugins.state import processes
from flor_plugins.store import ranks, runs

REPLICATED = (OPTIMIZER,)
WAIT = timedelta(minutes=5)  # for the first process, which takes a snapshot of the code


class RankRecorder(Recorder):
    """Records the part of a process that is not the first.

    parameters: the names in the model's state_dict that are equal in all processes; buffers are
    not."""

    def __init__(
        self,
        run: Run,
        options: RecordOptions,
        parameters: Callable[[], Collection[str]],
        resumption: Resumption | None,
    ) -> None:
        super().__init__(run, options, resumption)
        self._parameters = parameters

    def checkpoint(
        self, position: Position, state: Callable[[], Mapping[str, Any]], *, last: bool = False
    ) -> None:
        """Of a State what differs between processes; of weights alone nothing does."""
        sections = state()  # where processes share a model's parts, all of them have to ask for it
        if set(sections) != {MODEL}:
            super().checkpoint(position, lambda: self._own(sections), last=last)

    def _own(self, sections: Mapping[str, Any]) -> Mapping[str, Any]:
        replicated = set(self._parameters())
        own = {name: part for name, part in sections.items() if name not in REPLICATED}
        own[MODEL] = {name: value for name, value in own[MODEL].items() if name not in replicated}
        return own


def begin_together(
    framework: Framework,
    options: RecordOptions,
    params: Callable[[], Mapping[str, Any]],
    launch: Launch | None,
    parameters: Callable[[], Collection[str]],
) -> Recorder | None:
    """`begin` in the first process; the others join the run that it has begun. None where
    nothing can be recorded.

    A process that can't go on where the others of a resumed run do must not train with them:
    then it raises StoreError, NoCheckpoint or DamagedCheckpoint."""
    if not processes.is_one_of_several():
        return begin(framework, options, params, launch)
    begun: list[Recorder | None] = []

    def first() -> dict[str, Any] | None:
        begun.append(begin(framework, options, params, launch))
        return _told(begun[0])

    told = None
    try:
        told = processes.from_first("run", first, wait=WAIT)
        if begun:
            return begun[0]
        recorder = None if told is None else _join(told, options, parameters)
    except Exception as error:  # the training is the user's and goes on
        if told is not None and told["resumed_at"] is not None:
            raise
        warn(
            f"this process is not recorded, so that the run can't be trained again: "
            f"{type(error).__name__}: {error}"
        )
        return begun[0] if begun else None
    if recorder is not None:
        log.connect(recorder.log)
    return recorder


def _told(recorder: Recorder | None) -> dict[str, Any] | None:
    """What the others need to know of the run."""
    if recorder is None:
        return None
    found = recorder.resumption
    return {
        "path": str(recorder.run.path),
        "resumed_at": None if found is None else str(found.position),
    }


def _join(
    told: Mapping[str, Any], options: RecordOptions, parameters: Callable[[], Collection[str]]
) -> Recorder:
    rank, path = processes.rank(), Path(told["path"])
    whole = runs.load_run(path)
    run = replace(
        whole,
        path=ranks.folder(path, rank),
        process=runs.this_process(),
        status="running",
        gaps=(),
        params={},
    )
    resumption = None
    if told["resumed_at"] is not None:
        position = Position.parse(told["resumed_at"])
        resumption = Resumption(run, position, ranks.load_checkpoint(path, rank, position))
    runs.save_run(run)
    options = replace(options, schedule=options.schedule.without_clock())
    return RankRecorder(run, options, parameters, resumption)
