"""A sweep made ready to run, whatever will run it: checked, its data packed, its trials named, its
folder held.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ddpm import config as configuration
from ddpm import report
from ddpm.config import Config, schedule_arguments
from ddpm.data import Dataset, packing
from ddpm.diffusion import NoiseSchedule
from ddpm.errors import InputError, Interrupted
from ddpm.metrics import MEASURES, USUAL_LEVELS, inception_problems, levels_of, reference
from ddpm.report import page
from ddpm.runs import RunDirectory, Tail, lock, make_folder, read_json, write_json
from ddpm.sampling import open_data, start_problems
from ddpm.sweep import (
    Budget,
    Ledger,
    Outcome,
    PlannedTrial,
    Sweep,
    cell_name,
    comparable,
    is_inside,
    write_best,
)
from ddpm.training import Job, total_steps

# trials of a driver that was killed may take some seconds to die and let go of their locks
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A planned trial that knows its data, its name and its directory.

    steps: optimizer steps of the whole training.  num_train: training images.
    """

    outcome: Outcome
    job: Job
    steps: int
    num_train: int

    def tail(self) -> Tail:
        """Its progress, to be watched."""
        return Tail(Path(self.outcome.run_dir), self.outcome.name, self.steps)


@dataclass(frozen=True, kw_only=True)
class OpenSweep:
    """A sweep whose folder this process holds.

    trials: those to be run, to which a search may add.  pool: all that may be needed.  configs: of
    every trial, by its id.  plan: the trial of a cell and a seed, of the pool or new.
    stop_file: appears when all trials shall save and stop.
    """

    sweep: Sweep
    trials: list[OpenTrial]
    pool: list[OpenTrial]
    configs: dict[str, Config]
    folder: Path
    ledger: Ledger
    plan: Callable[[Mapping[str, object], int], OpenTrial]

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    def todo(self) -> list[OpenTrial]:
        """The trials that are not done, nor stopped early by this search; failed ones are tried
        again.
        """
        settled = ("done", "stopped") if self.sweep.tune.SEARCH == "asha" else ("done",)
        blank = [trial.outcome for trial in self.trials]
        open_ = {outcome.trial for outcome in self.ledger.todo(blank, settled)}
        return [trial for trial in self.trials if trial.outcome.trial in open_]

    def failed(self) -> set[str]:
        """The ids of trials that failed."""
        return {key for key, one in self.ledger.outcomes().items() if one.status == "failed"}

    def add(self, more: Iterable[OpenTrial]) -> None:
        """Adds trials to those to be run."""
        more = list(more)
        self.trials.extend(more)
        if more:
            self.write()

    def replace(self, trial: OpenTrial, config: Config) -> None:
        """Lets a trial go on in another run directory, with another configuration."""
        names = [one.outcome.trial for one in self.trials]
        self.trials[names.index(trial.outcome.trial)] = trial
        self.configs[trial.outcome.trial] = config
        self.write()

    def write(self) -> None:
        """Keeps what the report needs to know in sweep.json."""
        write_json(self.folder / "sweep.json", _facts(self.sweep, self.trials))


@contextmanager
def opened(sweep: Sweep, *, threads: int, packed: bool) -> Iterator[OpenSweep]:
    """The sweep, its data packed, its folder made and held until the block ends.

    threads: CPU threads of a worker.  packed: whether trials share the machine.  LockedError when
    another process holds the folder, InputError with all that does not fit the data.
    """
    folder = folder_of(sweep)
    data = _open_all(sweep)
    configs: dict[str, Config] = {}

    def known(planned: PlannedTrial) -> OpenTrial:
        trial = _trial(planned, data, threads, packed)
        configs[trial.outcome.trial] = planned.config
        return trial

    make_folder(folder)
    with lock(folder / "sweep.lock", f"sweep {sweep.name} in {folder}"):
        # under the lock: run directories that another driver made are found, not named anew
        pool = [known(one) for one in sweep.trials]
        pool += [known(one) for one in _chosen_before(folder, sweep, configs)]
        start = sweep.race.START if sweep.race else None
        result = OpenSweep(
            sweep=sweep,
            trials=[t for t in pool if start is None or t.outcome.seed < start],
            pool=pool,
            configs=configs,
            folder=folder,
            ledger=Ledger(folder / "ledger"),
            plan=lambda cell, seed: known(sweep.make(cell, seed)),
        )
        result.write()
        evaluation = sweep.base.EVALUATION
        reference.write_references(
            folder, next(iter(data.values())).dataset, seed=evaluation.SEED, num=evaluation.NUM
        )
        yield result


