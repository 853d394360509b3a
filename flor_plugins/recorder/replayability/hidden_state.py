"""Attributes in which the user's objects keep state that no checkpoint holds.

What is meant by state: a value that the object's own methods update from what it was (a counter,
an average, a queue), an iterator, or a network or optimizer beside the trainer's. What a method
only sets anew is a cache, and what `__init__` builds the script builds again: neither is looked at.
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import sysconfig
import textwrap
from collections.abc import Container, Iterator

import torch
from torch import nn

from flor_plugins.records import Obstacle
from flor_plugins.state.module import is_plain

# Methods that build: a replay runs them again. `setup` ... are Lightning's.
_BUILDING = frozenset(
    (
        "__init__",
        "__post_init__",
        "__setstate__",
        "setup",
        "prepare_data",
        "configure_model",
        "configure_optimizers",
    )
)
_ADDING = ("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "rotate")
_MUTATORS = frozenset((*_ADDING, "pop", "popleft", "popitem", "remove", "discard", "clear"))
_OF_MODULES = frozenset(vars(nn.Module()))
_MOST_PARTS = 100  # of a container that are looked at
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = tuple(os.path.realpath(sysconfig.get_path(name)) for name in _PATHS)


def of_callback(callback: object, known: Container[int], remedy: str) -> Iterator[Obstacle]:
    """What a callback of the user's keeps beyond what `state.objects` records.

    known: ids of objects that are recorded elsewhere or built by the script (trainer, model and its
    parts, optimizers ...). remedy: how a callback of this framework brings its own state.
    """
    return of_owner("the callback", callback, known, remedy)


def of_owner(what: str, owner: object, known: Container[int], remedy: str) -> Iterator[Obstacle]:
    """The same for any other object of which `state.objects` records what it can.

    what: it is called.
    """
    changing = changing_attributes(type(owner))
    for name, value in getattr(owner, "__dict__", {}).items():
        # Modules that are attributes are recorded; those in a list are not.
        inside = (
            []
            if isinstance(value, nn.Module)
            else [one for one in _parts(value) if id(one) not in known]
        )
        kind = next((kind for kind in map(_kind, inside) if kind), "")
        hidden = next((one for one in inside if _has_state(one)), None)
        if kind or hidden is not None:
            yield _lost(f"{what} {where(type(owner))}", name, kind or _state(hidden), remedy)
        elif name in changing and inside and not (is_plain(value) or _is_generator(value)):
            yield _lost(f"{what} {where(type(owner))}", name, _state(value), remedy)


def of_modules(root: nn.Module, known: Container[int], remedy: str) -> Iterator[Obstacle]:
    """Yield the same for the modules of a model that are the user's, beyond `state.module`.

    A module that brings a state of its own (`get_extra_state`) is left out.
    """
    kinds = {
        type(one)
        for one in root.modules()
        if type(one).get_extra_state is nn.Module.get_extra_state
    }
    changing = {kind: changing_attributes(kind) for kind in kinds if _is_users(kind)}
    for module in root.modules():
        if type(module) in changing:
            yield from _of_module(module, changing[type(module)], known, remedy)


def _of_module(
    module: nn.Module, changing: Container[str], known: Container[int], remedy: str
) -> Iterator[Obstacle]:
    for name, value in vars(module).items():
        is_saved = is_plain(value) and not name.startswith("_")
        if is_saved or name in _OF_MODULES or id(value) in known or _is_generator(value):
            continue
        parts = [part for part in _parts(value) if id(part) not in known]
        kind = next((kind for kind in map(_kind, parts) if kind), "")
        if kind or name in changing or any(map(_is_trained, parts)):
            yield _lost(f"the module {where(type(module))}", name, kind or _state(value), remedy)


def of_object(owner: str, holder: object, saved: Container[str], remedy: str) -> Iterator[Obstacle]:
    """Attributes that the user's own methods of any other object keep up to date.

    owner: what it is to the trainer.
    """
    changing = changing_attributes(type(holder))
    for name, value in getattr(holder, "__dict__", {}).items():
        if name in changing and name not in saved and not _is_generator(value):
            yield _lost(f"{owner}, {where(type(holder))},", name, _state(value), remedy)


def changing_attributes(kind: type) -> set[str]:
    """Return the attributes that the class' own methods update from what they were.

    It is empty where the source is not found.

    Only classes outside of the installed packages are read.
    """
    return {name for one in kind.__mro__ if _is_users(one) for name in _updates(one)}


def _updates(kind: type) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return
    for method in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []:
        if (
            isinstance(method, ast.FunctionDef)
            and method.name not in _BUILDING
            and method.args.args
        ):
            me = method.args.args[0].arg
            for node in ast.walk(method):
                yield from _updated(node, me)


def _updated(node: ast.AST, me: str) -> Iterator[str]:
    """Yield the name x of a statement that updates `self.x`.

    That is `self.x += 1`, `self.x[k] = v`, `self.x = f(self.x)`, `self.x.append(v)` or
    `self.x.mul_(v)`.
    """
    if isinstance(node, ast.AugAssign):
        yield from _named(node.target, me)
    elif isinstance(node, ast.Assign):
        read = {name for part in ast.walk(node.value) for name in _named(part, me)}
        for target in node.targets:
            for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                is_item = isinstance(one, ast.Subscript)
                yield from (name for name in _named(one, me) if is_item or name in read)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if method in _MUTATORS or (method.endswith("_") and not method.endswith("__")):
            yield from _named(node.func.value, me)


def _named(node: ast.AST, me: str) -> Iterator[str]:
    """Yield x of `self.x`, `self.x[0]` and `self.x.y`."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        inner = node.value
        if isinstance(node, ast.Attribute) and isinstance(inner, ast.Name) and inner.id == me:
            yield node.attr
        node = inner


