"""Recording and replaying leave a user's repository as they found it, byte by byte."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import flor_plugins as flor
from tests import replaying
from tests.replaying import HOOKS, METRICS, Project

SAVING = {
    "lightning": """
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
train(FlorCallback("saver"), epochs=2, also=[ModelCheckpoint("made", save_top_k=-1)],
      logger=CSVLogger("made", "logs"), enable_checkpointing=True)
""",
    "hf": """
train(FlorCallback("saver"), epochs=2, output_dir="made", save_strategy="epoch", save_total_limit=1,
      load_best_model_at_end=True)
""",
}
OUTPUTS = "made"


@dataclass(frozen=True)
class Seen:
    """What a user would notice."""

    status: str
    head: str
    branches: str
    stash: str
    config: bytes
    files: dict[str, str]


def look(project: Project, *, without: tuple[str, ...] = ()) -> Seen:
    """git's view, and the sha256 of every file and of git's index (read first: git may
    refresh it).
    """
    files = {}
    for folder, folders, names in os.walk(project.root):
        inside = os.path.relpath(folder, project.root)
        folders[:] = [
            f
            for f in folders
            if f not in (".flor", "__pycache__") and not (inside == "." and f == ".git")
        ]
        for name in names:
            path = os.path.normpath(os.path.join(inside, name))
            if path.split(os.sep)[0] not in without:
                files[path] = digest(project.root / path)
    files["index"] = digest(project.root / ".git/index")
    return Seen(
        project.git(
            "--no-optional-locks",
            "status",
            "--porcelain",
            "--",
            ".",
            *(f":!{name}" for name in without),
        ),
        (project.root / ".git/HEAD").read_text(),
        project.git("for-each-ref", "refs/heads", "refs/tags", "refs/remotes"),
        project.git("stash", "list"),
        (project.root / ".git/config").read_bytes(),
        files,
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module", params=["lightning", "hf"])
def lived_in(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """A repository in use, looked at before a recording, after it and after a replay."""
    project = replaying.make(tmp_path_factory.mktemp(request.param) / "project")
    project.write("train.py", replaying.TRAIN[request.param] + SAVING[request.param])
    hook = project.write(".git/hooks/pre-commit", "#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    project.write("notes.md", "first\n")
    project.git("add", "notes.md")
    project.git("stash")
    project.write("notes.md", "second, staged\n")
    project.git("add", "notes.md")
    project.write("notes.md", "third, not staged\n")
    project.write("lit_hooks.py", (project.root / "lit_hooks.py").read_text() + "# dirty\n")
    project.write(".env", "PASSWORD=swordfish\n")
    project.write("secrets.json", '{"key": "swordfish"}\n')
    project.write("ignored/data.txt", "data\n")
    project.write("checkpoint-8/model.safetensors", "saved earlier\n")
    project.write("checkpoint-8/trainer_state.json", "{}\n")
    project.write("earlier.ckpt", "saved earlier\n")
    before = look(project)
    project.python("train.py")
    recorded, outputs = look(project, without=(OUTPUTS,)), look(project)
    flor.replay(
        METRICS[request.param],
        hooks=[project.root / HOOKS[request.param]],
        store=project.store.root,
    )
    return {
        "project": project,
        "before": before,
        "recorded": recorded,
        "outputs": outputs,
        "replayed": look(project),
    }


def test_a_recording_leaves_the_repository_as_it_was(lived_in: dict[str, object]) -> None:
    assert lived_in["recorded"] == lived_in["before"]


def test_a_replay_leaves_the_repository_and_the_outputs_as_they_were(
    lived_in: dict[str, object],
) -> None:
    outputs = lived_in["outputs"]
    assert isinstance(outputs, Seen)
    assert any(name.startswith(OUTPUTS) for name in outputs.files)
    assert lived_in["replayed"] == outputs


def test_a_script_that_saves_replays_exact(lived_in: dict[str, object]) -> None:
    project = lived_in["project"]
    assert isinstance(project, Project)
    assert [row["verdict"] for row in project.verdicts()] == ["exact"] * 3


def test_no_secret_is_in_the_snapshot(lived_in: dict[str, object]) -> None:
    project = lived_in["project"]
    assert isinstance(project, Project)
    [run] = flor.runs(store=project.store.root)
    assert run.code is not None
    names = project.git("ls-tree", "-r", "--name-only", run.code.vid).split()
    assert "train.py" in names and "lit_hooks.py" in names
    assert not {".env", "secrets.json", "ignored/data.txt"} & set(names)
    assert any("secrets.json" in line for line in run.code.left_out)
    assert "dirty" in project.git("show", f"{run.code.vid}:lit_hooks.py")


def test_no_work_tree_and_no_sandbox_is_left(lived_in: dict[str, object]) -> None:
    project = lived_in["project"]
    assert isinstance(project, Project)
    assert len(project.git("worktree", "list").splitlines()) == 1
    assert not list((project.root / ".git").glob("worktrees/*"))
