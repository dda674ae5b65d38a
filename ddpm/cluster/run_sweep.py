"""Sweep from its file to its report: what the ledger lacks is trained on the machines Ray has.

Trials are checked before anything is written, then the sweep's folder is held until all have ended.
Ray Tune trains one round after another (ddpm/cluster/ray_tune.py, open_sweep.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ddpm import report
from ddpm.cluster import status, submit
from ddpm.cluster.open_sweep import (
    OpenSweep,
    levels_by_cell,
    opened,
    problems,
    rounds,
    tail_of,
)
from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.workers import Workers, workers_of_trials
from ddpm.errors import BudgetSpent, DdpmError, InputError, Interrupted, LockedError
from ddpm.report import predicted_cost
from ddpm.runs import remove, watch_runs
from ddpm.sweep import Sweep, Trial, missed_levels

LOOK_S = 2.0  # between looks at the budget


def check(sweep: Sweep) -> tuple[Workers, int]:
    """The workers of each trial and how many trials run side by side; InputError with all that
    keeps any trial from starting.
    """
    found, room = problems(sweep), None
    try:
        room = workers_of_trials(sweep)
    except InputError as error:
        found += error.problems
    if room is None or found:
        raise InputError(list(dict.fromkeys(found)))
    return room


def run(sweep: Sweep, *, should_stop: Callable[[], bool], probe: bool = True) -> int:
    """Run the sweep to its end: 0, or 1 when trials failed. Raises Interrupted when stopped,
    BudgetSpent when it may take no more.

    probe: predict its cost first, where that is short beside it.
    """
    console = Console()
    workers, concurrent = check(sweep)
    with opened(sweep, workers=workers, packed=concurrent > 1) as of:
        _refuse_array_jobs(of)
        remove(of.stop_file)
        print_start(of, f"{len(of.todo())} to run, {concurrent} side by side", console)
        if probe:
            _predict(of, concurrent, console)
        allowance = Allowance(of)
        _train(of, concurrent, allowance, should_stop)
        if of.stop_file.exists() and allowance.spent is None:
            raise Interrupted(f"{of.folder}: stopped; run the same command again to continue")
        allowance.record_unrun()
        code = conclude(of, console)
        if allowance.spent is not None and next(rounds(of), None) is not None:
            raise BudgetSpent(
                f"{of.folder}: trials are left, {allowance.spent}; give a larger TUNE.BUDGET to "
                "continue"
            )
        return code


def _train(
    of: OpenSweep,
    concurrent: int,
    allowance: "Allowance",
    should_stop: Callable[[], bool],
) -> None:
    """Every round that is left. Starts Ray where there is one; shows all trials meanwhile."""
    left = rounds(of)
    one = next(left, None)
    if one is None:
        return
    tails, started = of.tails(), time.monotonic()

    def stops() -> bool:
        tails.extend(map(tail_of, of.trials[len(tails) :]))  # a search has added them
        return should_stop() or allowance.is_over()

    with (
        watch_runs(tails, Console(), should_stop=stops, on_stop=of.stop_file.touch),
        running_ray(concurrent * of.workers.cores),
    ):
        from ddpm.cluster import ray_tune  # Ray is imported once it has its secret

        while (
            one is not None
            and not allowance.is_over()
            and allowance.spent is None
            and not of.stop_file.exists()
        ):
            trials = allowance.allowed(one.trials)
            if trials or one.is_search:
                ray_tune.run_round(of, replace(one, trials=trials), concurrent)
            one = None if of.stop_file.exists() else next(left, None)
    if not of.stop_file.exists() and allowance.spent is None:
        from ddpm.cluster import cost

        cost.add_wall_seconds(of.folder, time.monotonic() - started)


def _predict(of: OpenSweep, concurrent: int, console: Console) -> None:
    """A prediction of a sweep whose trials have not begun and are worth one, kept."""
    from ddpm.cluster import cost

    if any(map(_has_begun, of.pool)) or min(t.steps for t in of.pool) < cost.LEAST_STEPS:
        return
    configs = {trial.trial_id: trial.config for trial in of.trials}
    try:
        cost.keep_forecast(of.folder, configs, of.workers, concurrent, imports=("ray.tune",))
    except DdpmError as error:
        console.print(f"no prediction: {error}", markup=False)


def _refuse_array_jobs(of: OpenSweep) -> None:
    """LockedError while jobs of --cluster wait or run: both would train the same trials.
    InputError where there were some and SLURM cannot say.
    """
    if jobs := submit.living(of.folder):
        raise LockedError(
            f"sweep {of.sweep.name}: job {jobs[0].job} and {len(jobs) - 1} more hold trials of "
            f"it; watch them with --cluster {jobs[0].cluster}, or stop them first"
        )


def _has_begun(trial: Trial) -> bool:
    return status.is_run(Path(trial.run_dir))


class Allowance:
    """TUNE.BUDGET of one command.  spent: why nothing more may run; None while something may."""

    def __init__(self, of: OpenSweep) -> None:
        self._of, self._limits = of, of.sweep.tune.BUDGET
        self._started = self._next = time.monotonic()
        self._is_over = False
        self.spent: str | None = None

    def is_over(self) -> bool:
        """True once what runs must stop: the time is over, looked at every LOOK_S seconds.

        Trials that TUNE.BUDGET.TRIALS has let begin run to their end.
        """
        now, most = time.monotonic(), self._limits.WALL_HOURS
        if not self._is_over and most is not None and now >= self._next:
            self._next = now + LOOK_S
            hours = (now - self._started) / 3600
            if hours >= most:
                self._is_over = True
                self.spent = (
                    f"budget: {hours:.3g} of TUNE.BUDGET.WALL_HOURS's {most:g} wall-hours are spent"
                )
        return self._is_over

    def allowed(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials of a round that TUNE.BUDGET.TRIALS allows: those begun, then new ones."""
        most = self._limits.TRIALS
        if most is None:
            return list(trials)
        room = most - sum(map(_has_begun, self._of.trials))
        new = [trial for trial in trials if not _has_begun(trial)]
        over = {trial.trial_id for trial in new[max(room, 0) :]}
        if over:
            self.spent = f"budget: TUNE.BUDGET.TRIALS allows {most}, all of them begun"
        return [trial for trial in trials if trial.trial_id not in over]

    def record_unrun(self) -> None:
        """The trials that the budget did not suffice for, in the ledger."""
        if self.spent is None:
            return
        known = self._of.ledger.outcomes()
        for trial in self._of.todo():
            old = known.get(trial.trial_id)
            if old is None or old.status == "unrun":
                what = "saved and stopped before its end" if _has_begun(trial) else "not run"
                self._of.ledger.record(trial.outcome.unrun(f"{what}: {self.spent}"))


