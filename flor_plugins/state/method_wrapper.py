"""The exact boundaries of a fit are entries of trainer methods, not public hooks.

`MethodWrapper` puts functions around methods of single objects (the classes are untouched)
and takes them off again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Method = Callable[..., Any]


class MethodWrapper:
    """Methods of objects, wrapped until `undo`."""

    def __init__(self) -> None:
        self._layers: list[_Layer] = []

    def around(self, owner: object, name: str, wrapper: Method) -> None:
        """Calls of `owner.name(...)` become `wrapper(original, ...)`."""
        layer = _Layer(owner, name, getattr(owner, name), name in vars(owner))

        def call(*args: Any, **kwargs: Any) -> Any:
            if layer.is_undone:
                return layer.original(*args, **kwargs)
            return wrapper(layer.original, *args, **kwargs)

        layer.call = call
        call.__dict__["flor_layer"] = layer
        setattr(owner, name, call)
        self._layers.append(layer)

    def before(self, owner: object, name: str, act: Method, *given: object) -> None:
        """`act(*given)` runs at the entry of `owner.name`."""

        def wrapper(original: Method, *args: Any, **kwargs: Any) -> Any:
            act(*given)
            return original(*args, **kwargs)

        self.around(owner, name, wrapper)

    def after(self, owner: object, name: str, act: Method, *given: object) -> None:
        """`act(*given)` runs when `owner.name` has returned."""

        def wrapper(original: Method, *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            act(*given)
            return result

        self.around(owner, name, wrapper)

    def undo(self) -> None:
        """Leave every object as it was found, and what others have put on since in its place."""
        while self._layers:
            layer = self._layers.pop()
            layer.is_undone = True
            _remove_undone(layer.owner, layer.name)


@dataclass(slots=True, eq=False)
class _Layer:
    """One wrapper on one method. was_own: the original stood on the object, not in its class."""

    owner: object
    name: str
    original: Method
    was_own: bool
    call: Method | None = None
    is_undone: bool = False


def _remove_undone(owner: object, name: str) -> None:
    """Remove wrappers of ours that are undone from the outside in.

    One that stands below somebody else's wrapper stays: it only passes calls on. What
    functools.wraps made of one has its attributes, and is not ours.
    """
    while True:
        outermost = vars(owner).get(name)
        layer = getattr(outermost, "flor_layer", None)
        if layer is None or layer.call is not outermost or not layer.is_undone:
            return
        if layer.was_own:
            setattr(owner, name, layer.original)
        else:
            delattr(owner, name)
