"""SPACE of a sweep file: ranges of keys that take any number in between, and draws from them.

    SPACE:
      TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}
      TRAINING.LABEL_DROP: {uniform: [0, 0.3]}

Draw k of a key is a function of (key, k) alone: every cell of the grid sees the same draws, and
more TRIALS add draws to those that are there. A key of integers takes integers.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ddpm.config import (
    COMMAND_LINE,
    Config,
    Document,
    Item,
    Section,
    Tree,
    Value,
    apply_overrides,
    construct,
    is_null,
    items_under,
    leaves,
    nearest,
    nearest_key,
    option,
    read_file,
    read_item,
    read_override,
    read_values,
    sections_under,
    set_key,
    show,
)
from ddpm.errors import InputError

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


# --------
# SEEDS and TUNE of a sweep file: which trials are run, in what order, and how much they may take.
#
# SEEDS: [0, 1, 2]                 # or auto, or {auto: {start: 3, max: 12}}: ddpm/report/race.py
# TUNE:
#   SEARCH: asha                   # grid | asha | bayes
#   METRIC: mean_log10_mse         # what trials are compared by: ddpm/sweep/comparable.py
#   BUDGET: {WALL_HOURS: 2}

MEASURES = ("mean_log10_mse", "snr_weighted_mse")  # of ddpm/metrics/x0_error.py, without its numpy
SEARCHES = ("grid", "asha", "bayes")
METRICS = (*MEASURES, "fid_infinity", "class_accuracy", "loss", "bits_per_dim")
KEYS = ("BASE", "GRID", "NAMES", "SPACE", "SEEDS", "TUNE")
USUAL_TRIALS = {"grid": 8, "asha": 8, "bayes": 24}


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """Limits of a sweep; null = as much as it needs."""

    WALL_HOURS: float | None = option(
        None, "Hours of this command, from each start of it", above=0, high=1e6
    )
    TRIALS: int | None = option(None, "Trials begun", low=1, high=10**6)


@dataclass(frozen=True, kw_only=True)
class Tune(Section):
    """How trials are run."""

    MAX_CONCURRENT: int | None = option(
        None, "Trials at a time; null = as many as the machine holds", low=1, high=10_000
    )
    MAX_FAILURES: int = option(0, "Times a failed trial is tried again", low=0, high=100)
    SEARCH: str = option(
        "grid",
        "grid = every trial to its end; asha = the worse end early; "
        "bayes = each trial is chosen from what the others found",
        choices=SEARCHES,
    )
    METRIC: str = option(
        MEASURES[0], "What a search and SEEDS: auto compare trials by", choices=METRICS
    )
    TRIALS: int | None = option(
        None,
        "Draws of SPACE: for each cell of GRID, in bayes in all; null = 8, in bayes 24",
        low=1,
        high=10_000,
    )
    GRACE: int = option(1, "Evaluations before asha may stop a trial", low=1)
    REDUCTION: int = option(
        3, "At each rung asha keeps the best of so many; rungs lie so many times apart", low=2
    )
    BUDGET: Budget = Budget()

    @property
    def trials(self) -> int:
        """TRIALS, or its default for this search."""
        return self.TRIALS or USUAL_TRIALS[self.SEARCH]


@dataclass(frozen=True, kw_only=True)
class Race(Section):
    """SEEDS: auto."""

    START: int = option(3, "Seeds of every cell", low=2, high=1000)
    MAX: int = option(12, "Most seeds of a cell that may still be the best", low=2, high=1000)

    @property
    def looks(self) -> tuple[int, ...]:
        """Seeds after which cells are compared: START, then half as many more each time, to MAX."""
        found = [self.START]
        while found[-1] < self.MAX:
            found.append(min(self.MAX, -(-found[-1] * 3 // 2)))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Auto:
    AUTO: Race = Race()


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Section):
    """The keys of a sweep file besides BASE, GRID and SPACE."""

    SEEDS: tuple[int, ...] = option(
        (0,), "Values of TRAINING.SEED", low=0, high=2**63 - 1, min_items=1, is_unique=True
    )
    NAMES: tuple[str, ...] = option(
        (),
        "In place of GRID: names for one configuration, each with seeds of its own",
        is_unique=True,
    )
    TUNE: Tune = Tune()


def read_plan(document: Document) -> tuple[SearchPlan, Race | None] | None:
    """SEEDS and TUNE; of SEEDS: auto the most seeds, and the race. None where there are problems,
    which go to the document.
    """
    for name in document.tree:
        if name not in KEYS:
            guess = nearest(name, KEYS)
            hint = f"did you mean {guess}?" if guess else f"a sweep has {', '.join(KEYS)}"
            document.problems.append(f"{document.place(name)}: {name} is no key; {hint}")
    tree: dict[str, Tree] = {
        name: document.tree[name] for name in ("SEEDS", "NAMES", "TUNE") if name in document.tree
    }
    before = len(document.problems)
    race = _read_race(document, tree)
    part = Document(document.source, tree, document.places)
    values = read_values(part, SearchPlan)
    document.problems.extend(part.problems)
    if len(document.problems) > before:
        return None
    if race is not None:
        values |= {"SEEDS": tuple(range(race.MAX))}
    return construct(SearchPlan, values), race


def _read_race(document: Document, tree: dict[str, Tree]) -> Race | None:
    """SEEDS: auto, taken out of the tree; None where SEEDS is a list."""
    given = tree.get("SEEDS")
    if isinstance(given, str) and given.lower() == "auto":
        given = {"AUTO": None}
    if not isinstance(given, Mapping):
        return None
    del tree["SEEDS"]
    places = {key.removeprefix("SEEDS."): place for key, place in document.places.items()}
    part = Document(document.source, dict(given), places)
    values = read_values(part, _Auto)
    document.problems.extend(part.problems)
    if part.problems:
        return None
    race = construct(_Auto, values).AUTO
    if race.MAX < race.START:
        document.problems.append(
            f"{document.place('SEEDS')}: SEEDS.AUTO.MAX is {race.MAX} but START is {race.START}; "
            "give at least as many"
        )
    return race


# --------
# Reading a sweep file: its base and what varies, the axes of its grid and its ranges.
#
# Problems gather in the sweep's document, so that `ddpm.sweep.load_sweep` can report all at once.

Axes = dict[str, tuple[Value, ...]]
# Keys that say what trials are compared on; cells that differ in them are not comparable.
_MEASURE = {
    "DATASET.NAME": "it names the data, which is the same for all cells",
    "DATASET.VALIDATION_FRACTION": "cells would be compared on different images",
    "EVALUATION.EVERY": "it changes no training",
    "EVALUATION.NUM": "cells would be compared on different images",
    "EVALUATION.SEED": "cells would be compared on different images and noise",
    "TRAINING.SEED": "give SEEDS instead",
    **{
        f"EVALUATION.SAMPLING_{name}": "cells would be compared by different samples"
        for name in ("STEPS", "ETAS", "NUM", "LOGSNR")
    },
}


def override_sweep(document: Document, overrides: Iterable[str]) -> list[str]:
    """Applies the overrides that address the sweep file; returns those of the base."""
    others, seen = [], set()
    for text in overrides:
        top, dot, key = text.partition("=")[0].strip().upper().partition(".")
        if top not in KEYS:
            others.append(text)
            continue
        try:
            name, value = read_override(text)
        except InputError as error:
            document.problems.extend(error.problems)
            continue
        if name in seen or top == "BASE" or (top in ("GRID", "SPACE") and not dot):
            document.problems.append(
                f"{COMMAND_LINE}: {name} cannot be set so; give SEEDS, TUNE.KEY, GRID.SECTION.KEY "
                "or SPACE.SECTION.KEY, each once, or another sweep file"
            )
            continue
        seen.add(name)
        if top in ("GRID", "SPACE"):
            axes = document.tree.setdefault(top, {})
            if isinstance(axes, dict):
                axes[key] = value
        else:
            set_key(document.tree, name, value)
        document.places[name] = COMMAND_LINE
    return others


def read_base(document: Document, path: Path, overrides: list[str]) -> Document:
    """The document that every cell starts from; its problems join the sweep's."""
    given = document.tree.get("BASE")
    base = Document(str(path))
    if isinstance(given, dict):
        inside = {k: at for k, at in document.places.items() if k.startswith("BASE.")}
        base.tree = given
        base.places = {key.removeprefix("BASE."): at for key, at in inside.items()}
    elif isinstance(given, str) and not is_null(given):
        base = read_file(path.parent / given)
    else:
        document.problems.append(
            f"{document.place('BASE')}: BASE is {show(given)}; give the path of a configuration, "
            "relative to this file, or its sections"
        )
        # Nothing more can be said about cells that have no base.
        raise InputError(document.problems)
    _put_over(base, document)
    apply_overrides(base, overrides)
    if base.places.get("TRAINING.SEED") == COMMAND_LINE:
        document.problems.append(
            f"{COMMAND_LINE}: TRAINING.SEED: a sweep sets it; give SEEDS=[...]"
        )
    return base


