"""Recipes: what they hold, and how their mistakes are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flor_plugins.errors import MissingDependency, RecipeError
from flor_plugins.recipe import RecipeSummary, build_trainer, check_recipe, load_recipe

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

GOOD = """\
version: 1
name: bert
trainer: bert_like:build_trainer
params: {epochs: 3, learning_rate: 5e-4}
versions:
  - {name: firstRun}
  - name: increaseLR
    learning_rate: 1.0e-3
replay:
  metrics: [masked_accuracy]
  hooks: [hooks/ask.py]
  where: masked_accuracy.isna()
  epochs: 1:3
  verify: off
"""
TRAINER = "def build_trainer(*, epochs, learning_rate=1.0):\n    return epochs, learning_rate\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A recipe's folder; modules and paths that a test brought in are forgotten afterwards."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "ask.py").write_text("x = 1\n")
    (tmp_path / "bert_like.py").write_text(TRAINER)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, text: str) -> Path:
    path = folder / "bert.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return path


def mistake(folder: Path, text: str) -> str:
    """What loading says, without the path in front: `:line: ...` for each mistake."""
    path = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{path}:") for line in lines)
    assert check_recipe(path) == lines
    return "\n".join(line.removeprefix(str(path)) for line in lines)


def test_recipe_is_read_as_it_is_written(folder: Path) -> None:
    path = write(folder, GOOD)
    recipe = load_recipe(path)
    assert (recipe.version, recipe.name, recipe.trainer) == (1, "bert", "bert_like:build_trainer")
    assert [one.name for one in recipe.versions] == ["firstRun", "increaseLR"]
    assert recipe.params_of(recipe.versions[0]) == {"epochs": 3, "learning_rate": 5e-4}
    assert recipe.params_of("increaseLR") == {"epochs": 3, "learning_rate": 1e-3}
    assert recipe.replay.metrics == ("masked_accuracy",)
    assert (recipe.replay.epochs, recipe.replay.verify) == ("1:3", "off")
    assert recipe.hook_paths == (folder.resolve() / "hooks" / "ask.py",)
    assert recipe.path == path.resolve()
    assert check_recipe(path) == []


def test_recipe_without_versions_has_one_of_its_own_name(folder: Path) -> None:
    recipe = load_recipe(write(folder, "version: 1\nname: small\ntrainer: a:b\n"))
    assert [(one.name, dict(one.params)) for one in recipe.versions] == [("small", {})]
    assert (recipe.replay.epochs, recipe.replay.verify, recipe.replay.where) == (
        "all",
        "exact",
        None,
    )


@pytest.mark.parametrize("epochs", ["sample:5", "last", "2:4"])
def test_epochs_of_a_recipe_are_written_as_on_the_command_line(folder: Path, epochs: str) -> None:
    recipe = load_recipe(
        write(folder, f"version: 1\nname: a\ntrainer: a:b\nreplay: {{epochs: '{epochs}'}}\n")
    )
    assert recipe.replay.epochs == epochs


def test_recipe_says_what_it_is_about(folder: Path) -> None:
    about = "model: BERT\ndata: 'real: texts'\nobjective: {text: filling in, metric: eval_loss}\n"
    found = load_recipe(write(folder, GOOD + about)).about
    assert (found.model, found.data) == ("BERT", "real: texts")
    assert found.objective is not None
    assert (found.objective.text, found.objective.metric) == ("filling in", "eval_loss")
    assert load_recipe(write(folder, GOOD)).about == RecipeSummary()


def test_params_of_is_a_copy(folder: Path) -> None:
    recipe = load_recipe(
        write(folder, "version: 1\nname: a\ntrainer: a:b\nparams: {sizes: [1, 2]}\n")
    )
    recipe.params_of("a")["sizes"].append(3)
    assert recipe.params_of("a") == {"sizes": [1, 2]}


def test_unknown_version_names_the_nearest(folder: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'increaseLR'"):
        load_recipe(write(folder, GOOD)).params_of("increaseLr")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("trainer:", "trainr:", ":3: unknown key 'trainr'; did you mean 'trainer'?"),
        ("  where:", "  were:", ":12: unknown key 'were'; did you mean 'where'?"),
        (
            "    learning_rate",
            "    lerning_rate",
            ":8: version 'increaseLR' overrides 'lerning_rate'",
        ),
        ("{name: firstRun}", "{name: increaseLR}", ":7: version 'increaseLR' stands there twice"),
        ("{name: firstRun}", "{epochs: 1}", ":6: key 'versions.0.name' is missing"),
        ("version: 1", "version: 2", ":1: version is 2"),
        ("version: 1", "version: true", ":1: version is True"),
        ("name: bert", "name: 12", ":2: name is 12"),
        (
            "bert_like:build_trainer",
            "bert_like",
            ":3: trainer is 'bert_like'; write module:function",
        ),
        ("params: {epochs: 3, learning_rate: 5e-4}", "params: [1]", ":4: params is [1]"),
        (
            "[masked_accuracy]",
            "masked_accuracy",
            ":10: replay.metrics is 'masked_accuracy': it is a list",
        ),
        ("[masked_accuracy]", "[a, a]", ":10: replay.metrics is ['a', 'a']: a stands there twice"),
        ("epochs: 1:3", "epochs: 3:1", ":13: replay.epochs is '3:1': it is all, last"),
        ("epochs: 1:3", "epochs: sample:0", ":13: replay.epochs is 'sample:0': it is all, last"),
        ("epochs: 1:3", "epochs: [1, true]", ":13: replay.epochs is [1, True]"),
        ("verify: off", "verify: exakt", ":14: replay.verify is 'exakt'"),
        ("verify: off", "verify: !!timestamp off", ":1: not YAML that can be read"),
        ("{name: firstRun}", "firstRun", ":6: versions.0 is 'firstRun': it is a mapping"),
        ("epochs: 3,", "3: 3,", ":4: key 3 is not text"),
        ("verify: off", "verify: off\n3: 3", ":15: key 3 is not text"),
        (
            "verify: off",
            "verify: off\n  epochs: all",
            ":15: key 'epochs' stands already on line 13",
        ),
        (
            "verify: off",
            "verify: off\nobjective: {text: a, metrik: b}",
            ":15: unknown key 'metrik'",
        ),
        (
            "verify: off",
            "verify: off\nobjective: accuracy",
            ":15: objective is 'accuracy': it is a mapping",
        ),
        ("verify: off", "verify: off\ndata: ''", ":15: data is ''"),
        ("verify: off", "verify: [off", ":15: not YAML"),
        ("verify: off", "\tverify: off", ":14: not YAML"),
    ],
)
def test_mistake_is_told_with_its_line(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in mistake(folder, GOOD.replace(old, new, 1))


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    told = mistake(folder, "version: 1\nnam: bert\ntrainer: 3\n").split("\n")
    assert len(told) == 3
    assert any("unknown key 'nam'; did you mean 'name'?" in line for line in told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ":1: the recipe is empty"),
        ("# nothing\n", ":1: the recipe is empty"),
        ("\n- a\n", ":2: a recipe is a mapping"),
    ],
)
def test_what_is_no_mapping_is_refused(folder: Path, text: str, expected: str) -> None:
    assert expected in mistake(folder, text)


def test_missing_file_is_told_with_the_nearest_name(folder: Path) -> None:
    write(folder, GOOD)
    with pytest.raises(RecipeError, match=r"brt\.yaml:1: no such file; did you mean 'bert\.yaml'"):
        load_recipe(folder / "brt.yaml")


def test_file_that_is_not_text_is_refused(folder: Path) -> None:
    path = folder / "bert.yaml"
    path.write_bytes(b"version: 1\nname: \xff\n")
    with pytest.raises(RecipeError, match=r"bert\.yaml:2: not UTF-8"):
        load_recipe(path)
    path.write_bytes(b"version: 1\nname: \x07\n")
    with pytest.raises(RecipeError, match=r"bert\.yaml:2: not YAML"):
        load_recipe(path)


def test_merged_keys_are_known_and_overridden(folder: Path) -> None:
    text = """\
        version: 1
        name: a
        trainer: a:b
        params: {x: 1, y: 2}
        versions:
          - &first {name: one, x: 3}
          - {<<: *first, name: two, y: 4}
        """
    assert load_recipe(write(folder, text)).params_of("two") == {"x": 3, "y": 4}


def test_mapping_inside_itself_is_refused(folder: Path) -> None:
    assert "params" in mistake(folder, "version: 1\nname: a\ntrainer: a:b\nparams: &p {x: *p}\n")


# what JSON escapes as YAML does
TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


# YAML: < 1024 escaped
KEYS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=150)


@given(st.dictionaries(KEYS, st.none() | st.booleans() | st.integers() | FLOATS | TEXTS))
def test_params_written_as_json_are_read_as_such(
    tmp_path_factory: pytest.TempPathFactory, params: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    content = {"version": 1, "name": "a", "trainer": "a:b", "params": params}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert load_recipe(path).params_of("a") == params


@given(st.text())
def test_no_text_ends_in_anything_but_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^.*any\.yaml:\d+: "):
        load_recipe(path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bert_like:build_trainer", "bert_lik:build_trainer", ":3: no module 'bert_lik'"),
        ("bert_like:build_trainer", "bert_like:build", "did you mean 'build_trainer'?"),
        (
            "params: {epochs: 3,",
            "params: {epoks: 3, epochs: 3,",
            ":4: bert_like:build_trainer takes no 'epoks'",
        ),
        ("params: {epochs: 3,", "params: {", ":4: bert_like:build_trainer needs 'epochs'"),
        (
            "hooks/ask.py",
            "hooks/aks.py",
            ":11: no hook file 'hooks/aks.py' beside the recipe; did you mean",
        ),
    ],
)
def test_check_finds_what_the_recipe_names(folder: Path, old: str, new: str, expected: str) -> None:
    path = write(folder, GOOD.replace(old, new, 1))
    load_recipe(path)
    (told,) = check_recipe(path)
    assert told.startswith(f"{path}:") and expected in told


def test_check_imports_nothing(folder: Path) -> None:
    (folder / "bert_like.py").write_text(f"raise SystemExit\n{TRAINER}")
    (folder / "hooks" / "ask.py").write_text("raise SystemExit\n")
    assert check_recipe(write(folder, GOOD)) == []


def test_check_tells_where_a_named_file_is_not_python(folder: Path) -> None:
    (folder / "hooks" / "ask.py").write_text("x = 1\nx = = 2\n")
    (told,) = check_recipe(write(folder, GOOD))
    assert ":11: " in told and "ask.py:2 is not Python" in told


def test_trainer_of_an_installed_module_is_found(folder: Path) -> None:
    text = "version: 1\nname: a\ntrainer: json.decoder:py_scanstring\nparams: {s: a, end: 1}\n"
    assert check_recipe(write(folder, text)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_right(path: Path) -> None:
    assert check_recipe(path) == []
    recipe = load_recipe(path)
    assert len(recipe.versions) >= 3 and recipe.replay.metrics and recipe.replay.where


@pytest.mark.slow
def test_bert_recipe_prepares_the_same_data_without_its_cache(tmp_path: Path) -> None:
    code = (
        "import bert; print([one.sum(0).tolist() for one in "
        "bert.load_chunks(bert.load_tokenizer(), 32)])"
    )
    found = set()
    for cache in ("one", "two", "two"):
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / cache), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=SHIPPED[0].parent,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_build_trainer_calls_the_function(folder: Path) -> None:
    assert build_trainer(folder, "bert_like:build_trainer", {"epochs": 2}) == (2, 1.0)
    assert sys.path[0] == str(folder.resolve())


def test_build_trainer_takes_the_module_of_its_own_folder(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "bert_like.py").write_text("def build_trainer(): return 'other'\n")
    assert build_trainer(folder, "bert_like:build_trainer", {"epochs": 2}) == (2, 1.0)
    assert build_trainer(other, "bert_like:build_trainer", {}) == "other"


@pytest.mark.parametrize(
    ("target", "params", "expected"),
    [
        ("bert_lik:build_trainer", {}, "no module 'bert_lik'.*did you mean 'bert_like'"),
        (
            "bert_like:build",
            {},
            r"bert_like\.py:1: no function 'build'; did you mean 'build_trainer'",
        ),
        (
            "bert_like:build_trainer",
            {"epochs": 1, "rate": 2},
            r"bert_like\.py:1: .*'rate'.* It takes epochs",
        ),
        ("bert_like:build_trainer", {}, "missing a required argument: 'epochs'"),
    ],
)
def test_build_trainer_tells_what_is_wrong(
    folder: Path, target: str, params: dict[str, int], expected: str
) -> None:
    with pytest.raises(RecipeError, match=expected):
        build_trainer(folder, target, params)


def test_errors_of_the_function_itself_pass_through(folder: Path) -> None:
    (folder / "bert_like.py").write_text("def build_trainer():\n    raise TypeError('mine')\n")
    with pytest.raises(TypeError, match="mine"):
        build_trainer(folder, "bert_like:build_trainer", {})


def test_package_that_a_recipe_lacks_is_named(folder: Path) -> None:
    (folder / "bert_like.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(MissingDependency, match="a_package_that_is_not_there"):
        build_trainer(folder, "bert_like:build_trainer", {})
