"""SPACE of a sweep file: ranges of keys that take any number in between, and draws from them.

    SPACE:
      TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}
      TRAINING.LABEL_DROP: {uniform: [0, 0.3]}

Draw k of a key is a function of (key, k) alone: every cell of the grid sees the same draws, and
more TRIALS add draws to those that are there. A key of integers takes integers.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ddpm.building import read_item
from ddpm.options import Item
from ddpm.reading import Document, Tree
from ddpm.values import Value, show

DISTRIBUTIONS = ("uniform", "loguniform")
_DIGITS = 4  # of a drawn number: it names a trial
_HOW = "give {loguniform: [low, high]} or {uniform: [low, high]}"


@dataclass(frozen=True, kw_only=True)
class Range:
    """All numbers from low to high, alike by difference or (loguniform) by ratio."""

    low: float
    high: float
    is_log: bool
    is_integer: bool

    def at(self, share: float) -> int | float:
        """The number a share (0 to 1) of the way up, rounded as a name can hold it."""
        if self.is_log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        return self.rounded(value)

    def rounded(self, value: float) -> int | float:
        """The nearest number inside that has few digits, or is an integer."""
        inside = min(max(value, self.low), self.high)
        if self.is_integer:
            return round(inside)
        return min(max(float(f"{inside:.{_DIGITS}g}"), self.low), self.high)


def share(key: str, number: int) -> float:
    """Uniform in [0, 1): draw `number` of a key."""
    digest = hashlib.sha256(f"{key}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def draw(space: Mapping[str, Range], number: int) -> dict[str, Value]:
    """Draw `number` of every key."""
    return {key: one.at(share(key, number)) for key, one in space.items()}


def read_space(
    document: Document, items: Mapping[str, Item], refuse: Callable[[str], str | None]
) -> dict[str, Range]:
    """The ranges under SPACE; problems go to the document.

    refuse: why a key cannot be varied, None when it can.
    """
    given = document.tree.get("SPACE")
    if given is None or given == {}:
        return {}
    if not isinstance(given, dict):
        document.problems.append(
            f"{document.place('SPACE')}: SPACE is {show(given)}; give dotted keys with a range "
            "each, such as TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}"
        )
        return {}
    found: dict[str, Range] = {}
    for key, value in given.items():
        place = document.place("SPACE." + key)
        if problem := refuse(key):
            document.problems.append(f"{place}: {problem}")
        elif (one := _read_range(document, key, items[key], value)) is not None:
            found[key] = one
    return found


def _read_range(document: Document, key: str, item: Item, value: Tree) -> Range | None:
    place = document.place("SPACE." + key)
    named = f"{place}: SPACE.{key} is {show(value)}"
    (name, ends), *more = value.items() if isinstance(value, dict) and value else [("", None)]
    name = name.lower()
    if more or name not in DISTRIBUTIONS or not isinstance(ends, list) or len(ends) != 2:
        document.problems.append(f"{named}; {_HOW}")
        return None
    part = Document(document.source, {}, {key: place})
    low, high = (read_item(part, key, item, end) for end in ends)
    document.problems.extend(part.problems)
    if part.problems:
        return None
    numbers = [end for end in (low, high) if isinstance(end, int | float) and end is not True]
    if len(numbers) < 2 or isinstance(low, bool):
        document.problems.append(f"{place}: SPACE.{key} holds no numbers; give GRID.{key} a list")
    elif not numbers[0] < numbers[1] or (name == "loguniform" and numbers[0] <= 0):
        above = " above 0" if name == "loguniform" else ""
        document.problems.append(f"{named}; give a lower end{above}, then a higher one")
    else:
        ints = all(isinstance(number, int) for number in numbers)
        log = name == "loguniform"
        return Range(low=numbers[0], high=numbers[1], is_log=log, is_integer=ints)
    return None


def is_inside(space: Mapping[str, Range], values: Mapping[str, object]) -> bool:
    """Whether these are values of all keys of the space, each in its range."""
    return all(
        isinstance(value := values.get(key), int | float)
        and math.isfinite(value)
        and one.low <= value <= one.high
        for key, one in space.items()
    )
