"""A sweep: the trials of a grid, each a validated configuration, before anything is run.

    BASE: ../configs/digits.yaml                       # or the sections themselves
    EVALUATION: {NUM: 512}                             # any section, over that of BASE
    GRID: {TRAINING.PRED_TYPE: [noise, velocity]}      # dotted key: values
    SPACE: {TRAINING.LABEL_DROP: {uniform: [0, 0.3]}}  # dotted key: range, drawn from
    SEEDS: [0, 1]                                      # each varies TRAINING.SEED alone
    TUNE: {SEARCH: grid, MAX_CONCURRENT: null}         # ddpm/sweep/spec.py

`NAMES: [a, b, c]` in place of GRID trains one configuration under several names, each with seeds of
its own: an A/A test, in which no cell is better than another. Trials come seed by seed, so the
first seed's grid is complete first; within it draw by draw, and then the last key of GRID varies
fastest. Impossible cells are skipped with the reason; every other problem is refused.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path

from ddpm.config import (
    SAFE_NAME,
    Built,
    Config,
    Document,
    Value,
    as_tree,
    build,
    copy_tree,
    plain,
    read_file,
    run_id,
    set_key,
    to_yaml,
)
from ddpm.errors import InputError, as_typed
from ddpm.runs import storage
from ddpm.sweep import comparable, spec
from ddpm.sweep.ledger import Outcome, SkippedCell, cell_name
from ddpm.sweep.spec import (
    Axes,
    Race,
    Range,
    SearchPlan,
    Tune,
    override_sweep,
    read_base,
    read_grid,
    read_plan,
    read_space,
)

Cell = Mapping[str, Value]
_MOST_CELLS = 10_000
_EPOCHS = "TRAINING.HYPER_PARAMETERS.EPOCHS"
NAME = "NAME"  # the one key of a cell that has a name in place of values
STARTUP = 10  # trials that bayes draws at random before it chooses


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of a sweep: a cell of the grid with a seed.

    Known once its data are: trial_id, its run id; run_dir and data_dir, its directory and that of
    its shards; steps, of the whole training; num_train, its training images.  is_tuning: it only
    helps to choose the numbers of SPACE within its cell.  chosen: those of a trial whose cell is
    of GRID alone.
    """

    cell: Mapping[str, object]
    seed: int
    config: Config
    trial_id: str = ""
    run_dir: str = ""
    data_dir: str = ""
    steps: int = 0
    num_train: int = 0
    is_tuning: bool = False
    chosen: Mapping[str, object] = field(default_factory=dict)

    def identified(self, data_sha256: str) -> "Trial":
        """This trial with its id, the run id of its configuration on these data."""
        return replace(self, trial_id=run_id(self.config, data_sha256))

    @property
    def outcome(self) -> Outcome:
        """Its outcome while it has not ended."""
        return Outcome(
            trial=self.trial_id, cell=dict(self.cell), seed=self.seed, run_dir=self.run_dir
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep file.

    base: the first trial's configuration; what GRID and SPACE leave out is the same in all others.
    question: what the file's first comment says after "Question:".  trials: of SEEDS: auto those
    that may become needed; of bayes those it begins with.  make: a trial of another cell and seed,
    InputError where it cannot be trained.
    """

    name: str
    path: Path
    question: str
    base: Config
    grid: Mapping[str, tuple[object, ...]]
    seeds: tuple[int, ...]
    tune: Tune
    trials: tuple[Trial, ...]
    skipped: tuple[SkippedCell, ...]
    space: Mapping[str, Range]
    race: Race | None
    make: Callable[[Mapping[str, object], int], Trial]


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> Sweep:
    """The trials of a sweep file.

    An override `SECTION.KEY=value` changes the base; `SEEDS=[0, 1]`, `TUNE.MAX_CONCURRENT=2`,
    `GRID.SECTION.KEY=[...]` and `SPACE.SECTION.KEY={uniform: [0, 1]}` change the sweep. Raises
    InputError with every problem of file, base and cells, one line each.
    """
    path = Path(path)
    document = read_file(path)
    base = read_base(document, path, override_sweep(document, overrides))
    grid = read_grid(document, base)
    ranges = read_space(document, base, grid)
    planned = read_plan(document)
    if not re.fullmatch(SAFE_NAME, path.stem):
        document.problems.append(
            f"{path}: its name becomes a folder's; rename it to letters, digits, '.', '_', '-'"
        )
    tune = planned[0].TUNE if planned else Tune()
    cells, skipped = _check_cells(document, base, _cells(grid, ranges, tune))
    if document.problems or planned is None:
        raise InputError(list(dict.fromkeys(document.problems)))
    if not cells:
        raise InputError([f"{path}: every cell is impossible", *(one.reason for one in skipped)])
    plan, race = planned
    make = partial(_trial, base, document)
    if tune.WITHIN is None:
        named: list[Cell] = [{NAME: name} for name in plan.NAMES]
        pairs = itertools.product(plan.SEEDS, named or cells)
        trials = tuple(make(cell, _own_seed(plan, cell, seed)) for seed, cell in pairs)
        first = trials[0]
    else:
        pairs = itertools.product(tune.TUNING_SEEDS, cells)
        trials = tuple(_tuning(make, cell, seed) for seed, cell in pairs)
        first = make(cells[0], plan.SEEDS[0])
        skipped = _whole(skipped, cells, ranges)
    varied = [key for key, values in grid.items() if len(values) > 1]
    configs = [trial.config for trial in trials]
    found = comparable.problems(tune, race, varied, ranges, configs)
    if tune.WITHIN is not None and (shared := sorted({*tune.TUNING_SEEDS} & {*plan.SEEDS})):
        found.append(
            f"TUNE.TUNING_SEEDS and SEEDS share {', '.join(map(str, shared))}; what is chosen on a "
            "seed looks better on it than it is: give others"
        )
    if found:
        raise InputError([f"{path}: {problem}" for problem in found])
    names = {key: tuple(plain(value) for value in values) for key, values in grid.items()}
    return Sweep(
        name=path.stem,
        path=path,
        question=_question(path),
        base=first.config,
        grid={NAME: plan.NAMES} if plan.NAMES else names,
        seeds=plan.SEEDS,
        tune=tune,
        trials=trials,
        skipped=tuple(skipped),
        space=ranges,
        race=race,
        make=make,
    )


def _whole(
    skipped: Iterable[SkippedCell], cells: Sequence[Cell], ranges: Mapping[str, Range]
) -> list[SkippedCell]:
    """Cells of GRID that no draw can train, once each; and the draws that others cannot take."""

    def of_grid(cell: Mapping[str, object]) -> dict[str, object]:
        return {key: plain(value) for key, value in cell.items() if key not in ranges}

    left = [of_grid(cell) for cell in cells]
    found = [
        one if of_grid(one.cell) in left else replace(one, cell=of_grid(one.cell))
        for one in skipped
    ]
    return list({(one.name, one.reason): one for one in found}.values())


def _tuning(make: Callable[[Mapping[str, object], int], Trial], cell: Cell, seed: int) -> Trial:
    """The training of a third of the length that a cell with numbers of SPACE is judged by."""
    epochs = make(cell, seed).config.TRAINING.HYPER_PARAMETERS.EPOCHS
    shorter = {**cell, _EPOCHS: max(1, round(epochs / 3))}
    return replace(make(shorter, seed), cell=_plain_cell(cell), is_tuning=True)


def tuned_trial(sweep: Sweep, cell: Cell, chosen: Mapping[str, object], seed: int) -> Trial:
    """The training that compares a cell of GRID, with what was chosen within it."""
    return replace(
        sweep.make({**cell, **chosen}, seed), cell=_plain_cell(cell), chosen=dict(chosen)
    )


def write_best(config: Config, path: Path) -> None:
    """Writes a configuration as a file ready to train, its first line the command for it."""
    header = (
        f"# {as_typed('train', path)}\n"
        "# The cell that a sweep recommends. For a training at full size raise\n"
        "# TRAINING.HYPER_PARAMETERS.EPOCHS and TRAINING.NETWORK.FIRST_CHANNEL.\n"
    )
    storage.write_text(path, header + to_yaml(config))


def _cells(axes: Axes, ranges: Mapping[str, Range], tune: Tune) -> list[Cell]:
    """Different cells: those of the grid, each with every draw of the space; what bayes begins with
    is drawn from both.
    """
    draws = tune.trials if ranges else 1
    count = draws if tune.SEARCH == "bayes" else draws * prod(map(len, axes.values()))
    if count > _MOST_CELLS:
        what = "GRID has" if draws == 1 else "GRID and the draws of SPACE have"
        raise InputError(f"{what} {count} cells; give at most {_MOST_CELLS}")
    return list({cell_name(cell): cell for cell in _all_cells(axes, ranges, tune)}.values())


def _all_cells(axes: Axes, ranges: Mapping[str, Range], tune: Tune) -> Iterator[Cell]:
    if tune.SEARCH == "bayes":
        for number in range(min(tune.trials, STARTUP)):
            chosen = {
                key: values[int(spec.uniform_draw(key, number) * len(values))]
                for key, values in axes.items()
            }
            yield chosen | spec.draw(ranges, number)
        return
    for number in range(tune.trials if ranges else 1):
        for values in itertools.product(*axes.values()):
            yield dict(zip(axes, values, strict=True)) | spec.draw(ranges, number)


def _check_cells(
    document: Document, base: Document, every: Sequence[Cell]
) -> tuple[list[Cell], list[SkippedCell]]:
    """The cells that can be trained and those that cannot; problems go to the document."""
    cells: list[Cell] = []
    skipped: list[SkippedCell] = []
    concerned: dict[str, list[Cell]] = {}
    for cell in every:
        built = _build(base, document, cell, seed=0)
        if built.config is not None:
            cells.append(cell)
        elif built.is_only_impossible:
            skipped.append(SkippedCell(cell=_plain_cell(cell), reason="; ".join(built.impossible)))
        else:
            for problem in built.problems:
                concerned.setdefault(problem, []).append(cell)
    for problem, where in concerned.items():
        # A problem of the base is that of every cell: it needs no cell's name.
        part = f" (in {len(where)} of {len(every)} cells, first {cell_name(where[0])})"
        document.problems.append(problem + (part if len(where) < len(every) else ""))
    return cells, skipped


def _build(base: Document, sweep: Document, cell: Mapping[str, object], seed: int) -> Built:
    """The base with a cell's values and a seed in place of its own, checked."""
    document = Document(
        base.source, copy_tree(base.tree), dict(base.places), list(base.problems), set(base.spoiled)
    )
    varied = {key: value for key, value in cell.items() if key != NAME}
    for key, value in {**varied, "TRAINING.SEED": seed}.items():
        set_key(document.tree, key, as_tree(value))
        document.places[key] = sweep.place("GRID." + key)
    return build(document)


def _trial(base: Document, sweep: Document, cell: Mapping[str, object], seed: int) -> Trial:
    built = _build(base, sweep, cell, seed)
    if built.config is None:
        raise InputError(built.problems)
    return Trial(cell=_plain_cell(cell), seed=seed, config=built.config)


def _own_seed(plan: SearchPlan, cell: Cell, seed: int) -> int:
    """The seed itself; where cells have names, one that no other name has."""
    if NAME not in cell:
        return seed
    return seed + plan.NAMES.index(str(cell[NAME])) * (max(plan.SEEDS) + 1)


def _plain_cell(cell: Mapping[str, object]) -> dict[str, object]:
    return {key: plain(value) for key, value in cell.items()}


def _question(path: Path) -> str:
    """The text after "Question:" in the comment that opens the file, up to its next entry."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[str] = []
    for line in itertools.takewhile(lambda line: line.startswith("#"), lines):
        entry = re.match(r"#\s*(\w+):\s*(.*)", line)
        if entry and entry.group(1).lower() == "question":
            found = [entry.group(2)]
        elif found and (entry or line.strip("# ") == ""):
            break
        elif found:
            found.append(line.strip("# "))
    return " ".join(found).strip()
