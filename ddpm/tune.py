"""SEEDS and TUNE of a sweep file: which trials are run, in what order, and how much they may take.

SEEDS: [0, 1, 2]                 # or auto, or {auto: {start: 3, max: 12}}: ddpm/report/race.py
TUNE:
  SEARCH: asha                   # grid | asha | pbt | bayes
  METRIC: mean_log10_mse         # what trials are compared by: ddpm/comparable.py
  BUDGET: {CORE_HOURS: 2}
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ddpm.building import construct, read_values
from ddpm.options import Section, option
from ddpm.reading import Document, Tree
from ddpm.values import nearest

MEASURES = ("mean_log10_mse", "snr_weighted_mse")  # of ddpm/measures.py, without its numpy
SEARCHES = ("grid", "asha", "pbt", "bayes")
METRICS = (*MEASURES, "fid_infinity", "class_accuracy", "loss", "bits_per_dim")
KEYS = ("BASE", "GRID", "NAMES", "SPACE", "SEEDS", "TUNE")
USUAL_TRIALS = {"grid": 8, "asha": 8, "pbt": 8, "bayes": 24}


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """What a sweep may take; null = as much as it needs. Hours are of cores or GPUs held by its
    trials, over all times the command was run; those of WALL_HOURS begin anew each time.
    """

    CORE_HOURS: float | None = option(None, "Core-hours of all trials", above=0, high=1e9)
    GPU_HOURS: float | None = option(None, "GPU-hours of all trials", above=0, high=1e9)
    WALL_HOURS: float | None = option(None, "Hours of this command", above=0, high=1e6)
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
        "grid = every trial to its end; asha = the worse end early; pbt = the worse take over the "
        "weights of the better; bayes = each trial is chosen from what the others found",
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
    GRACE: int = option(
        1, "Evaluations before asha may stop a trial, and between pbt's exchanges", low=1
    )
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
class Plan(Section):
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


def read_plan(document: Document) -> tuple[Plan, Race | None] | None:
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
    values = read_values(part, Plan)
    document.problems.extend(part.problems)
    if len(document.problems) > before:
        return None
    if race is not None:
        values |= {"SEEDS": tuple(range(race.MAX))}
    return construct(Plan, values), race


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
