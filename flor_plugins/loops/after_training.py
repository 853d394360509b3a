"""A run whose main loop is over, while its script goes on: late values, and a late error."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flor_plugins.hooks import log
from flor_plugins.recorder.recorder import Recorder, harmless
from flor_plugins.state.tensor_trees import still
from flor_plugins.store import runs


class AfterTraining:
    """Follows what comes after the main loop of a run.

    ends: called with an error, or with None as the process ends: the run is over, whatever its loop
    does.

    was_left: did an error leave the main loop? None where nobody knows.
    """

    def __init__(self, recorder: Recorder, ends: Callable[[BaseException | None], None]) -> None:
        self._recorder, self._ends = recorder, ends
        self.was_left: bool | None = False
        self._is_reopened = False

    def watch(self) -> None:
        """Hear of the process' end, and of an error that nobody catches."""
        original = sys.excepthook

        def excepthook(kind: Any, error: BaseException, trace: Any) -> None:
            self._ends(error)
            self.failed(error)
            original(kind, error, trace)

        sys.excepthook = excepthook
        atexit.register(self.close)

    def listen(self) -> None:
        """What is logged from here on belongs to the last position."""
        log.connect(self._log)

    def failed(self, error: BaseException | None) -> None:
        """What had left the loop is known now."""
        if error is None or self.was_left is False:
            return
        run = replace(
            self._recorder.run, status="failed", error=f"{type(error).__name__}: {error}"[:2000]
        )
        self._recorder.run = run
        harmless(self._recorder, runs.save_run, run)

    def close(self) -> None:
        """Nothing more comes: the process ends, or another run begins."""
        atexit.unregister(self.close)
        self._ends(None)
        if self._is_reopened:
            self._is_reopened = False
            harmless(self._recorder, self._recorder.close_again)

    def _log(self, name: str, value: object) -> None:
        """Into a journal of their own: that of the training is sealed."""
        if not self._is_reopened:
            self._is_reopened = True
            harmless(self._recorder, self._recorder.reopen)
            self.listen()
            # so that it comes before the end of the thread that writes, which is new
            atexit.unregister(self.close)
            atexit.register(self.close)
        harmless(
            self._recorder, self._recorder.timeline.add, still({name: value}), "train", "epoch"
        )
