"""Sweep that this process runs: its trials with their data and run directories, and the rounds in
which they are trained.

A round is a set of trials to train: all of a grid, those of asha or bayes, one look of a race of
seeds. Which trials are next follows from the ledger alone, so a sweep goes on wherever the ledger
says it is.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from ddpm import config as configuration
from ddpm import report
from ddpm.cluster.workers import Workers
from ddpm.config import Config, schedule_arguments
from ddpm.data import Dataset, open_data, open_source, preparing
from ddpm.diffusion import NoiseSchedule
from ddpm.errors import InputError
from ddpm.metrics import (
    LogSnrWindow,
    data_window,
    inception_problems,
    logsnr_levels,
    training_weights,
    write_references,
)
from ddpm.report import RACE_FILE, left_in_race, race_candidates
from ddpm.runs import RunDirectory, Tail, lock, make_folder, read_json, write_json
from ddpm.sampling import start_problems
from ddpm.sweep import (
    SWEEP_FILE,
    Budget,
    Ladder,
    Ledger,
    Sweep,
    Trial,
    cell_name,
    is_inside,
    tuned_trial,
    window_problems,
)
from ddpm.tracking import wandb_problems
from ddpm.training import steps_per_epoch, total_steps

WITHIN = "within.json"
_FEW_IMAGES = 20_000  # packed for a look
_MOST_DRAWN = 100  # cells whose weights by noise level are kept for a chart


@dataclass(kw_only=True)
class OpenSweep:
    """A sweep whose folder this process has locked.

    trials: those to be run, to which a search may add.  pool: all that may be needed.  workers: of
    each.  packed: whether trials share the machine.  data: by data_key().  window: of
    log SNR, over which the errors of every cell are averaged, whatever cells there are.
    """

    sweep: Sweep
    folder: Path
    workers: Workers
    packed: bool
    data: dict[str, Dataset]
    window: LogSnrWindow
    trials: list[Trial] = field(default_factory=list)
    pool: list[Trial] = field(default_factory=list)

    @cached_property
    def ledger(self) -> Ledger:
        """Outcomes of the trials, those of every process that has worked on the sweep."""
        return Ledger(self.folder / "ledger")

    @property
    def stop_file(self) -> Path:
        """Appears when all trials shall save and stop."""
        return self.folder / "stop"

    def todo(self) -> list[Trial]:
        """The trials that are not done, nor stopped early by this search; failed ones are tried
        again.
        """
        settled = ("done", "stopped") if self.sweep.tune.SEARCH == "asha" else ("done",)
        return self.ledger.todo(self.trials, settled)

    def add(self, more: Iterable[Trial]) -> None:
        """Adds trials to those to be run, in sweep.json too."""
        self.trials.extend(more)
        write_json(self.folder / SWEEP_FILE, _facts(self.sweep, self.trials, self.window))

    def with_run_dir(self, planned: Trial) -> Trial:
        """A planned trial with its data, its id and its run directory."""
        config, key = planned.config, data_key(planned.config)
        if key not in self.data:
            self.data[key] = _open(config)
        data = self.data[key]
        assert data.index is not None  # it is of shards
        run = RunDirectory.find_or_name(config, data.sha256)
        return replace(
            planned.identified(data.sha256),
            run_dir=str(run.path.absolute()),
            data_dir=str(data.index.folder.absolute()),
            steps=total_steps(config.TRAINING, data.num_train),
            num_train=data.num_train,
        )

    def tails(self) -> list[Tail]:
        """The progress of every trial, to be watched."""
        return [tail_of(trial) for trial in self.trials]


def tail_of(trial: Trial) -> Tail:
    """The progress of a trial, to be watched."""
    return Tail(Path(trial.run_dir), trial.outcome.name, trial.steps)


@contextmanager
def opened(sweep: Sweep, *, workers: Workers, packed: bool) -> Iterator[OpenSweep]:
    """The sweep, its data packed, its folder made and locked until the block ends.

    LockedError when another process holds the folder, InputError with all that does not fit the
    data.
    """
    folder = folder_of(sweep)
    data = _data_of(sweep)
    window = data_window(next(iter(data.values())))
    _require_window(sweep, window)
    of = OpenSweep(
        sweep=sweep, folder=folder, workers=workers, packed=packed, data=data, window=window
    )
    make_folder(folder)
    with lock(folder / "sweep.lock", f"sweep {sweep.name} in {folder}"):
        # under the lock: run directories that another driver made are found, not named anew
        of.pool = [of.with_run_dir(one) for one in sweep.trials]
        there = {trial.trial_id for trial in of.pool}
        of.pool += [of.with_run_dir(one) for one in _chosen_before(folder, sweep, there)]
        if sweep.race is None:  # SEEDS have become a list: what an earlier race left holds no more
            (folder / RACE_FILE).unlink(missing_ok=True)
        start = sweep.race.START if sweep.race else None
        of.add(t for t in of.pool if start is None or t.seed < start)
        evaluation, dataset = sweep.base.EVALUATION, next(iter(of.data.values()))
        write_references(folder, dataset, seed=evaluation.SEED, num=evaluation.NUM)
        yield of


def folder_of(sweep: Sweep) -> Path:
    """The folder of a sweep's results."""
    return Path(sweep.base.TRAINING.OUTPUT_DIR).absolute() / "sweeps" / sweep.name


