"""`flor-hf help`, --version, completion, and what an installed wheel holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flor_plugins.cli import main
from flor_plugins.cli.help import DOCS, topics
from flor_plugins.recipe import examples
from tests.pages import ROOT
from tests.replaying import START, Project

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def flor_hf(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`flor-hf ARGS` in this process: exit code, stdout, stderr."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flor-hf", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return call


# ---- help


def test_help_lists_every_topic_with_a_line(flor_hf):
    code, out, _ = flor_hf("help")
    assert code == 0
    listed = dict(line.split(maxsplit=1) for line in out.splitlines()[1:])
    assert listed == topics()
    assert listed.keys() == {path.stem for path in DOCS.glob("*.md")} - {"index"}


@pytest.mark.parametrize("topic", topics())
def test_a_page_that_is_piped_is_its_plain_text(flor_hf, topic):
    code, out, _ = flor_hf("help", topic)
    assert (code, out) == (0, (DOCS / f"{topic}.md").read_text(encoding="utf-8"))
    assert out.startswith("# ") and "\x1b" not in out


def test_a_topic_may_be_written_with_a_hyphen_or_capitals(flor_hf):
    assert flor_hf("help", "From-FlorDB") == flor_hf("help", "from_flordb")


def test_a_terminal_gets_rendered_markdown(flor_hf, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = flor_hf("help", "verdicts")
    assert "```" not in out and "| verdict |" not in out and "Verify" in out


def test_an_unknown_topic_is_told_with_the_nearest(flor_hf):
    code, out, err = flor_hf("help", "verdict")
    assert (code, out) == (1, "")
    assert err.startswith("flor: ") and "'verdict'" in err and "did you mean 'verdicts'?" in err
    assert "recording" in flor_hf("help", "xyz")[2]


# ---- version and completion


def test_version_is_that_of_the_project(flor_hf):
    assert flor_hf("--version") == (0, f"flor-plugins {PROJECT['version']}\n", "")


def test_a_shell_completes_verbs(tmp_path):
    project = Project(tmp_path)
    words = {"COMP_WORDS": "flor-hf re", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", START]
    out = project.run(*command, _FLOR_HF_COMPLETE="complete_bash", **words).stdout
    assert set(out.split()) == {"record", "replay", "resume", "recipe"}


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [archive] = folder.glob("*.whl")
    zipfile.ZipFile(archive).extractall(folder / "unpacked")
    return folder / "unpacked"


def installed(wheel: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`flor-hf ARGS`, where only the wheel is installed."""
    start = "import sys; sys.argv[0] = 'flor-hf'; from flor_plugins.cli import main; main()"
    env = {name: value for name, value in os.environ.items() if name != "FLOR_DIR"}
    return subprocess.run(
        [sys.executable, "-c", start, *args],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )


def test_a_wheel_brings_its_pages_and_types(wheel, tmp_path):
    package = wheel / "flor_plugins"
    assert (package / "py.typed").is_file() and (package / "docs" / "llms.txt").is_file()
    assert {path.name for path in (package / "docs").glob("*.md")} == {
        path.name for path in DOCS.glob("*.md")
    }
    assert "MUST" in installed(wheel, "help", "format", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    "args", [["replay"], ["record", "ls"], ["record", "recipes/bert.yaml"]], ids=" ".join
)
def test_a_wheel_says_where_the_example_recipes_are(wheel, tmp_path, args):
    done = installed(wheel, *args, cwd=tmp_path)
    assert done.returncode == 1
    assert "the installed package holds no recipes" in done.stderr
    assert f"git clone {PROJECT['urls']['Source']}" in done.stderr


def test_a_checkout_names_a_recipe_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(examples.example_recipe()) == ROOT / "recipes" / "bert.yaml"
    monkeypatch.chdir(ROOT)
    assert examples.example_recipe() == "recipes/bert.yaml"


# ---- metadata


def test_the_project_says_who_made_it_and_where_it_is(wheel):
    [metadata] = wheel.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Author: flor-plugins contributors" in text
    links = dict(re.findall(r"^Project-URL: (\w+), (.+)$", text, re.MULTILINE))
    assert {"Homepage", "Source", "Changelog", "Issues"} <= links.keys()
    assert all(link.startswith(examples.REPOSITORY) for link in links.values())
    assert (ROOT / links["Changelog"].rpartition("/")[2]).is_file()


def test_every_python_that_is_admitted_is_classified():
    versions = [
        text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: Python :: 3." in text
    ]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert "Typing :: Typed" in PROJECT["classifiers"]
