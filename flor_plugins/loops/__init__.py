"""flor_plugins for hand-written loops: `flor.checkpoints`, `flor.loop`. The package can be called: it is `flor.loop`.

Python puts a package that was imported into its parent under its own name, and `flor_plugins.loop`
is the function of that name until then (see flor_plugins/replay).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("flor_plugins.loop.iterate").loop(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
