"""Why a replay diverged: what is known about it, weighed into likely causes.

Plain data in, lines out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from flor_plugins.records import Position, Run
from flor_plugins.replayer.verification.environment_diff import (
    FIRST_PACKAGES,
    EnvironmentChange,
    Facts,
    as_mapping,
    compared_parts,
    environment_changes,
    one_line,
    variable_changes,
)

DifferenceSize = Literal["tiny", "unknown", "large"]

# Up to here a first difference looks like another order of float32 operations; two thread
# counts gave 2.4e-7, another random draw 1e-2 (measured on both trainers).
TINY = 1e-4
MAX_PACKAGES = 5  # a line each; the others share one
MAX_FILES = 3
WEAK = 30  # below this a cause does not explain a divergence

# How plausible a change is, if the values differ first by a little, by an unknown amount, by
# much. Only the order counts; what the replay itself has shown (other data 100, replays that
# disagree 98) stands above.
WEIGHTS: dict[str, tuple[int, int, int]] = {
    "processes": (92, 90, 90),
    "device": (90, 80, 50),
    "numerics": (85, 75, 55),
    "torch": (80, 79, 77),
    "main package": (72, 78, 76),
    "package": (60, 70, 74),
    "cpu": (70, 50, 25),
    "kernel variable": (65, 45, 31),
    "hash seed": (31, 50, 60),
    "interpreter": (31, 40, 45),
    "aside": (10, 12, 12),
    "kernels": (88, 65, 35),
    "kernels that agreed": (45, 30, 20),
    "obstacle of rounding": (82, 60, 31),
    "obstacle": (40, 76, 88),
}
_KERNEL_VARIABLE = re.compile(r"(OMP|MKL|OPENBLAS|NUMEXPR|CUDA|CUBLAS|NCCL|PYTORCH|TORCH)")
_ONLY_ON_GPU = re.compile(r"(cuda|cudnn|hip|deterministic)_")


@dataclass(frozen=True, slots=True)
class BatchFingerprints:
    """The fingerprints of the data behind a position, recorded and recomputed; None without one."""

    position: Position
    was: object
    now: object


@dataclass(frozen=True, slots=True)
class SecondReplay:
    """How a second replay of the same range compares with the first, bit for bit.

    differs_at: the first position where they disagree. same_data: did both see the same batches?
    """

    agrees: bool
    differs_at: Position | None = None
    same_data: bool | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a replay knows about its divergence.

    first: the earliest position at which a value differs at all, rounding included. relative:
    by how much (see `relative_difference`), None where only hashes differ. batches: those up to
    `first`, in any order. second: None if the range was not trained twice. environment,
    variables: the worker's present ones. on_gpu: whether the training computes on one.
    """

    first: Position
    relative: float | None = None
    batches: tuple[BatchFingerprints, ...] = ()
    second: SecondReplay | None = None
    environment: Facts | None = None
    variables: Mapping[str, str] | None = None
    on_gpu: bool = False

    @property
    def size(self) -> DifferenceSize:
        """Whether the first difference is as small as rounding."""
        if self.relative is None or math.isnan(self.relative):
            return "unknown"
        return "tiny" if self.relative <= TINY else "large"

    @property
    def compared(self) -> list[BatchFingerprints]:
        """The batches that both sides know, by position."""
        known = [batch for batch in self.batches if None not in (batch.was, batch.now)]
        return sorted(known, key=attrgetter("position"))

    @property
    def other_data(self) -> BatchFingerprints | None:
        """The first batch that is not what it was."""
        return next((batch for batch in self.compared if batch.was != batch.now), None)


@dataclass(frozen=True, slots=True)
class _LikelyCause:
    weight: int
    line: str


