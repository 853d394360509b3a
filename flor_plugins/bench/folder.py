"""The folder that a bench writes: the table, its data, the chart, a log and a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flor_plugins.bench import chart, table
from flor_plugins.bench.results import FORMAT, NAME, Bench
from flor_plugins.errors import FlorError, StoreError
from flor_plugins.store.files import read_json, whole_file
from flor_plugins.store.layout import Store

DATA, TABLE, CHART, LOG, STORE = "bench.json", "bench.md", "bench.svg", "bench.log", "store"


@dataclass(frozen=True, slots=True)
class BenchFolder:
    """A folder that a bench has made. Nothing else in it is touched."""

    root: Path

    @property
    def store(self) -> Store:
        """Return the store of the bench."""
        return Store(self.root / STORE)

    @property
    def log(self) -> Path:
        """Return the file for what the trainings print."""
        return self.root / LOG

    def write(self, bench: Bench) -> None:
        """All three files anew, each of them whole."""
        for name, text in (
            (DATA, bench.model_dump_json(indent=1)),
            (TABLE, table.markdown(bench)),
            (CHART, chart.svg(bench)),
        ):
            with whole_file(self.root / name) as scratch:
                scratch.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


def open_folder(root: Path) -> tuple[BenchFolder, Bench | None]:
    """A new folder, or one that a bench has made, with what that one had found.

    Raises FlorError for any other.
    """
    root = root.expanduser().absolute()
    if root.is_dir() and any(root.iterdir()):
        return BenchFolder(root), read(root)
    if root.exists() and not root.is_dir():
        raise FlorError(
            f"the bench was to write into {root}, which is a file. Name another folder: --out "
            f"FOLDER"
        )
    Store(
        root
    ).make()  # with a .gitignore: a recording takes what it finds in the work tree for code
    return BenchFolder(root), None


def read(root: Path) -> Bench:
    """What bench.json of a folder holds. Raises FlorError where it is none of ours."""
    refusal = (
        f"the bench was to write into {root}, which holds files and is not the folder of a "
        f"bench (there is no "
        f"{DATA} of format {FORMAT}). Name another folder: --out FOLDER"
    )
    try:
        content = read_json(root / DATA)
        if (content.get("benchmark"), content.get("format")) != (NAME, FORMAT):
            raise FlorError(refusal)
        return Bench.model_validate(content)
    except (StoreError, AttributeError, ValidationError) as error:
        raise FlorError(refusal) from error
