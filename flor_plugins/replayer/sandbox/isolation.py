"""What a replayed script may touch is decided here, once, before it is started."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from flor_plugins.errors import ReplayError
from flor_plugins.replayer.sandbox import child_processes, landlock, overlay, trackers, write_guard
from flor_plugins.replayer.sandbox.overlay_contents import lay_over

Isolation = Literal["overlay", "landlock", "python"]
VARIABLE = "FLOR_ISOLATION"
TRACKERS = "FLOR_TRACKERS"

SAID: dict[str, str] = {
    "overlay": (
        "copy-on-write: what a replayed script changes outside the store goes to "
        "scratch, children included"
    ),
    "landlock": (
        "links and refusals: a write outside is refused with its path, by the kernel "
        "for child processes"
    ),
    "python": (
        "links and refusals in Python: C code that writes by itself is not bound; other "
        "programs are not started"
    ),
}


def isolate(root: Path, sandbox: Path, kept: Sequence[Path]) -> Path:
    """Let this process write to nothing but `kept`.

    Whatever else it writes goes away with it, or is refused. Call it once, while this is the
    only thread. Returns where the code of the run stands from now on: `root` itself with
    copy-on-write, else the sandbox. Raises ReplayError where $FLOR_ISOLATION asks for what is
    not there.
    """
    requested = _requested()
    kind, place = "", sandbox
    if requested in (None, "overlay"):
        try:
            place = _copy_on_write(root, sandbox, kept)
            kind = "overlay"
        except overlay.NoOverlay as error:
            if requested:
                raise
            print(error, file=sys.stderr)
    if not kind:
        on = write_guard.forbid_writes([*kept, sandbox], sandbox, kernel=requested != "python")
        kind = "landlock" if "landlock" in on else "python"
        if requested not in (None, kind):
            raise ReplayError(
                f"{VARIABLE}={requested} was asked for; this kernel offers no Landlock. Ask "
                f"for python"
            )
    folder = Path(tempfile.mkdtemp(prefix="flor-trackers-"))
    os.environ[TRACKERS] = str(folder)
    trackers.silence(folder)
    print(f"isolation: {kind}", file=sys.stderr)
    return place


def guard_child() -> None:
    """Bind this process, a Python that a replayed script has started, as that script is bound."""
    guard = child_processes.inherited_guard()
    if guard is not None:
        write_guard.guard(guard["places"], guard["links"], kernel=guard["kernel"])
        if TRACKERS in os.environ:
            trackers.silence(Path(os.environ[TRACKERS]))


def in_force(root: Path, kept: Sequence[Path] = ()) -> tuple[Isolation, str]:
    """Return what `isolate` would come to on this machine, and why it is not more."""
    requested = _requested()
    reason = f"{VARIABLE}={requested}" if requested else overlay.why_not(_wanted(root, kept))
    if requested == "overlay" or not reason:
        return "overlay", ""
    if requested != "python" and landlock.abi() >= landlock.FIRST_WITH_REFER:
        return "landlock", reason
    return "python", reason


def _requested() -> str | None:
    requested = os.environ.get(VARIABLE) or None
    if requested not in (None, *get_args(Isolation)):
        raise ReplayError(
            f"{VARIABLE}={requested} was found; it may be {', '.join(get_args(Isolation))}, or not "
            f"be set"
        )
    return requested


def _copy_on_write(root: Path, sandbox: Path, kept: Sequence[Path]) -> Path:
    """Enter the overlay. Raises NoOverlay, and then nothing is changed."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise overlay.NoOverlay(
            "no copy-on-write: processes that train together must see each other's files"
        )
    root = Path(os.path.realpath(root))

    def fill(covered: Path, over: Path) -> None:
        if is_there and covered in (root, *root.parents):
            lay_over(sandbox, root, covered, over)

    is_there = root.is_dir()
    wanted = _wanted(root, kept)
    covered = overlay.enter(overlay.OverlayFolders(wanted.essential, wanted.kept, fill))
    write_guard.guard([str(place) for place in (*covered, *wanted.kept)])
    return root if is_there else sandbox


def _wanted(root: Path, kept: Sequence[Path]) -> overlay.OverlayFolders:
    named = (root, Path.cwd(), Path.home(), Path(tempfile.gettempdir()))
    essential = tuple(
        dict.fromkeys(Path(os.path.realpath(place)) for place in named if place.is_dir())
    )
    return overlay.OverlayFolders(
        essential, tuple(Path(os.path.realpath(folder)) for folder in kept)
    )
