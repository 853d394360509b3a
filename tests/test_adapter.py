"""The packages of the frameworks are what the core takes them for.

The assignments are for pyright, which reads this file with the package; what they say is asked
once more when the tests run.
"""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
from transformers import Trainer

from flor_plugins import adapter
from flor_plugins import hf as hf_package
from flor_plugins import lightning as lightning_package
from flor_plugins.hf import intercept as hf
from flor_plugins.hf import replay_driver as hf_driver
from flor_plugins.lightning import intercept as lightning
from flor_plugins.lightning import replay_driver as lightning_driver
from flor_plugins.loops import intercept as loops
from flor_plugins.loops import replay_driver as loops_driver
from flor_plugins.loops.intercept import StartedLoop
from flor_plugins.replayer.worker_session.session import WorkerSession

ADAPTERS: dict[str, adapter.Adapter] = {"lightning": lightning, "hf": hf, "loop": loops}
TRAINER_ADAPTERS: dict[str, adapter.TrainerAdapter] = {"lightning": lightning, "hf": hf}
CALLBACKS: dict[str, adapter.CallbackFactory] = {
    "lightning": lightning_package.FlorCallback,
    "hf": hf_package.FlorCallback,
}
_hf: adapter.ReplayDriver[Trainer, WorkerSession] = hf_driver
_lightning: adapter.ReplayDriver[object, WorkerSession] = lightning_driver
_loops: adapter.ReplayDriver[StartedLoop, WorkerSession] = loops_driver
DRIVERS = {"lightning": lightning_driver, "hf": hf_driver, "loop": loops_driver}


def names_of(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def asked_of(protocol: type) -> dict[str, object]:
    return {
        name: function
        for base in protocol.__mro__
        for name, function in vars(base).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


@pytest.mark.parametrize("framework", adapter.PACKAGES)
def test_each_framework_is_found(framework: str) -> None:
    assert adapter.adapter_of(framework) is ADAPTERS[framework]
    assert adapter.replay_driver_of(framework) is DRIVERS[framework]
    if framework in CALLBACKS:
        assert adapter.trainer_adapter_of(framework) is TRAINER_ADAPTERS[framework]
        assert adapter.callback_class(framework) is CALLBACKS[framework]


@pytest.mark.parametrize(
    ("protocol", "module"),
    [
        *((adapter.Adapter, module) for module in ADAPTERS.values()),
        *((adapter.TrainerAdapter, module) for module in TRAINER_ADAPTERS.values()),
        *((adapter.ReplayDriver, module) for module in DRIVERS.values()),
        (adapter.LoopFollower, loops_driver.LoopReplayDriver),
    ],
)
def test_a_module_has_the_functions_and_parameters_that_are_asked_of_it(
    protocol: type, module: ModuleType
) -> None:
    for name, function in asked_of(protocol).items():
        assert names_of(getattr(module, name)) == names_of(function)
