"""Which words of a form are answers, questions and headers, and in which order they are read.

The tags are FUNSD's. An entity stands on one line: what leads to a field over two lines counts
with its last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

KINDS = ("HEADER", "QUESTION", "ANSWER")
TAGS = ("O", *(f"{mark}-{kind}" for kind in KINDS for mark in "BI"))

GAP = 10.0  # points: two words on a line that are further apart do not belong together
LEVEL = 0.6  # of the taller word: centres that are closer are on one line
REACH = 200.0  # points from a field to the words on its left
SLACK = 3.0  # points that boxes may overlap
ROW = 14.0  # points from a field to the words above or below it
LONGEST = 10  # words of a question
LARGE = 1.2  # times the page's usual letters
FEWEST_LETTERS = 4  # of a header
ENDS = (".", ":", ";", "?", "!")


@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.top - self.bottom

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def holds(self, other: Box) -> bool:
        """Whether the other one's centre lies within."""
        centre = (other.left + other.right) / 2
        return self.left <= centre <= self.right and self.bottom <= other.middle <= self.top

    def is_over(self, other: Box) -> bool:
        """Whether they share a column."""
        return self.left < other.right and other.left < self.right


@dataclass(frozen=True)
class Field:
    """A text field. index: among the page's annotations."""

    index: int
    name: str
    box: Box


@dataclass(frozen=True, eq=False)
class Word:
    """size: of the font. field: that it was typed into, or None where it is printed."""

    text: str
    box: Box
    size: float
    is_bold: bool
    field: Field | None = None


@dataclass(frozen=True)
class Tagged:
    text: str
    box: Box
    tag: str


def tag(printed: list[Word], typed: list[Word], fields: list[Field]) -> list[Tagged]:
    """All words of a page in reading order, each with its tag."""
    parts = [run for line in lines(printed) for run in runs(line)]
    headers = find_headers(parts)
    questions = find_questions(printed, [run for run in parts if run not in headers], fields)
    entities = {word: ("HEADER", index) for index, one in enumerate(headers) for word in one}
    entities |= {word: ("QUESTION", index) for index, one in enumerate(questions) for word in one}
    entities |= {word: ("ANSWER", word.field.index) for word in typed if word.field}
    tagged, last = [], None
    for line in lines([*printed, *typed]):
        for word in line:
            entity = entities.get(word)
            mark = "I" if entity and entity == last else "B"
            tagged.append(Tagged(word.text, word.box, f"{mark}-{entity[0]}" if entity else "O"))
            last = entity
        last = None  # an entity ends with its line
    return tagged


def lines(words: Iterable[Word]) -> list[list[Word]]:
    """Words by line, from the top, each from the left."""
    found: list[list[Word]] = []
    for word in sorted(words, key=lambda one: (-one.box.middle, one.box.left)):
        if found and found[-1][0].box.middle - word.box.middle < LEVEL * max(
            word.box.height, found[-1][0].box.height
        ):
            found[-1].append(word)
        else:
            found.append([word])
    return [sorted(line, key=lambda one: one.box.left) for line in found]


def runs(line: list[Word]) -> list[list[Word]]:
    """A line's words, apart where there is a gap."""
    found = [line[:1]]
    for last, word in pairwise(line):
        if word.box.left - last.box.right > GAP:
            found.append([])
        found[-1].append(word)
    return found


def find_headers(printed: list[list[Word]]) -> list[list[Word]]:
    """Runs that are larger than the page's usual words, or bold capitals."""
    usual = median([word.size for run in printed for word in run]) if printed else 0.0
    return [run for run in printed if is_header(run, usual)]


def is_header(run: list[Word], usual: float) -> bool:
    text = "".join(word.text for word in run)
    is_large = all(word.size >= LARGE * usual for word in run)
    is_shouted = all(word.is_bold for word in run) and text == text.upper()
    return sum(letter.isalpha() for letter in text) >= FEWEST_LETTERS and (is_large or is_shouted)


def find_questions(
    printed: list[Word], labels: list[list[Word]], fields: list[Field]
) -> list[list[Word]]:
    """The printed words that lead to a field: on its left, else above it, else below; no word
    in two questions.

    labels: the runs that may stand above or below.
    """
    found: list[list[Word]] = []
    taken: set[Word] = set()
    for field in fields:
        box, others = field.box, [one.box for one in fields if one is not field]
        question = on_the_left(box, printed, others)
        question = question or nearest(
            box, labels, others, lambda one, box=box: one.bottom - box.top
        )
        question = question or nearest(
            box, labels, others, lambda one, box=box: box.bottom - one.top
        )
        if question and not taken & set(question):
            found.append(question)
            taken |= set(question)
    return found


def on_the_left(box: Box, printed: list[Word], others: list[Box]) -> list[Word]:
    """The words before the field on its line, back to a gap, another field or the end of a
    sentence.
    """
    before = [
        word for word in printed if is_beside(word.box, box) and word.box.right < box.left + SLACK
    ]
    question: list[Word] = []
    edge, reach = box.left, REACH
    for word in sorted(before, key=lambda one: one.box.right, reverse=True):
        if not question and not has_letters([word]):
            continue  # a dollar sign or a comma before the blank
        is_end = bool(question) and word.text.endswith(ENDS)
        is_parted = any(
            is_beside(one, box) and word.box.left < one.left < edge - SLACK for one in others
        )
        if edge - word.box.right > reach or is_end or is_parted or len(question) == LONGEST:
            break
        question.insert(0, word)
        edge, reach = word.box.left, GAP
    return question


def nearest(
    box: Box, labels: list[list[Word]], others: list[Box], distance: Callable[[Box], float]
) -> list[Word]:
    """The nearest short run that lies in the field's column, as in a table or under the rule
    for a signature.

    distance: upwards or downwards from the field; another field on the way leads to its own label.
    """
    near = {
        distance(run[0].box): run
        for run in labels
        if is_label(run, box) and -SLACK < distance(run[0].box) < ROW
    }
    between = [distance(one) for one in others if one.is_over(box) and distance(one) > -SLACK]
    return near[min(near)] if near and min(near) < min(between, default=ROW) else []


def is_label(run: list[Word], box: Box) -> bool:
    is_in = box.left - GAP < run[0].box.left and run[-1].box.right < box.right + GAP
    return is_in and len(run) <= LONGEST and has_letters(run)


def is_beside(one: Box, other: Box) -> bool:
    """Whether they stand on one line."""
    return other.bottom - SLACK < one.middle < other.top + SLACK


def has_letters(words: list[Word]) -> bool:
    return any(letter.isalpha() for word in words for letter in word.text)
