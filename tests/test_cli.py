"""The command line: what it prints, how it exits, what it says when something is wrong."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import flor_plugins as flor
from flor_plugins.cli import main
from flor_plugins.store.checkpoints import list_checkpoints
from tests import replaying
from tests.replaying import Project

HOOK = "hf_hooks.py"
READING = """
from pathlib import Path
import sys
seed = int(Path("ignored/seed.txt").read_text())
words = Path("words.txt").read_text()
made = hf_toy.Tokens.__init__
def read(self, n, augment):
    made(self, n, augment)
    generator = torch.Generator().manual_seed(seed + len(words))
    self.x = torch.randint(0, 50, (n, 12), generator=generator)
hf_toy.Tokens.__init__ = read
"""
GOOD = """
train(FlorCallback("good"), epochs=2)
train(FlorCallback("other"), epochs=2, lr=2e-3)
"""
KILLED = """
import os, signal, time
from pathlib import Path
from transformers import TrainerCallback
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 20:
            run = max(Path(".flor/runs").iterdir())
            while not list(run.glob("checkpoints/epoch=2,*")):  # written behind the training
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
train(FlorCallback("killed"), epochs=4, also=[Kill()])
"""
BLOCKING = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Flor = Callable[..., Done]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Runs good and other of one process, and one that was killed in its third epoch."""
    project = replaying.make(tmp_path_factory.mktemp("cli") / "project")
    project.write("ignored/seed.txt", "5")
    project.write("words.txt", "some words")
    project.write("train.py", replaying.TRAIN["hf"] + READING + GOOD)
    project.write("kill.py", replaying.TRAIN["hf"] + KILLED)
    project.python("train.py")
    assert project.python("kill.py", ok=False).returncode == -signal.SIGKILL
    return project


@pytest.fixture
def flor_hf(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Flor:
    """`flor-hf ARGS` in this process."""
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("FLOR_DIR", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def call(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["flor-hf", *args])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 0
        return Done(code, *capfd.readouterr())

    return call


# ---- reading


def test_runs_are_listed_as_json_and_csv(flor_hf: Flor) -> None:
    rows = json.loads(flor_hf("runs", "--json").out)
    assert [row["name"] for row in rows] == ["good", "other", "killed"]
    assert [row["status"] for row in rows] == ["finished", "finished", "killed"]
    assert [row["epoch"] for row in rows][:2] == [2, 2]
    assert [row["name"] for row in csv.DictReader(io.StringIO(flor_hf("runs", "--csv").out))] == [
        "good", "other", "killed"
    ]  # fmt: skip
    assert "good" in flor_hf("runs").out


def test_show_tells_all_of_one_run(flor_hf: Flor) -> None:
    told = json.loads(flor_hf("show", "good", "--json").out)
    assert told["name"] == "good" and told["launch"]["target"].endswith("train.py")
    assert "launch" in flor_hf("show", "good").out


def test_checkpoints_are_listed(flor_hf: Flor) -> None:
    rows = json.loads(flor_hf("checkpoints", "good", "--json").out)
    assert [(row["epoch"], row["full"]) for row in rows] == [(0, True), (1, True), (2, True)]
    assert len(list(csv.DictReader(io.StringIO(flor_hf("checkpoints", "good", "--csv").out)))) == 3
    assert flor_hf("checkpoints", "good").code == 0


def test_the_dataframe_is_printed_as_json_and_csv(flor_hf: Flor) -> None:
    rows = json.loads(flor_hf("dataframe", "loss", "--where", "loss > 0", "--json").out)
    assert {"run", "name", "epoch", "step", "loss"} <= rows[0].keys()
    assert len([row for row in rows if row["name"] == "good"]) == 16
    assert len(list(csv.DictReader(io.StringIO(flor_hf("dataframe", "loss", "--csv").out)))) >= 32
    assert "rows" in flor_hf("dataframe", "eval_loss").out


def test_sql_answers_as_json_and_csv(flor_hf: Flor) -> None:
    query = "select name, status from runs order by name"
    assert json.loads(flor_hf("sql", query, "--json").out)[0] == {
        "name": "good",
        "status": "finished",
    }
    assert flor_hf("sql", query, "--csv").out.splitlines()[0] == "name,status"
    wrong = flor_hf("sql", "select nothing from nowhere")
    assert wrong.code == 1 and "nowhere" in wrong.err


def test_doctor_finds_nothing_to_mend(flor_hf: Flor) -> None:
    done = flor_hf("doctor", "--json")
    assert done.code == 0 and all(check["ok"] for check in json.loads(done.out))
    assert "MEND" not in flor_hf("doctor").out


def test_recipe_check_names_file_and_line(flor_hf: Flor, project: Project) -> None:
    wrong = project.write("out/wrong.yaml", "name: x\ntrainre: a:b\n")
    done = flor_hf("recipe", "check", str(wrong))
    assert done.code == 1
    assert "wrong.yaml:" in done.err and "trainre" in done.err


def test_usage_errors_exit_with_2(flor_hf: Flor) -> None:
    assert flor_hf("nonsense").code == 2
    assert flor_hf("replay", "--workers", "many").code == 2


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "pyarrow", "duckdb", "transformers", "lightning")
    code = (
        "import sys; sys.argv = ['flor-hf', '--help']\nfrom flor_plugins.cli import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- asking wrongly: nothing is started


def snapshot(project: Project) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in project.store.root.rglob("*")}


def test_a_dry_run_shows_the_plan_and_writes_nothing(flor_hf: Flor, project: Project) -> None:
    before = snapshot(project)
    plan = json.loads(
        flor_hf(
            "replay",
            "--metrics",
            "token_accuracy,update_norm",
            "--hook",
            HOOK,
            "--dry-run",
            "--json",
        ).out
    )
    assert [task["name"] for task in plan["tasks"]] == ["good", "other", "killed"]
    assert [one["way"] for one in plan["tasks"][0]["passes"]] == ["state", "train"]
    assert plan["tasks"][0]["passes"][1]["checkpoints"] == ["epoch=0,step=0", "epoch=1,step=8"]
    shown = flor_hf("replay", "--metrics", "token_accuracy", "--hook", HOOK, "--dry-run")
    assert shown.code == 0 and "state" in shown.out
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--metrics", "nobody"], ["nobody", "token_accuracy"]),
        (["--metrics", "tokens", "--run", "goood"], ["goood", "good"]),
        (["--metrics", "tokens", "--epochs", "7"], ["epoch 7", "0, 1, 2"]),
        (["--metrics", "tokens", "--epochs", "first"], ["first", "all"]),
        (["--metrics", "tokens", "--where", "tokens >"], ["tokens >"]),
        (["--metrics", "tokens", "--where", "print(1)"], ["print"]),
        (["--metrics", "tokens", "--where", "tookens > 1"], ["tookens"]),
        (["--metrics", "tokens", "--hook", "absent.py"], ["absent.py"]),
    ],
)
def test_a_wrong_request_is_told_in_a_line_and_exits_with_1(
    flor_hf: Flor, project: Project, args: list[str], told: list[str]
) -> None:
    hook = [] if "--hook" in args else ["--hook", HOOK]
    done = flor_hf("replay", *args, *hook)
    assert done.code == 1
    assert done.err.startswith("flor: ") and "Traceback" not in done.err
    for word in told:
        assert word in done.err
    assert not project.store.replays.exists() or not list(project.store.replays.iterdir())


