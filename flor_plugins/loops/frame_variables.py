"""Variables of the functions whose loops are followed: counters, sums and lists.

A loop of one's own keeps state in variables (`best`, `patience`, `epsilon *= 0.99`). What is
plain and small among those that exist when a loop begins, and has changed since, is part of a
State: it is written back into the same frames. Libraries between the frames (tqdm, contextlib)
are passed over.
"""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from flor_plugins.loops.registry import set_content
from flor_plugins.state.tensor_trees import is_same
from flor_plugins.state.user_objects import is_state

# Of a variable, so many numbers or texts. A tensor or array counts as a hundred, and by its
# size: a data set is no counter.
MOST_LEAVES = 20_000
OF_A_TENSOR, ELEMENTS_OF_A_LEAF = 100, 50
_FILLED = (list, dict, set, deque, torch.Tensor, np.ndarray)
GLOBALS = "<globals>"

Frames = dict[str, FrameType]
VariableValues = dict[str, dict[str, object]]  # frame to name to value

_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in _PATHS)
_OURS = os.path.realpath(os.path.join(os.path.dirname(__file__), os.pardir)) + os.sep


def users_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the user's own code, from this one outward."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def frames_to(code: CodeType) -> Frames:
    """Return the user's frames from the present one out to the one that runs `code`, by name."""
    found: list[FrameType] = []
    frame = users_frame(sys._getframe(1))
    while frame is not None:
        found.append(frame)
        if frame.f_code is code:
            break
        frame = users_frame(frame.f_back)
    else:
        return {}  # the loop was handed to somebody else
    named: Frames = {}
    for one in found:
        name = one.f_code.co_qualname
        same = sum(other.partition("#")[0] == name for other in named)
        named[f"{name}#{same}" if same else name] = one
    return named


class FrameVariables:
    """What the variables of some frames were when a loop began. Holds copies, never the frames."""

    def __init__(self, frames: Frames, known: Collection[int] = ()) -> None:
        self._known = known
        self._before = {name: copy.deepcopy(_plain(held, known)) for name, held in scopes(frames)}
        self._lengths = {name: _lengths(held) for name, held in scopes(frames)}

    def changed(self, frames: Frames) -> VariableValues:
        """Those of the same names whose values are others now."""
        found: VariableValues = {}
        for name, held in scopes(frames):
            before = self._before.get(name, {})
            now = _plain({one: held[one] for one in before if one in held}, self._known)
            differing = {
                one: value for one, value in now.items() if not is_same(value, before[one])
            }
            if differing:
                found[name] = differing
        return found

    def outgrown(self, frames: Frames) -> list[tuple[str, str]]:
        """Return frame and name of containers that have grown and can't be kept.

        They are too large, or not plain enough.
        """
        found = []
        for name, held in scopes(frames):
            before = self._lengths.get(name, {})
            now = _lengths({one: held[one] for one in before if one in held})
            grown = {one: held[one] for one, length in now.items() if length > before[one]}
            found += [(name, one) for one in grown.keys() - _plain(grown, self._known).keys()]
        return sorted(found)

    def restore(self, frames: Frames, changed: Mapping[str, Mapping[str, object]]) -> None:
        """Give each the value that `changed` has for it, else the one with which the loop began."""
        for name, held in scopes(frames):
            wanted = {**self._before.get(name, {}), **changed.get(name, {})}
            new = {
                one: value
                for one, value in wanted.items()
                if one in held and not is_same(held[one], value)
            }
            _write(frames, name, held, copy.deepcopy(new))


@cache
def is_users(file: str) -> bool:
    """Tell whether it is a file of the user's, and of no library."""
    if file.startswith("<frozen"):
        return False
    real = os.path.realpath(file)
    is_library = real.startswith(_LIBRARIES) or "site-packages" in real or "dist-packages" in real
    return not is_library and not real.startswith(_OURS)


def is_of_users(one: object) -> bool:
    """An instance of a class that stands in the user's own code."""
    if isinstance(one, type | torch.nn.Module) or not hasattr(one, "__dict__"):
        return False
    code = next((f.__code__ for f in vars(type(one)).values() if hasattr(f, "__code__")), None)
    return code is not None and is_users(code.co_filename)


def scopes(frames: Frames) -> Iterator[tuple[str, Mapping[str, object]]]:
    """All that is bound in the frames, plain or not, and the globals of the outermost."""
    for name, frame in frames.items():
        if frame.f_locals is not frame.f_globals:
            yield name, frame.f_locals
    if frames:
        yield GLOBALS, next(reversed(frames.values())).f_globals


def _write(frames: Frames, name: str, held: Mapping[str, Any], new: dict[str, Any]) -> None:
    rebound = {}
    for one, value in new.items():
        present = held[one]
        if type(present) is type(value) and isinstance(present, _FILLED) and _fits(present, value):
            set_content(present, value)  # whoever else holds it sees it, too
        else:
            rebound[one] = value
    if not rebound:
        return
    if name == GLOBALS:
        next(reversed(frames.values())).f_globals.update(rebound)
        return
    frame = frames[name]
    bound = frame.f_locals
    bound.update(rebound)
    if sys.version_info < (3, 13):  # from then on f_locals writes through (PEP 667)
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))


def _fits(present: Any, value: Any) -> bool:
    if isinstance(present, np.ndarray) and not present.flags.writeable:
        return False
    is_shaped = isinstance(value, torch.Tensor | np.ndarray)
    return not is_shaped or (present.shape == value.shape and present.dtype == value.dtype)


def _plain(held: Mapping[str, object], known: Collection[int]) -> dict[str, object]:
    return {
        name: value
        for name, value in held.items()
        if not name.startswith("__") and _leaves(value) <= MOST_LEAVES and is_state(value, known)
    }


def _lengths(held: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: len(value)
        for name, value in held.items()
        if type(value) in (list, dict, set, deque) and not name.startswith("__")
    }


def _leaves(value: Any) -> int:
    """How much there is of a value."""
    if isinstance(value, torch.Tensor):
        return OF_A_TENSOR + value.numel() // ELEMENTS_OF_A_LEAF
    if isinstance(value, np.ndarray):
        return OF_A_TENSOR + value.size // ELEMENTS_OF_A_LEAF
    if isinstance(value, dict):
        return sum(map(_leaves, value.values())) if len(value) <= MOST_LEAVES else MOST_LEAVES + 1
    if isinstance(value, (list, tuple, set)) or type(value).__name__ == "deque":
        return sum(map(_leaves, value)) if len(value) <= MOST_LEAVES else MOST_LEAVES + 1
    return 1