def levels_by_cell(sweep: Sweep) -> dict[str, tuple[int, ...]]:
    """The levels of log SNR that the schedule of each cell reaches; where numbers are chosen within
    a cell, with every draw of them.
    """
    found: dict[str, tuple[int, ...]] = {}
    for cell, config in {cell_name(t.cell): (t.cell, t.config) for t in sweep.trials}.values():
        name = cell_name(cell if sweep.tune.WITHIN is None else of_grid(sweep, cell))
        levels = logsnr_levels(NoiseSchedule(**schedule_arguments(config)))
        found[name] = tuple(one for one in found.get(name, levels) if one in levels)
    return found


def of_grid(sweep: Sweep, cell: Mapping[str, object]) -> dict[str, object]:
    """A cell without the numbers of SPACE."""
    return {key: value for key, value in cell.items() if key not in sweep.space}


def all_configs(sweep: Sweep) -> list[Config]:
    """The configurations of all trainings; where numbers are chosen within cells, those of the
    comparison with the first draw.
    """
    found = [trial.config for trial in sweep.trials]
    if sweep.tune.WITHIN is None:
        return found
    first = {cell_name(of_grid(sweep, trial.cell)): trial.cell for trial in reversed(sweep.trials)}
    compared = (sweep.make(cell, seed) for cell in first.values() for seed in sweep.seeds)
    return [*found, *(trial.config for trial in compared)]


def check_window(sweep: Sweep) -> None:
    """InputError where cells cannot be measured over the window of the data, found without writing
    anything. Large data that are not packed yet pass: their window only a sweep finds.
    """
    config = sweep.trials[0].config
    index = preparing.found(config)
    if index is not None:
        window = data_window(open_data(config, index.folder.absolute()))
    elif open_source(config.DATASET.PATH, config.DATASET.LABEL_KEY).num_samples > _FEW_IMAGES:
        return
    else:
        with TemporaryDirectory() as folder:
            training = replace(config.TRAINING, OUTPUT_DIR=folder)
            index = preparing.prepare(replace(config, TRAINING=training))
            window = data_window(open_data(config, index.folder.absolute()))
    _require_window(sweep, window)


def _require_window(sweep: Sweep, window: LogSnrWindow) -> None:
    if problems := window_problems(levels_by_cell(sweep), window, sweep.tune):
        raise InputError(problems)


def data_key(config: Config) -> str:
    """Equal for configurations that read the same data in the same way."""
    shape = configuration.image_shape(config)
    return str((config.DATASET, shape, config.TRAINING.NETWORK.NUM_CLASSES, config.TRAINING.SEED))


def _open(config: Config) -> Dataset:
    return open_data(config, preparing.prepare(config).folder.absolute())


def _data_of(sweep: Sweep) -> dict[str, Dataset]:
    """The data of every trial, packed once; InputError with all that does not fit any of them."""
    found: dict[str, Dataset] = {}
    problems: list[str] = []
    for config in {data_key(trial.config): trial.config for trial in sweep.trials}.values():
        try:
            found[data_key(config)] = _open(config)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return found


def _chosen_before(folder: Path, sweep: Sweep, there: Collection[str]) -> Iterator[Trial]:
    """The trials that bayes has chosen when this command ran before, as far as they still lie in
    GRID and SPACE.
    """
    if sweep.tune.SEARCH != "bayes":
        return
    (seed,) = sweep.seeds
    for one in read_json(folder / SWEEP_FILE).get("planned", []):
        cell = one["cell"]
        in_grid = all(cell.get(key) in values for key, values in sweep.grid.items())
        same_keys = cell.keys() == {*sweep.grid, *sweep.space}
        if one["trial"] in there or one["seed"] != seed or not same_keys or not in_grid:
            continue
        if is_inside(sweep.space, cell):
            yield sweep.make(cell, seed)


