"""A sweep from its file: pack the data, run what the ledger lacks, end with table and report."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ddpm import config as configuration
from ddpm import reference_lines, report, shards
from ddpm.adapters.ray_cluster import ray_cluster
from ddpm.adapters.ray_tune import Resources, run_trials
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.durable import lock, make_folder, remove, write_json
from ddpm.errors import InputError, Interrupted
from ddpm.ledger import Ledger, Outcome, cell_name
from ddpm.progress import Tail, watch
from ddpm.rundir import RunDirectory
from ddpm.sweep import PlannedTrial, Sweep, write_best
from ddpm.trainer import total_steps
from ddpm.worker import Job, open_data, start_problems
from ddpm.workers import machine, workers_for

# trials of a driver that was killed may take some seconds to die and let go of their locks
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A planned trial that knows its data, its name and its directory."""

    outcome: Outcome
    job: Job
    steps: int


def run(sweep: Sweep, *, should_stop: Callable[[], bool]) -> int:
    """Run the sweep to its end: 0, or 1 when trials failed. Raises Interrupted when stopped."""
    console = Console()
    folder = Path(sweep.base.TRAINING.OUTPUT_DIR).absolute() / "sweeps" / sweep.name
    resources, concurrent = _checked(sweep)
    data = _open_all(sweep)
    trials = [_trial(one, data, resources, concurrent) for one in sweep.trials]
    make_folder(folder)
    with lock(folder / "sweep.lock", f"sweep {sweep.name}"):
        write_json(folder / "sweep.json", _facts(sweep, trials))
        ledger, stop_file = Ledger(folder / "ledger"), folder / "stop"
        remove(stop_file)
        todo = ledger.todo([trial.outcome for trial in trials])
        _announce(sweep, trials, len(todo), concurrent, folder, console)
        evaluation = sweep.base.EVALUATION
        reference_lines.write_references(
            folder, next(iter(data.values())).dataset, seed=evaluation.SEED, num=evaluation.NUM
        )
        if todo:
            _run_todo(sweep, trials, todo, ledger, stop_file, resources, concurrent, should_stop)
        if stop_file.exists():
            raise Interrupted(f"{folder}: stopped; run the same command again to continue")
        return _conclude(sweep, folder, ledger, trials, console)


def dry_run(sweep: Sweep) -> int:
    """Print every cell and what the trials would take; nothing is written, no data is packed."""
    console = Console()
    resources, concurrent = _checked(sweep)
    for trial in sweep.trials:
        console.print(f"{cell_name(trial.cell)} · seed {trial.seed}", markup=False)
    _print_skipped(sweep, console)
    console.print(
        f"would run {len(sweep.trials)} trials, {concurrent} side by side, each with "
        f"{resources.num_workers} worker(s) of {resources.cpus_per_worker} core(s) and "
        f"{resources.gpus_per_worker:g} GPU; nothing was written"
    )
    return 0


def _checked(sweep: Sweep) -> tuple[Resources, int]:
    """As _resources; InputError with all that keeps any trial from starting."""
    found = [problem for t in sweep.trials for problem in shards.source_problems(t.config)]
    found += [problem for t in sweep.trials for problem in start_problems(t.config)]
    if any(t.config.DATASET.VALIDATION_FRACTION == 0 for t in sweep.trials):
        found.append(
            "DATASET.VALIDATION_FRACTION is 0 but a sweep compares trials on validation images; "
            "give a share such as 0.1"
        )
    resources = None
    try:
        resources = _resources(sweep)
    except InputError as error:
        found += error.problems
    if resources is None or found:
        raise InputError(list(dict.fromkeys(found)))
    return resources


def _resources(sweep: Sweep) -> tuple[Resources, int]:
    """What each trial takes, and how many run side by side: as many as there is room for."""
    cluster, gpus, there = sweep.base.CLUSTER, workers_for(sweep.base).gpus, machine()
    count, cores = cluster.NUM_WORKERS or 1, sum(there.cpus)
    # so many trials have room on the GPUs; on a CPU a core each is the best use of the cores
    room = max(1, int(there.num_gpus / (count * gpus))) if gpus else cores
    cpus = cluster.CPUS_PER_WORKER or max(1, min(cores // (room * count), *there.cpus))
    concurrent = min(room, max(1, cores // (count * cpus)))
    if "RAY_ADDRESS" in os.environ:  # the cluster knows its own room, and Tune asks it
        concurrent = len(sweep.trials)
    resources = Resources(num_workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus)
    return resources, min(concurrent, sweep.tune.MAX_CONCURRENT or concurrent)


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
    resources: Resources,
    concurrent: int,
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
        threads=resources.cpus_per_worker,
        command=tuple(sys.argv),
        wait_s=PATIENCE_S,
        packed=concurrent > 1,
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
            }
            for trial in trials
        ],
    }


def _announce(
    sweep: Sweep,
    trials: list[Trial],
    todo: int,
    concurrent: int,
    folder: Path,
    console: Console,
) -> None:
    _print_skipped(sweep, console)
    console.print(
        f"sweep {sweep.name}: {len(trials)} trials, {todo} to run, {concurrent} side by side"
    )
    console.print(f"results go to {folder}", soft_wrap=True)


def _print_skipped(sweep: Sweep, console: Console) -> None:
    for cell in sweep.skipped:
        console.print(f"skipped {cell.name}: {cell.reason}", markup=False)


def _run_todo(
    sweep: Sweep,
    trials: list[Trial],
    todo: list[Outcome],
    ledger: Ledger,
    stop_file: Path,
    resources: Resources,
    concurrent: int,
    should_stop: Callable[[], bool],
) -> None:
    """Start Ray, run, and show all trials meanwhile."""
    tails = [Tail(Path(t.outcome.run_dir), t.outcome.name, t.steps) for t in trials]
    jobs = {trial.outcome.trial: trial.job for trial in trials}
    with (
        watch(tails, Console(), should_stop=should_stop, on_stop=stop_file.touch),
        ray_cluster(concurrent * resources.cores),
    ):
        run_trials(
            todo,
            jobs,
            ledger,
            stop_file,
            sweep=sweep.name,
            resources=resources,
            max_concurrent=concurrent,
            max_failures=sweep.tune.MAX_FAILURES,
        )


def _conclude(
    sweep: Sweep, folder: Path, ledger: Ledger, trials: list[Trial], console: Console
) -> int:
    """Table, report, best.yaml and the last lines; 1 when trials failed."""
    outcomes = ledger.outcomes()
    failed = [o for t in trials if (o := outcomes[t.outcome.trial]).status == "failed"]
    best = report.assess(folder).ranking.recommended
    if best:
        chosen = next(t for t in sweep.trials if dict(t.cell) == dict(best.cell))
        write_best(chosen.config, folder / "best.yaml")
    built = report.build(folder)
    built.print(console)
    for outcome in failed:
        console.print(f"failed: {outcome.name}: {outcome.reason}", soft_wrap=True, markup=False)
    console.print(f"report: {built.html}", soft_wrap=True)
    return 1 if failed else 0
