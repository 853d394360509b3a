"""A method is replaced by name: the function is found, can be called as the method is, and
is put in its place.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flor_plugins.cli.replay import _patch
from flor_plugins.errors import CannotCarry, FlorError, HookError, ReplayError
from flor_plugins.recipe import check_recipe, load_recipe
from flor_plugins.records import Launch, MethodPatch
from flor_plugins.replayer.backport.syntax import CodeVersion
from flor_plugins.replayer.method_patching.patches import (
    digest_of,
    may_log,
    read,
    replace_methods,
    way_of,
)
from flor_plugins.replayer.method_patching.signatures import check, why_not
from tests.editing import changed

NET = """
class Ancestor:
    def loss(self, batch, index=0):
        return batch


class Net(Ancestor):
    def step(self, batch, *, scale=1):
        return batch * scale

    @staticmethod
    def twice(x):
        return 2 * x
"""
FUNCTIONS = """
import flor_plugins as flor
LIMIT = 3


def loss(self, batch, index=0):
    flor.log("seen", batch)
    return super().loss(batch, index) + LIMIT


def twice(x):
    return 3 * x


def other(self, data):
    return data
"""
SCRIPT = Launch("script", "/r/train.py")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "patches.py"
    path.write_text(FUNCTIONS)
    return path


def method(file: Path, target: str, function: str) -> MethodPatch:
    (found,) = read({target: f"{file}:{function}"})
    return found


def refusal(given: dict[str, str], folder: Path) -> str:
    with pytest.raises(HookError) as error:
        read({target: str(folder / source) for target, source in given.items()})
    return str(error.value)


def test_a_patch_that_is_not_there_is_told_with_its_file(file: Path):
    folder = file.parent
    assert "module:Class.method" in refusal({"net.Net.loss": "patches.py:loss"}, folder)
    assert "file.py:function" in refusal({"net:Net.loss": "patches.py"}, folder)
    assert "no such file" in refusal({"net:Net.loss": "none.py:loss"}, folder)
    said = refusal({"net:Net.loss": "patches.py:lost"}, folder)
    assert f"{file}:1:" in said and "there are loss, twice, other" in said
    file.write_text("def (:\n")
    assert f"{file}:1: the patch is not Python" in refusal(
        {"net:Net.loss": "patches.py:loss"}, folder
    )


def test_a_version_without_the_method_can_not_take_it(file: Path):
    version = CodeVersion(
        {"train.py": "", "lib/net.py": NET, "lib/__init__.py": "from lib.net import Net\n"}
    )
    for target in (
        "lib.net:Net.loss",
        "lib:Net.loss",
        "lib.net:Ancestor.loss",
    ):  # of its own, or inherited there
        check(method(file, target, "loss"), version, "train.py")
    for target, why in {
        "nets:Net.loss": "no module 'nets'",
        "lib.net:Nets.loss": "lib/net.py has no class Nets",
        "lib.net:Net.fit": "lib/net.py:7 has no 'fit' of its own",
    }.items():
        with pytest.raises(CannotCarry, match=why):
            check(method(file, target, "loss"), version, "train.py")


def test_other_parameters_are_refused_with_both_places(file: Path):
    version = CodeVersion({"train.py": NET})
    for module in ("train", "__main__"):
        with pytest.raises(HookError) as error:
            check(method(file, f"{module}:Net.loss", "other"), version, "train.py")
        line = FUNCTIONS[: FUNCTIONS.index("def other")].count("\n") + 1
        said = str(error.value)
        assert (
            said.startswith(f"{file}:{line}: other(self, data)")
            and "train.py:3, loss(self, batch, index=0)" in said
        )
        assert "'data' and not 'batch'" in said


@pytest.mark.parametrize(("own", "mine", "why"), [
    ("self, a, b=1", "me, a, b=2", ""),
    ("self, a, b=1", "self, *args, **kwargs", ""),
    ("self, a, /", "self, x, /", ""),
    ("self, a", "self, a, more=None, *, also=1", ""),
    ("self, a, *, k=1", "self, a, k=1", ""),
    ("self, a, *, k=1", "self, a, **kwargs", ""),
    ("self, *args, **kwargs", "self, *a, **k", ""),
    ("self, a, b", "self, a", "'b'"),
    ("self, a, b", "self, b, a", "'b' and not 'a'"),
    ("self, a, b", "self, a, *args", "'b'"),
    ("self, a=1", "self, a", "may leave out"),
    ("self, a", "self, a, b", "which no call gives"),
    ("self, a", "self, a, *, b", "which no call gives"),
    ("self, *args", "self", r"*args"),
    ("self, **kwargs", "self, a=1", "**kwargs"),
    ("self, *, k=1", "self, *, k", "may leave out"),
    ("self, *, k", "self", "'k'"),
    ("self, a", "self, a, /", "'a'"),
])  # fmt: skip
def test_each_call_of_the_method_must_be_one_of_the_function(own: str, mine: str, why: str):
    arguments = [ast.parse(f"def f({one}): ...").body[0].args for one in (own, mine)]  # type: ignore[attr-defined]
    said = why_not(*arguments)
    assert (why in said) if why else said == ""


@pytest.fixture
def net() -> ModuleType:
    found = ModuleType("patched_net")
    exec(NET, vars(found))
    return found


def test_the_function_takes_the_place_of_the_method(
    file: Path, net: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "patched_net", net)
    made = net.Net()
    replace_methods([method(file, "patched_net:Net.loss", "loss")], SCRIPT)
    assert made.loss(2) == 2 + 3 and net.Ancestor().loss(2) == 2
    replace_methods([method(file, "patched_net:Net.twice", "twice")], SCRIPT)
    assert made.twice(2) == net.Net.twice(2) == 6


def test_a_class_of_the_script_is_found_by_the_scripts_name(
    file: Path, net: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "__main__", net)
    replace_methods([method(file, "train:Net.loss", "loss")], SCRIPT)
    assert net.Net().loss(1) == 4
    with pytest.raises(ReplayError, match="no module 'net'"):
        replace_methods([method(file, "net:Net.loss", "loss")], SCRIPT)


def test_a_patch_that_fails_is_told_with_its_line(
    file: Path, net: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "patched_net", net)
    file.write_text("import nowhere_at_all\n" + FUNCTIONS)
    with pytest.raises(HookError, match=rf"{file}:1: .*nowhere_at_all"):
        replace_methods([method(file, "patched_net:Net.loss", "loss")], SCRIPT)


def test_a_metric_is_one_that_the_function_may_log(file: Path):
    one = method(file, "net:Net.loss", "loss")
    assert may_log([one], "seen") and not may_log([one], "lost") and not may_log([], "seen")
    assert way_of([one]) == "train"
    assert way_of([method(file, "net:Net.validation_step", "loss")]) == "validate"


def test_the_values_are_known_by_file_and_target(file: Path):
    digests = {
        digest_of([method(file, target, "loss")]) for target in ("net:Net.loss", "net:Net.step")
    }
    file.write_text(FUNCTIONS + "\n# more\n")
    digests.add(digest_of([method(file, "net:Net.loss", "loss")]))
    assert len(digests) == 3 and digest_of([]) is None


RECIPE = """version: 1
name: r
trainer: built:build_trainer
replay:
  metrics: [seen]
  patch: {"net:Net.loss": patches.py:loss}