def _facts(sweep: Sweep, trials: Sequence[Trial], window: LogSnrWindow) -> dict[str, object]:
    """sweep.json: the sweep itself, for its report."""
    return {
        "name": sweep.name,
        "question": sweep.question,
        "grid": {key: list(values) for key, values in sweep.grid.items()},
        "seeds": list(sweep.seeds),
        "window": list(window),
        "base": configuration.to_dict(sweep.base),
        "weights": _weights(trials, window),
        "space": {key: [one.low, one.high] for key, one in sweep.space.items()},
        "command": sys.argv,
        "skipped": [{"cell": dict(cell.cell), "reason": cell.reason} for cell in sweep.skipped],
        "planned": [
            {
                "trial": trial.trial_id,
                "cell": dict(trial.cell),
                "seed": trial.seed,
                "run_dir": trial.run_dir,
                "steps": trial.steps,
                **({"is_tuning": True} if trial.is_tuning else {}),
                **({"chosen": dict(trial.chosen)} if trial.chosen else {}),
            }
            for trial in trials
        ],
    }


def _weights(trials: Sequence[Trial], window: LogSnrWindow) -> list[dict[str, object]]:
    """training_weights() of each cell that is compared, a few levels beyond the window too."""
    configs = {cell_name(t.cell): (t.cell, t.config) for t in trials if not t.is_tuning}
    if len(configs) > _MOST_DRAWN:
        return []
    found: list[dict[str, object]] = []
    for cell, config in configs.values():
        by_level = training_weights(config)
        near = {k: v for k, v in by_level.items() if window[0] - 3 <= k <= window[1] + 3}
        found.append({"cell": dict(cell), "levels": list(near), "weights": list(near.values())})
    return found


@dataclass(frozen=True, kw_only=True)
class Round:
    """Trials to train.  ladders: by trial id the evaluations at which asha may end it, of ended
    trials too.  is_search: whether bayes chooses more.
    """

    trials: Sequence[Trial]
    ladders: Mapping[str, Ladder] = field(default_factory=dict)
    is_search: bool = False


def rounds(of: OpenSweep) -> Iterator[Round]:
    """The rounds that are left of a sweep; the next one follows from what the last has come to."""
    tune = of.sweep.tune
    if of.sweep.race is not None:
        yield from _race(of)
    elif tune.WITHIN is not None:
        yield from _within(of)
    elif tune.SEARCH == "bayes":
        if of.todo() or len(of.trials) < tune.trials:
            yield Round(trials=[], is_search=True)
    elif todo := of.todo():
        if tune.SEARCH == "asha":
            left = {trial.trial_id for trial in todo}
            ended = [trial for trial in of.trials if trial.trial_id not in left]
            ladders = {trial.trial_id: _ladder(trial, tune.METRIC) for trial in of.trials}
            yield Round(trials=[*ended, *todo], ladders=ladders)
        else:
            yield Round(trials=todo)


def _within(of: OpenSweep) -> Iterator[Round]:
    """The trainings that choose within each cell, then those that compare cells at their best.

    What was chosen is kept in within.json: a trial that is tried again does not change it, but a
    cell in which none had ended gets its choice.
    """
    path = of.folder / WITHIN
    tuning, kept = sorted(t.trial_id for t in of.trials if t.is_tuning), read_json(path)
    cells = kept["cells"] if kept.get("tuning") == tuning else []  # else of another GRID or SPACE
    if todo := [trial for trial in of.todo() if trial.is_tuning]:
        yield Round(trials=todo)
        if _was_cut(of, todo):
            return
    if todo or not cells:
        there = [one["cell"] for one in cells]
        found = report.chosen_within(report.read_results(of.folder))
        cells = [*cells, *(one for one in found if one["cell"] not in there)]
        write_json(path, {"tuning": tuning, "cells": cells})
    planned = [
        of.with_run_dir(tuned_trial(of.sweep, one["cell"], one["chosen"], seed))
        for seed in of.sweep.seeds
        for one in cells
    ]
    known = {trial.trial_id for trial in of.trials}
    of.add(trial for trial in planned if trial.trial_id not in known)
    wanted = {trial.trial_id for trial in planned}
    if todo := [trial for trial in of.todo() if trial.trial_id in wanted]:
        yield Round(trials=todo)


def _was_cut(of: OpenSweep, trials: Collection[Trial]) -> bool:
    """Whether some have no outcome, for want of budget or by a stop: nothing is then chosen or
    looked at, since both are kept.
    """
    outcomes = of.ledger.outcomes()
    return any(
        (one := outcomes.get(trial.trial_id)) is None or one.status == "unrun" for trial in trials
    )


def _ladder(trial: Trial, metric: str) -> Ladder:
    every = trial.config.EVALUATION.EVERY
    assert every is not None  # ddpm/sweep/comparable.py requires it
    steps = every * steps_per_epoch(trial.config.TRAINING, trial.num_train)
    return Ladder(metric=metric, every=steps, total=trial.steps)