def print_start(of: OpenSweep, todo: str, console: Console) -> None:
    """The trials to run and the folder of results; the window of log SNR, and a line for each cell
    that does not reach all of it.
    """
    print_skipped(of.sweep, console)
    console.print(f"sweep {of.sweep.name}: {len(of.trials)} trials, {todo}")
    console.print(f"results go to {of.folder}", soft_wrap=True)
    low, high = of.window
    console.print(
        f"errors are averaged over log SNR {low} to {high}, where 1 to 99 % of these images' "
        "variance is resolved",
        soft_wrap=True,
    )
    for name, those in missed_levels(levels_by_cell(of.sweep), of.window).items():
        console.print(
            f"{name} reaches no log SNR of {', '.join(map(str, those))} in it; it is trained and "
            "measured where it is",
            soft_wrap=True,
            markup=False,
        )


def print_skipped(sweep: Sweep, console: Console) -> None:
    """A line for each cell that cannot be trained."""
    for cell in sweep.skipped:
        console.print(f"skipped {cell.name}: {cell.reason}", markup=False)


def conclude(of: OpenSweep, console: Console) -> int:
    """Table, report with best.yaml, and the last lines; 1 when trials failed.

    Interrupted when trials have not ended: another process trains them, or did.
    """
    outcomes, folder = of.ledger.outcomes(), of.folder
    left = [trial.outcome.name for trial in of.trials if trial.trial_id not in outcomes]
    if left:
        raise Interrupted(
            f"{folder}: {len(left)} of {len(of.trials)} trials have not ended, {left[0]} "
            "first; run the same command again to continue"
        )
    failed = [o for t in of.trials if (o := outcomes[t.trial_id]).status == "failed"]
    built = report.build(folder)
    built.print(console)
    for outcome in failed:
        console.print(f"failed: {outcome.name}: {outcome.reason}", soft_wrap=True, markup=False)
    if comparison := predicted_cost(built.sweep):
        console.print(str(comparison), soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {built.html}", soft_wrap=True)
    return 1 if failed else 0
