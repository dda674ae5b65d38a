"""A sweep made ready to run, whatever will run it: checked, its data packed, its trials named, its
folder held.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ddpm import config as configuration
from ddpm import reference_lines, report, shards
from ddpm.adapters.inception import inception_problems
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.durable import lock, make_folder, write_json
from ddpm.errors import InputError, Interrupted
from ddpm.ledger import Ledger, Outcome
from ddpm.progress import Tail
from ddpm.rundir import RunDirectory
from ddpm.starting import open_data, start_problems
from ddpm.sweep import PlannedTrial, Sweep, write_best
from ddpm.trainer import total_steps
from ddpm.worker import Job

# trials of a driver that was killed may take some seconds to die and let go of their locks
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A planned trial that knows its data, its name and its directory."""

    outcome: Outcome
    job: Job
    steps: int

    def tail(self) -> Tail:
        """Its progress, to be watched."""
        return Tail(Path(self.outcome.run_dir), self.outcome.name, self.steps)


@dataclass(frozen=True, kw_only=True)
class OpenSweep:
    """A sweep whose folder this process holds.

    stop_file: appears when all trials shall save and stop.
    """

    sweep: Sweep
    trials: list[Trial]
    folder: Path
    ledger: Ledger

    @property
    def stop_file(self) -> Path:
        return self.folder / "stop"

    def todo(self) -> list[Trial]:
        """The trials that are not done; failed ones are tried again."""
        open_ = {o.trial for o in self.ledger.todo([trial.outcome for trial in self.trials])}
        return [trial for trial in self.trials if trial.outcome.trial in open_]


def problems(sweep: Sweep) -> list[str]:
    """All that keeps any trial from starting."""
    found = [problem for t in sweep.trials for problem in shards.source_problems(t.config)]
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
    return list(dict.fromkeys(found))


@contextmanager
def opened(sweep: Sweep, *, threads: int, packed: bool) -> Iterator[OpenSweep]:
    """The sweep, its data packed, its folder made and held until the block ends.

    threads: CPU threads of a worker.  packed: whether trials share the machine.  LockedError when
    another process holds the folder, InputError with all that does not fit the data.
    """
    folder = folder_of(sweep)
    data = _open_all(sweep)
    trials = [_trial(one, data, threads, packed) for one in sweep.trials]
    make_folder(folder)
    with lock(folder / "sweep.lock", f"sweep {sweep.name}"):
        write_json(folder / "sweep.json", _facts(sweep, trials))
        evaluation = sweep.base.EVALUATION
        reference_lines.write_references(
            folder, next(iter(data.values())).dataset, seed=evaluation.SEED, num=evaluation.NUM
        )
        yield OpenSweep(sweep=sweep, trials=trials, folder=folder, ledger=Ledger(folder / "ledger"))


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
        chosen = next(t for t in opened.sweep.trials if dict(t.cell) == dict(best.cell))
        write_best(chosen.config, folder / "best.yaml")
    built = report.build(folder)
    built.print(console)
    for outcome in failed:
        console.print(f"failed: {outcome.name}: {outcome.reason}", soft_wrap=True, markup=False)
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
            folder = shards.prepare(planned.config).folder.absolute()
            opened[key] = Data(folder=folder, dataset=open_data(planned.config, folder))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return opened


def _data_key(config: Config) -> str:
    """Equal for configurations that read the same data in the same way."""
    shape = configuration.image_shape(config)
    return str((config.DATASET, shape, config.TRAINING.NETWORK.NUM_CLASSES, config.TRAINING.SEED))


def _trial(
    planned: PlannedTrial,
    opened: Mapping[str, Data],
    threads: int,
    packed: bool,
) -> Trial:
    config = planned.config
    data = opened[_data_key(config)]
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
    return Trial(
        outcome=outcome, job=job, steps=total_steps(config.TRAINING, data.dataset.num_train)
    )


def _facts(sweep: Sweep, trials: list[Trial]) -> dict[str, object]:
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
