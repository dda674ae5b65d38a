"""A sweep file: its base, the axes of its grid, its ranges, its seeds and its search.

    GRID: {TRAINING.PRED_TYPE: [noise, velocity]}      # dotted key: values
    SPACE:                                             # dotted key: range, drawn from
      TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}
    SEEDS: [0, 1, 2]                 # or auto, or {auto: {start: 3, max: 12}}: ddpm/report/race.py
    TUNE:
      SEARCH: asha                   # grid | asha | bayes
      METRIC: mean_log10_mse         # what trials are compared by: ddpm/sweep/comparable.py
      BUDGET: {WALL_HOURS: 2}
      WITHIN: cell               # SPACE is tuned within each cell of GRID, then cells are compared

Problems gather in the sweep's document, so that `load_sweep` can report all at once.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

from pydantic import Field

from ddpm.config import (
    COMMAND_LINE,
    Config,
    Count,
    Document,
    Int,
    Number,
    Text,
    Tree,
    Value,
    all_different,
    apply_overrides,
    is_machine,
    keys_under,
    leaves,
    nearest,
    nearest_key,
    option,
    read_file,
    read_override,
    read_value,
    section,
    sections_under,
    set_key,
    show,
    validate,
)
from ddpm.errors import InputError, as_typed
from ddpm.runs import load_file

T = TypeVar("T")
Axes = dict[str, tuple[Value, ...]]
Seeds = Annotated[tuple[Annotated[Int, Field(ge=0, le=2**63 - 1)], ...], all_different]
KEYS = ("BASE", "GRID", "NAMES", "SPACE", "SEEDS", "TUNE")
Metric = Literal[
    "mean_log10_mse",
    "snr_weighted_mse",
    "fid_infinity",
    "kid",
    "class_accuracy",
    "loss",
    "bits_per_dim",
]
_USUAL_TRIALS = {"grid": 8, "asha": 8, "bayes": 24}
_STRATA = 8
_DIGITS = 4  # of a drawn number: it names a trial

# Keys that say what trials are compared on; cells that differ in them are not comparable.
_MEASURE = {
    "DATASET.NAME": "it names the data, which is the same for all cells",
    "DATASET.VALIDATION_FRACTION": "cells would be compared on different images",
    "EVALUATION.EVERY": "it changes no training",
    "EVALUATION.NUM": "cells would be compared on different images",
    "EVALUATION.SEED": "cells would be compared on different images and noise",
    "TRAINING.SEED": "give SEEDS instead",
    "EVALUATION.EMA_LENGTHS": "each is measured anyway; TUNE.WITHIN chooses one in each cell",
    **{
        f"EVALUATION.SAMPLING_{name}": "cells would be compared by different samples"
        for name in ("STEPS", "METHOD", "ETAS", "GUIDANCES", "NUM", "LOGSNR")
    },
}


@section
class Budget:
    """Limits of a sweep; null = as much as it needs."""

    WALL_HOURS: Number | None = option(
        None, "Hours of this command, from each start of it", gt=0, le=1e6
    )
    TRIALS: Int | None = option(None, "Trials begun", ge=1, le=10**6)


@section
class Tune:
    """Search, budget and number of trials at a time."""

    MAX_CONCURRENT: Int | None = option(
        None, "Trials at a time; null = as many as the machine holds", ge=1, le=10_000
    )
    MAX_FAILURES: Int = option(0, "Times a failed trial is tried again", ge=0, le=100)
    SEARCH: Literal["grid", "asha", "bayes"] = option(
        "grid",
        "grid = every trial to its end; asha = the worse end early; bayes = each trial is chosen "
        "from what the others found",
    )
    METRIC: Metric = option("mean_log10_mse", "What a search compares trials by")
    TRIALS: Int | None = option(
        None,
        "Draws of SPACE: for each cell of GRID, in bayes in all; null = 8, in bayes 24",
        ge=1,
        le=10_000,
    )
    GRACE: Count = option(1, "Evaluations before asha may stop a trial")
    REDUCTION: Int = option(
        3,
        "At each rung asha keeps the best of so many; rungs lie so many times apart",
        ge=2,
        le=10_000,
    )
    BUDGET: Budget = Budget()
    WITHIN: Literal["cell"] | None = option(
        None,
        "cell = choose the numbers of SPACE within each cell, by trainings of a third of the "
        "length on TUNING_SEEDS, then compare the cells, each at its own best, on SEEDS; null = "
        "SPACE is a part of the cell",
    )
    TUNING_SEEDS: Annotated[
        tuple[Annotated[Int, Field(ge=0, le=2**63 - 1)], ...], all_different
    ] = option((1000,), "Seeds of the trainings that choose, none of them in SEEDS", min_length=1)

    @property
    def trials(self) -> int:
        """TRIALS, or its default for this search."""
        return self.TRIALS or _USUAL_TRIALS[self.SEARCH]


@section
class Race:
    """SEEDS: auto."""

    START: Int = option(3, "Seeds of every cell", ge=2, le=1000)
    MAX: Int = option(12, "Most seeds of a cell that may still be the best", ge=2, le=1000)

    @property
    def looks(self) -> tuple[int, ...]:
        """Seeds after which cells are compared: START, then half as many more each time, to MAX."""
        found = [self.START]
        while found[-1] < self.MAX:
            found.append(min(self.MAX, -(-found[-1] * 3 // 2)))
        return tuple(found)


@section
class _Auto:
    AUTO: Race = Race()


@section
class SearchPlan:
    """The keys of a sweep file besides BASE, GRID and SPACE."""

    SEEDS: Seeds = option((0,), "Values of TRAINING.SEED", min_length=1)
    NAMES: Annotated[tuple[Text, ...], all_different] = option(
        (), "In place of GRID: names for one configuration, each with seeds of its own"
    )
    TUNE: Tune = Tune()


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
            return self.rounded(self.low * (self.high / self.low) ** share)
        return self.rounded(self.low + share * (self.high - self.low))

    def rounded(self, value: float) -> int | float:
        """The nearest number inside that has few digits, or is an integer."""
        inside = min(max(value, self.low), self.high)
        if self.is_integer:
            return round(inside)
        return min(max(float(f"{inside:.{_DIGITS}g}"), self.low), self.high)


def uniform_draw(key: str, number: int) -> float:
    """Uniform in [0, 1): draw `number` of a key, evenly spread.

    Of every eight draws one lies in each eighth, in an order of the key's own (Latin hypercube
    sampling, McKay et al. 1979). A function of (key, number) alone: every cell of the grid sees the
    same draws, and more TRIALS add draws to those that are there.
    """
    block, place = divmod(number, _STRATA)
    order = sorted(range(_STRATA), key=lambda part: _hashed(f"{key}/{block}/{part}"))
    return (order[place] + _hashed(f"{key}/{number}")) / _STRATA


def _hashed(words: str) -> float:
    digest = hashlib.sha256(words.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def draw(space: Mapping[str, Range], number: int) -> dict[str, Value]:
    """Draw `number` of every key."""
    return {key: one.at(uniform_draw(key, number)) for key, one in space.items()}


def is_inside(space: Mapping[str, Range], values: Mapping[str, object]) -> bool:
    """True where these are values of all keys of the space, each in its range."""
    return all(
        isinstance(value := values.get(key), int | float)
        and math.isfinite(value)
        and one.low <= value <= one.high
        for key, one in space.items()
    )


def override_sweep(document: Document, overrides: Iterable[str]) -> list[str]:
    """Applies the overrides that address the sweep file; returns those of the base."""
    others, seen = [], set()
    for text in overrides:
        top, dot, rest = text.partition("=")[0].strip().upper().partition(".")
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
                axes[rest] = value
        else:
            set_key(document.tree, name, value)
        document.places[name] = COMMAND_LINE
    return others


def read_base(document: Document, path: Path, overrides: list[str]) -> Document:
    """The document that every cell starts from: BASE, the sweep's own sections, overrides."""
    given = document.tree.get("BASE")
    base = Document(str(path))
    if isinstance(given, dict):
        base.tree = given
        base.places = _below(document, "BASE")
    elif isinstance(given, str):
        base = read_file(path.parent / given)
        with suppress(InputError):  # what is wrong in it is said of the cells
            load_file(path.parent / given)  # StorageError: that of a run, and edited
    elif "BASE" not in document.tree and "DATASET" in document.tree:
        raise InputError(
            f"{path}: has no BASE, so it is the configuration of one training; "
            f"`{as_typed('train', path)}` runs it"
        )
    else:
        document.refuse(
            "BASE",
            f"BASE is {show(given)}; give the path of a configuration, relative to this file, or "
            "its sections",
        )
        # Nothing more can be said about cells that have no base.
        raise InputError(document.problems)
    for name in [name for name in document.tree if name in sections_under(Config)]:
        for key, value in leaves(document.tree.pop(name), name):
            set_key(base.tree, key, value)
        inside = (k for k in document.places if k == name or k.startswith(f"{name}."))
        base.places |= {key: document.places[key] for key in inside}
    apply_overrides(base, overrides)
    if base.places.get("TRAINING.SEED") == COMMAND_LINE:
        document.problems.append(
            f"{COMMAND_LINE}: TRAINING.SEED: a sweep sets it; give SEEDS=[...]"
        )
    return base


