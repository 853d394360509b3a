"""Projects to record and replay: a repository with the toy scripts, and the commands of a user."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flor_plugins.store.layout import Store
from tests.flor_here import flor_here
from tests.trainings import run_python, variables

TOYS = Path(__file__).parent / "projects"
HOOKS = {"lightning": "lit_hooks.py", "hf": "hf_hooks.py"}
METRICS = {
    "lightning": ["val_accuracy", "update_norm", "wrong"],
    "hf": ["token_accuracy", "update_norm", "tokens"],
}
TIMEOUT_S = 150
START = "import sys; sys.argv[0] = 'flor-hf'; from flor_plugins.cli import main; main()"

# One training per FlorCallback, each from the same seed.
TRAIN = {
    "lightning": """
import lightning.pytorch as pl, torch
import lit_toy
from lit_toy import FlorCallback

def train(callback, epochs=3, accumulate=1, also=(), lr=0.01, **settings):
    torch.set_num_threads(1)
    pl.seed_everything(7, verbose=False)
    fit = lit_toy.trainer([callback, *also], epochs, accumulate_grad_batches=accumulate, **settings)
    fit.fit(lit_toy.Net(lr), *lit_toy.data())
    print("AFTER FIT")
""",
    "hf": """
import torch
import hf_toy
from hf_toy import FlorCallback

def train(callback, epochs=3, accumulate=1, also=(), lr=1e-3, **settings):
    torch.set_num_threads(1)
    hf_toy.build([callback, *also], lr, epochs, accumulate, **settings).train()
    print("AFTER FIT")
""",
}


@dataclass(frozen=True)
class Project:
    """A folder of a user. env: set for everything that is started there."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.root / ".flor")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def git(self, *args: str) -> str:
        who = ("-c", "user.name=T", "-c", "user.email=t@t", "-c", "commit.gpgSign=false")
        command = ["git", *who, *args]
        return subprocess.run(
            command, cwd=self.root, check=True, capture_output=True, text=True
        ).stdout

    def run(
        self, *command: str, ok: bool = True, timeout_s: float = TIMEOUT_S, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A command, in a new process of its own."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self._variables(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not ok, done.stdout + done.stderr
        return done

    def python(self, *args: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """`python ARGS`, forked from a process that has imported the trainers."""
        done = run_python(self.root, args, self._variables(env), TIMEOUT_S)
        assert done.returncode == 0 or not ok, done.stdout + done.stderr
        return done

    def flor(
        self, *args: str, ok: bool = True, timeout_s: float = TIMEOUT_S, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """The command line. A verb that starts replay workers runs in this process, in which
        warm ones may stand ready, any other one in a process of its own.
        """
        if args[0] in ("replay", "verify", "first"):
            done = flor_here(self.root, args, self._variables(env))
        else:
            done = run_python(self.root, ("-c", START, *args), self._variables(env), timeout_s)
        assert done.returncode == 0 or not ok, done.stdout + done.stderr
        return done

    def _variables(self, env: Mapping[str, str]) -> dict[str, str]:
        return variables(**{**self.env, **env})

    def printed_by_workers(self) -> str:
        return "".join(path.read_text() for path in self.store.root.glob("replays/*/*/output.txt"))

    def verdicts(self) -> list[dict[str, Any]]:
        """Those of the newest replay."""
        newest = max(self.store.root.glob("replays/*/verdicts.json"))
        return json.loads(newest.read_text())["passes"]


def make(root: Path, *, git: bool = True) -> Project:
    """A repository with one commit that holds the toy scripts."""
    root.mkdir(parents=True, exist_ok=True)
    for toy in TOYS.glob("*.py"):
        shutil.copy(toy, root)
    project = Project(root)
    project.write(".gitignore", "out/\nignored/\n__pycache__/\n.env\n*.ckpt\nlightning_logs/\n")
    if git:
        project.git("init", "-q", "-b", "main")
        project.git("add", "-A")
        project.git("commit", "-q", "-m", "toys")
    return project


def rows_of(frame: Any, name: str, metric: str) -> dict[tuple[int, int], Any]:
    """{(epoch, step): value} of one run, missing values left out."""
    own = frame[(frame["name"] == name) & frame[metric].notna()]
    return dict(zip(zip(own["epoch"], own["step"], strict=True), own[metric], strict=True))