def _chosen_before(folder: Path, sweep: Sweep, there: Collection[str]) -> Iterator[PlannedTrial]:
    """The trials that bayes has chosen when this command ran before, as far as they still lie in
    GRID and SPACE.
    """
    if sweep.tune.SEARCH != "bayes":
        return
    (seed,) = sweep.seeds
    for one in read_json(folder / "sweep.json").get("planned", []):
        cell = one["cell"]
        in_grid = all(cell.get(key) in values for key, values in sweep.grid.items())
        same_keys = cell.keys() == {*sweep.grid, *sweep.space}
        if one["trial"] in there or one["seed"] != seed or not same_keys or not in_grid:
            continue
        if is_inside(sweep.space, cell):
            yield sweep.make(cell, seed)


def folder_of(sweep: Sweep) -> Path:
    """Where a sweep's results lie."""
    return Path(sweep.base.TRAINING.OUTPUT_DIR).absolute() / "sweeps" / sweep.name


def print_skipped(sweep: Sweep, console: Console) -> None:
    """A line for each cell that cannot be trained."""
    for cell in sweep.skipped:
        console.print(f"skipped {cell.name}: {cell.reason}", markup=False)


def conclude(opened: OpenSweep, console: Console) -> int:
    """Table, report, best.yaml and the last lines; 1 when trials failed.

    Interrupted when trials have not ended: another process trains them, or did.
    """
    outcomes, folder = opened.ledger.outcomes(), opened.folder
    left = [trial.outcome.name for trial in opened.trials if trial.outcome.trial not in outcomes]
    if left:
        raise Interrupted(
            f"{folder}: {len(left)} of {len(opened.trials)} trials have not ended, {left[0]} "
            "first; run the same command again to continue"
        )
    failed = [o for t in opened.trials if (o := outcomes[t.outcome.trial]).status == "failed"]
    best = report.assess(folder).ranking.recommended
    if best:
        chosen = next(t for t in opened.trials if dict(t.outcome.cell) == dict(best.cell))
        write_best(opened.configs[chosen.outcome.trial], folder / "best.yaml")
    built = report.build(folder)
    built.print(console)
    for outcome in failed:
        console.print(f"failed: {outcome.name}: {outcome.reason}", soft_wrap=True, markup=False)
    if comparison := page.compare(built.sweep):
        console.print(str(comparison), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {built.html}", soft_wrap=True)
    return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class Data:
    """Packed data and the data set they are read as."""

    folder: Path
    dataset: Dataset


def _open_all(sweep: Sweep) -> dict[str, Data]:
    """The data of every trial, packed once; InputError with all that does not fit any of them."""
    opened: dict[str, Data] = {}
    problems: list[str] = []
    for planned in sweep.trials:
        key = _data_key(planned.config)
        if key in opened:
            continue
        try:
            opened[key] = _open(planned.config)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return opened


def _open(config: Config) -> Data:
    folder = packing.prepare(config).folder.absolute()
    return Data(folder=folder, dataset=open_data(config, folder))


def _data_key(config: Config) -> str:
    """Equal for configurations that read the same data in the same way."""
    shape = configuration.image_shape(config)
    return str((config.DATASET, shape, config.TRAINING.NETWORK.NUM_CLASSES, config.TRAINING.SEED))


def _trial(
    planned: PlannedTrial,
    opened: dict[str, Data],
    threads: int,
    packed: bool,
) -> OpenTrial:
    config = planned.config
    key = _data_key(config)
    if key not in opened:
        opened[key] = _open(config)
    data = opened[key]
    identified = planned.identified(data.dataset.sha256)
    directory = RunDirectory.find_or_name(config, data.dataset.sha256)
    outcome = Outcome(
        trial=identified.trial_id,
        cell=dict(planned.cell),
        seed=planned.seed,
        run_dir=str(directory.path.absolute()),
    )
    job = Job(
        config=configuration.to_dict(config),
        run_dir=str(directory.path.absolute()),
        data_dir=str(data.folder),
        threads=threads,
        command=tuple(sys.argv),
        wait_s=PATIENCE_S,
        packed=packed,
    )
    return OpenTrial(
        outcome=outcome,
        job=job,
        steps=total_steps(config.TRAINING, data.dataset.num_train),
        num_train=data.dataset.num_train,
    )


def _facts(sweep: Sweep, trials: list[OpenTrial]) -> dict[str, object]:
    """What the report needs to know of the sweep itself."""
    return {
        "name": sweep.name,
        "question": sweep.question,
        "grid": {key: list(values) for key, values in sweep.grid.items()},
        "seeds": list(sweep.seeds),
        "base": configuration.to_dict(sweep.base),
        "command": sys.argv,
        "skipped": [{"cell": dict(cell.cell), "reason": cell.reason} for cell in sweep.skipped],
        "planned": [
            {
                "trial": trial.outcome.trial,
                "cell": trial.outcome.cell,
                "seed": trial.outcome.seed,
                "run_dir": trial.outcome.run_dir,
                "steps": trial.steps,
            }
            for trial in trials
        ],
    }


# --------
# All that keeps the trials of a sweep from starting, here or as many small jobs.


def problems(sweep: Sweep) -> list[str]:
    """All that keeps any trial from starting."""
    found = [problem for t in sweep.trials for problem in packing.source_problems(t.config)]
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
    if sweep.tune.SEARCH in ("asha", "bayes") and sweep.tune.METRIC in MEASURES:
        schedules = {cell_name(t.cell): schedule_arguments(t.config) for t in sweep.trials}
        reached = ((name, levels_of(NoiseSchedule(**one))) for name, one in schedules.items())
        found += comparable.level_problems(reached, USUAL_LEVELS)
    if sweep.tune.SEARCH == "bayes" and find_spec("optuna") is None:
        found.append(
            "TUNE.SEARCH is bayes but Optuna is not installed; pip install 'ddpm[search]', or give "
            "another SEARCH"
        )
    return list(dict.fromkeys(found))


def only_here(sweep: Sweep) -> list[str]:
    """What needs one process that sees the whole sweep, and so no `--cluster`."""
    wanted = {
        f"TUNE.SEARCH: {sweep.tune.SEARCH}": sweep.tune.SEARCH != "grid",
        "SEEDS: auto": sweep.race is not None,
        "TUNE.BUDGET": sweep.tune.BUDGET != Budget(),
    }
    return [
        f"--cluster trains a fixed list of trials, but the sweep has {name}, which decides while "
        "they train; run it in one allocation: sbatch slurm/sweep.sh SWEEP"
        for name, is_wanted in wanted.items()
        if is_wanted
    ]


def in_words(sweep: Sweep) -> str | None:
    """How many of the trials named beforehand a search comes to run; None where it is all."""
    if sweep.race is not None:
        first = len([trial for trial in sweep.trials if trial.seed < sweep.race.START])
        return (
            f"SEEDS: auto begins with {first} of them, the first {sweep.race.START} seeds, and "
            "adds seeds only where cells cannot be told apart"
        )
    more = max(0, sweep.tune.trials - len(sweep.trials))
    words = {
        "asha": "asha ends most of them early; what is predicted is a bound",
        "bayes": f"bayes chooses {more} more from what these find",
    }
    return words.get(sweep.tune.SEARCH)
