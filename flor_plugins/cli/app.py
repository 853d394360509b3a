"""The verbs and their options. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
recipe_app = typer.Typer(no_args_is_help=True, help="Look at a recipe.")
app.add_typer(recipe_app, name="recipe")


class Engine(StrEnum):
    """Where replay workers run."""

    local = "local"
    ray = "ray"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RunName = Annotated[str, typer.Argument(help="Name or id of a run.")]
RunNames = Annotated[list[str] | None, typer.Option(help="Name or id of a run; may be repeated.")]
NewName = Annotated[str | None, typer.Option(help="Name of the run.")]
HookFiles = Annotated[list[Path] | None, typer.Option(help="A hook file; may be repeated.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes at a time.")]
EngineName = Annotated[
    Engine, typer.Option(help="Where workers run: this machine, or a Ray cluster.")
]


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        print(f"flor-plugins {version('flor-plugins')}")
        raise typer.Exit


@app.callback()
def flor(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Hindsight logging for PyTorch Lightning, Hugging Face Trainer and hand-written loops.

    `help` shows the documentation.
    """


@app.command(context_settings={"allow_interspersed_args": False})
def record(
    target: Annotated[list[str], typer.Argument(help="RECIPE.yaml, or -- python train.py ...")],
    name: NewName = None,
    framework: Annotated[
        str | None, typer.Option(help="lightning, hf or loop; default: this command's.")
    ] = None,
) -> None:
    """Train with the callback on: every version of a recipe, or a command."""
    from flor_plugins.cli import record

    raise typer.Exit(record.record(target, name, framework))


