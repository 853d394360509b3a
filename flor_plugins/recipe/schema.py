"""What a recipe may hold, and a recipe as a frozen record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    StringConstraints,
    ValidationError,
)
from pydantic_core import ErrorDetails

from flor_plugins.errors import RecipeError
from flor_plugins.recipe.document import Document, KeyPath, RecipeMistake, nearest, read_document


def _check_format(value: object) -> int:
    if type(value) is not int or value != 1:  # True == 1.0 == 1
        raise ValueError("this release reads version 1")
    return value


def _check_epochs(value: object) -> object:
    """'all', 'last', 'a:b' (both included), 'sample:n' or a list of counts of completed epochs."""
    if isinstance(value, str):
        bounds = re.fullmatch(r"([0-9]+):([0-9]+)", value)
        is_sample = re.fullmatch(r"sample:0*[1-9][0-9]*", value)
        if value in ("all", "last") or is_sample or (bounds and int(bounds[1]) <= int(bounds[2])):
            return value
    elif isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value):
        return tuple(value)
    raise ValueError(
        "it is all, last, a range like 1:3 (both ends included), sample:5 or a list like [1, 3]"
    )


def _check_list(value: object) -> object:
    """A YAML list, no entry twice, as a tuple."""
    if not isinstance(value, list):
        raise ValueError("it is a list, like [one, two]")
    twice = sorted({str(one) for one in value if value.count(one) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return tuple(value)


Name = Annotated[str, StringConstraints(pattern=r"^\w[\w.\-]*$")]
Target = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
MethodTarget = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
]
FunctionTarget = Annotated[str, StringConstraints(pattern=r"^.+:[A-Za-z_]\w*$")]
NonEmptyText = Annotated[str, StringConstraints(min_length=1)]
NonEmptyTexts = Annotated[tuple[NonEmptyText, ...], BeforeValidator(_check_list)]


class ReplaySection(BaseModel):
    """What to ask in hindsight. hooks: paths relative to the recipe's folder.

    patch: methods of the runs' own code to be replaced, `module:Class.method` to
    `file.py:function`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    metrics: NonEmptyTexts = ()
    hooks: NonEmptyTexts = ()
    patch: dict[MethodTarget, FunctionTarget] = {}
    where: str | None = None
    epochs: Annotated[str | tuple[int, ...], BeforeValidator(_check_epochs)] = "all"
    verify: Literal["exact", "close", "off"] = "exact"


class Objective(BaseModel):
    """What the training itself reaches for.

    metric: the name under which the training logs how far it is.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    text: NonEmptyText
    metric: NonEmptyText


class _VersionEntry(BaseModel):
    """An entry of `versions`: a name, and the params that it overrides beside it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]  # pyright: ignore[reportIncompatibleVariableOverride]

    name: Name