def test_an_empty_store_says_how_to_begin(
    flor_hf: Flor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLOR_DIR", str(tmp_path))
    done = flor_hf("replay", "--metrics", "tokens")
    assert done.code == 1 and "FlorCallback" in done.err
    assert json.loads(flor_hf("runs", "--json").out) == []


# ---- replaying


def test_a_replay_prints_schedule_verdicts_and_values(flor_hf: Flor) -> None:
    done = flor_hf(
        "replay",
        "--metrics",
        "tokens",
        "--hook",
        HOOK,
        "--run",
        "good",
        "--run",
        "killed",
        "--yes",
        "--workers",
        "2",
    )
    assert done.code == 0, done.err
    assert done.out.count("exact") == 2 and "validate" in done.out
    rows = json.loads(flor_hf("dataframe", "tokens", "--json").out)
    assert [(r["epoch"], r["tokens"]) for r in rows if r["name"] == "good"] == [(1, 240), (2, 240)]
    # The killed run had two whole epochs, and only those are replayed.
    assert [(r["epoch"], r["tokens"]) for r in rows if r["name"] == "killed"] == [
        (1, 240),
        (2, 240),
    ]
    again = flor_hf("replay", "--metrics", "tokens", "--hook", HOOK, "--run", "good")
    assert again.code == 0 and "nothing is missing" in again.out


def test_an_altered_checkpoint_is_named_and_other_runs_go_on(
    flor_hf: Flor, project: Project
) -> None:
    run = next(run for run in flor.runs(store=project.store.root) if run.name == "other")
    [weights, *_] = sorted(list_checkpoints(run.path)[-1].path.glob("*.safetensors"))
    whole, mode = weights.read_bytes(), weights.stat().st_mode
    weights.chmod(0o644)
    try:
        weights.write_bytes(whole[:-8])
        torn = flor_hf(
            "replay",
            "--metrics",
            "token_accuracy",
            "--hook",
            HOOK,
            "--run",
            "other",
            "--run",
            "good",
            "--json",
        )
        weights.write_bytes(whole[:-8] + bytes(8 * [255]))
        altered = flor_hf("replay", "--metrics", "token_accuracy", "--hook", HOOK, "--run", "other")
    finally:
        weights.write_bytes(whole)
        weights.chmod(mode)
    for done in (torn, altered):
        assert done.code == 1
        assert str(weights) in done.err or weights.name in done.err
        assert "Traceback" not in done.err
    rows = json.loads(torn.out)
    assert [
        row["epoch"] for row in rows if row["name"] == "good" and row["token_accuracy"] is not None
    ] == [1, 2]


def test_a_missing_framework_is_named_with_what_to_install(
    flor_hf: Flor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = flor_hf("replay", "--metrics", "token_accuracy", "--hook", HOOK, "--run", "killed")
    assert done.code == 1
    assert "pip install 'flor-plugins[hf]'" in done.err and "killed" in done.err


def test_changed_ignored_data_is_found_as_divergence(flor_hf: Flor, project: Project) -> None:
    project.write("words.txt", "tracked: its version is used, so that this changes nothing")
    same = flor_hf(
        "replay", "--metrics", "update_norm", "--hook", HOOK, "--run", "good", "--epochs", "2"
    )
    assert same.code == 0, same.out + same.err
    assert "exact" in same.out
    project.write("ignored/seed.txt", "6")
    done = flor_hf(
        "replay", "--metrics", "update_norm", "--hook", HOOK, "--run", "good", "--epochs", "1"
    )
    assert done.code == 3
    assert "diverged" in done.out
    assert "first differs at epoch 0, step 1: " in done.out
    marked = json.loads(flor_hf("dataframe", "update_norm", "--source", "--json").out)
    verdicts = {row["epoch"]: row["update_norm.verdict"] for row in marked if row["name"] == "good"}
    assert verdicts[2] == "exact" and verdicts[0] == "diverged"
