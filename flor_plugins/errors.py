"""Every error that flor_plugins raises on purpose.

FlorError
├── StoreError            the store can't be found, read or written
│   ├── UnknownRun        no run, or more than one, answers to that name
│   ├── NoCheckpoint      the run has no checkpoint at that position
│   └── DamagedCheckpoint a file of a checkpoint is missing, torn or altered
├── EncodingError         a value or a state leaf can't be stored without pickle
├── SnapshotError         git can't give or take the code of a run
├── RecipeError           a recipe is wrong; carries file and line
├── WhereError            a `where` expression is wrong; carries the column
├── HookError             a hook is wrong, or raised; carries file and line
├── ReplayError           a replay can't start or can't go on
│   └── Diverged          what was recomputed differs from what was recorded
├── EditRefused           an edit would change the training; lists file, line and text
├── CannotCarry           an edit has no certain place in an old version
└── MissingDependency     a package that is needed is not installed

A message says what was asked, what was found, where, and what to do.
"""

from __future__ import annotations


class FlorError(Exception):
    """The root: catch this to catch everything that flor_plugins raises on purpose."""


class StoreError(FlorError):
    """The store can't be found, read or written."""


class UnknownRun(StoreError):
    """No run, or more than one, answers to that name."""


class NoCheckpoint(StoreError):
    """The run has no checkpoint at that position."""


class DamagedCheckpoint(StoreError):
    """A file of a checkpoint is missing, torn or altered."""


class EncodingError(FlorError, TypeError):
    """A value or a leaf of a state can't be stored without pickle; names its path."""


class SnapshotError(FlorError):
    """git can't give or take the code of a run."""


class RecipeError(FlorError):
    """A recipe is wrong; the message begins with `file:line`."""


class WhereError(FlorError):
    """A `where` expression is wrong; the message shows the place."""


class HookError(FlorError):
    """A hook is wrong, or raised; the message carries file and line."""


class ReplayError(FlorError):
    """A replay can't start or can't go on."""


class Diverged(ReplayError):
    """What was recomputed differs from what was recorded."""


class EditRefused(FlorError):
    """An edit of the working tree would change the training.

    The message lists every such change with file and line.
    """


class CannotCarry(FlorError):
    """An edit of the working tree has no certain place in an old version.

    The message names the statement and the places.
    """


class MissingDependency(FlorError, ImportError):
    """A package that is needed is not installed; the message says what to install."""
