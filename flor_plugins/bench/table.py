"""A bench as Markdown: one table of all recipes, its figures, and how they were measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from flor_plugins.bench.ratios import LEAST_PAIRS
from flor_plugins.bench.results import Bench, BenchQuestion, RecipeResult, Series
from flor_plugins.store.sizes import format_size

HEAD = (
    "model",
    "parameters",
    "a checkpoint",
    "data",
    "objective",
    "metric by epoch",
    "seconds a version",
    "record overhead",
    "training again",
    "answered in hindsight",
    "verdict",
)
UNITS = ("", " k", " M", " G", " T")
NOTES = """
How it was measured:

- Every training is a process of its own. *Seconds a version* are those of `fit` or `train` alone,
  with the callback (of a recipe that trains by itself with `flor.loop`: from the first item of
  its main loop to the return of its function), without imports and the building of model and
  data; the median over the pairs, of the fastest and the slowest version.
- *Record overhead*: the same version is trained with and without the callback, one after the
  other, and who comes first changes from pair to pair. Given are the median of (seconds with /
  seconds without - 1) over all pairs of all versions, the median of their difference in seconds,
  and where the first of the two lies with 95 % confidence; of fewer than 6 pairs, where the pairs
  lie. It is called inconclusive with fewer than {least} pairs, or where that range holds 0: a
  machine that does other things at the same time moves seconds by more than recording does. *By
  its own clock* is what the recorder has counted of the training's time: its calls in the
  training's thread, without what comes once (the snapshot of the code before the first step, the
  writes after the last one), and without what its writer takes of the processor beside it.
  *Processor* compares processor seconds of all threads, in which others on the machine hardly
  count.
- *Training again* are whole processes of all versions without the callback. *Answered in
  hindsight* is one metric for all versions and epochs, asked alone by a new process, from its
  start to its end, imports included; x is how many times as fast that is. A metric of every
  update needs the updates: it trains again, and is about as fast as that.
