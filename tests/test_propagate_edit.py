"""The edit is what was put in; what else differs is told with file, line, and both texts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flor_plugins.errors import EditRefused
from flor_plugins.recorder.code_snapshot.snapshot import take
from flor_plugins.records import Launch, RecordingProcess, Run
from flor_plugins.replayer.backport.edit import Edit, edit_of
from flor_plugins.replayer.backport.names import binds, reads
from flor_plugins.replayer.backport.snapshots import (
    SnapshotSources,
    base_of,
    edit_since,
    settings_changed,
    working_sources,
)
from flor_plugins.replayer.backport.tree_diff import compare
from flor_plugins.store.layout import Store
from tests.edits import edited, versions
from tests.replaying import TOYS, Project

LIT, HF = (TOYS / "lit_toy.py").read_text(), (TOYS / "hf_toy.py").read_text()
# In each toy: a line that logs goes after this one, and the learning rate stands there.
LIT_LINE, LIT_LR = (
    "        self.seen += len(x)\n",
    "torch.optim.AdamW(self.parameters(), self.hparams.lr)",
)
HF_LINE, HF_LR = "        x = self.x[i].clone()\n", "learning_rate=lr"
SMALL = "a = 1\n\n\ndef f(x):\n    b = x\n    for i in b:\n        print(i)\n    return b\n"


def refusal(base: str, new: str, path: str = "m.py") -> str:
    with pytest.raises(EditRefused) as error:
        edit_of({path: base}, {path: new}, "run r1")
    return str(error.value)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize(("text", "line", "rate", "slower"), [
    (LIT, LIT_LINE, LIT_LR, "torch.optim.AdamW(self.parameters(), self.hparams.lr * 2)"),
    (LIT, LIT_LINE, "def __init__(self, lr=0.01,", "def __init__(self, lr=0.02,"),
    (HF, HF_LINE, HF_LR, "learning_rate=lr * 2"),
    (HF, HF_LINE, "def build(callbacks, lr=1e-3,", "def build(callbacks, lr=2e-3,"),
])  # fmt: skip
def test_a_learning_rate_slipped_in_beside_the_log_line_is_refused(
    text: str, line: str, rate: str, slower: str
):
    logged = text.replace("import random\n", "import random\nimport flor_plugins as flor\n", 1)
    logged = logged.replace(line, line + '        flor.log("mean", x.float().mean())\n')
    assert edit_of({"m.py": text}, {"m.py": logged}, "run r1").metrics == ("mean",)
    changed = logged.replace(rate, slower)
    said = refusal(text, changed)
    assert f"m.py:{line_of(changed, slower)} was `" in said
    assert slower in said and rate in said and "one change" in said


def test_the_edit_of_the_example_is_found_whole():
    edit = edit_of(versions()["v7"], edited(), "run v7")
    assert [one.kind for one in edit.insertions] == ["import", "import", "helper", "log"]
    log = edit.insertions[-1]
    point = log.point
    assert (log.path, log.scope, point.block) == ("toys/steps.py", ("Steps", "shared_step"), ())
    assert point.before[-1] == "self.log(f'{phase}_loss', loss)" and point.after == ("return loss",)
    assert log.text.startswith(
        'if phase == "train":\n    flor.log('
    ) and log.metrics == edit.metrics == ("margin",)
    assert {"flor", "logit_margin", "logits", "phase", "y"} <= set(reads(log.node))
    assert binds(edit.insertions[2].node) == {"logit_margin"}


def test_blocks_are_named_from_outside_in():
    base = (
        "import flor_plugins as flor\nfor a in []:\n    if a:\n        print(a)\n    "
        "else:\n        print(1)\n"
    )
    edit = edit_of({"m.py": base}, {"m.py": base + "        flor.log('x', 1)\n"}, "r")
    assert edit.insertions[0].point.block == ("for a in []", "if a", "else")


@pytest.mark.parametrize("new", [
    SMALL.replace("def f(x):\n", 'def f(x):\n    """Text."""\n    # why\n'),
    SMALL.replace("b = x", "b = (\n        x)"),
])  # fmt: skip
def test_docstrings_comments_and_layout_are_no_difference(new: str):
    assert edit_of({"m.py": SMALL}, {"m.py": new}, "r").insertions == ()


@pytest.mark.parametrize(("new", "line", "what"), [
    (SMALL.replace("a = 1", "a = 2"), 1, "was `a = 1` and is `a = 2`"),
    (SMALL.replace("def f(x)", "def f(x, y=1)"), 4, "was `def f(x)` and is `def f(x, y=1)`"),
    (SMALL.replace("def f", "@staticmethod\ndef f"), 4, "@staticmethod"),
    (SMALL.replace("    b = x\n", ""), 5, "(before the edit): `b = x` was taken out"),
    (SMALL.replace("in b:", "in x:"), 6, "was `for i in b` and is `for i in x`"),
    (SMALL.replace("a = 1\n", "") + "a = 1\n", 8, "`a = 1` was moved; it stood at line 1"),
    (SMALL.replace("        print(i)\n", "        print(i)\n    else:\n        "
                                         "print(2)\n"), 9, "`else` was put"),
])  # fmt: skip
def test_what_the_base_has_must_stay(new: str, line: int, what: str):
    said = refusal(SMALL, new)
    assert f"m.py:{line} " in said and what in said


def test_a_try_around_recorded_code_is_refused():
    body = SMALL.replace(
        "    b = x\n", "    try:\n        b = x\n    except ValueError:\n        pass\n"
    )
    assert "m.py:5 " in refusal(SMALL, body)


def test_every_change_is_listed():
    said = refusal(SMALL, SMALL.replace("a = 1", "a = 2").replace("return b", "return a"))
    assert "m.py:1 " in said and "m.py:8 " in said and "2 changes" in said and "run r1" in said


def test_a_moved_or_removed_file_is_refused():
    with pytest.raises(EditRefused, match=r"m\.py:1 the file was moved to lib/m\.py"):
        edit_of({"m.py": SMALL}, {"lib/m.py": SMALL}, "r")
    with pytest.raises(EditRefused, match=r"m\.py:1 the file was removed"):
        edit_of({"m.py": SMALL}, {}, "r")


def test_a_file_that_is_not_python_is_told_with_its_line():
    assert "m.py:9 is not Python" in refusal(SMALL, SMALL + "def (:\n")


def test_new_files_count_where_the_edit_imports_them():
    files = {
        "m.py": "import more\n" + SMALL,
        "more.py": "def g(x):\n    return x\n",
        "other.py": "import os\nos.x()\n",
    }
    edit = edit_of({"m.py": SMALL}, files, "r")
    assert [(one.path, one.path in edit.base) for one in edit.insertions] == [
        ("m.py", True),
        ("more.py", False),
    ]
    assert set(edit.edited) == {"m.py", "more.py"}
    with pytest.raises(EditRefused, match=r"more\.py:2 "):
        edit_of({"m.py": SMALL}, {**files, "more.py": "import torch\ntorch.manual_seed(1)\n"}, "r")


def test_the_digest_is_of_the_code_not_of_its_layout():
    def digest(line: str) -> str:
        return edit_of(
            {"m.py": SMALL}, {"m.py": SMALL.replace("    return", f"    {line}\n    return")}, "r"
        ).digest

    assert digest("c = len(b)") == digest("c = len( b )  # how many") != digest("c = len(x)")


SIMPLE = st.sampled_from(
    ("a = b", "b = a + 1", "print(a)", "a, b = b, a", "c[0] = a", "b += 1", "x.y = f(a)")
)
BODIES = st.recursive(
    st.lists(SIMPLE, min_size=1, max_size=4),
    lambda inner: st.lists(
        st.one_of(
            SIMPLE,
            st.tuples(st.sampled_from(("if a:", "for i in b:", "with c:", "def f(a):")), inner),
        ),
        min_size=1,
        max_size=4,
    ),
    max_leaves=12,
)
LOG = "flor.log('new', 1)"


def _lines(body: list, depth: int = 0) -> list[str]:
    found = []
    for one in body:
        if isinstance(one, str):
            found.append("    " * depth + one)
        else:
            found += ["    " * depth + one[0], *_lines(one[1], depth + 1)]
    return found


@given(BODIES, st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_statements_put_in_anywhere_are_all_that_is_found(body: list, places: list[int]):
    lines = ["import flor_plugins as flor", *_lines(body)]
    new = list(lines)
    for place in places:
        at = 1 + place % len(new)
        beside = new[at] if at < len(new) else ""
        new.insert(at, " " * (len(beside) - len(beside.lstrip())) + LOG)
    base, text = ast.parse("\n".join(lines)), "\n".join(new)
    added, changed = compare("m.py", base, ast.parse(text))
    assert changed == []
    assert len(added) == len(places) and {ast.unparse(one.node) for one in added} == {LOG}
    edit = edit_of({"m.py": "\n".join(lines)}, {"m.py": text}, "r")
    gone = {one.line - 1 for one in edit.insertions}
    kept = "\n".join(line for number, line in enumerate(new) if number not in gone)
    assert ast.dump(ast.parse(kept)) == ast.dump(base)


@given(BODIES, st.integers(0, 40), st.integers(0, 40), SIMPLE)
def test_a_changed_statement_of_the_base_is_always_refused(
    body: list, place: int, log: int, other: str
):
    lines = ["import flor_plugins as flor", *_lines(body)]
    simple = [number for number, line in enumerate(lines) if number and not line.endswith(":")]
    at = simple[place % len(simple)]
    assume(lines[at].strip() != other)
    new = list(lines)
    new[at] = lines[at].replace(lines[at].strip(), other)
    near = new[1 + log % (len(new) - 1)]
    new.insert(1 + log % (len(new) - 1), " " * (len(near) - len(near.lstrip())) + LOG)
    with pytest.raises(EditRefused, match=r"m\.py:\d+ "):
        edit_of({"m.py": "\n".join(lines)}, {"m.py": "\n".join(new)}, "r")


def recorded(project: Project, name: str) -> Run:
    code = take(project.store, name, project.root)
    return Run(
        name,
        name,
        "p",
        "lightning",
        "finished",
        "2026-01-01T00:00:00.000Z",
        Launch("script", "train.py"),
        code,
        RecordingProcess("h", 1, ""),
        project.store.run(name),
    )


def edit_in(store: Store, runs: list[Run], root: Path) -> Edit | None:
    """The edit in a working tree since the run that it came from."""
    recorded = SnapshotSources(store, root)
    base = base_of(runs, recorded)
    return edit_since(base, recorded) if base is not None else None


def test_the_edit_in_a_working_tree_is_that_since_the_nearest_run(tmp_path: Path):
    project = Project(tmp_path / "p")
    project.root.mkdir()
    project.git("init", "-q")
    runs = []
    for name, rate in (("r1", 0.1), ("r2", 0.2), ("r3", 0.2), ("r4", 0.3)):
        project.write(
            "train.py", f"import flor_plugins as flor\nimport net\nrate = {rate}\nprint(rate)\n"
        )
        project.write("net.py", "x = 1\n")
        project.write("test_net.py", f"assert {rate}\n")
        project.write("config.yaml", f"rate: {rate}\n")
        project.git("add", "-A")
        project.git("commit", "-q", "--allow-empty", "-m", name)
        runs.append(recorded(project, name))
    assert edit_in(project.store, runs, project.root) is None
    text = (
        "import flor_plugins as flor\nimport net\nrate = 0.2\nflor.log('rate', rate)\nprint(rate)\n"
    )
    project.write("train.py", text)
    project.write("test_net.py", "assert True\n")
    project.write("scratch.py", "import os\nos.remove('x')\n")
    base = base_of(runs, SnapshotSources(project.store, project.root))
    assert base is not None and base.name == "r3"
    edit = edit_in(project.store, runs, project.root)
    assert (
        edit is not None
        and edit.metrics == ("rate",)
        and [one.path for one in edit.insertions] == ["train.py"]
    )
    assert base.code is not None and settings_changed(base.code, project.root) == ["config.yaml"]
    project.write("net.py", "x = 2\n")
    with pytest.raises(EditRefused, match=r"net\.py:1 was `x = 1` and is `x = 2`"):
        edit_in(project.store, runs, project.root)
    assert base_of(runs, SnapshotSources(project.store, tmp_path)) is None


def test_without_git_a_working_tree_is_its_code(tmp_path: Path):
    project = Project(tmp_path)
    for path in (
        "a.py",
        "lib/b.py",
        ".venv/c.py",
        "__pycache__/d.py",
        "env/pyvenv.cfg",
        "env/e.py",
        "data.txt",
    ):
        project.write(path, "x = 1\n")
    assert set(working_sources(tmp_path)) == {"a.py", "lib/b.py"}
    store = Store(tmp_path / ".flor")
    run = recorded(Project(tmp_path), "r1")
    project.write("a.py", "x = 1\ny = 2\n")
    edit = edit_in(store, [run], tmp_path)
    assert edit is not None and [one.text for one in edit.insertions] == ["y = 2"]
