"""Recording by several processes that train one model.

The first process records the run, each other one its part of it.

A part is laid out as a run is, in `ranks/<r>/`: the rows of that process, and at each
checkpoint what of the State is its own. No frame reads it; a replay compares each of its
processes with its part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from flor_plugins.hooks import log
from flor_plugins.recorder.checkpointing.checkpointer import StateSource
from flor_plugins.recorder.gaps import warn
from flor_plugins.recorder.options import RecordOptions
from flor_plugins.recorder.recorder import Recorder
from flor_plugins.recorder.resumption import Resumption
from flor_plugins.recorder.start_run import ParamsSource, begin
from flor_plugins.records import Framework, Launch, Position, Run
from flor_plugins.records.sections import MODEL, OPTIMIZER, Sections
from flor_plugins.state import processes
from flor_plugins.store import ranks, runs

REPLICATED = (OPTIMIZER,)
WAIT = timedelta(minutes=5)  # for the first process, which takes a snapshot of the code

ParameterNames = Callable[[], Collection[str]]
RunAnnouncement = dict[str, str | None]  # what the first process says of the run, as JSON


class RankRecorder(Recorder):
    """Records the part of a process that is not the first.

    parameters: gives the names in the model's state_dict that are equal in all processes; buffers
    are not.
    """

    def __init__(
        self,
        run: Run,
        options: RecordOptions,
        parameters: ParameterNames,
        resumption: Resumption | None,
    ) -> None:
        super().__init__(run, options, resumption)
        self._parameters = parameters

    def checkpoint(self, position: Position, state: StateSource, *, last: bool = False) -> None:
        """Save of a State what differs between processes; of weights alone nothing does."""
        sections = state()  # where processes share a model's parts, all of them have to ask for it
        if set(sections) != {MODEL}:
            super().checkpoint(position, lambda: self._own(sections), last=last)

    def _own(self, sections: Sections) -> Sections:
        replicated = set(self._parameters())
        own = {name: part for name, part in sections.items() if name not in REPLICATED}
        own[MODEL] = {name: value for name, value in own[MODEL].items() if name not in replicated}
        return own


def begin_together(
    framework: Framework,
    options: RecordOptions,
    params: ParamsSource,
    launch: Launch | None,
    parameters: ParameterNames,
) -> Recorder | None:
    """Call `begin` in the first process; the others join the run that it has begun.

    Return None where nothing can be recorded.

    A process that can't go on where the others of a resumed run do must not train with them:
    then it raises StoreError, NoCheckpoint or DamagedCheckpoint.
    """
    if not processes.is_one_of_several():
        return begin(framework, options, params, launch)
    recorder: Recorder | None = None
    announcement: RunAnnouncement | None = None

    def begin_first() -> RunAnnouncement | None:
        nonlocal recorder
        recorder = begin(framework, options, params, launch)
        return None if recorder is None else _announcement(recorder)

    try:
        announcement = processes.from_first("run", begin_first, wait=WAIT)
        if processes.rank() == 0 or announcement is None:
            return recorder
        recorder = _join(announcement, options, parameters)
    except Exception as error:  # the training is the user's and goes on
        if announcement is not None and announcement["resumed_at"] is not None:
            raise
        warn(
            f"this process is not recorded, so that the run can't be trained again: "
            f"{type(error).__name__}: {error}"
        )
        return recorder
    log.connect(recorder.log)
    return recorder


def _announcement(recorder: Recorder) -> RunAnnouncement:
    """Return what the other processes need to know of the run."""
    resumption = recorder.resumption
    return {
        "path": str(recorder.run.path),
        "resumed_at": None if resumption is None else str(resumption.position),
    }


def _join(
    announcement: RunAnnouncement, options: RecordOptions, parameters: ParameterNames
) -> RankRecorder:
    rank, path = processes.rank(), Path(announcement["path"] or "")
    run = replace(
        runs.load_run(path),
        path=ranks.folder(path, rank),
        process=runs.this_process(),
        status="running",
        gaps=(),
        params={},
    )
    resumption = None
    if announcement["resumed_at"] is not None:
        position = Position.parse(announcement["resumed_at"])
        resumption = Resumption(run, position, ranks.load_checkpoint(path, rank, position))
    runs.save_run(run)
    options = replace(options, schedule=options.schedule.without_clock())
    return RankRecorder(run, options, parameters, resumption)
