"""What all test files share: what runs where, and a git repository with the toy projects in it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from flor_plugins.records import Launch, Level, Phase, Position, Run
from flor_plugins.store.metrics.journal import read_run
from tests.trainings import variables

PROJECTS = Path(__file__).parent / "projects"
IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}
MOST_WORKERS = 8  # of pytest-xdist: each has its trainers, fork parent and replay workers in memory
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

Table = dict[tuple[Position, Phase, Level], dict[str, Any]]


def pytest_configure(config: pytest.Config) -> None:
    # before any test module imports a framework, which reads them once
    os.environ.update(QUIET)
    if hasattr(config, "workerinput"):
        # A worker of xdist is started with `python -c`, from which no run can be started again;
        # trainings in the tests' own process shall be those of `python -m pytest`.
        main = sys.modules["__main__"]
        main.__spec__ = importlib.util.find_spec("pytest.__main__")
        main.__file__ = main.__spec__.origin if main.__spec__ else None
    # Machines are shared and noisy: how long an example took says nothing. (On CI hypothesis
    # has a profile of its own.)
    if not os.environ.get("CI"):
        settings.register_profile(
            "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("shared")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """None where files are named: what one does while working on something does not wait for
    workers, each of which imports and collects for itself. `-n 4` says otherwise."""
    if any(".py" in name for name in config.args):
        return 0
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a module made, with one value of its parameters, run in one worker."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = _shared(item)
            if shared is not None:
                item.add_marker(pytest.mark.xdist_group(shared))


def _shared(item: pytest.Item) -> str | None:
    """The group of a test with a fixture of its module's; None where it may run anywhere."""
    info = getattr(item, "_fixtureinfo", None)
    names = info.name2fixturedefs.items() if info is not None else ()
    if not any(found and found[-1].scope == "module" for _, found in names):
        return None
    call = getattr(item, "callspec", None)
    values = call.indices.items() if call is not None else ()
    scopes = call._arg2scope if call is not None else {}
    chosen = [f"{name}={value}" for name, value in values if scopes[name].value == "module"]
    return " ".join([item.path.stem, *sorted(chosen)])


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _name_no_test()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    _name_no_test()


def _name_no_test() -> None:
    """The environment is the same in all tests: a warm worker of a replay serves only one."""
    os.environ["PYTEST_CURRENT_TEST"] = "tests"


@pytest.fixture(autouse=True, scope="session")
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a store nor a cache: not even that of another worker of pytest-xdist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLOR_DIR", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def few(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """Values of a parameter: only those that are chosen are in the default run."""
    assert set(chosen) <= set(names)
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.slow) for name in names]


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
    return variables(**{**IDENTITY, **QUIET, **(env or {})})


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
