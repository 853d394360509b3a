"""README and pages say what is there: blocks run, and print what they say; commands and formats
exist.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import flor_plugins as flor
from flor_plugins import cli
from flor_plugins.cli.app import app
from flor_plugins.cli.help import DOCS, topics
from flor_plugins.cli.replay import SCHEDULE
from flor_plugins.records import Run
from flor_plugins.store.codec import arrays, names, tags
from flor_plugins.store.runs import FIELDS
from tests import pages
from tests.pages import README, ROOT, Block
from tests.replaying import Project

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = [command for block in pages.all_blocks("bash") for command in pages.flor_commands(block)]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

MAX_README_LINES = 150


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


# ---- what is written is run


@dataclass(frozen=True)
class Printed:
    """What a page says that commands print, and what they have printed."""

    expected: str
    printed: str


@dataclass(frozen=True)
class Walk:
    """A project in which all of README was done, in its order."""

    project: Project
    outputs: list[Printed]


def is_setup(block: Block) -> bool:
    """Does it install? .ci/run does what such a block says."""
    return "venv" in block.text


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    project = Project(tmp_path_factory.mktemp("readme"))
    outputs: list[Printed] = []
    printed: str | None = None
    for block in pages.blocks(README):
        if block.language == "python" and block.file_name:
            project.write(block.file_name, block.text)
        elif block.language == "python":
            project.python("-c", block.text)
        elif block.language == "bash":
            lines = [] if is_setup(block) else block.text.splitlines()
            printed = "".join(pages.run_line(project, line) for line in lines) if lines else None
        elif printed is not None:
            outputs.append(Printed(block.text, printed))
            printed = None
    return Walk(project, outputs)


def test_readme_prints_what_it_says(readme):
    assert len(readme.outputs) == 2
    for output in readme.outputs:
        assert pages.is_printed(output.expected, output.printed), output.printed


def test_readme_gives_every_verdict_of_its_runs_as_exact(readme):
    assert {run.name for run in flor.runs(store=readme.project.store.root)} == {
        "train", "bert", "boring"
    }  # fmt: skip
    assert {row["verdict"] for row in readme.project.verdicts()} == {"exact"}


@pytest.mark.parametrize("name", ["reading", "replaying"])
def test_a_page_that_reads_and_asks_runs_in_the_project_of_readme(readme, name):
    for block in pages.blocks(DOCS / f"{name}.md"):
        if block.language == "python":
            readme.project.python("-c", block.text)
        for line in block.text.splitlines() if block.language == "bash" else ():
            if "recipes/" not in line:
                pages.run_line(readme.project, line)


TRAININGS = {
    "hf": """
import torch
from transformers import BertConfig, BertForMaskedLM
model = BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2))
data = [{"input_ids": row, "labels": row} for row in torch.arange(128).reshape(16, 8) % 50]
train(model, data, data)
""",
    "lightning": """
from lightning.pytorch.demos.boring_classes import BoringModel
train(BoringModel(), BoringModel().train_dataloader(), BoringModel().val_dataloader())
""",
    "loop": """
import torch
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
train(net, optimizer, scheduler, [torch.rand(2, 8, 4)], lambda a, b: (a - b.sum()).square().mean())
""",
}


@pytest.mark.parametrize("framework", TRAININGS)
def test_a_training_of_the_recording_page_is_recorded(framework, tmp_path):
    blocks = dict(zip(TRAININGS, pages.blocks(DOCS / "recording.md")[1:], strict=True))
    project = Project(tmp_path)
    project.write("train.py", blocks[framework].text + TRAININGS[framework])
    project.python("train.py")
    [run] = flor.runs(store=project.store.root)
    assert (run.framework, run.status, run.position.epoch) == (framework, "finished", 3)


CLASSIFIER = """
import torch
import flor_plugins as flor

torch.manual_seed(0)
data = torch.utils.data.TensorDataset(torch.rand(24, 4), torch.randint(0, 3, (24,)))
training = torch.utils.data.DataLoader(data, batch_size=8)
validation = torch.utils.data.DataLoader(data, batch_size=6)
net = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
flor.checkpoints(net, optimizer, val_dataloader=validation)
for epoch in flor.loop("epoch", range(2)):
    for images, labels in flor.loop("step", training):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    for images, labels in flor.loop("val", validation):
        net(images)
"""


def test_the_hooks_of_the_hooks_page_compute_values(tmp_path):
    project = Project(tmp_path)
    project.write("train.py", CLASSIFIER)
    project.write("hooks.py", pages.blocks(DOCS / "hooks.md")[0].text)
    project.python("train.py")
    project.flor("replay", "--hook", "hooks.py", "--yes")
    frame = flor.dataframe("accuracy", "seen", "update_norm", store=project.store.root)
    assert frame["seen"].dropna().unique().tolist() == [24]
    assert frame["accuracy"].notna().any() and frame["update_norm"].notna().all()


DATA_CHANGES = """
import json, torch
import flor_plugins as flor