def _below(document: Document, top: str) -> dict[str, str]:
    """The places of the keys below a section, as if it were the root."""
    inside = {key: at for key, at in document.places.items() if key.startswith(f"{top}.")}
    return {key.removeprefix(f"{top}."): at for key, at in inside.items()}


def read_plan(document: Document) -> tuple[SearchPlan, Race | None] | None:
    """SEEDS, NAMES and TUNE; of SEEDS: auto the most seeds, and the race."""
    before = len(document.problems)
    for name in document.tree:
        if name not in KEYS:
            guess = nearest(name, KEYS)
            hint = f"did you mean {guess}?" if guess else f"a sweep has {', '.join(KEYS)}"
            document.refuse(name, f"{name} is no key; {hint}")
    own = ("SEEDS", "NAMES", "TUNE")
    tree: dict[str, Tree] = {name: document.tree[name] for name in own if name in document.tree}
    seeds = tree.get("SEEDS")
    race: Race | None = None
    if isinstance(seeds, str) and seeds.lower() == "auto":
        seeds = {"AUTO": None}
    if isinstance(seeds, dict):
        auto = validate(replace(document, tree=seeds, places=_below(document, "SEEDS")), _Auto)
        race = auto.AUTO if auto else None
        if race and race.MAX < race.START:
            document.refuse(
                "SEEDS",
                f"SEEDS.AUTO.MAX is {race.MAX} but START is {race.START}; give at least as many",
            )
        tree["SEEDS"] = list(range(race.MAX if race else 1))
    plan = validate(replace(document, tree=tree), SearchPlan)
    return None if plan is None or len(document.problems) > before else (plan, race)


