"""Record the golden store anew with the installed version of flor-plugins (see README.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import flor_plugins as flor

HERE = Path(__file__).resolve().parent
SCRIPTS = ("lit", "hf", "loop")
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
# The same training with twice the precision: float32 was exact if it gives the same numbers.
IN_FLOAT64 = """
import runpy, sys, torch
torch.set_default_dtype(torch.float64)
sys.path.insert(0, "")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Square roots (the norm of a gradient) are rounded correctly, but they are rounded.
VALUES = """
select r.name as run, m.epoch, m.step, m.phase, m.name, m.value
from metrics m join runs r using (run)
where m.name in ('loss', 'loss_logged', 'train_loss', 'val_loss', 'eval_loss', 'lr')
and r.name != 'killed' order by all
"""
NO_PROCESS = 99_999_999  # above the highest number that a system gives to a process
KEPT_VARIABLES = tuple(QUIET)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        root = Path(scratch).resolve()
        shutil.copytree(HERE / "project", root / "project", ignore=shutil.ignore_patterns("__*"))
        record(root)
        check_exact(root)
        shutil.rmtree(HERE / "store", ignore_errors=True)
        shutil.copytree(root / "store", HERE / "store")
        anonymize(HERE / "store", root)


def record(root: Path) -> None:
    """Train three runs and a killed one, replay hooks for one of them, compress checkpoints."""
    for script in SCRIPTS:
        run(root, f"{script}.py")
    run(root, "loop.py", "--name", "killed", KILL_AT="6")
    flor.replay(
        ["weight_sum", "first_update"], run="lit", hooks=[HERE / "hooks.py"], store=root / "store"
    )
    flor_hf = Path(sys.executable).with_name("flor-hf")
    subprocess.run([flor_hf, "gc", "--yes"], env=environment(root / "store"), check=True)


def run(root: Path, *command: str, store: str = "store", **env: str) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=root / "project", env=environment(root / store, **env)
    )
    assert done.returncode == (-signal.SIGKILL if env else 0), command


def environment(store: Path, **env: str) -> dict[str, str]:
    return {**os.environ, **QUIET, "FLOR_DIR": str(store), **env}


def check_exact(root: Path) -> None:
    """Raise AssertionError if float32 has rounded a loss or a weight."""
    for script in SCRIPTS:
        run(root, "-c", IN_FLOAT64, f"{script}.py", store="float64")
    single, double = (flor.sql(VALUES, store=root / name) for name in ("store", "float64"))
    assert len(single) and single.equals(double), single.compare(double)
    for script in SCRIPTS:
        (one,), (two,) = (
            flor.checkpoint(script, store=root / name).values() for name in ("store", "float64")
        )
        assert two.dtype == torch.float64 and torch.equal(one.double(), two), script


def anonymize(store: Path, root: Path) -> None:
    """Put placeholders where the store names this machine; test_golden_store.py puts its own."""
    (store / ".gitignore").rename(store / "gitignore")  # it hides the whole store from git
    for path in sorted(path for path in store.rglob("*") if path.is_file()):
        path.chmod(0o644)
        if path.suffix in (".json", ".txt", ".jsonl"):
            path.write_text(without_paths(path.read_text(), root))
        if path.name in ("run.json", "plan.json"):
            path.write_text(without_machine(path.read_text()))
        content = path.read_bytes()
        for name in (str(root), sys.prefix, tempfile.gettempdir(), f'"{socket.gethostname()}"'):
            assert name.encode() not in content, (path, name)
    for folder in sorted((path for path in store.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):  # git would leave it out
            folder.rmdir()


def without_paths(text: str, root: Path) -> str:
    packages = Path(torch.__file__).parents[1]
    text = text.replace(str(root), "/GOLDEN").replace(str(packages), "/GOLDEN/packages")
    return re.sub(r"[^\"\s]*/flor-sandbox-\w+", "/GOLDEN/sandbox", text)


def without_machine(text: str) -> str:
    content = json.loads(text)
    assert json.dumps(content, indent=1) == text.rstrip("\n")
    content["process"] = {"host": "GOLDEN-HOST", "pid": NO_PROCESS, "started": "0"}
    if "launch" in content:
        env = content["launch"]["env"]
        content["launch"]["env"] = {name: env[name] for name in KEPT_VARIABLES}
        content["environment"] |= {"platform": "GOLDEN-PLATFORM", "cpu": "GOLDEN-CPU"}
    return json.dumps(content, indent=1)


if __name__ == "__main__":
    main()
