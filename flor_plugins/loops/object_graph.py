"""What is inside the objects that a State holds: environments in wrappers, spaces, buffers."""

from __future__ import annotations

import enum
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from multiprocessing.process import BaseProcess

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from flor_plugins.loops.frame_variables import is_of_users
from flor_plugins.state import rng
from flor_plugins.state.module import is_plain

# From what the environments of reinforcement learning are derived, whoever wrote them.
_PACKAGES = ("gymnasium", "gym", "pettingzoo")
_ENVIRONMENTS = ("Env", "VectorEnv", "AECEnv", "ParallelEnv")

# Saved in their own way, or, as data sets and the members of an Enum are, built by the script
# again.
_ELSEWHERE = (
    type,
    enum.Enum,
    nn.Module,
    Optimizer,
    DataLoader,
    Dataset,
    Sampler,
    rng.RandomGenerator,
)
_OF_NO_ENVIRONMENT = frozenset(("numpy", "torch", "pygame", *sys.stdlib_module_names))
_CONTAINERS = (list, tuple, dict, deque)
_MOST_PARTS, _DEPTH = 10_000, 4  # of a container

Owners = dict[str, object]


def is_environment(one: object) -> bool:
    """Tell whether it is a simulator, by the class from which it is derived."""
    kinds = () if isinstance(one, type) else type(one).__mro__
    return any(kind.__name__ in _ENVIRONMENTS and _package(kind) in _PACKAGES for kind in kinds)


def inside(owners: Mapping[str, object], known: Collection[int]) -> Owners:
    """Return the owners and what they hold, each object once, by its path: `envs.envs.0`.

    Objects of the user's own classes are followed, environments, and what is of the package of
    one: wrappers, running means, spaces (which draw actions). known: ids of what is saved by
    itself.
    """
    found: Owners = {}
    seen, packages = set(known), set[str]()
    waiting = deque(owners.items())
    seen -= {id(one) for one in owners.values()}
    while waiting:
        name, one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        found[name] = one
        if is_environment(one):
            packages |= {_package(kind) for kind in type(one).__mro__} - _OF_NO_ENVIRONMENT
        waiting.extend(
            (f"{name}.{key}", part) for key, part in parts(one) if _is_followed(part, packages)
        )
    return found


def foreign_state(environment: object) -> Iterator[tuple[str, str]]:
    """What an environment keeps where no State reaches: attribute, and what it is."""
    for key, value in parts(environment) if is_environment(environment) else ():
        if isinstance(value, BaseProcess):
            yield (
                key,
                "a process of its own; use environments of this process (gymnasium's "
                "SyncVectorEnv)",
            )
        elif _is_foreign(value):
            yield key, f"what is not made in Python ({type(value).__name__})"


def _is_foreign(one: object) -> bool:
    """Tell whether its state is in C.

    The emulators and physics of simulators have it there; what pygame has is only drawn.
    """
    return not (
        hasattr(one, "__dict__")
        or isinstance(one, type)
        or _package(type(one)) in _OF_NO_ENVIRONMENT
    )


def parts(owner: object) -> Iterator[tuple[str, object]]:
    """What an object holds, also in lists and dicts, by names."""
    yield from _parts(vars(owner).items(), 0)


def _parts(items: Iterable[tuple[object, object]], depth: int) -> Iterator[tuple[str, object]]:
    for key, value in list(items):
        if not isinstance(value, _CONTAINERS):
            yield str(key), value
        elif depth < _DEPTH and len(value) <= _MOST_PARTS and not is_plain(value):
            held = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{key}.{name}", part) for name, part in _parts(held, depth + 1))


def _is_followed(one: object, packages: Collection[str]) -> bool:
    if isinstance(one, _ELSEWHERE) or not hasattr(one, "__dict__"):
        return False
    return is_environment(one) or is_of_users(one) or _package(type(one)) in packages


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