def read_grid(document: Document, base: Document) -> Axes:
    """The grid's valid keys and values; keys whose values are not known are spoilt in the base."""
    given = document.tree.get("GRID")
    if document.tree.get("NAMES") and document.tree.get("SPACE"):
        document.refuse(
            "NAMES", "NAMES and SPACE exclude each other; names stand for one configuration"
        )
    if given is None and (document.tree.get("NAMES") or document.tree.get("SPACE")):
        return {}
    if given is not None and "NAMES" in document.tree:
        document.refuse(
            "NAMES",
            "NAMES and GRID exclude each other; names stand for one configuration trained several "
            "times",
        )
    if not isinstance(given, dict) or not given:
        document.refuse(
            "GRID",
            f"GRID is {show(given)}; give dotted keys with a list of values each, such as "
            "TRAINING.PRED_TYPE: [noise, velocity]",
        )
        return {}
    return _read_axes(document, base, "GRID", given, _read_axis)


def read_space(document: Document, base: Document, grid: Axes) -> dict[str, Range]:
    """The ranges of SPACE, likewise."""
    given = document.tree.get("SPACE")
    if given is None or given == {}:
        return {}
    if not isinstance(given, dict):
        document.refuse(
            "SPACE",
            f"SPACE is {show(given)}; give dotted keys with a range each, such as "
            "TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}",
        )
        return {}
    for key in [key for key in given if key in grid]:
        document.refuse(f"SPACE.{key}", f"{key} is both in GRID and in SPACE; keep one")
        base.spoiled.add(key)
        del given[key]
    return _read_axes(document, base, "SPACE", given, _read_range)


