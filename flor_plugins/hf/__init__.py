"""flor_plugins for Hugging Face Trainer: `from flor_plugins.hf import FlorCallback`."""

from __future__ import annotations

from flor_plugins.errors import MissingDependency

try:
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependency(
        f"flor_plugins.hf needs {error.name!r}, which is not installed: pip install "
        f"'flor-plugins[hf]'"
    ) from error

from flor_plugins.hf.callback import FlorCallback

__all__ = ["FlorCallback"]