def _put_over(base: Document, document: Document) -> None:
    """Puts the sections that stand in the sweep file itself over those of BASE."""
    for section in [name for name in document.tree if name in sections_under(Config)]:
        for key, value in leaves(document.tree.pop(section), section):
            set_key(base.tree, key, value)
        inside = (k for k in document.places if k == section or k.startswith(f"{section}."))
        base.places |= {key: document.places[key] for key in inside}


def read_grid(document: Document, base: Document) -> Axes:
    """The grid's valid keys and values; problems go to the document, spoiled keys to the base."""
    given = document.tree.get("GRID")
    if given is None and (document.tree.get("NAMES") or document.tree.get("SPACE")):
        return {}
    if given is not None and "NAMES" in document.tree:
        document.problems.append(
            f"{document.place('NAMES')}: NAMES and GRID exclude each other; names stand for one "
            "configuration trained several times"
        )
    if not isinstance(given, dict) or not given:
        document.problems.append(
            f"{document.place('GRID')}: GRID is {show(given)}; give dotted keys with a list of "
            "values each, such as TRAINING.PRED_TYPE: [noise, velocity]"
        )
        return {}
    grid: Axes = {}
    for key, values in given.items():
        problem = _refuse_axis("GRID", key, base) or _refuse_list(key, values)
        read = () if problem else _read_axis(document, key, values)
        if problem:
            document.problems.append(f"{document.place('GRID.' + key)}: {problem}")
        if read:
            grid[key] = read
        else:
            base.spoiled.add(nearest_key(key) or key)
    return grid


