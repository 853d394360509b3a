"""What several test files share: a git repository with the toy projects in it, and how
scripts run there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flor_plugins.records import Launch, Level, Phase, Position, Run
from flor_plugins.store.metrics.journal import read_run

PROJECTS = Path(__file__).parent / "projects"
IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

Table = dict[tuple[Position, Phase, Level], dict[str, Any]]


def pytest_configure(config: pytest.Config) -> None:
    # before any test module imports a framework, which reads them once
    os.environ.update(QUIET)
    # Machines are shared and noisy: how long an example took says nothing. (On CI hypothesis
    # has a profile of its own.)
    if not os.environ.get("CI"):
        settings.register_profile(
            "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("shared")


@pytest.fixture(autouse=True, scope="session")
def _no_store_of_the_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLOR_DIR", raising=False)
        yield


def make_project(root: Path) -> Path:
    """A git repository at `root` with one commit: copies of the toy projects and a .gitignore."""
    root.mkdir(parents=True)
    for file in PROJECTS.glob("*.py"):
        shutil.copy(file, root)
    (root / ".gitignore").write_text("out/\n__pycache__/\n.env\n")
    for command in ("init -q -b main", "add .", "commit -q -m first"):
        subprocess.run(["git", *command.split()], cwd=root, env=os.environ | IDENTITY, check=True)
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of this test's own."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all tests of a module that leave it as it is."""
    return make_project(tmp_path_factory.mktemp("shared") / "project")


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a script: the caller's, no store unless `env` names one."""
    inherited = {name: value for name, value in os.environ.items() if name != "FLOR_DIR"}
    return inherited | IDENTITY | QUIET | dict(env or {})


def run_script(
    project: Path, *args: str | Path, timeout: float = 120, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python ARGS...` in the project; its output is text, its exit status is the caller's
    to look at.
    """
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, cwd=project, env=environment(env), timeout=timeout, capture_output=True, text=True
    )


def load_script(project: Path, name: str) -> ModuleType:
    """A file of the project as a module of this process, under a name that no other one has."""
    path = project / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_{abs(hash(project))}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # transformers and lightning look classes' modules up
    spec.loader.exec_module(module)
    return module


def launched(callback: Any, project: Path, name: str) -> Any:
    """The callback, as if `name`.py of the project had made it and not a test."""
    callback.launch = Launch(kind="script", target=str(project / f"{name}.py"), cwd=str(project))
    return callback


def table_of(run: Run) -> Table:
    """All rows of a run by place; a value that stands twice at one place is an error."""
    table: Table = {}
    for _, row in read_run(run.path):
        values = table.setdefault((row.position, row.phase, row.level), {})
        assert not values.keys() & row.values.keys(), f"twice at {row.position}: {row}"
        values.update(row.values)
    return table


def at(
    table: Table, epoch: int, step: int, phase: Phase = "train", level: Level = "step"
) -> dict[str, Any]:
    """The values at one place; {} if there are none."""
    return table.get((Position(epoch, step), phase, level), {})
