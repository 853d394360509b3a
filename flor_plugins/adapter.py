"""The only place that finds a framework: its callback, its replay driver and its intercept
by the run's framework.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

PACKAGES = {
    "lightning": "flor_plugins.lightning",
    "hf": "flor_plugins.hf",
    "loop": "flor_plugins.loops",
}


def package_of(framework: str, module: str = "") -> ModuleType:
    """`flor_plugins.<package>[.<module>]` of a framework.

    Raises MissingDependency where it is not installed.
    """
    return import_module(".".join(filter(None, [PACKAGES[framework], module])))