@app.command()
def replay(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe; without one: all runs.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names of hooks: a,b")] = None,
    where: Annotated[
        str | None, typer.Option(help="Only where this holds: 'acc.isna() and lr < 0.1'")
    ] = None,
    epochs: Annotated[str | None, typer.Option(help="all, last, 1:3, 1,3 or sample:5")] = None,
    hook: HookFiles = None,
    run: RunNames = None,
    patch: Annotated[
        list[str] | None,
        typer.Option(help="A method to be replaced, MODULE:CLASS.METHOD=FILE:FUNCTION."),
    ] = None,
    show_patches: Annotated[
        bool,
        typer.Option(
            "--show-patches", help="Print what the working tree's edit is in each version."
        ),
    ] = False,
    workers: Workers = 1,
    engine: EngineName = Engine.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compute metrics for past runs, and print the schedule, the verdicts and the dataframe."""
    from flor_plugins.cli import replay

    asked = replay.ReplayOptions(
        recipe,
        metrics,
        where,
        epochs,
        tuple(hook or ()),
        tuple(run or ()),
        workers,
        engine,
        tuple(patch or ()),
        show_patches,
    )
    raise typer.Exit(replay.replay(asked, dry_run, yes, as_json, as_csv))


@app.command()
def bench(
    targets: Annotated[list[Path], typer.Argument(help="Recipes, or folders of recipes.")],
    pairs: Annotated[
        int, typer.Option(min=1, help="Trainings with and without the callback, of each version.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="A folder for table, data and chart.")] = Path(
        "flor-bench"
    ),
    store: Annotated[
        Path | None, typer.Option(help="Where it records; default: a store of its own in --out.")
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the rows of other recipes that are in --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what recording costs, and what hindsight questions cost beside training again."""
    from flor_plugins.cli import bench

    raise typer.Exit(bench.bench(targets, pairs, out, store, add, as_json))


@app.command()
def first(
    when: Annotated[str, typer.Option(help="What is to hold: 'grad_norm > 10'")],
    monotone: Annotated[
        bool,
        typer.Option("--monotone", help="Once it holds in a run, it goes on to hold: bisection."),
    ] = False,
    epochs: Annotated[
        str, typer.Option(help="Look only here: all, last, 1:3, 1,3 or sample:5")
    ] = "all",
    hook: HookFiles = None,
    run: RunNames = None,
    workers: Workers = 1,
    engine: EngineName = Engine.local,
    yes: Yes = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Find the first epoch (or step) at which a predicate holds; compute what is missing for it."""
    from flor_plugins.cli import first

    options = first.FirstOptions(
        when, monotone, epochs, tuple(hook or ()), tuple(run or ()), workers, engine
    )
    raise typer.Exit(first.first(options, yes, as_json, as_csv))


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A .ckpt file, a checkpoint-* folder, or a folder of those.")
    ],
    command: Annotated[
        list[str] | None, typer.Argument(help="-- python train.py ...: what trained it.")
    ] = None,
    name: NewName = None,
    recipe: Annotated[Path | None, typer.Option(help="The recipe that trained it.")] = None,
    version: Annotated[str | None, typer.Option(help="... and its version.")] = None,
) -> None:
    """Make a run of checkpoints that Lightning or the HF Trainer wrote, to ask of its weights."""
    from flor_plugins.cli import import_runs

    raise typer.Exit(import_runs.import_run(path, command or [], name, recipe, version))


@app.command("import-flordb")
def import_flordb(
    path: Annotated[Path, typer.Argument(help="FlorDB's project, a .flor folder, or a .db file.")],
    epoch: Annotated[
        str | None, typer.Option(help="The loop that counts epochs; default: by its name.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="... and the one in it that counts steps.")
    ] = None,
) -> None:
    """Make runs of what FlorDB has logged; its files are only read."""
    from flor_plugins.cli import import_runs

    raise typer.Exit(import_runs.import_flordb(path, epoch, step))


@app.command()
def verify(
    run: Annotated[
        str, typer.Argument(help="Name or id of a run, or a place of it: RUN@step=1200")
    ],
    epochs: Annotated[str, typer.Option(help="all, last, 1:3, 1,3 or sample:5")] = "all",
    workers: Workers = 1,
    engine: EngineName = Engine.local,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Train a run again and compare it with what was recorded; exit 3 where it differs."""
    from flor_plugins.cli import verify

    raise typer.Exit(verify.verify(run, epochs, workers, engine, as_json, as_csv))


@app.command()
def resume(run: Annotated[str, typer.Argument(help="Name or id of an interrupted run.")]) -> None:
    """Go on with an interrupted run, bit for bit, as the same run."""
    from flor_plugins.cli import resume

    raise typer.Exit(resume.resume(run))


@app.command()
def runs(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List all recorded runs."""
    from flor_plugins.cli import read

    read.runs(as_json, as_csv)


@app.command()
def show(run: str, as_json: AsJson = False) -> None:
    """Show all that is known of one run."""
    from flor_plugins.cli import read

    read.show(run, as_json)


@app.command()
def dataframe(
    names: Annotated[
        list[str] | None, typer.Argument(help="Metrics, params, run attributes.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Only rows where this holds.")] = None,
    level: Annotated[
        str | None, typer.Option(help="epoch or step; default: the finest needed.")
    ] = None,
    source: Annotated[bool, typer.Option("--source", help="Show where values came from.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Print metrics of all runs in one table."""
    from flor_plugins.cli import read

    read.dataframe(names or [], where, level, source, as_json, as_csv)


@app.command()
def sql(query: str, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Query the tables runs, metrics, checkpoints and replays with DuckDB."""
    from flor_plugins.cli import read

    read.sql(query, as_json, as_csv)


@app.command()
def checkpoints(run: str, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """List the checkpoints of a run."""
    from flor_plugins.cli import read

    read.checkpoints(run, as_json, as_csv)


@app.command()
def upload(
    url: Annotated[str, typer.Argument(help="An object store: s3://bucket/flor")],
    run: Annotated[
        list[str] | None, typer.Option(help="Name or id of a run; may be repeated. Default: all.")
    ] = None,
) -> None:
    """Put runs and their code into an object store, where FLOR_DIR=URL reads and replays them."""
    from flor_plugins.cli import upload

    raise typer.Exit(upload.upload(url, run))


@app.command()
def gc(
    budget: Annotated[
        str | None, typer.Option(help="How much the store may hold: 20GB, 500MiB.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be given up.")
    ] = False,
    yes: Yes = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up what unfinished replays need, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Free space: remove leftovers, compress; with a budget, give up what is missed least."""
    from flor_plugins.cli import gc

    raise typer.Exit(gc.gc(budget, dry_run, yes, as_json, abandon))


@app.command()
def pin(
    run: RunName,
    undo: Annotated[bool, typer.Option("--undo", help="Pin it no longer.")] = False,
) -> None:
    """Keep all checkpoints of a run, whatever gc is told."""
    from flor_plugins.cli import gc

    raise typer.Exit(gc.pin(run, undo))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the store, git and the packages; exit 1 where something needs mending."""
    from flor_plugins.cli import doctor

    raise typer.Exit(doctor.doctor(as_json))


@recipe_app.command("check")
def recipe_check(file: Path) -> None:
    """Name every mistake of a recipe, with file and line."""
    from flor_plugins.cli import doctor

    raise typer.Exit(doctor.recipe_check(file))


@app.command("help")
def help_(
    topic: Annotated[str | None, typer.Argument(help="A page; without one: the list.")] = None,
) -> None:
    """Show a page of the documentation."""
    from flor_plugins.cli import help

    raise typer.Exit(help.show_help(topic))
