"""What a process sees and leaves behind, each way of isolation: the run's files, the user's
data, nothing changed.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from flor_plugins.replayer.sandbox import isolation, landlock, overlay

HEAD = """
import os, shutil, signal, subprocess, sys
from pathlib import Path
from flor_plugins.replayer.sandbox import isolation, mounts
top = Path(sys.argv[1])
if sys.argv[2] == "user":
    new = mounts.new_namespace
    isolation.overlay.new_namespace = lambda as_user=False: new(as_user=True)
place = isolation.isolate(top / "project", top / "box", [top / "project/.flor/kept"])
os.chdir(place)
"""
WAYS = ("overlay", "user", "landlock", "python")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """project/ as it is today, and box/ as a sandbox of an earlier version with links to
    what git ignores.
    """
    texts = {
        "project/config.yaml": "lr: new",
        "project/same.txt": "same",
        "project/new.py": "new",
        "project/data/a.txt": "data",
        "project/.venv/pyvenv.cfg": "home",
        "project/.flor/kept/rows": "rows",
        "project/.flor/run.json": "run",
        "box/config.yaml": "lr: old",
        "box/same.txt": "same",
        "box/pack/gone.py": "gone",
        "home/canary.txt": "canary",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "box/data").mkdir()
    for name in ("data/a.txt", ".venv"):
        (tmp_path / "box" / name).symlink_to(tmp_path / "project" / name)
    return tmp_path


def run(top: Path, way: str, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    if way == "landlock" and landlock.abi() < landlock.FIRST_WITH_REFER:
        pytest.skip("this kernel offers no Landlock")
    kind = "overlay" if way == "user" else way
    if kind == "overlay" and (
        reason := overlay.why_not(overlay.OverlayFolders((top,), as_user=way == "user"))
    ):
        pytest.skip(reason)
    path = os.pathsep.join(path for path in sys.path if path)
    known = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": path,
        "HOME": str(top / "home"),
        "TMPDIR": "/tmp",
    }
    return subprocess.run(
        [sys.executable, "-c", HEAD + dedent(script), str(top), way],
        env={**known, isolation.VARIABLE: kind, **env},
        cwd=top,
        capture_output=True,
        text=True,
        timeout=200,
    )


def seen(top: Path) -> dict[str, object]:
    found = {path: path.lstat() for path in top.rglob("*") if path.parent.name != "kept"}
    return {
        str(path): (one.st_mode, one.st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path, one in found.items()
        if path.name != "kept"
    }


@pytest.mark.parametrize("way", WAYS)
def test_the_past_is_read_by_relative_paths_and_what_is_written_stays_inside(
    top: Path, way: str
) -> None:
    before = seen(top / "project")
    done = run(
        top,
        way,
        """
    assert Path("config.yaml").read_text() == "lr: old" and Path("same.txt").read_text() == "same"
    assert Path("pack/gone.py").read_text() == "gone" and not Path("new.py").exists()
    assert Path("data/a.txt").read_text() == "data"
    assert Path(".venv/pyvenv.cfg").read_text() == "home"
    Path("data/a.txt").write_text("changed")
    Path("data/b.txt").write_text("more")
    assert Path("data/a.txt").read_text() == "changed"
    Path("config.yaml").unlink()
    (top / "project/.flor/kept/rows").write_text("kept")
    """,
    )
    assert done.returncode == 0, done.stderr
    assert seen(top / "project") == before
    assert (top / "project/.flor/kept/rows").read_text() == "kept"


@pytest.mark.parametrize("way", ["overlay", "user"])
def test_with_copy_on_write_absolute_paths_lead_to_the_past_too(top: Path, way: str) -> None:
    before = seen(top)
    done = run(
        top,
        way,
        """
    assert place == top / "project" and (top / "project/config.yaml").read_text() == "lr: old"
    (top / "project/data/b.txt").write_text("by its whole name")
    assert Path("data/b.txt").read_text() == "by its whole name"
    shutil.rmtree(top / "project/data")
    os.makedirs("data")
    assert os.listdir("data") == []
    (Path.home() / "canary.txt").unlink()
    os.chmod(top / "project/same.txt", 0o600)
    harm = f"rm -rf {top}/home; chmod 700 {top}/project; echo x > {top}/project/same.txt"
    subprocess.run(["sh", "-c", harm], check=True)
    mount = ["mount", "-t", "tmpfs", "none", str(top)]
    assert subprocess.run(mount, stderr=subprocess.DEVNULL).returncode != 0
    for path in ("/flor-new", "/usr/flor-new", "/etc/flor-new"):
        try:
            open(path, "w")
        except OSError:
            continue
        raise AssertionError(path)
    """,
    )
    assert done.returncode == 0, done.stderr
    assert seen(top) == before


def test_scratch_goes_with_a_process_that_is_killed(top: Path) -> None:
    done = run(top, "overlay", """
    Path("made.bin").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    ended = time.monotonic() + 60
    # glob.glob skips what goes while it looks; Path.glob raises
    made = [os.path.join(base, f"flor-{os.getuid()}-*", "**", "made.bin") for base in overlay.BASES]
    while left := [path for pattern in made for path in glob.glob(pattern, recursive=True)]:
        assert time.monotonic() < ended, left
        time.sleep(0.1)


