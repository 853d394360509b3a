"""A task on its way through as many workers as it takes, or until it is given up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flor_plugins.records import Grade, Plan, Position, Run, Task
from flor_plugins.records.events import Event
from flor_plugins.replayer.execution.remaining_work import rest_of, together
from flor_plugins.replayer.execution.task_runner import Outcome
from flor_plugins.replayer.verification.comparison import worse
from flor_plugins.store.metrics.journal import read_run

DEATHS = 3  # in a row, with nothing done between them: it is the task that kills


@dataclass(slots=True)
class RetriedTask:
    """A task, and what its workers said of it.

    told: by the present worker. before: by those that were lost. rest: of the task, what is
    still to be done. outcome: of the last worker.
    """

    task: Task
    told: list[Event] = field(default_factory=list)
    before: list[Event] = field(default_factory=list)
    deaths: int = 0
    rest: Task = field(init=False)
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.rest, self.outcome = self.task, Outcome(self.task)

    def is_for_another(self, reason: str, *, are_rows_lost: bool = False) -> bool:
        """Its worker is lost: say whether another one shall do the rest.

        If not, the outcome says what became of it. are_rows_lost: what it had stored may be
        gone with it, so that all is done again; rows that are there after all are not stored
        twice.
        """
        self.before.extend(self.told)
        self.told.clear()
        if are_rows_lost:
            self.before.clear()
        rest = rest_of(self.task, self.before)
        self.deaths = 1 if rest != self.rest and not are_rows_lost else self.deaths + 1
        self.rest = rest
        if self.deaths >= DEATHS:
            self.outcome.failure = (
                f"{reason} (begun {self.deaths} times, and nothing was done between)"
            )
            return False
        self.outcome = Outcome(self.task, log=self.outcome.log)
        return bool(rest.passes)

    def result(self, run: Run, plan: Plan) -> Outcome:
        """What all its workers came to."""
        if not self.before:
            return replace(self.outcome, task=self.task)
        return together(self.task, self.before, self.outcome, _stored(run, plan))


def longest_first(jobs: Iterable[RetriedTask]) -> list[RetriedTask]:
    """By what is estimated; what is unknown may be long."""
    return sorted(jobs, key=lambda job: -_seconds(job.task))


def _seconds(task: Task) -> float:
    seconds = [replay_pass.seconds for replay_pass in task.passes]
    return float("inf") if None in seconds else sum(s for s in seconds if s is not None)


def _stored(run: Run, plan: Plan) -> dict[Position, Grade]:
    """The worst verdict of the rows that a replay stored, by position."""
    grades: dict[Position, Grade] = {}
    for source, row in read_run(run.path, plan.metrics):
        if source.replay_id == plan.replay_id and row.verdict is not None:
            grades[row.position] = worse(row.verdict, grades.get(row.position, row.verdict))
    return grades
