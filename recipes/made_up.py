"""Answers that nobody gave: what a made-up person writes into the fields of a form."""

from __future__ import annotations

import re
from calendar import month_name
from collections.abc import Callable

from faker import Faker

NARROW = 45.0  # points: a field of unknown kind in which there is no room for a sentence
LETTER = 5.0  # points, about a letter's width in a filled form

# What a field of that name is filled with; the first that fits. The names are those of the
# forms' authors. Faker's own dates depend on today.
KINDS: dict[str, Callable[[Faker], str]] = {
    r"dob|date": lambda fake: (
        f"{fake.random_int(1, 12):02}/{fake.random_int(1, 28):02}/{fake.random_int(1960, 2024)}"
    ),
    r"ssn|snn": lambda fake: fake.ssn(),
    r"phone|fax|contact": lambda fake: fake.numerify("(###) ###-####"),
    r"case_num": lambda fake: fake.numerify("%#-D-###"),
    r"hour$": lambda fake: str(fake.random_int(1, 12)),
    r"minute$": lambda fake: fake.random_element(("00", "15", "30", "45")),
    r"month$": lambda fake: month_name[fake.random_int(1, 12)],
    r"year$": lambda fake: str(fake.random_int(1965, 2024)),
    r"day$": lambda fake: str(fake.random_int(1, 28)),
    r"age$|copies|days_to|duration|no_more_than|sheets|percent": lambda fake: str(
        fake.random_int(1, 60)
    ),
    r"policy|group|_id$|license": lambda fake: fake.bothify("??######").upper(),
    r"sex$": lambda fake: fake.random_element(("F", "M")),
    r"zip": lambda fake: fake.postcode(),
    r"state$": lambda fake: fake.state(),
    r"county|court|city": lambda fake: fake.city(),
    r"line_two": lambda fake: f"{fake.city()}, {fake.state_abbr()} {fake.postcode()}",
    r"address|location": lambda fake: fake.address().replace("\n", ", "),
    r"initials": lambda fake: fake.lexify("??").upper(),
    r"value|owed|amount|pay|income|tax|bill|premium|deductible|pension|salary|wages|bonuses|commissions|tips|severance"
    r"|ssi|comp$|expenses$|repair$|gas$|food$|clothing$|_debt_|_support$": lambda fake: (
        fake.numerify("%,###.##")
    ),
    r"employer|agency|school$|firm|insurance_name": lambda fake: fake.company(),
    r"position|degree|training|employment": lambda fake: fake.job(),
    r"name|individual|judge|party|supervisor|counselor|mediator"
    r"|signature|recipien|minor": lambda fake: fake.name(),
}


class Person:
    """Fills fields; the same key and the same fields in the same order give the same answers.

    blank: share of the fields that stay empty.
    """

    def __init__(self, key: str, *, blank: float) -> None:
        self.fake = Faker("en_US")
        self.fake.seed_instance(key)
        self.blank = blank
        self.given: dict[str, str] = {}

    def answer(self, name: str, width: float) -> str:
        """What is written into the field, short enough for its width (points); fields of one
        name agree.
        """
        if name not in self.given:
            is_blank = self.fake.random.random() < self.blank
            self.given[name] = "" if is_blank else self.make(name, width)
        return shorten(self.given[name], width)

    def make(self, name: str, width: float) -> str:
        for pattern, make in KINDS.items():
            if re.search(pattern, name.lower()):
                return make(self.fake)
        return (
            str(self.fake.random_int(1, 99))
            if width < NARROW
            else self.fake.sentence(nb_words=8).rstrip(".")
        )


def shorten(text: str, width: float) -> str:
    """The first words that fit; at least one."""
    words = text.split()
    while len(words) > 1 and LETTER * len(" ".join(words)) > width:
        words.pop()
    return " ".join(words)