def test_processes_that_train_together_see_each_others_files(top: Path) -> None:
    if landlock.abi() < landlock.FIRST_WITH_REFER:
        pytest.skip("this kernel offers no Landlock")
    done = run(top, "overlay", "", **{"WORLD_SIZE": "2", isolation.VARIABLE: ""})
    assert "isolation: landlock" in done.stderr and "train together" in done.stderr, done.stderr


def test_what_is_asked_for_and_not_there_is_said(top: Path) -> None:
    done = run(top, "python", "", **{isolation.VARIABLE: "jail"})
    assert done.returncode == 1 and "FLOR_ISOLATION=jail" in done.stderr


def test_doctor_tells_which_way_is_in_force(top: Path) -> None:
    start = "import sys; sys.argv[0] = 'flor-hf'; from flor_plugins.cli import main; main()"
    for kind in ("python", "overlay"):
        env = {**os.environ, isolation.VARIABLE: kind}
        done = subprocess.run(
            [sys.executable, "-c", start, "doctor", "--json"],
            cwd=top,
            env=env,
            capture_output=True,
            text=True,
        )
        [told] = [one["found"] for one in json.loads(done.stdout) if one["check"] == "isolation"]
        assert told.startswith(f"{kind}: {isolation.SAID[kind]}")


STAND_IN = (
    "def init(project, mode='online'):\n    return mode\ndef login(key):\n    raise "
    "SystemExit('logged in')\n"
)


@pytest.mark.parametrize("way", ["overlay", "python"])
def test_trackers_that_are_not_known_to_be_installed_are_told_to_do_nothing(
    top: Path, way: str
) -> None:
    (top / "box" / "wandb.py").write_text(STAND_IN)
    done = run(top, way, """
    sys.path.insert(0, str(place))
    import wandb
    from wandb import init
    assert init("p", mode="online") == wandb.init(project="p") == "disabled" and wandb.login("key")
    """)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_a_hub_is_not_spoken_to_whenever_it_was_imported(top: Path, when: str) -> None:
    pytest.importorskip("huggingface_hub")
    script = """
    import tempfile
    from flor_plugins.replayer.sandbox import trackers
    {}
    trackers.silence(Path(tempfile.mkdtemp()))
    {}
    assert create_repo("me/model").repo_id == "me/model"
    assert upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/model").oid == "0" * 40
    future = HfApi().upload_folder(folder_path=".", repo_id="me/model", run_as_future=True)
    assert future.result().oid == "0" * 40 and HfApi().delete_repo("me/model") is None
    """
    line = "from huggingface_hub import HfApi, create_repo, upload_file"
    # as where workers are forked
    early = f"import huggingface_hub.hf_api\ntrackers.silence_hub()\n{line}"
    places = {"before": (line, ""), "after": ("", line), "between": (early, "")}
    script = dedent(script).format(*places[when])
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    head = "from pathlib import Path\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_mlflow_and_tensorboard_write_where_nobody_looks(top: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("tensorboard")
    before = seen(top)
    done = run(top, "python", """
    import mlflow
    from mlflow.tracking import MlflowClient
    from torch.utils.tensorboard import SummaryWriter
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with mlflow.start_run() as one:
        mlflow.log_param("lr", 1)
    assert MlflowClient("http://127.0.0.1:9").get_run(one.info.run_id).data.params == {"lr": "1"}
    with SummaryWriter(str(top / "board")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    """)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert seen(top).keys() == before.keys() and not (top / "board").exists()
