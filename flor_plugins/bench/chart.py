"""Draw a bench as a picture (SVG).

It shows the seconds of each question beside those of training again, and what recording costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from flor_plugins.bench.results import Bench, RecipeResult
from flor_plugins.bench.table import percent, times

WIDTH, LEFT, RIGHT = 960.0, 250.0, 740.0  # of the picture; of where values are drawn
LINE, BAR = 20.0, 13.0
AGAIN, ANSWER, WRONG, TEXT, FAINT = "#a9b1bd", "#2468b4", "#b3261e", "#1f2328", "#d5d9df"
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
TICKS = 6  # about so many on an axis
SMALLEST = (
    1e-300  # a spread that ticks divide; of the smallest numbers there is no logarithm of a sixth
)


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to places on the line.

    ticks: in values, evenly spaced, the first and the last are its ends.
    """

    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Return where a value lies on the axis."""
        low, high = self.ticks[0], self.ticks[-1]
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)


def axis(values: Sequence[float]) -> Axis:
    """An axis that holds 0 and all values, with round numbers."""
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    if high - low < SMALLEST:
        high = 1.0
    rough = (high - low) / TICKS
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(one * size for one in (1, 2, 5, 10) if one * size >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return Axis(tuple(number * step for number in range(first, last + 1)))


@dataclass(slots=True)
class Picture:
    """What has been drawn, from above. y: where the next line goes."""

    parts: list[ElementTree.Element] = field(default_factory=list)
    y: float = 14.0

    def draw(self, tag: str, **attributes: float | str) -> ElementTree.Element:
        """Add an element."""
        names = {name.replace("_", "-"): _short(value) for name, value in attributes.items()}
        self.parts.append(ElementTree.Element(tag, names))
        return self.parts[-1]

    def text(self, x: float, said: str, *, end: bool = False, **attributes: float | str) -> None:
        """Add a text at the present height."""
        anchor = {"text_anchor": "end"} if end else {}
        self.draw("text", x=x, y=self.y + BAR - 2.5, **anchor, **attributes).text = said

    def title(self, said: str, under: str) -> None:
        """Add a title and the line under it."""
        self.text(20, said, font_size=15, font_weight="bold")
        self.y += LINE
        self.text(20, under, fill="#57606a")
        self.y += 1.5 * LINE

    def ruled(self, shown: Axis, begin: float, unit: str) -> None:
        """Draw the lines of an axis over what was drawn since `begin`, and its numbers below.

        The line at 0 is darker.
        """
        for tick in shown.ticks:
            x, colour = shown.at(tick), "#6e7781" if tick == 0 else FAINT
            line = self.draw("line", x1=x, x2=x, y1=begin - 4, y2=self.y, stroke=colour)
            self.parts.insert(0, self.parts.pop(self.parts.index(line)))  # behind the bars
            self.text(x, f"{tick:.6g}{unit}", text_anchor="middle", fill="#57606a")
        self.y += 2 * LINE

    def svg(self) -> str:
        """Return the whole picture."""
        attributes = {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH:.0f} {self.y:.0f}",
            "width": f"{WIDTH:.0f}",
            "height": f"{self.y:.0f}",
            "font-family": FONT,
            "font-size": "12",
            "fill": TEXT,
        }
        root = ElementTree.Element("svg", attributes)
        ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
        root.extend(self.parts)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"


def svg(bench: Bench) -> str:
    """The whole picture; what was not measured is not drawn."""
    picture = Picture()
    answered = [
        result for result in bench.results if result.again_s is not None and result.questions
    ]
    if answered:
        _questions(picture, answered)
    recorded = [result for result in bench.results if result.overhead is not None]
    if recorded:
        _overheads(picture, recorded)
    if not picture.parts:
        picture.title("flor-hf bench", "nothing is measured yet")
    return picture.svg()


def _questions(picture: Picture, results: Sequence[RecipeResult]) -> None:
    longest = [result.again_s or 0.0 for result in results]
    longest += [question.process_s for result in results for question in result.questions]
    shown = axis(longest)
    picture.title(
        "A metric in hindsight, beside training again",
        "seconds for all versions and epochs of a recipe; every question is asked alone, by a "
        "new process",
    )
    begin = picture.y
    for one in results:
        again = one.again_s or 0.0
        picture.text(20, one.recipe, font_weight="bold")
        _bar(picture, shown, "training again", again, AGAIN, f"{again:.1f} s")
        for question in one.questions:
            if question.error:
                picture.text(LEFT - 8, _name(question.metric), end=True)
                picture.text(LEFT + 6, "failed", fill=WRONG)
                picture.y += LINE
                continue
            said = f"{question.process_s:.1f} s, {times(one.speedup(question))}"
            wrong = "" if question.verdict == "exact" else f", {question.verdict}"
            _bar(picture, shown, question.metric, question.process_s, ANSWER, said + wrong)
        picture.y += 0.5 * LINE
    picture.ruled(shown, begin, " s")


def _bar(picture: Picture, shown: Axis, name: str, value: float, colour: str, said: str) -> None:
    picture.text(LEFT - 8, _name(name), end=True)
    end = shown.at(value)
    picture.draw("rect", x=LEFT, y=picture.y, width=end - LEFT, height=BAR, fill=colour)
    picture.text(end + 6, said)
    picture.y += LINE


def _overheads(picture: Picture, results: Sequence[RecipeResult]) -> None:
    shown = axis([100 * value for result in results for value in _shares(result)])
    picture.title(
        "What recording costs",
        "of the seconds of a training; dot: median of the pairs, line: where they lie, hollow: "
        "inconclusive; "
        "mark: by the recorder's own clock",
    )
    begin = picture.y
    for one in results:
        found = one.overhead
        if found is None:
            continue
        y = picture.y + BAR / 2
        picture.text(20, one.recipe, font_weight="bold")
        low, middle, high = (
            shown.at(100 * value) for value in (found.low, found.middle, found.high)
        )
        picture.draw("line", x1=low, x2=high, y1=y, y2=y, stroke=ANSWER, stroke_width=2)
        fill = ANSWER if one.is_conclusive else "#ffffff"
        picture.draw("circle", cx=middle, cy=y, r=5, fill=fill, stroke=ANSWER, stroke_width=2)
        own = one.counted_overhead
        if own is not None:
            x = shown.at(100 * own)
            picture.draw("line", x1=x, x2=x, y1=y - 7, y2=y + 7, stroke=TEXT, stroke_width=2)
        told = "" if own is None else f", own clock {percent(own)}"
        picture.text(RIGHT + 12, percent(found.middle) + told)
        picture.y += 1.3 * LINE
    picture.ruled(shown, begin, " %")


def _shares(one: RecipeResult) -> Iterator[float]:
    if one.overhead is not None:
        yield from (one.overhead.low, one.overhead.high)
    if one.counted_overhead is not None:
        yield one.counted_overhead


def _name(full: str) -> str:
    """As long as there is room on the left."""
    return full if len(full) <= 32 else f"{full[:31]}…"


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