"""


def recipe(folder: Path, old: str = "", new: str = "") -> Path:
    (folder / "built.py").write_text("def build_trainer(): ...\n")
    path = folder / "r.yaml"
    path.write_text(changed(RECIPE, (old, new)) if old else RECIPE)
    return path


def test_a_recipe_names_methods_to_be_replaced(file: Path):
    path = recipe(file.parent)
    assert load_recipe(path).replay.patch == {"net:Net.loss": "patches.py:loss"}
    assert check_recipe(path) == []


@pytest.mark.parametrize(("old", "new", "why"), [
    ("net:Net.loss", "net.Net.loss", "r.yaml:6: patch has 'net.Net.loss'; write "
                                     "module:Class.method"),
    ("patches.py:loss", "patches.py", "r.yaml:6: patch has 'patches.py'; write file.py:function"),
    ("patches.py:loss", "patch.py:loss", "r.yaml:6: no file 'patch.py' beside the recipe"),
    ("patches.py:loss", "patches.py:los", "r.yaml:6: no function 'los' at the top level of"),
])  # fmt: skip
def test_a_mistake_of_a_recipes_patch_is_told_with_its_line(
    file: Path, old: str, new: str, why: str
):
    (told,) = check_recipe(recipe(file.parent, old, new))
    assert why in told


def test_the_command_line_takes_target_file_and_function():
    assert _patch(("net:Net.loss=hooks/loss.py:loss",)) == {"net:Net.loss": "hooks/loss.py:loss"}
    with pytest.raises(FlorError, match="write TARGET=FILE:FUNCTION"):
        _patch(("net:Net.loss",))
