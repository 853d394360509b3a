"""What is carried stands where it belongs, by the names of that version, and nothing else
changes.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import CannotCarry
from flor_plugins.replayer.backport.backport import Backport, carry
from flor_plugins.replayer.backport.insert_proof import extras
from flor_plugins.replayer.backport.names import renamed
from tests.editing import LOGGED, NET, changed, edit_of, logging
from tests.edits import edited, versions

NORM = 'flor.log("norm", out.norm())'
HOOK = '''    def on_before_optimizer_step(self, optimizer):
        """What the optimizer
        will see."""
        flor.log("grad", self.body.weight.grad.norm())

'''


def added(carried: Backport) -> list[str]:
    """The lines that the patch puts in; it takes none away."""
    lines = [line for line in carried.patch.splitlines() if not line.startswith(("+++", "---"))]
    assert not [line for line in lines if line.startswith("-")]
    return [line[1:].strip() for line in lines if line.startswith("+") and line[1:].strip()]


def into(text: str, *lines: str, top: str = "") -> list[str]:
    return added(carry(logging(*(lines or (NORM,)), top=top), {"net.py": text}))


def refused(text: str, *lines: str) -> str:
    with pytest.raises(CannotCarry) as error:
        carry(logging(*(lines or (NORM,))), {"net.py": text})
    return str(error.value)


def hooked(text: str) -> Backport:
    edit = edit_of(
        {"net.py": NET}, {"net.py": changed(NET, ("    def configure", HOOK + "    def configure"))}
    )
    return carry(edit, {"net.py": text})


def test_an_unchanged_version_gets_the_edited_file():
    edit = logging(NORM, top="# why\nLIMIT = 3\n\n\n")
    carried = carry(edit, {"net.py": NET, "other.py": "x = 1\n"})
    assert carried.sources == {"net.py": edit.edited["net.py"]}
    assert carried.how == {"net.py": "same"}


def test_distant_changes_are_merged_by_git_and_comments_come_along():
    base = changed(NET, ("0.1", "0.2"))
    carried = carry(logging("# how far", NORM), {"net.py": base})
    assert carried.how == {"net.py": "merged"}
    assert carried.sources["net.py"] == changed(
        base, (LOGGED, LOGGED + f"        # how far\n        {NORM}\n")
    )


def test_changed_surroundings_are_aligned():
    louder = '        self.log("train/loss", loss, prog_bar=True)\n'
    old = changed(NET, (LOGGED, louder), ("return loss", "return 1 * loss"))
    assert into(old) == [NORM]


def test_a_clean_merge_with_a_renamed_variable_is_not_believed():
    old = changed(NET, ("out", "far_away"))
    carried = carry(logging(NORM), {"net.py": old})
    assert carried.how == {"net.py": "aligned"}
    assert added(carried) == ['flor.log("norm", far_away.norm())']


def test_names_that_were_swapped_are_swapped_back():
    old = changed(
        NET, ("x, y = batch", "y, x = batch"), ("self(x)\n", "self(y)\n"), ("(out, y)", "(out, x)")
    )
    assert into(old, 'flor.log("mean", x.mean())') == ['flor.log("mean", y.mean())']


def test_attributes_of_self_are_renamed():
    line = 'flor.log("w", self.body.weight.norm() * self.scale)'
    assert into(changed(NET, ("self.body", "self.stem")), line) == [line.replace("body", "stem")]


def test_layout_comments_and_strings_survive_a_renaming():
    lines = 'flor.log("out",\n            out.norm(),  # of out\n        )'
    assert into(changed(NET, ("out", "logits")), lines) == [
        'flor.log("out",',
        "logits.norm(),  # of out",
        ")",
    ]


def test_a_name_inside_an_fstring_is_renamed():
    old = changed(NET, ("out", "logits"), ("index", "i"))
    assert into(old, 'flor.log(f"norm {index:>3}", out.norm())') == [
        'flor.log(f"norm {i:>3}", logits.norm())'
    ]


def test_an_assignment_comes_along_with_what_reads_it():
    lines = "norm = out.norm()", 'flor.log("norm", norm)'
    assert into(changed(NET, ("out", "logits")), *lines) == ["norm = logits.norm()", lines[1]]


def test_a_renamed_function_is_called_by_its_old_name():
    line = 'flor.log("spread", spread(out))'
    assert into(changed(NET, ("spread", "width"), ("values", "v")), line) == [
        'flor.log("spread", width(out))'
    ]


def test_a_function_that_did_not_exist_comes_along():
    start, end = NET.index("def spread"), NET.index("class Net")
    old = changed(NET, (NET[start:end], ""), ("spread(self.body(x))", "self.body(x)"))
    line = 'flor.log("spread", spread(out))'
    assert into(old, line) == ["def spread(values):", "return values.max() - values.min()", line]


def test_an_import_that_is_there_by_another_name_is_used():
    old = changed(NET, ("import torch\n", "import torch\nfrom torch.nn import functional as fn\n"))
    line = 'flor.log("relu", F.relu(out))'
    assert into(old, line, top="import torch.nn.functional as F\n\n\n") == [
        line.replace("F.", "fn.")
    ]


def test_a_helper_of_the_edit_goes_where_its_module_is_and_is_imported_once():
    base = {"net.py": NET, "more.py": "LIMIT = 1\n"}
    edit = edit_of(base, {
        "net.py": changed(NET, ("import torch\n", "import torch\nfrom more import wide\n"),
                          (LOGGED, LOGGED + '        flor.log("wide", wide(out))\n')),
        "more.py": "LIMIT = 1\n\n\ndef wide(values):\n    return values.std() + LIMIT\n",
    })  # fmt: skip
    old = changed(NET, ("out", "logits"))
    both = carry(edit, {"net.py": old, "more.py": "LIMIT = 2\n"})
    assert set(both.sources) == {"net.py", "more.py"}
    assert added(both) == [
        "def wide(values):",
        "return values.std() + LIMIT",
        "from more import wide",
        'flor.log("wide", wide(logits))',
    ]
    alone = carry(edit, {"net.py": old})
    assert set(alone.sources) == {"net.py"}
    assert "LIMIT = 1" in added(alone) and "def wide(values):" in added(alone)


def test_a_new_file_is_added_whole_and_imported():
    more = "def wide(values):\n    return values.std()\n"
    edited = changed(NET, ("import torch\n", "import torch\nfrom more import wide\n"),
                     (LOGGED, LOGGED + '        flor.log("wide", wide(out))\n'))  # fmt: skip
    edit = edit_of({"net.py": NET}, {"net.py": edited, "more.py": more})
    carried = carry(edit, {"net.py": changed(NET, ("out", "logits"))})
    assert carried.sources["more.py"] == more
    assert added(carried)[2:] == ["from more import wide", 'flor.log("wide", wide(logits))']
    with pytest.raises(CannotCarry, match=r"more\.py:1 .* another file"):
        carry(edit, {"net.py": NET, "more.py": "wide = 1\n"})


def test_a_statement_follows_its_neighbours_into_another_function():
    body = NET[NET.index("        x, y = batch") : NET.index("    def configure")]
    old = changed(
        NET, (body, "        return self.common(batch)\n\n    def common(self, batch):\n" + body)
    )
    carried = carry(logging(NORM), {"net.py": old})
    assert carried.sources["net.py"].index(NORM) > carried.sources["net.py"].index("def common")


def test_a_hook_goes_into_a_renamed_class_with_its_docstring_untouched():
    old = changed(NET, ("class Net", "class Model"), ("self.body", "self.stem"), ("0.1", "0.2"))
    carried = hooked(old)
    assert HOOK.replace("self.body", "self.stem") in carried.sources["net.py"]


def test_a_hook_that_the_version_has_is_refused():
    other = "    def on_before_optimizer_step(self, o):\n        o.x = 1\n\n"
    old = changed(NET, ("    def forward", other + "    def forward"))
    with pytest.raises(CannotCarry, match=r"net\.py:26 .*'on_before_optimizer_step'.*already"):
        hooked(old)


def test_two_places_that_fit_are_both_named():
    text = refused(
        changed(NET, ("class Net", "class A"))
        + "\n\n"
        + NET[NET.index("class Net") :].replace("Net", "B")
    )
    assert "net.py:24 (A.training_step)" in text and "net.py:44 (B.training_step)" in text
    assert text.startswith("net.py:24 (`flor.log")


def test_a_statement_between_that_changes_the_value_makes_the_place_uncertain():
    assert "fits two places" in refused(changed(NET, (LOGGED, LOGGED + "        out = out * 2\n")))
    assert "fits two places" in refused(changed(NET, (LOGGED, LOGGED + "        out.mul_(2)\n")))
    assert "fits two places" in refused(
        changed(NET, (LOGGED, LOGGED + "        self.manual_backward(loss)\n"))
    )
    assert into(changed(NET, (LOGGED, LOGGED + "        print(out)\n"))) == [NORM]


def test_a_variable_that_may_be_either_is_refused():
    old = changed(
        NET,
        ("cross_entropy(out, y)", "cross_entropy(sharp, y)"),
        ("out = self(x)", "sharp = out = self(x)"),
    )
    assert "out" in refused(changed(old, (LOGGED, LOGGED.replace("loss)", "loss, batch_size=1)"))))


def test_a_name_that_the_version_does_not_define_is_refused():
    assert "reads 'index'" in refused(
        changed(NET, ("batch, index", "batch")), 'flor.log("i", index)'
    )


def test_a_name_that_the_edit_defines_must_be_new():
    old = changed(NET, ("out = self(x)", "norm = 3\n        out = self(x) * norm"))
    assert "'norm'" in refused(old, "norm = out.norm()", 'flor.log("norm", norm)')


def test_a_name_is_not_captured_by_a_comprehension():
    assert "'p'" in refused(
        changed(NET, ("out", "p")), 'flor.log("sum", sum(p.norm() for p in out))'
    )


def test_a_version_without_the_function_is_refused():
    assert "no place" in refused("x = 1\n")


def test_a_line_with_several_statements_is_refused():
    text = refused(changed(NET, (LOGGED + "        return loss", LOGGED[:-1] + "; return loss")))
    assert "line 23 of net.py" in text


def test_a_file_that_does_not_parse_is_no_place():
    assert "no place" in refused("def (:\n")


def test_line_ends_and_form_feeds_stay():
    old = (
        changed(NET, ("out", "logits"))
        .replace("class Net", "\x0c\nclass Net")
        .replace("\n", "\r\n")
        .rstrip()
    )
    new = carry(logging(NORM), {"net.py": old}).sources["net.py"]
    assert new.replace('        flor.log("norm", logits.norm())\r\n', "").rstrip() == old


def test_a_patch_is_one_that_git_applies(tmp_path: Path):
    for name, files in versions().items():
        carried = carry(edit_of(versions()["v7"], edited()), files)
        root = tmp_path / name
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
        subprocess.run(["git", "apply", "-"], input=carried.patch, text=True, cwd=root, check=True)
        assert {path: (root / path).read_text() for path in carried.sources} == carried.sources


IDENTIFIERS = st.from_regex(r"[a-h][a-z]{1,5}_", fullmatch=True)


@given(st.lists(IDENTIFIERS, min_size=5, max_size=5, unique=True))
def test_consistently_renamed_variables_are_followed(names: list[str]):
    renaming = dict(zip(("x", "y", "out", "loss", "batch"), names, strict=True))
    step = NET.index("    def training_step")
    head, body = NET[:step], NET[step:]
    old = head + _renamed_locals(body, renaming)
    line = 'flor.log("all", out.norm() + loss * x.mean() - y.sum() + len(batch))'
    meant = renamed(line, renaming)
    assert into(old, line) == [meant]


def _renamed_locals(body: str, names: dict[str, str]) -> str:
    tree = ast.parse("class A:\n" + body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names:
            node.id = names[node.id]
        elif isinstance(node, ast.arg) and node.arg in names:
            node.arg = names[node.arg]
    return ast.unparse(tree).removeprefix("class A:\n") + "\n"


STATEMENTS = st.sampled_from(
    (
        "print(index)",
        "x = x * 2",
        "out = out.relu()",
        "self.seen = index",
        "if index:\n            y = y + 1",
        "with torch.no_grad():\n            self.scale = out.mean()",
        "for part in out:\n            print(part)",
        "norm = 1",
        "return None",
    )
)


@given(
    st.lists(st.tuples(st.integers(0, 5), STATEMENTS), max_size=6),
    st.sets(st.integers(0, 4), max_size=3),
)
def test_without_what_was_put_in_it_is_the_old_tree(extra: list[tuple[int, str]], gone: set[int]):
    lines = NET.splitlines()
    start = next(i for i, line in enumerate(lines) if "def training_step" in line) + 1
    body = [[line] for i, line in enumerate(lines[start : start + 5]) if i not in gone]
    for place, text in extra:
        body.insert(min(place, len(body)), ["        " + text])
    if not body:
        body = [["        pass"]]
    old = (
        "\n".join([*lines[:start], *(line for part in body for line in part), *lines[start + 5 :]])
        + "\n"
    )
    try:
        carried = carry(logging("norm = out.norm()", 'flor.log("norm", norm)'), {"net.py": old})
    except CannotCarry as error:
        assert "net.py:" in str(error)
        return
    new = ast.parse(carried.sources["net.py"])
    came = extras(ast.parse(old), new)
    assert came is not None and len(came) == 2
    assert {one.scope for one in came} == {("Net", "training_step")}


@given(st.text("about_(), \n#\"'", max_size=40))
def test_a_comment_beside_a_name_is_never_touched(noise: str):
    comment = "  # out " + noise.replace("\n", " ")
    text = f"log('out', out){comment}"
    assert renamed(text, {"out": "logits"}) == f"log('out', logits){comment}"
