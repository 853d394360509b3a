from __future__ import annotations

import argparse
import enum
import json
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from flor_plugins.recorder.launch_environment import (
    environment,
    flatten,
    launch,
    seconds_since_start,
)
from flor_plugins.state import packages
from flor_plugins.state.packages import installed, normal

ASK = (
    "import json, os, sys\n"
    "from dataclasses import asdict\n"
    "from flor_plugins.recorder.launch_environment import environment, launch, "
    "seconds_since_start\n"
    "os.chdir('/')\n"
    "environment()\n"
    "more = {'loaded': 'torch' in sys.modules, 'age': seconds_since_start()}\n"
    "print(json.dumps({**asdict(launch()), **more}))\n"
)


def ask(folder: Path, *command: str, stdin: str | None = None, **env: str) -> dict[str, Any]:
    """What a new interpreter, started in `folder`, says about its launch."""
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **env},
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("named", ["train.py", "./train.py", "sub/../train.py", "{here}/train.py"])
def test_script_is_an_absolute_path_from_wherever_it_was_started(
    tmp_path: Path, named: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "train.py").write_text(ASK)
    said = ask(tmp_path, named.format(here=tmp_path), "--lr", "0.1")
    assert (said["kind"], said["target"], said["argv"]) == (
        "script",
        str(tmp_path / "train.py"),
        ["--lr", "0.1"],
    )
    assert said["call"] == 0 and not said["loaded"]
    if not named.startswith("{"):
        assert said["cwd"] == str(tmp_path)  # though the script went elsewhere


def test_modules_packages_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    for name in ("single.py", "pack/__init__.py", "pack/__main__.py", "pack/inner.py"):
        (tmp_path / name).write_text("" if name == "pack/__init__.py" else ASK)
    for command, expected in (
        (("-m", "single"), ("module", "single")),
        (("-m", "pack"), ("module", "pack")),
        (("-m", "pack.inner"), ("module", "pack.inner")),
        (("pack",), ("script", str(tmp_path / "pack"))),
    ):
        said = ask(tmp_path, *command, "x")
        assert (said["kind"], said["target"]) == expected
        assert said["argv"] == ["x"]


def test_a_command_string_and_standard_input_are_interactive(tmp_path: Path) -> None:
    assert ask(tmp_path, "-c", ASK)["kind"] == "interactive"
    assert ask(tmp_path, "-", stdin=ASK)["kind"] == "interactive"


def test_variables_that_matter_are_kept_and_secrets_are_not(tmp_path: Path) -> None:
    kept = {
        "OMP_NUM_THREADS": "2",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "1",
        "RANK": "0",
    }
    kept |= {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": "h",
        "TORCH_HOME": "t",
        "PL_GLOBAL_SEED": "3",
    }
    never = {
        "HF_TOKEN": "s",
        "HF_API_KEY": "s",
        "TORCH_SECRET": "s",
        "PL_PASSWORD": "s",
        "HOME": "s",
    }
    never |= {
        "HF_CREDENTIALS": "s",
        "HF_APIKEY": "s",
        "HF_TOKEN_PATH": "s",
        "HF_PROXY": "http://u:s@h",
    }
    said = ask(tmp_path, "-c", ASK, **kept, **never)["env"]
    said.pop("PYTHONPATH")
    assert said == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_age_of_a_process_counts_from_its_start(tmp_path: Path) -> None:
    age = ask(tmp_path, "-c", ASK)["age"]
    mine = seconds_since_start()
    assert mine is not None and 0 <= age < mine


