"""What a run could not record: warned about once, listed in its run.json."""

from __future__ import annotations

import sys
import warnings

from flor_plugins.records import Run

MOST_GAPS = 100  # something that fails at every step must not make run.json grow without end


class FlorWarning(UserWarning):
    """Something could not be recorded; the training goes on."""


class GapLog:
    """The gaps of one run."""

    def __init__(self, run: Run) -> None:
        self.gaps = list(run.gaps)
        self._where = f"run {run.name}, {run.path}"
        self._has_warned = False

    def add(self, gap: str) -> None:
        """Warn on the console once; list each gap once, and no endless list of them."""
        if gap not in self.gaps and len(self.gaps) < MOST_GAPS:
            self.gaps.append(gap)
            if len(self.gaps) == MOST_GAPS:
                self.gaps.append("what else is missing is not listed")
        if not self._has_warned:
            self._has_warned = True
            warn(f"{gap} ({self._where})")


def warn(text: str) -> None:
    """Warn the user without ending the training: not under `python -W error` either."""
    try:
        warnings.warn(f"flor: {text}", FlorWarning, stacklevel=5)
    except FlorWarning as error:
        print(error, file=sys.stderr)
