"""A request for what the working tree logs: which edit is meant, which way it goes, what it shares.

Nothing is run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flor_plugins.errors import EditRefused, HookError, NoCheckpoint
from flor_plugins.recorder.code_snapshot.snapshot import take
from flor_plugins.records import Launch, Plan, Position, ReplayRequest, Row, Run, Task
from flor_plugins.replayer.backport.request import find
from flor_plugins.replayer.planning import planner
from flor_plugins.replayer.planning.training_ranges import range_from_beginning
from flor_plugins.replayer.sandbox.worktree import write_sources
from flor_plugins.store.metrics.journal import Journal
from flor_plugins.store.metrics.reserved_names import ASKED
from flor_plugins.store.run_index import index_run
from tests.editing import changed
from tests.replaying import Project
from tests.test_plan import HOOKS, STEPS, boundary, record
from tests.test_propagate_review import NET, put

RENAMED = changed(NET, ("out", "answer"))
ELSEWHERE = "import torch\n\nprint(torch.ones(1))\n"
TRAIN = "import net\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path)
    made.git("init", "-q", "-b", "main")
    made.write(".gitignore", ".flor/\n")
    made.write("train.py", TRAIN)
    made.store.make()
    monkeypatch.chdir(tmp_path)
    return made


def runs_of(project: Project, *versions: str) -> list[Run]:
    """A run of each version of net.py, as a recording leaves it."""
    found = []
    for number, text in enumerate(versions, start=1):
        project.write("net.py", text)
        code = take(project.store, f"r{number}", project.root)
        launch = Launch("script", "train.py", cwd=str(project.root))
        found.append(record(project.store, number, code=code, launch=launch))
    return found


def ask_for(
    project: Project, runs: list[Run], *metrics: str, where: str | None = None, epochs: str = "all"
) -> Plan:
    hooks = (project.write("hooks/mine.py", HOOKS),)
    request = ReplayRequest(metrics, where, epochs, hooks=hooks)
    return planner.make(project.store, runs, request)


def test_the_edit_comes_from_the_newest_version_that_does_not_log_it(project: Project):
    logged = put('flor.log("n", out.norm())')
    runs = runs_of(project, RENAMED, NET, logged)
    edit = find(project.store, runs, ["n"])
    assert edit is not None and edit.edit.base["net.py"] == NET and edit.ways == {"n": "train"}
    assert [edit.own(run) for run in runs] == [[], [], ["n"]]
    made = ask_for(project, runs, "n")
    assert [task.run_id for task in made.tasks] == [
        run.run_id for run in runs[:2]
    ] and made.skipped == {}
    first = made.tasks[0].edit
    assert first is not None and first.sources["net.py"].count('flor.log("n", answer.norm())') == 1


def test_what_every_version_logs_is_no_edit(project: Project):
    runs = runs_of(project, NET)
    assert find(project.store, runs, ["loss", "nothing"]) is None
    project.write("net.py", changed(NET, ("lr=0.1", "lr=0.2")))
    # so that it is not looked at any further
    assert find(project.store, runs, ["loss", "nothing"]) is None
    with pytest.raises(
        HookError, match=r"no hook computes 'nothing'.*the working tree does not log it"
    ):
        ask_for(project, runs, "nothing")


def test_an_edit_that_changes_the_training_ends_the_request(project: Project):
    runs = runs_of(project, NET)
    project.write("net.py", changed(put('flor.log("n", out.norm())'), ("lr=0.1", "lr=0.2")))
    with pytest.raises(EditRefused, match=r"net\.py:20 was"):
        ask_for(project, runs, "n")


def test_settings_that_differ_are_told(project: Project):
    project.write("config.yaml", "rate: 1\n")
    runs = runs_of(project, NET)
    project.write("config.yaml", "rate: 2\n")
    project.write("net.py", put('flor.log("n", out.norm())'))
    with pytest.warns(UserWarning, match=r"config\.yaml: not as in run run1"):
        find(project.store, runs, ["n"])


def ways(task: Task) -> dict[str, tuple[str, ...]]:
    return {one.way: one.metrics for one in task.passes}


def test_hooks_and_edits_share_a_pass_and_each_is_known_by_its_own_source(project: Project):
    runs = runs_of(project, NET)
    project.write("net.py", put('flor.log("n", out.norm())'))
    (task,) = ask_for(project, runs, "accuracy", "norm", "n").tasks
    assert ways(task) == {"state": ("accuracy",), "train": ("norm", "n")}
    edit = find(project.store, runs, ["n"])
    assert edit is not None and task.digests["n"] == (edit.edit.digest,)
    assert len({its[0] for its in task.digests.values()}) == 3
    assert "n logged by the edit of the working tree" in task.passes[1].reason
    assert ask_for(project, runs, "accuracy").tasks[0].edit is None


def test_a_version_without_a_place_keeps_its_hooks(project: Project):
    runs = runs_of(project, ELSEWHERE, NET)
    project.write("net.py", put('flor.log("n", out.norm())'))
    made = ask_for(project, runs, "norm", "n")
    assert {task.name: ways(task)["train"] for task in made.tasks} == {
        "run1": ("norm",),
        "run2": ("norm", "n"),
    }
    assert made.tasks[0].edit is None and made.tasks[1].edit is not None
    assert list(made.skipped) == [runs[0].run_id]
    assert "can't be carried to run run1: net.py:" in made.skipped[runs[0].run_id]


def test_what_is_logged_while_validating_needs_no_training(project: Project):
    runs = runs_of(project, NET)
    project.write("net.py", put('flor.log("again", logits.norm())', "validate"))
    (task,) = ask_for(project, runs, "again").tasks
    assert [(one.way, one.epochs) for one in task.passes] == [("validate", (1, 2, 3))]
    hook = "\ndef on_validation_epoch_end(self):\n    flor.log('again', self.lr)"
    project.write("net.py", put(hook, "class"))
    (task,) = ask_for(project, runs, "again").tasks
    assert [one.way for one in task.passes] == ["validate"]


@pytest.mark.parametrize(("place", "text"), [
    ("train", 'self._n = index\nflor.log("n", self._n)'),
    ("module", '\n\nclass Tally:\n    def __init__(self):\n        self.n = 0\n\n\nTALLY = '
               'Tally()'),
])  # fmt: skip
def test_an_edit_that_keeps_something_is_run_from_the_beginning(
    project: Project, place: str, text: str
):
    runs = runs_of(project, NET)
    edited = put(text, place)
    project.write(
        "net.py", edited if place == "train" else put('flor.log("n", TALLY.n)', base=edited)
    )
    (task,) = ask_for(project, runs, "n", "wrong", epochs="2:3").tasks
    (one,) = task.passes
    assert [(str(s.start), str(s.end)) for s in one.stretches] == [
        ("epoch=0,step=0", str(boundary(3)))
    ]
    assert one.positions == (boundary(2), boundary(3)) and "begins with the run" in one.reason
    late = replace(runs[0], name="late")
    places = index_run(late)
    with pytest.raises(NoCheckpoint, match="from its beginning"):
        range_from_beginning(replace(places, starts=places.starts[1:]), [boundary(3)])


def test_where_nothing_was_logged_nothing_is_missing(project: Project):
    runs = runs_of(project, NET)
    project.write("net.py", put('if index % 2:\n    flor.log("n", out.norm())'))
    (task,) = ask_for(project, runs, "n").tasks
    journal = Journal(runs[0].path / "metrics" / "replay-x-w0.jsonl", runs[0].path / "media")
    for step in range(1, 2 * STEPS + 1):
        values = {ASKED: ["n"], **({} if step % 2 else {"n": 1.0})}
        position = Position(step // STEPS, step)
        journal.append(Row(position, "train", "step", values, 0.0, "exact", task.digests["n"][0]))
    journal.close()
    (rest,) = ask_for(project, runs, "n").tasks
    assert rest.passes[0].epochs == (3,)
    project.write("net.py", put('if index % 2:\n    flor.log("n", 2 * out.norm())'))
    assert ask_for(project, runs, "n").tasks[0].passes[0].epochs == (1, 2, 3)


def test_files_of_an_edit_never_go_through_a_link(tmp_path: Path):
    user, sandbox = tmp_path / "user", tmp_path / "sandbox"
    for name in ("lib/a.py", "lib/b.py", "net.py"):
        Project(user).write(name, "x = 1\n")
    sandbox.mkdir()
    (sandbox / "lib").symlink_to(user / "lib")
    (sandbox / "net.py").symlink_to(user / "net.py")
    write_sources(
        {
            "lib/a.py": "# coding: latin-1\nx = 'é'\n",
            "net.py": "x = 2\r\n",
            "new/deep.py": "x = 3\n",
        },
        sandbox,
    )
    assert (sandbox / "lib/a.py").read_bytes() == "# coding: latin-1\nx = 'é'\n".encode("latin-1")
    assert (sandbox / "net.py").read_bytes() == b"x = 2\r\n" and (sandbox / "new/deep.py").exists()
    assert (sandbox / "lib/b.py").read_text() == "x = 1\n" and not (sandbox / "lib").is_symlink()
    assert {path.read_text() for path in user.rglob("*.py")} == {"x = 1\n"}