def is_iterator(value: object) -> bool:
    """Return whether it goes on where it stopped.

    An `__iter__` that does something before it returns may begin again.
    """
    if not hasattr(type(value), "__next__") or isinstance(value, io.IOBase):
        return False
    code = getattr(getattr(type(value), "__iter__", None), "__code__", None)
    return code is None or not code.co_names  # `return self` names nothing


def reads_a_file(value: object) -> bool:
    """An open file that is read: its position is state. What is only written does not come back."""
    return (
        isinstance(value, io.IOBase)
        and not value.closed
        and value.readable()
        and not value.writable()
    )


def where(kind: type) -> str:
    """The class, with file and line where its methods stand."""
    for method in vars(kind).values():
        code = getattr(method, "__code__", None)
        if code is not None and os.path.isfile(code.co_filename):
            return (
                f"{kind.__qualname__} ({os.path.basename(code.co_filename)}:{code.co_firstlineno})"
            )
    return kind.__qualname__


def _kind(value: object) -> str:
    """What a value is that holds state of a kind that no State stores; "" for all else."""
    if is_iterator(value):
        return f"an iterator ({type(value).__name__})"
    if reads_a_file(value):
        return "an open file"
    if isinstance(value, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
        return f"an optimizer or schedule of its own ({type(value).__name__})"
    own = type(value).__mro__[:-1]  # a subclass of what a library made is the library's to describe
    if own and all(_is_users(one) or one.__module__ in ("abc", "typing") for one in own):
        names = sorted(changing_attributes(type(value)) & getattr(value, "__dict__", {}).keys())
        return (
            f"an object, {where(type(value))}, that changes its {', '.join(names)}" if names else ""
        )
    return ""


def _parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return [value, *list(value.values())[:_MOST_PARTS]]
    return [value, *value[:_MOST_PARTS]] if isinstance(value, list | tuple) else [value]


def _has_state(value: object) -> bool:
    """A module with parameters or buffers, or a torchmetric (whose states are neither)."""
    if not isinstance(value, nn.Module):
        return False
    tensors = next(value.parameters(), None), next(value.buffers(), None)
    return any(one is not None for one in tensors) or any(
        hasattr(one, "_update_count") for one in value.modules()
    )


def _is_trained(value: object) -> bool:
    """Return whether it is a module beyond the model's own parts whose weights may be trained.

    A frozen one does not change.
    """
    return isinstance(value, nn.Module) and any(one.requires_grad for one in value.parameters())


def _is_generator(value: object) -> bool:
    """Recorded by state/rng.py, wherever it is."""
    return isinstance(value, torch.Generator) or type(value).__module__ in (
        "random",
        "numpy.random._generator",
    )


def _is_users(kind: type) -> bool:
    """Return whether the class is of the user's own code, and of no installed package."""
    if kind.__module__.partition(".")[0] in ("builtins", "flor_plugins"):
        return False
    try:
        file = os.path.realpath(inspect.getfile(kind))
    except (OSError, TypeError):  # made in C, or at a prompt
        return False
    return (
        not file.startswith(_LIBRARIES)
        and "site-packages" not in file
        and "dist-packages" not in file
    )


def _state(value: object) -> str:
    return f"state ({type(value).__name__})"


def _lost(owner: str, name: str, kind: str, remedy: str) -> Obstacle:
    return Obstacle(
        "partial", f"{owner} keeps in `{name}` {kind}, which no checkpoint holds", remedy
    )
