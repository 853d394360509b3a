"""flor_plugins for PyTorch Lightning: `from flor_plugins.lightning import FlorCallback`."""

from __future__ import annotations

from flor_plugins.errors import MissingDependency

try:
    import lightning.pytorch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependency(
        f"flor_plugins.lightning needs {error.name!r}, which is not installed: "
        "pip install 'flor-plugins[lightning]'"
    ) from error

from flor_plugins.lightning.callback import FlorCallback
from flor_plugins.lightning.checkpoint_io import FlorCheckpointIO, load_checkpoint

__all__ = ["FlorCallback", "FlorCheckpointIO", "load_checkpoint"]
