"""The recorded launch, started again where the run's own code lies."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flor_plugins import adapter
from flor_plugins.records import Run
from flor_plugins.replayer.sandbox.worktree import map_path


@dataclass(frozen=True, slots=True)
class RelaunchedScript:
    """The launch of a run. root: of its recorded working tree; sandbox: what stands for that."""

    run: Run
    root: Path
    sandbox: Path

    def enter(self) -> None:
        """Stand where the recorded process stood: working directory, arguments, import path."""
        launch = self.run.launch
        os.chdir(self._mapped(launch.cwd))
        sys.argv = [launch.target, *map(self._mapped, launch.argv)]
        sys.path[:] = [self._mapped(entry) if entry else entry for entry in sys.path]
        for name, module in list(sys.modules.items()):
            # Packages that setuptools installed in place are found through their finder's MAPPING.
            mapping = getattr(module, "MAPPING", None) if name.startswith("__editable__") else None
            if isinstance(mapping, dict):
                mapping.update({package: self._mapped(path) for package, path in mapping.items()})

    def set_threads(self) -> None:
        """Compute with as many threads as the recording: another number sums in another order."""
        import torch

        flags = self.run.environment.get("determinism", self.run.environment)
        threads = flags.get("num_threads") if isinstance(flags, Mapping) else None
        if isinstance(threads, int):
            torch.set_num_threads(threads)

    def start(self) -> None:
        """Run it to its end, or to what a replay raises in it."""
        launch = self.run.launch
        if launch.kind == "recipe":
            self._train_recipe()
        elif launch.kind == "module":
            sys.path.insert(0, os.getcwd())
            runpy.run_module(launch.target, run_name="__main__", alter_sys=True)
        else:
            script = self._mapped(launch.target)
            sys.argv[0] = script
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")

    def forget(self) -> None:
        """Leave other processes, and have the script's own modules imported anew."""
        from flor_plugins.state import processes

        processes.leave()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and name != "__main__" and Path(file).is_relative_to(self.sandbox):
                del sys.modules[name]

    def _train_recipe(self) -> None:
        from flor_plugins.recipe import build_trainer

        run, launch = self.run, self.run.launch
        folder = self._mapped(launch.folder or str(Path(launch.target).parent))
        built = build_trainer(Path(folder), launch.target, dict(launch.params))
        if run.framework != "loop":  # else it has trained by itself
            callback = adapter.callback_class(run.framework)(run.name)
            adapter.trainer_adapter_of(run.framework).train(built, callback)

    def _mapped(self, path: str) -> str:
        return map_path(path, self.root, self.sandbox)
