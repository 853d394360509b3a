"""Loaded by each Python that a replayed script starts: the guard, then the hidden sitecustomize."""

import os
import sys
import traceback
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

try:
    from flor_plugins.replayer.sandbox.isolation import guard_child

    guard_child()
except BaseException:
    traceback.print_exc()
    os._exit(1)  # `site` would go on without a guard

_here = os.path.dirname(os.path.abspath(__file__))
_spec = PathFinder.find_spec(
    "sitecustomize", [path for path in sys.path if os.path.abspath(path) != _here]
)
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(module_from_spec(_spec))