class _RecipeFile(BaseModel):
    """The top level of the file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: Annotated[int, BeforeValidator(_check_format)]
    name: Name
    trainer: Target
    model: NonEmptyText | None = None
    data: NonEmptyText | None = None
    objective: Objective | None = None
    params: dict[str, JsonValue] = {}
    versions: Annotated[tuple[_VersionEntry, ...], BeforeValidator(_check_list)] = ()
    replay: ReplaySection = ReplaySection()


@dataclass(frozen=True, slots=True)
class RecipeVersion:
    """One run that `record` makes: its name and what it overrides of the recipe's params."""

    name: str
    params: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class RecipeSummary:
    """What a recipe says of itself, for tables.

    data: where it is from, and which parts are made up.
    """

    model: str | None = None
    data: str | None = None
    objective: Objective | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train and what to ask in hindsight. trainer: `module:function`; path: absolute."""

    version: int
    name: str
    trainer: str
    params: Mapping[str, JsonValue]
    versions: tuple[RecipeVersion, ...]
    replay: ReplaySection
    path: Path
    about: RecipeSummary = RecipeSummary()

    @property
    def folder(self) -> Path:
        """The folder of the recipe's file."""
        return self.path.parent

    @property
    def hook_paths(self) -> tuple[Path, ...]:
        """The hook files, absolute."""
        return tuple(self.folder / hook for hook in self.replay.hooks)

    @property
    def patch_paths(self) -> dict[str, str]:
        """The methods that a replay replaces, each with `file.py:function`, the file absolute."""
        patch = self.replay.patch.items()
        return {method: str(self.folder / function) for method, function in patch}

    def params_of(self, version: RecipeVersion | str) -> dict[str, JsonValue]:
        """The trainer's arguments for one version, as a copy.

        Raises RecipeError for an unknown one.
        """
        name = version if isinstance(version, str) else version.name
        for one in self.versions:
            if one.name == name:
                return deepcopy({**self.params, **one.params})
        known = [one.name for one in self.versions]
        raise RecipeError(f"{self.path}:1: no version {name!r}{nearest(name, known)}")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises RecipeError: one line per mistake, each beginning `file:line:`.

    The trainer and the hooks are not looked for; `check_recipe` does.
    """
    return validate(read_document(path))


def validate(document: Document) -> Recipe:
    """The recipe that a document holds. Raises RecipeError as `load_recipe` does."""
    try:
        file = _RecipeFile.model_validate(document.content)
    except ValidationError as error:
        raise _refusal(
            document, [_explain(one) for one in error.errors(include_url=False)]
        ) from error
    mistakes = _check_versions(file)
    if mistakes:
        raise _refusal(document, mistakes)
    versions = tuple(RecipeVersion(one.name, one.model_extra or {}) for one in file.versions)
    return Recipe(
        version=file.version,
        name=file.name,
        trainer=file.trainer,
        params=file.params,
        versions=versions or (RecipeVersion(file.name, {}),),
        replay=file.replay,
        path=document.path.resolve(),
        about=RecipeSummary(file.model, file.data, file.objective),
    )


def _refusal(document: Document, mistakes: list[RecipeMistake]) -> RecipeError:
    return RecipeError("\n".join(document.at(loc, text) for loc, text in mistakes))


def _check_versions(file: _RecipeFile) -> list[RecipeMistake]:
    found: list[RecipeMistake] = []
    names = [one.name for one in file.versions]
    for index, entry in enumerate(file.versions):
        place: KeyPath = ("versions", index)
        if entry.name in names[:index]:
            text = f"version {entry.name!r} stands there twice; give each its own name"
            found.append(((*place, "name"), text))
        for key in entry.model_extra or {}:
            if key not in file.params:
                text = f"version {entry.name!r} overrides {key!r}, which is not in params"
                found.append(((*place, key), text + nearest(key, file.params)))
    return found


def _explain(error: ErrorDetails) -> RecipeMistake:
    """Place and text of what pydantic found."""
    loc: KeyPath = error["loc"]
    key, last = ".".join(str(part) for part in loc), str(loc[-1])
    if error["type"] == "extra_forbidden":
        level = (
            {"replay": ReplaySection, "objective": Objective}.get(str(loc[0]), _RecipeFile)
            if len(loc) > 1
            else _RecipeFile
        )
        return loc, f"unknown key {last!r}{nearest(last, level.model_fields)}"
    if error["type"] == "missing":
        return loc, f"key {key!r} is missing; add `{last}: ...`"
    if error["type"] == "string_pattern_mismatch" and loc[:2] == ("replay", "patch"):
        wanted = (
            "module:Class.method, like bert:Net.forward" if last == "[key]" else "file.py:function"
        )
        return loc, f"patch has {error['input']!r}; write {wanted}"
    if error["type"] == "invalid_key" or last == "[key]":
        return loc, f"key {error['input']!r} is not text; put it in quotes"
    if error["type"] in ("model_type", "dict_type"):
        return loc, f"{key} is {_short(error['input'])}: it is a mapping, like {{key: value}}"
    if last == "trainer" and error["type"] == "string_pattern_mismatch":
        return loc, f"trainer is {error['input']!r}; write module:function, like bert:build_trainer"
    reason = error["msg"].removeprefix("Value error, ")
    return loc, f"{key} is {_short(error['input'])}: {reason[0].lower()}{reason[1:]}"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 60 else f"{text[:57]}..."