def causes(run: Run, evidence: Evidence) -> list[str]:
    """Return the likely causes of a divergence, most likely first, a line each with its evidence.

    run: the recording. Where nothing explains the divergence, a line says so, what is equal and
    what to try. Never empty.
    """
    likely = [
        *_data(run, evidence),
        *_draws(evidence),
        *_kernels(run, evidence),
        *_obstacles(run, evidence),
        *_changes(run, evidence),
    ]
    # Stable: equals stay in the order in which they were likely.
    likely.sort(key=attrgetter("weight"), reverse=True)
    lines = [cause.line for cause in likely]
    if not likely or likely[0].weight < WEAK:
        lines.append(_unexplained(run, evidence, is_all=not likely))
    left_out = _left_out(run)
    if evidence.other_data is None and left_out:
        lines.append(
            f"the code snapshot does not hold these files, which may have changed: {left_out}"
        )
    return list(map(one_line, lines))


def relative_difference(was: object, now: object) -> float | None:
    """Return the largest |now - was| / max(|was|, |now|) of numbers, or of equally nested lists.

    inf where one side is not finite; None where they can't be compared.
    """
    if isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            return None
        parts = list(map(relative_difference, was, now))
        known = [part for part in parts if part is not None]
        return max(known, default=0.0) if len(known) == len(parts) else None
    if not isinstance(was, (int, float)) or not isinstance(now, (int, float)):
        return None
    if was == now:
        return 0.0
    try:
        if math.isfinite(was) and math.isfinite(now):
            return abs(now - was) / max(abs(was), abs(now))
    except OverflowError:  # integers beyond every float
        pass
    return math.inf


def _data(run: Run, evidence: Evidence) -> Iterator[_LikelyCause]:
    batch = evidence.other_data
    if batch is None:
        return
    where = f"batch of {_at(batch.position)}: {_short(batch.was)} recorded, {_short(batch.now)} now"
    if batch.position > evidence.first:
        yield _LikelyCause(20, f"the data differ too, but only after the values do: {where}")
        return
    line = f"the data differ: {where}: a data file changed, or samples came in another order"
    if left_out := _left_out(run):
        line += f"; the code snapshot does not hold {left_out}"
    yield _LikelyCause(100, line)


def _draws(evidence: Evidence) -> Iterator[_LikelyCause]:
    second = evidence.second
    if second is None or second.agrees:
        return
    place = f" at {_at(second.differs_at)}" if second.differs_at else ""
    line = f"two replays differ from each other{place}"
    if second.differs_at is not None and second.differs_at > evidence.first:
        yield _LikelyCause(25, f"{line}, but only after both differ from the recording")
        return
    draw = "an unseeded draw (time, os.urandom, a generator of its own)"
    kernel = "a non-deterministic kernel (remedy: torch.use_deterministic_algorithms(True))"
    if second.same_data is False:
        line += f", in their data already: {draw} where samples are chosen, loaded or augmented"
        yield _LikelyCause(110, line)
        return
    by_kernel = evidence.on_gpu and evidence.size == "tiny"
    # Draws in the loading code explain other data, kernels and draws in the model do not.
    drawn_data = (
        evidence.other_data is not None and second.same_data is None and not evidence.on_gpu
    )
    guess = f"{kernel} or {draw}" if by_kernel else f"{draw} or {kernel}"
    yield _LikelyCause(110 if drawn_data else 98, f"{line}: {guess}")


def _kernels(run: Run, evidence: Evidence) -> Iterator[_LikelyCause]:
    disagree = evidence.second is not None and not evidence.second.agrees
    # An obstacle of that grade is about rounding, and was more precise at the time.
    if (
        not evidence.on_gpu
        or disagree
        or any(obstacle.grade == "close" for obstacle in run.obstacles)
    ):
        return
    if not all(map(_is_deterministic, (run.environment, evidence.environment))):
        kind = "kernels" if evidence.second is None else "kernels that agreed"
        line = "trained on a GPU without deterministic algorithms: kernels may add in any order"
        yield _LikelyCause(
            _weight(kind, evidence), f"{line} (remedy: torch.use_deterministic_algorithms(True))"
        )


