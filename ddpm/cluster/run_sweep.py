"""A sweep on the machines that Ray has: run what the ledger lacks, end with table and report."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ddpm.cluster import cost, submit, sweep_setup
from ddpm.cluster import sweep_setup as sweep_checks
from ddpm.cluster.cost import Meter, begun, machine, workers_for
from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.ray_tune import Round, rounds, run_trials
from ddpm.cluster.run_trial import Resources
from ddpm.cluster.sweep_setup import OpenSweep, OpenTrial
from ddpm.errors import BudgetSpent, DdpmError, InputError, Interrupted, LockedError
from ddpm.runs import remove, watch
from ddpm.sweep import Sweep


def run(
    sweep: Sweep,
    *,
    should_stop: Callable[[], bool],
    probe: bool = True,
) -> int:
    """Run the sweep to its end: 0, or 1 when trials failed. Raises Interrupted when stopped,
    BudgetSpent when it may take no more.

    probe: predict first what it takes, where that is short beside it.
    """
    console = Console()
    resources, concurrent = checked(sweep)
    threads = resources.cpus_per_worker
    with sweep_setup.opened(sweep, threads=threads, packed=concurrent > 1) as opened:
        _refuse_array_jobs(opened)
        remove(opened.stop_file)
        todo = opened.todo()
        sweep_setup.print_skipped(sweep, console)
        console.print(
            f"sweep {sweep.name}: {len(opened.trials)} trials, {len(todo)} to run, {concurrent} "
            "side by side"
        )
        console.print(f"results go to {opened.folder}", soft_wrap=True)
        if probe:
            _predict(opened, resources, concurrent, console)
        meter = Meter(
            sweep.tune.BUDGET, lambda: [Path(t.outcome.run_dir) for t in list(opened.trials)]
        )
        crew = Crew(opened, resources, concurrent, meter)
        crew.run(should_stop)
        if opened.stop_file.exists() and crew.spent is None:
            raise Interrupted(f"{opened.folder}: stopped; run the same command again to continue")
        crew.record_unrun()
        code = sweep_setup.conclude(opened, console)
        if crew.spent is not None and next(rounds(opened), None) is not None:
            raise BudgetSpent(
                f"{opened.folder}: trials are left, {crew.spent}; give a larger TUNE.BUDGET to "
                "continue"
            )
        return code


class Crew:
    """Runs the rounds of a sweep within its budget."""

    def __init__(
        self, opened: OpenSweep, resources: Resources, concurrent: int, meter: Meter
    ) -> None:
        self._opened, self._resources, self._concurrent = opened, resources, concurrent
        self._meter = meter
        self.spent: str | None = None

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Every round that is left. Starts Ray where there is one; shows all trials meanwhile."""
        opened = self._opened
        left = rounds(opened)
        first, self.spent = next(left, None), self._meter.spent()
        if first is None or self.spent:
            return
        tails, started = [trial.tail() for trial in opened.trials], time.monotonic()

        def stops() -> bool:
            for trial in opened.trials[len(tails) :]:  # a search has added them
                tails.append(trial.tail())
            self.spent = self.spent or self._meter.spent()
            return should_stop() or self.spent is not None

        with (
            watch(tails, Console(), should_stop=stops, on_stop=opened.stop_file.touch),
            running_ray(self._concurrent * self._resources.cores),
        ):
            round_: Round | None = first
            while round_ is not None and self.spent is None and not opened.stop_file.exists():
                self._run_round(round_)
                round_ = None if opened.stop_file.exists() else next(left, None)
        if not opened.stop_file.exists() and self.spent is None:
            cost.finish(opened.folder, time.monotonic() - started)

    def _run_round(self, one: Round) -> None:
        trials, tune = self._affordable(one), self._opened.sweep.tune
        if trials or one.search.searcher:
            run_trials(
                [trial.outcome for trial in trials],
                {trial.outcome.trial: trial.job for trial in trials},
                self._opened.ledger,
                self._opened.stop_file,
                sweep=self._opened.sweep.name,
                resources=self._resources,
                max_concurrent=self._concurrent,
                max_failures=tune.MAX_FAILURES,
                search=one.search,
            )

    def _affordable(self, one: Round) -> list[OpenTrial]:
        """The trials of a round that TUNE.BUDGET.TRIALS allows: those begun, then new ones."""
        most = self._opened.sweep.tune.BUDGET.TRIALS
        if most is None:
            return list(one.trials)
        room = most - begun(Path(trial.outcome.run_dir) for trial in self._opened.trials)
        new = [t for t in one.trials if not begun([Path(t.outcome.run_dir)])]
        over = {trial.outcome.trial for trial in new[max(room, 0) :]}
        if over:
            self.spent = f"budget: TUNE.BUDGET.TRIALS allows {most}, all of them begun"
        return [trial for trial in one.trials if trial.outcome.trial not in over]

    def record_unrun(self) -> None:
        """Says in the ledger what the budget did not suffice for."""
        if self.spent is None:
            return
        for trial in self._opened.todo():
            old = self._opened.ledger.outcomes().get(trial.outcome.trial)
            if old is None or old.status == "unrun":
                has_begun = begun([Path(trial.outcome.run_dir)])
                what = "saved and stopped before its end" if has_begun else "not run"
                self._opened.ledger.record(trial.outcome.unrun(f"{what}: {self.spent}"))