- *A checkpoint* is the largest one; *metric by epoch* is of the first version.
"""


def markdown(bench: Bench) -> str:
    """The whole document."""
    parts = [
        "# flor-hf bench",
        _machine(bench),
        grid(HEAD, [_row(result) for result in bench.results]),
    ]
    for one in bench.results:
        parts += [
            f"## {one.recipe}",
            *([f"Begun {one.measured_at}"] if one.measured_at else []),
            *_details(one),
        ]
    return "\n\n".join([*parts, NOTES.strip().format(least=LEAST_PAIRS)]) + "\n"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(one) for one in line)} |" for line in lines)


def overhead(one: RecipeResult) -> str:
    """Write +1.2 %, +0.26 s (-0.4 to +2.9 %, 3 pairs: inconclusive)."""
    found, seconds = one.overhead, one.overhead_s
    if found is None or seconds is None:
        return ""
    pairs = f"{found.n} pair{'' if found.n == 1 else 's'}"
    span = "" if found.n == 1 else f"{percent(found.low)[:-2]} to {percent(found.high)}, "
    told = "" if one.is_conclusive else ": inconclusive"
    return f"{percent(found.middle)}, {seconds:+.2f} s ({span}{pairs}{told})"


def percent(share: float) -> str:
    """Write +1.2 %, +1500 %."""
    return f"{100 * share:+.{0 if abs(share) >= 9.995 else 1}f} %"


def times(found: float | None) -> str:
    """Write 13x, 2.4x, 0.92x."""
    if found is None:
        return ""
    return (
        f"{found:.0f}x" if found >= 9.95 else f"{found:.1f}x" if found >= 0.995 else f"{found:.2f}x"
    )


def count(number: int) -> str:
    """Write 812, 430 k, 58.2 M."""
    size, unit = float(number), 0
    while size >= 999.5 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{UNITS[unit]}"


def series(found: Series) -> str:
    """0.61 → 0.83 → 0.9; of what is no number its shape."""
    return " → ".join(value(one) for _, one in found)


def value(found: Any) -> str:
    """A value in the room of a cell."""
    if isinstance(found, bool) or not isinstance(found, int | float | list):
        text = " ".join(str(found).split())
        return text if len(text) <= 24 else f"{text[:23]}…"
    if not isinstance(found, list):
        return str(found) if isinstance(found, int) else f"{found:.4g}"
    shape, inner = [], found
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    return f"[{'x'.join(map(str, shape))}]"


def _machine(bench: Bench) -> str:
    said = [f"{name}: {value}" for name, value in bench.machine.items() if value not in (None, "")]
    loads = [
        training.load
        for result in bench.results
        for training in result.trainings
        if training.load is not None
    ]
    if loads:
        said.append(
            f"load meanwhile: {min(loads):.1f} to {max(loads):.1f} (a training on one thread "
            f"is 1 of it)"
        )
    devices = sorted({training.device for result in bench.results for training in result.trainings})
    until = f" to {bench.finished_at}" if bench.finished_at else ", not whole yet"
    return ". ".join(
        [
            f"{bench.started_at}{until}",
            *said,
            *(["device: " + ", ".join(devices)] if devices else []),
        ]
    )


def _row(one: RecipeResult) -> list[str]:
    kept = one.kept[0] if one.kept else None
    metric = (
        f"{one.objective_metric} {series(kept.objective)}" if kept and one.objective_metric else ""
    )
    return [
        one.model or one.recipe,
        count(one.parameters) if one.trainings else "",
        format_size(kept.checkpoint_bytes) if kept else "",
        one.data or "",
        one.objective or "",
        metric,
        _seconds_a_version(one),
        _overhead(one),
        "" if one.again_s is None else f"{one.again_s:.1f} s",
        "<br>".join(_answered(one, question) for question in one.questions),
        _told(one),
    ]


def _seconds_a_version(one: RecipeResult) -> str:
    found = [
        s for s in (one.seconds(name, is_recorded=True) for name in one.versions) if s is not None
    ]
    if not found:
        return ""
    return f"{min(found):.1f}" if len(found) == 1 else f"{min(found):.1f} to {max(found):.1f}"


def _overhead(one: RecipeResult) -> str:
    processor, counted = one.processor_overhead, one.counted_overhead
    said = [overhead(one)] if one.overhead else []
    said += [f"processor {percent(processor.middle)}"] if processor else []
    return "<br>".join(
        [*said, *([f"by its own clock {percent(counted)}"] if counted is not None else [])]
    )


def _answered(one: RecipeResult, question: BenchQuestion) -> str:
    if question.error:
        return f"{question.metric}: failed"
    return f"{question.metric} {question.process_s:.1f} s ({times(one.speedup(question))})"


def _told(one: RecipeResult) -> str:
    wrong = [f"failed: {one.error}"] if one.error else []
    wrong += [
        f"{question.metric}: {question.error}" for question in one.questions if question.error
    ]
    return "<br>".join([*([one.verdict] if one.verdict else []), *wrong])


def _details(one: RecipeResult) -> list[str]:
    found = []
    if one.trainings:
        head = (
            "version",
            "parameters",
            "without, s",
            "with, s",
            "overhead",
            "processor",
            "process, s",
            "checkpoints",
        )
        head += (one.objective_metric,) if one.objective_metric else ()
        found.append(grid(head, [_version(one, name, len(head)) for name in one.versions]))
    if one.questions:
        head = (
            "asked in hindsight",
            "replayed by",
            "seconds",
            "of them asking",
            "values",
            "verdict",
        )
        found.append(
            grid((*head, *one.versions), [_question(one, question) for question in one.questions])
        )
    return [*found, *([f"Failed: {one.error}"] if one.error else [])]


def _version(one: RecipeResult, name: str, width: int) -> list[str]:
    ours = [training for training in one.trainings if training.version == name]
    pairs = list(one.pairs(name))
    kept = next((each for each in one.kept if each.version == name), None)
    cells = [
        name,
        count(ours[0].parameters) if ours else "",
        _seconds(one.seconds(name, is_recorded=False)),
        _seconds(one.seconds(name, is_recorded=True)),
        _ratio([a.train_s / b.train_s for a, b in pairs]),
        _ratio([a.cpu_s / b.cpu_s for a, b in pairs if b.cpu_s]),
        _seconds(one.process_seconds(name)),
        f"{kept.checkpoints}, {format_size(kept.all_bytes)}" if kept else "",
        series(kept.objective) if kept else "",
    ]
    return cells[:width]


def _question(one: RecipeResult, question: BenchQuestion) -> list[str]:
    seen = [series(question.values.get(name, ())) for name in one.versions]
    if question.error and not question.count:
        return [question.metric, "", "", "", "", question.error, *seen]
    seconds = (
        f"{question.process_s:.1f} ({times(one.speedup(question))})",
        f"{question.asked_s:.1f}",
    )
    verdict = question.error or question.verdict or "nothing was replayed"
    return [question.metric, " ".join(question.ways), *seconds, str(question.count), verdict, *seen]


def _seconds(found: float | None) -> str:
    return "" if found is None else f"{found:.2f}"


def _ratio(found: Sequence[float]) -> str:
    return percent(median(found) - 1) if found else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