def _obstacles(run: Run, evidence: Evidence) -> Iterator[_LikelyCause]:
    for obstacle in run.obstacles:
        kind = "obstacle of rounding" if obstacle.grade == "close" else "obstacle"
        line = f"known since the recording: {obstacle.reason} (remedy: {obstacle.remedy})"
        yield _LikelyCause(_weight(kind, evidence), line)


def _changes(run: Run, evidence: Evidence) -> Iterator[_LikelyCause]:
    changes = environment_changes(run.environment, evidence.environment)
    if evidence.variables is not None:
        changes += variable_changes(run.launch.env, evidence.variables)
    packages = [change for change in changes if change.kind == "package"]
    others = [change for change in changes if change.kind != "package"]
    for change in others + packages[:MAX_PACKAGES]:
        line = str(change)
        if evidence.size == "tiny" and change.kind in ("numerics", "device"):
            line += f" (the values differ by {evidence.relative:.1e}, as after rounding)"
        yield _LikelyCause(_weight(_kind(change, evidence.on_gpu), evidence), line)
    if more := packages[MAX_PACKAGES:]:
        listed = ", ".join(f"{change.name} {change.was} -> {change.now}" for change in more)
        yield _LikelyCause(_weight("package", evidence), f"{len(more)} more packages: {listed}")


def _kind(change: EnvironmentChange, on_gpu: bool) -> str:
    """The row of WEIGHTS."""
    name = change.name
    if name == "torch" and change.kind == "package":
        return "torch"
    if change.kind == "package":
        return "main package" if name in FIRST_PACKAGES else "package"
    if change.kind == "variable":
        known = {"PYTHONHASHSEED": "hash seed", "WORLD_SIZE": "processes"}
        return known.get(name, "kernel variable" if _KERNEL_VARIABLE.match(name) else "aside")
    if change.kind == "machine":
        return "cpu" if name in ("cpu", "machine") else "aside"
    if change.kind == "device" or _ONLY_ON_GPU.match(name):
        return change.kind if on_gpu else "aside"
    return "aside" if name == "num_interop_threads" else change.kind


def _unexplained(run: Run, evidence: Evidence, *, is_all: bool) -> str:
    """What is equal, and what to try."""
    equal = compared_parts(run.environment, evidence.environment) if is_all else ["all else"]
    if evidence.compared and evidence.other_data is None:
        equal.append(f"the data of {len(evidence.compared)} batches")
    known = "nothing could be compared"
    if equal:
        known = f"{', '.join(equal)} {'are' if len(equal) > 1 else 'is'} equal"
    if not evidence.compared:
        known += "; the data were not compared"
    opening = "none of these is a likely cause"
    if is_all:
        opening = "no difference was found between then and now"
    if evidence.second is None:
        advice = (
            "verify the run again: if two replays differ from each other, something draws "
            "without a seed"
        )
    elif evidence.second.agrees:
        advice = (
            "two replays agree, so look for state that no checkpoint holds, for draws without "
            "a seed before the "
            "training began, and for files outside of the code snapshot"
        )
    else:
        advice = "look at what differs between two replays"
    if "PYTHONHASHSEED" not in as_mapping(run.launch.env):
        advice += "; the order of a set of strings counts, too (PYTHONHASHSEED was not set)"
    return f"{opening}: {known}. Try: {advice}"


def _weight(kind: str, evidence: Evidence) -> int:
    return WEIGHTS[kind][("tiny", "unknown", "large").index(evidence.size)]


def _is_deterministic(environment: object) -> bool:
    flags = as_mapping(as_mapping(environment).get("determinism"))
    return (
        flags.get("deterministic_algorithms") is True
        and flags.get("deterministic_warn_only") is not True
    )


def _left_out(run: Run) -> str:
    files = run.code.left_out if run.code else ()
    more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
    return ", ".join(files[:MAX_FILES]) + more


def _at(position: Position) -> str:
    return f"step {position.step}"


def _short(fingerprint: object) -> str:
    """The beginning of a hash, or a checksum."""
    return str(fingerprint)[:20]
