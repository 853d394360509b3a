"""The exact boundaries of a fit are entries of trainer methods, not public hooks.

`MethodWrapper` puts functions around methods of single objects (the classes are untouched)
and takes them off again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MethodWrapper:
    """Methods of objects, wrapped until `undo`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def around(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Calls of `owner.name(...)` become `wrapper(original, ...)`."""
        original = getattr(owner, name)
        had_own = name in vars(owner)

        def call(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, call)
        self._undo.append(
            lambda: setattr(owner, name, original) if had_own else delattr(owner, name)
        )

    def before(self, owner: Any, name: str, act: Callable[[], Any]) -> None:
        """`act()` runs at the entry of `owner.name`."""

        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            act()
            return original(*args, **kwargs)

        self.around(owner, name, wrapper)

    def after(self, owner: Any, name: str, act: Callable[[], Any]) -> None:
        """`act()` runs when `owner.name` has returned."""

        def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            act()
            return result

        self.around(owner, name, wrapper)

    def undo(self) -> None:
        """Leave every object as it was found."""
        while self._undo:
            self._undo.pop()()