def read_grid_space(document: Document, base: Document, grid: Axes) -> dict[str, Range]:
    """The ranges of SPACE, likewise."""

    def refuse(key: str) -> str | None:
        twice = f"{key} is both in GRID and in SPACE; keep one" if key in grid else None
        return twice or _refuse_axis("SPACE", key, base)

    found = read_space(document, items_under(Config), refuse)
    given = document.tree.get("SPACE")
    for key in given if isinstance(given, dict) else ():
        if key not in found:
            base.spoiled.add(nearest_key(key) or key)
    return found


def _refuse_axis(section: str, key: str, base: Document) -> str | None:
    """Why a key cannot be varied; None when it can."""
    item = items_under(Config).get(key)
    if item is None:
        guess = nearest_key(key)
        return f"{section}.{key} is no key; " + (f"did you mean {guess}?" if guess else "give one")
    if key in _MEASURE:
        return f"{section}.{key} cannot be varied: {_MEASURE[key]}"
    if item.limits.is_machine:
        return f"{section}.{key} cannot be varied: it changes where a run is, not what it computes"
    if base.places.get(key) == COMMAND_LINE:
        return (
            f"{key} is both in {section} and on the command line; override {section}.{key} instead"
        )
    return None


def _refuse_list(key: str, values: Tree) -> str | None:
    if not isinstance(values, list) or not values:
        return f"GRID.{key} is {show(values)}; give a list of at least one value"
    return None


def _read_axis(document: Document, key: str, values: Tree) -> tuple[Value, ...]:
    item = items_under(Config)[key]
    found: list[Value] = []
    for value in values if isinstance(values, list) else []:
        part = Document(document.source, {}, {key: document.place("GRID." + key)})
        read = read_item(part, key, item, value)
        if not part.spoiled and read in found:
            part.problems.append(f"{part.place(key)}: GRID.{key} holds {show(value)} twice")
        elif not part.spoiled:
            found.append(read)
        document.problems.extend(part.problems)
    return tuple(found)
