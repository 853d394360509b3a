"""Replaying. The package can be called: it is `flor.replay`, too.

Python puts a package that was imported into its parent under its own name, and `flor_plugins.replay`
is the function of that name until then.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By name: the layer above is only reached when somebody calls it.
        return import_module("flor_plugins.api").replay(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
