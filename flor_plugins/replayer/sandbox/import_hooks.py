"""Something done to a module at the moment when it has been loaded, before anybody sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ModuleChange = Callable[[ModuleType], None]


class ImportHook(MetaPathFinder):
    """Finds nothing itself: changes modules that the others find."""

    def __init__(self, changes: Mapping[str, ModuleChange]) -> None:
        self._changes = changes

    def put_on(self) -> None:
        """Change modules from now on; those that are loaded already are changed at once."""
        sys.meta_path.insert(0, self)
        for name, change in self._changes.items():
            if name in sys.modules:
                change(sys.modules[name])

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that another finder gives, if the module is to be changed."""
        if fullname not in self._changes:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (
            finder.find_spec(fullname, path, target)
            for finder in later
            if hasattr(finder, "find_spec")
        )
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            self._wrap(spec.loader, self._changes[fullname])
        return spec

    def _wrap(self, loader: Any, change: ModuleChange) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            change(module)

        loader.exec_module = exec_module