def _read_axes(
    document: Document,
    base: Document,
    top: str,
    given: Mapping[str, Tree],
    read: Callable[[Document, str, Tree], T | None],
) -> dict[str, T]:
    found: dict[str, T] = {}
    for key, value in given.items():
        if problem := _refuse_axis(top, key, base):
            document.refuse(f"{top}.{key}", problem)
        elif (axis := read(document, key, value)) is not None:
            found[key] = axis
        if key not in found:
            base.spoiled.add(nearest_key(key) or key)
    return found


def _refuse_axis(top: str, key: str, base: Document) -> str | None:
    """The reason that a key cannot be varied; None when it can."""
    field = keys_under(Config).get(key)
    if field is None:
        guess = nearest_key(key)
        return f"{top}.{key} is no key; " + (f"did you mean {guess}?" if guess else "give one")
    if key in _MEASURE:
        return f"{top}.{key} cannot be varied: {_MEASURE[key]}"
    if is_machine(field):
        return f"{top}.{key} cannot be varied: it changes where a run is, not what it computes"
    if base.places.get(key) == COMMAND_LINE:
        return f"{key} is both in {top} and on the command line; override {top}.{key} instead"
    return None


def _read_axis(document: Document, key: str, values: Tree) -> tuple[Value, ...] | None:
    """The values of a key of GRID; None where one is refused."""
    name = f"GRID.{key}"
    if not isinstance(values, list) or not values:
        document.refuse(name, f"{name} is {show(values)}; give a list of at least one value")
        return None
    found: list[Value] = []
    for value in values:
        part = Document(document.source, places={key: document.place(name)})
        read = read_value(part, Config, key, value)
        document.problems.extend(part.problems)
        if not part.problems and read in found:
            document.refuse(name, f"{name} holds {show(value)} twice")
        elif not part.problems:
            found.append(read)
    return tuple(found) or None


def _read_range(document: Document, key: str, value: Tree) -> Range | None:
    """The range of a key of SPACE; None where it is refused."""
    name = f"SPACE.{key}"
    (kind, ends), *more = value.items() if isinstance(value, dict) and value else [("", None)]
    kind, is_pair = kind.lower(), isinstance(ends, list) and len(ends) == 2
    if more or kind not in ("uniform", "loguniform") or not is_pair:
        how = "give {loguniform: [low, high]} or {uniform: [low, high]}"
        document.refuse(name, f"{name} is {show(value)}; {how}")
        return None
    part = Document(document.source, places={key: document.place(name)})
    low, high = (read_value(part, Config, key, end) for end in cast(list[Tree], ends))
    document.problems.extend(part.problems)
    if part.problems:
        return None
    if isinstance(low, bool) or not (
        isinstance(low, int | float) and isinstance(high, int | float)
    ):
        document.refuse(name, f"{name} holds no numbers; give GRID.{key} a list")
    elif not low < high or (kind == "loguniform" and low <= 0):
        above = " above 0" if kind == "loguniform" else ""
        document.refuse(
            name, f"{name} is {show(value)}; give a lower end{above}, then a higher one"
        )
    else:
        are_integers = isinstance(low, int) and isinstance(high, int)
        return Range(low=low, high=high, is_log=kind == "loguniform", is_integer=are_integers)
    return None