torch.manual_seed(0)
rows = torch.tensor(json.load(open("data.json")))
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
flor.checkpoints(net, optimizer)
for epoch in flor.loop("epoch", range(2)):
    for x in flor.loop("step", rows):
        loss = flor.log("loss", (net(x) - x.sum()).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def test_verify_prints_what_the_verdicts_page_says(tmp_path):
    project = Project(tmp_path)
    project.write(".gitignore", "data.json\n.flor/\n")
    project.write("train.py", DATA_CHANGES)
    project.git("init", "-q")
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "first")
    rows = [[[0.1 * i, 0.2, 0.3, 0.4]] for i in range(10)]
    project.write("data.json", json.dumps(rows))
    project.python("train.py")
    project.write("data.json", json.dumps([*rows[:5], [[1.0, 1.0, 1.0, 1.0]], *rows[6:]]))
    done = project.flor("verify", "train", ok=False)
    [shown] = [block for block in pages.blocks(DOCS / "verdicts.md") if block.language == "text"]
    assert done.returncode == 3
    assert pages.is_printed(shown.text, done.stdout), done.stdout


@pytest.mark.parametrize("block", pages.all_blocks("python"), ids=lambda block: block.page)
def test_a_python_block_compiles_and_takes_names_from_flor_that_exist(block):
    compile(block.text, block.page, "exec")
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "flor":
            assert node.attr in flor.__all__


def test_json_blocks_are_json_lines():
    for block in pages.all_blocks("json"):
        assert [json.loads(line) for line in block.text.splitlines()]


# ---- what is named exists


def test_commands_are_console_scripts_with_verbs_and_options_that_exist():
    assert COMMANDS
    for program, verb, *words in COMMANDS:
        assert program in PROJECT["scripts"]
        ours = words[: words.index("--")] if "--" in words else words
        options = {name for parameter in VERBS[verb].params for name in parameter.opts}
        assert {word for word in ours if word.startswith("--")} <= options


def test_recipes_that_commands_name_are_there():
    for words in COMMANDS:
        assert all((ROOT / word).exists() for word in words if word.startswith("recipes/"))


def test_extras_that_commands_install_exist():
    extras = re.findall(r"\.\[([\w,]+)\]", README.read_text(encoding="utf-8"))
    assert {extra for group in extras for extra in group.split(",")} <= set(
        PROJECT["optional-dependencies"]
    )


def test_readme_shows_the_columns_of_a_schedule():
    assert "\n" + "  ".join(SCHEDULE[:1]) in README.read_text(encoding="utf-8")
    headers = [block.text.splitlines() for block in pages.all_blocks("text")]
    shown = [line.split() for lines in headers for line in lines if line.endswith("verdict")]
    assert SCHEDULE in shown


def test_the_options_of_replay_are_all_in_its_table():
    for parameter in VERBS["replay"].params:
        for option in parameter.opts:
            assert f"`{option}" in page("options") or option in ("-y", "recipe"), option


def test_verbs_are_all_named():
    assert set(VERBS) == {
        name for name in VERBS if re.search(rf"`{name}( [^`]+)?`", page("options"))
    }


def test_the_table_of_exit_codes_is_that_of_the_command_line():
    table = re.search(r"^\| exit code .*?\n\n", page("options"), re.MULTILINE | re.DOTALL)
    assert table is not None
    in_page = dict(re.findall(r"^\| (\d+) \| ([\w ]+)", table[0], re.MULTILINE))
    in_code = dict(re.findall(r"(\d+) ([a-z][\w ]+?)(?: ·|\.)", cli.__doc__ or ""))
    assert in_code.keys() == in_page.keys() == {"0", "1", "2", "3", "130"}
    for code, text in in_code.items():
        assert in_page[code].startswith(text)


def test_every_tag_of_a_state_is_specified():
    table = page("format").partition("| tag | keys |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    specified = {tag for row in rows for tag in re.findall(r"`(\w+)`", row)}
    assert specified == {"tensor", *tags.UNPACK, *arrays.UNPACK, *names.UNPACK}


def test_every_field_of_run_json_is_specified():
    section = page("format").partition("## run.json")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert set(FIELDS) <= named
    for part in ("launch", "code", "process", "timing"):
        assert part in Run.__dataclass_fields__


# ---- a first screen, and pages behind it


def test_readme_is_a_first_screen():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_readme_and_index_name_every_page():
    files = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert set(topics()) == files
    behind = README.read_text(encoding="utf-8").partition("## Where to go on")[2]
    assert files <= set(re.findall(r"\w+", behind))


def test_links_lead_to_files():
    for path in pages.PAGES:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_llms_txt_lists_the_pages_as_the_index_does():
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# flor-plugins\n\n> ", text)
    listed = re.findall(r"^- \[(\w+)\]\(\1\.md\): (.+)$", text, re.MULTILINE)
    assert dict(listed) == topics()
    assert all(Path(DOCS / f"{name}.md").is_file() for name, _ in listed)