def _race(of: OpenSweep) -> Iterator[Round]:
    """A round for each look, with the seeds it needs more; its findings are kept in race.json."""
    race = of.sweep.race
    assert race is not None
    path, cells = of.folder / RACE_FILE, {cell_name(t.cell) for t in of.pool}
    kept = read_json(path)
    taken = kept.get("looks", []) if kept.get("cells") == sorted(cells) else []
    if [one["seeds"] for one in taken] != list(race.looks[: len(taken)]):
        taken = []  # of another START or MAX: what was trained stays, the looks begin anew
    racing: Collection[str] = cells
    for number, count in enumerate(race.looks, 1):
        there = {trial.trial_id for trial in of.trials}
        of.add(
            trial
            for trial in of.pool
            if trial.seed < count
            and cell_name(trial.cell) in racing
            and trial.trial_id not in there
        )
        if todo := of.todo():
            yield Round(trials=todo)
            if _was_cut(of, todo):
                return
        if number > len(taken):
            found = race_candidates(_numbers(of, racing), number, len(race.looks), len(cells))
            left = left_in_race(found)
            facts = {"candidates": found, "racing": left}
            taken.append({"seeds": count, "is_decided": len(left) <= 1, **facts})
            write_json(path, {"of": len(race.looks), "cells": sorted(cells), "looks": taken})
        racing = taken[number - 1]["racing"]
        if taken[number - 1]["is_decided"]:
            return


def _numbers(of: OpenSweep, racing: Collection[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Measure -> racing cell -> seed -> the report's number, errors as logarithms."""
    ranking = report.rank(report.read_results(of.folder))
    cells = {cell_name(one.cell): one.numbers for one in ranking.standings}
    return {
        measure: {
            name: {seed: one.log10 for seed, one in cells.get(name, {}).get(measure, {}).items()}
            for name in racing
        }
        for measure in ranking.measures
    }


def problems(sweep: Sweep) -> list[str]:
    """All that keeps any trial from starting, here or as a small job."""
    found = preparing.source_problems(*(t.config for t in sweep.trials)) + wandb_problems()
    found += [problem for t in sweep.trials for problem in start_problems(t.config)]
    measured_by = {
        (t.config.EVALUATION.FEATURES, t.config.EVALUATION.WEIGHTS): t.config for t in sweep.trials
    }
    found += [problem for config in measured_by.values() for problem in inception_problems(config)]
    if any(t.config.DATASET.VALIDATION_FRACTION == 0 for t in sweep.trials):
        found.append(
            "DATASET.VALIDATION_FRACTION is 0 but a sweep compares trials on validation images; "
            "give a share such as 0.1"
        )
    if sweep.tune.SEARCH == "bayes" and find_spec("optuna") is None:
        found.append(
            "TUNE.SEARCH is bayes but Optuna is not installed; pip install 'ddpm[search]', or give "
            "another SEARCH"
        )
    return list(dict.fromkeys(found))


def only_here(sweep: Sweep) -> list[str]:
    """Parts of a sweep that need one process that sees all of it, and so no `--cluster`."""
    wanted = {
        f"TUNE.SEARCH: {sweep.tune.SEARCH}": sweep.tune.SEARCH != "grid",
        "SEEDS: auto": sweep.race is not None,
        "TUNE.WITHIN: cell": sweep.tune.WITHIN is not None,
        "TUNE.BUDGET": sweep.tune.BUDGET != Budget(),
    }
    return [
        f"--cluster trains a fixed list of trials, but the sweep has {name}, which decides while "
        "they train; run it in one allocation: sbatch slurm/sweep.sh SWEEP"
        for name, is_wanted in wanted.items()
        if is_wanted
    ]


def in_words(sweep: Sweep) -> str | None:
    """Share of the trials named beforehand that a search comes to run; None where it is all."""
    if sweep.race is not None:
        first = len([trial for trial in sweep.trials if trial.seed < sweep.race.START])
        return (
            f"SEEDS: auto begins with {first} of them, the first {sweep.race.START} seeds, and "
            "adds seeds only where cells cannot be told apart"
        )
    if sweep.tune.WITHIN is not None:
        cells = {cell_name(of_grid(sweep, trial.cell)) for trial in sweep.trials}
        chosen = ", ".join(key.rsplit(".", 1)[-1] for key in sweep.space)
        return (
            f"they choose {chosen} within each cell at a third of the length; then "
            f"{len(cells) * len(sweep.seeds)} trainings of the whole length compare the cells"
        )
    more = max(0, sweep.tune.trials - len(sweep.trials))
    words = {
        "asha": "asha ends most of them early; what is predicted is a bound",
        "bayes": f"bayes chooses {more} more from what these find",
    }
    return words.get(sweep.tune.SEARCH)
