"""All recipes of a bench, one after the other; what is known is written after each of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from flor_plugins.bench.folder import BenchFolder, open_folder
from flor_plugins.bench.measure import BenchSettings, measured
from flor_plugins.bench.own_store import clear
from flor_plugins.bench.results import Bench, RecipeResult
from flor_plugins.errors import FlorError
from flor_plugins.recipe import load_recipe
from flor_plugins.store.layout import store_in
from flor_plugins.store.sizes import processors

_PACKAGES = ("torch", "transformers", "lightning", "flor-plugins")


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What a bench is asked to measure.

    pairs: trainings with and without the callback, of each version. store: None for one in `out`.

    is_added: the rows of other recipes that stand in `out` already stay.
    """

    targets: tuple[Path, ...]
    pairs: int = 1
    out: Path = Path("flor-bench")
    store: Path | None = None
    is_added: bool = False


def run(
    asked: BenchRequest, tell: Callable[[str], Any]
) -> tuple[BenchFolder, Bench, tuple[RecipeResult, ...]]:
    """Measure. Returns the folder, all that its files hold, and what was measured now.

    A recipe that fails is told in its row. Raises FlorError before anything is measured: for
    targets that do not exist, for a folder that is not a bench's, for rows to be kept that were
    measured on another machine or with other packages. On an interrupt what is known is
    written, and KeyboardInterrupt goes on.
    """
    paths = recipes_of(asked.targets)
    folder, before = open_folder(asked.out)
    kept = before.results if before and asked.is_added else ()
    bench = Bench(started_at=_now(), machine=machine(), results=kept)
    if kept and before:
        _refuse_other_machine(before, bench, folder.root)
    folder.write(bench)
    folder.log.write_bytes(b"")
    if asked.store is None:
        clear(folder.store, {_name(path) for path in paths} if asked.is_added else None)
    store = folder.store if asked.store is None else store_in(asked.store)
    setting = BenchSettings(asked.pairs, store.make(), folder.log, tell)
    found: list[RecipeResult] = []
    for path in paths:
        result = RecipeResult(recipe=_name(path), path=str(path), measured_at=_now())
        try:
            for step in measured(path, setting):
                result = step.model_copy(update={"measured_at": result.measured_at})
        except FlorError as error:
            tell(f"{result.recipe}: {error}")
            result = result.model_copy(update={"error": str(error)})
        except BaseException as error:
            why = (
                "interrupted"
                if isinstance(error, KeyboardInterrupt)
                else f"{type(error).__name__}: {error}"
            )
            folder.write(bench.with_result(result.model_copy(update={"error": why})))
            raise
        bench = bench.with_result(result)
        found.append(result)
        folder.write(bench)
    bench = bench.model_copy(update={"finished_at": _now()})
    folder.write(bench)
    return folder, bench, tuple(found)


def _refuse_other_machine(before: Bench, now: Bench, root: Path) -> None:
    was, found = before.machine, now.machine
    changed = [
        f"{key} was {was.get(key)}, now {found.get(key)}"
        for key in found
        if was.get(key) != found.get(key)
    ]
    if changed:
        raise FlorError(
            f"--add was to keep rows of {root} that were measured under other conditions: "
            f"{'; '.join(changed)}. One "
            "table would not say so; name another folder with --out, or measure all recipes anew"
        )


def recipes_of(targets: Sequence[Path]) -> list[Path]:
    """The recipe files that are meant: of a folder all that are in it, by name.

    Raises FlorError for none.
    """
    found: list[Path] = []
    for target in targets:
        if target.is_dir():
            inside = sorted(path for path in target.iterdir() if path.suffix in (".yaml", ".yml"))
            if not inside:
                raise FlorError(
                    f"the bench was asked for the recipes in {target}, and no .yaml file is there"
                )
            found += inside
        elif target.is_file():
            found.append(target)
        else:
            raise FlorError(
                f"the bench was asked for {target}; there is no such recipe and no such folder"
            )
    return list({one.resolve(): one for one in found}.values())


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": processors(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _name(path: Path) -> str:
    """Of the recipe; of a file that is none, its own."""
    try:
        return load_recipe(path).name
    except FlorError:
        return path.stem


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