def _predict(opened: OpenSweep, resources: Resources, concurrent: int, console: Console) -> None:
    """Keeps a prediction of a sweep whose trials have not begun and are worth one."""
    trials, workers = opened.pool, resources.workers()
    has_begun = begun(Path(trial.outcome.run_dir) for trial in trials)
    if has_begun or min(trial.steps for trial in trials) < cost.LEAST_STEPS:
        return
    configs = {t.outcome.trial: opened.configs[t.outcome.trial] for t in opened.trials}
    try:
        cost.make(opened.folder, configs, workers, concurrent, imports=("ray.tune",))
    except DdpmError as error:
        console.print(f"no prediction: {error}", markup=False)


def _refuse_array_jobs(opened: OpenSweep) -> None:
    """LockedError while jobs of --cluster wait or run: both would train the same trials."""
    jobs = submit.living_jobs(submit.read_jobs(opened.folder))
    if jobs:
        raise LockedError(
            f"sweep {opened.sweep.name}: job {jobs[0].job} and {len(jobs) - 1} more hold trials of "
            f"it; watch them with --cluster {jobs[0].cluster}, or stop them first"
        )


def checked(sweep: Sweep) -> tuple[Resources, int]:
    """As room(); InputError with all that keeps any trial from starting."""
    found, resources = sweep_checks.problems(sweep), None
    try:
        resources = room(sweep)
    except InputError as error:
        found += error.problems
    if resources is None or found:
        raise InputError(list(dict.fromkeys(found)))
    return resources


def room(sweep: Sweep) -> tuple[Resources, int]:
    """What each trial takes, and how many run side by side: as many as there is room for."""
    cluster, gpus, there = sweep.base.CLUSTER, workers_for(sweep.base).gpus, machine()
    count, cores = cluster.NUM_WORKERS or 1, sum(there.cpus)
    # so many trials have room on the GPUs; on a CPU a core each is the best use of the cores
    room = max(1, int(there.num_gpus / (count * gpus))) if gpus else cores
    cpus = cluster.CPUS_PER_WORKER or max(1, min(cores // (room * count), *there.cpus))
    concurrent = min(room, max(1, cores // (count * cpus)))
    if "RAY_ADDRESS" in os.environ:  # the cluster knows its own room, and Tune asks it
        concurrent = max(len(sweep.trials), sweep.tune.trials)
    resources = Resources(num_workers=count, cpus_per_worker=cpus, gpus_per_worker=gpus)
    return resources, min(concurrent, sweep.tune.MAX_CONCURRENT or concurrent)
