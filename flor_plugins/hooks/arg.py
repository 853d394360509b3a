"""`flor.arg`: a hyper-parameter of a script, settable from the command line.

Imports no torch.

Only what is written out is read (`--lr 0.1`, `--lr=0.1`, `--kwargs lr=0.1`); `sys.argv` stays
as it is, for whatever else the script reads from it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from flor_plugins.errors import FlorError

# JSON of the values that an interrupted run had, for the process that goes on with it
VARIABLE = "FLOR_ARGS"
WORDS = {"true": True, "yes": True, "y": True, "t": True, "1": True, "on": True}
WORDS |= {"false": False, "no": False, "n": False, "f": False, "0": False, "off": False}
_MISSING: Any = object()


@dataclass(slots=True)
class _ScriptArguments:
    """The hyper-parameters of a script.

    recorded: the values of the run that is replayed. read: those that the script has asked for.
    """

    recorded: Mapping[str, Any] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)


_arguments: ContextVar[_ScriptArguments | None] = ContextVar("flor_arguments", default=None)


def arg(name: str, default: Any = _MISSING) -> Any:
    """Return the value of a hyper-parameter; it becomes a parameter of the runs of this process.

    It is, in this order: what the run had that is replayed or gone on with; what the command
    line says; the default. A text from the command line becomes what the default is: bool, int,
    float, str, list, tuple or dict. Raises FlorError where there is no value, and for a text
    that does not fit.
    """
    known = _known()
    if name in known.recorded:
        value = _like(known.recorded[name], default)
    else:
        said = _said(name, sys.argv[1:], isinstance(default, bool))
        value = default if said is None else _cast(name, said, default)
    if value is _MISSING:
        raise FlorError(
            f"flor.arg({name!r}) has no default, and the command line gives it no value; "
            f"say --{name} VALUE (or --kwargs {name}=VALUE), or write flor.arg({name!r}, DEFAULT)"
        )
    known.read[name] = value
    return value


def read() -> dict[str, Any]:
    """What the script has asked for so far."""
    return dict(_known().read)


def recorded(values: Mapping[str, object]) -> None:
    """From now on `arg` gives these values: the script is replayed."""
    _arguments.set(_ScriptArguments(dict(values)))


def _known() -> _ScriptArguments:
    known = _arguments.get()
    if known is None:
        known = _ScriptArguments(json.loads(os.environ.get(VARIABLE, "{}")))
        _arguments.set(known)
    return known


def _said(name: str, argv: Sequence[str], is_flag: bool) -> str | None:
    """The last word that the command line has for a name; None without one."""
    return dict(_pairs(argv, name if is_flag else None)).get(name)


def _pairs(argv: Sequence[str], flag: str | None) -> Iterator[tuple[str, str]]:
    """Every `--name value`, `--name=value` and, after --kwargs, `name=value`.

    flag: a name that may stand alone.
    """
    after_kwargs = False
    for index, word in enumerate(argv):
        if word.startswith("--"):
            after_kwargs = word == "--kwargs"
            name, is_joined, value = word[2:].partition("=")
            following = argv[index + 1] if index + 1 < len(argv) else None
            if is_joined:
                yield name, value
            elif name == flag and (following is None or following.lower() not in WORDS):
                yield name, "true"
            elif following is not None and not following.startswith("--"):
                yield name, following
        elif after_kwargs and "=" in word:
            name, _, value = word.partition("=")
            yield name, value


def _cast(name: str, text: str, default: Any) -> Any:
    """Return the text as what the default is.

    Without a default it is the Python literal that it looks like, else text.
    """
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() in WORDS:
            return WORDS[text.lower()]
        raise _does_not_fit(name, text, default)
    try:
        if isinstance(default, int | float):
            return type(default)(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        if default is _MISSING or default is None:
            return text
        raise _does_not_fit(name, text, default) from error
    if default is _MISSING or default is None:
        return value
    if isinstance(value, list | tuple) and isinstance(default, list | tuple):
        return type(default)(value)
    if type(value) is not type(default):
        raise _does_not_fit(name, text, default)
    return value


def _like(value: Any, default: Any) -> Any:
    """A value as run.json holds it: JSON has no tuples, and an infinite float is text there."""
    if isinstance(value, list) and isinstance(default, tuple):
        return tuple(value)
    if isinstance(value, str | int) and type(default) is float:
        return float(value)
    return value


def _does_not_fit(name: str, text: str, default: object) -> FlorError:
    kind = type(default).__name__
    return FlorError(
        f"flor.arg({name!r}, {default!r}) was given {text!r} on the command line; it takes a {kind}"
    )