def test_environment_is_json_and_reads_the_switches_of_torch() -> None:
    import torch

    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not was
    try:
        said = environment()
    finally:
        torch.backends.cudnn.benchmark = was
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["determinism"]["cudnn_benchmark"] is not was
    assert said["determinism"]["num_threads"] == torch.get_num_threads()
    assert said["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_newer_switches_of_torch_do_not_hide_the_others() -> None:
    # Reading an older switch raises RuntimeError once a newer one was set, for the rest of the
    # process.
    code = (
        "import json, torch\n"
        "from flor_plugins.state.environment import environment\n"
        "if hasattr(torch.backends.cuda.matmul, 'fp32_precision'):\n"
        "    torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "torch.set_flush_denormal(True)\n"
        "torch.set_default_dtype(torch.float64)\n"
        "print(json.dumps(environment()['determinism']))\n"
    )
    said = ask(Path.cwd(), "-c", code)
    assert said["flush_denormal"] is True and said["default_dtype"] == "torch.float64"
    assert {
        "num_threads",
        "num_interop_threads",
        "cpu_capability",
        "flash_sdp",
        "mkldnn",
        "cudnn_tf32",
    } <= said.keys()
    assert said.get("cuda_matmul_tf32") in ("tf32", False)


def test_every_installed_package_is_named_as_importlib_names_it() -> None:
    said = installed()
    expected = {normal(each.metadata["Name"]): each.version for each in metadata.distributions()}
    assert {name: said.get(name) for name in expected} == expected
    assert environment()["packages"] == said and environment()["every_package"] is True


def test_packages_are_read_from_names_and_the_first_folder_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (
        "Toy_Box.x-1.0.dist-info",
        "old-2.0-py3.11.egg-info",
        "worked_on.egg-info",
        "~oy-9.dist-info",
    ):
        (first / folder).mkdir(parents=True)
    (first / "unread.egg-info").mkdir()
    (first / "worked_on.egg-info" / "PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: worked-on\nVersion: 3.0\n"
    )
    for folder in ("toy.box.x-0.1.dist-info", "local-1.0+cpu.dist-info", "a-b-1.0.post1.dist-info"):
        (second / folder).mkdir(parents=True)
    archive = tmp_path / "archive.zip"
    archive.write_bytes(b"")
    paths = [str(first), str(archive), str(tmp_path / "none"), "null\0byte", str(second)]
    monkeypatch.setattr(sys, "path", paths)
    said = installed()
    monkeypatch.undo()
    assert said == {
        "a-b": "1.0.post1",
        "local": "1.0+cpu",
        "old": "2.0",
        "toy-box-x": "1.0",
        "worked-on": "3.0",
    }


def test_a_folder_of_samples_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / f"toy{number}-1.0.dist-info").mkdir()
    monkeypatch.setattr(packages, "MAX_NAMES", 3)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    said = installed()
    monkeypatch.undo()
    assert len(said) == 3


def test_launch_of_this_process_starts_it_again() -> None:
    assert launch().kind in ("script", "module")


class Color(enum.Enum):
    RED = "red"
    TUPLE = (1, 2)


@dataclass
class Inner:
    rate: float = 0.5
    where: Path = Path("a/b")


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    unset: int = field(init=False)


def test_nested_parameters_get_dotted_names() -> None:
    space = argparse.Namespace(lr=1e-3, inner=OrderedDict(a=1, b={"c": None}))
    assert flatten("args", space) == {"args.lr": 1e-3, "args.inner.a": 1, "args.inner.b.c": None}
    assert flatten("", Outer()) == {"inner.rate": 0.5, "inner.where": "a/b", "unset": None}
    assert flatten("p", {}) == {} and flatten("p", {0: "a"}) == {"p.0": "a"}


def test_values_become_plain() -> None:
    import numpy as np
    import torch

    flat = flatten(
        "",
        {
            "enum": Color.RED,
            "other": Color.TUPLE,
            "dtype": torch.float32,
            "np": np.float32(0.5),
            "bool": np.True_,
            "nan": float("nan"),
            "inf": [float("-inf")],
            "set": {2, 1},
            "tuple": (1, (2, "x")),
            "type": dict,
            "function": flatten,
            "tensor": torch.zeros(2, 3),
            "empty": {},
            "text": "x" * 500,
            "huge": b"x" * 500,
            "object": object(),
            "many": list(range(5000)),
        },
    )
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert flat["enum"] == "red" and flat["other"] == "TUPLE" and flat["dtype"] == "torch.float32"
    assert (
        flat["np"] == 0.5
        and flat["bool"] is True
        and flat["nan"] == "nan"
        and flat["inf"] == ["-inf"]
    )
    assert (
        flat["set"] == [1, 2] and flat["tuple"] == [1, [2, "x"]] and flat["type"] == "builtins.dict"
    )
    assert flat["function"] == "flor_plugins.recorder.launch_environment.flatten"
    assert flat["tensor"] == "Tensor(shape=(2, 3), dtype=torch.float32)"
    assert len(str(flat["text"])) == 500 and len(str(flat["huge"])) == 200 == len(str(flat["many"]))
    assert flat["object"] == "<object object>" and flat["empty"] == "{}"


def test_a_mapping_that_holds_itself_and_a_bad_repr_end() -> None:
    class Bad:
        def __repr__(self) -> str:
            raise RuntimeError

    loop: dict[str, Any] = {"bad": Bad()}
    loop["loop"] = loop
    flat = flatten("", loop)
    assert flat["bad"] == "<Bad whose repr raises RuntimeError>"
    assert max(name.count(".") for name in flat) <= 20 + 1
