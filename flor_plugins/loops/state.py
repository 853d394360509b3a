"""The State of a hand-written loop: what `capture` saves, `restore` loads.

Both belong to the same moment: the entry of the main loop's `__next__`, when the body of the
last iteration is over and nothing of the next one is drawn; inside an epoch, that of an inner
loop's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from flor_plugins.errors import ReplayError
from flor_plugins.loops import loaders, object_graph
from flor_plugins.loops.registry import ObjectRegistry, set_content
from flor_plugins.loops.rng_history import RngHistory
from flor_plugins.records.sections import LOOP, MODEL, MODULE, OPTIMIZER, RNG, Sections
from flor_plugins.state import ddp_buckets, fast_load, user_objects
from flor_plugins.state import module as module_state
from flor_plugins.state import optimizer as optimizer_state


def capture(
    registered: ObjectRegistry,
    found: loaders.Sources,
    history: RngHistory,
    variables: Mapping[str, Any],
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the sections of a State, at the moment that `history` has come to.

    values: logged ones that have no row yet.
    """
    modules, main = registered.modules(), registered.main
    known = known_parts(registered)
    others = {name: one for name, one in modules.items() if main is None or name != main[0]}
    return {
        MODEL: registered.model.state_dict(),
        OPTIMIZER: [one.state_dict() for one in registered.optimizers().values()],
        LOOP: {
            **history.place(),
            "modules": {name: one.state_dict() for name, one in others.items()},
            "states": {name: one.state_dict() for name, one in registered.stateful().items()},
            "contents": registered.contents(),
            "owners": {
                name: user_objects.capture(one, known)
                for name, one in owners_of(registered).items()
            },
            "gradient_order": [ddp_buckets.capture(one) for one in registered.distributed()],
            "variables": variables,
            "values": values,
        },
        # Gradients may live on from one update to the next: nobody knows when the body sets
        # them to zero.
        MODULE: {name: module_state.capture(one, gradients=True) for name, one in modules.items()},
        RNG: {**loaders.capture(found), **history.moments(history.batch)},
    }


def restore(registered: ObjectRegistry, found: loaders.Sources, sections: Sections) -> None:
    """Put a State into the objects, which stand at the same moment.

    RNG comes last: the rest may draw.
    """
    held, modules = sections[LOOP], registered.modules()
    for one, order in zip(registered.distributed(), held["gradient_order"], strict=True):
        ddp_buckets.restore(one, order)
    restore_weights(registered, sections)
    for name, state in held["modules"].items():
        _load(modules[name], state)
    for one, state in zip(
        registered.optimizers().values(), sections.get(OPTIMIZER, ()), strict=False
    ):
        optimizer_state.restore(one, state)
    for name, state in sections[MODULE].items():
        module_state.restore(modules[name], module_state.copied(state))
    for name, one in registered.stateful().items():
        one.load_state_dict(copy.deepcopy(held["states"][name]))
    for name, one in registered.contents().items():
        set_content(one, copy.deepcopy(held["contents"][name]))
    for name, one in owners_of(registered).items():
        # else the training has made it since, or it is a State of before they were followed
        if name in held["owners"]:
            user_objects.restore(one, held["owners"][name])
    loaders.restore(found, sections[RNG])


def restore_weights(registered: ObjectRegistry, sections: Sections) -> None:
    """Only the main module's weights and buffers, in place.

    Raises ReplayError where they do not fit.
    """
    _load(registered.model, sections[MODEL])


def known_parts(registered: ObjectRegistry) -> set[int]:
    """What tells that something belongs to a registered module."""
    return {part for one in registered.modules().values() for part in user_objects.parts(one)}


def owners_of(registered: ObjectRegistry) -> object_graph.Owners:
    """Registered objects of the user's own, and the environments and objects inside them."""
    return object_graph.inside(registered.owners(), known_ids(registered))


def known_ids(registered: ObjectRegistry) -> frozenset[int]:
    """Return the ids of all that is saved by itself.

    These are registered objects, and the modules and optimizers below them.
    """
    modules = [part for one in registered.modules().values() for part in one.modules()]
    raw = registered.optimizers().values()
    return frozenset(map(id, [*registered.objects.values(), *raw, *modules]))


def _load(module: nn.Module, state: Mapping[str, Any]) -> None:
    if fast_load.copy_into(module, state):
        return
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ReplayError(
            f"the weights of a checkpoint were to be loaded into a {type(module).__name__} and "
            f"do not fit: {error}. "
            f"Let the script build the model that was trained."
        ) from error
