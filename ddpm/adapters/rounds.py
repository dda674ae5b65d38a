"""In what rounds the trials of a sweep are run: one for a grid, asha and bayes, one for each look
of a race, one from exchange to exchange of a population.

Each search is a generator of rounds that reads from the ledger, when it is asked for the next, what
the last has come to. So it goes on wherever the ledger says the sweep is, and whoever runs the
rounds may stop after any of them. Ray is not imported before it is started with its secret.
"""

from collections.abc import Collection, Iterator
from dataclasses import asdict
from math import log10
from typing import Any

from ddpm import durable, report
from ddpm.adapters import pbt
from ddpm.adapters.ray_tune import Search
from ddpm.adapters.round import Round, ladder_of
from ddpm.adapters.sweep_setup import OpenSweep
from ddpm.ledger import cell_name
from ddpm.measures import MEASURES
from ddpm.report.race import look

RACE = "race.json"


def rounds(opened: OpenSweep) -> Iterator[Round]:
    """The rounds that are left of a sweep."""
    if opened.sweep.race is not None:
        return _race(opened)
    searches = {"grid": _grid, "asha": _asha, "pbt": pbt.rounds, "bayes": _bayes}
    return searches[opened.sweep.tune.SEARCH](opened)


def _grid(opened: OpenSweep) -> Iterator[Round]:
    if todo := opened.todo():
        yield Round(trials=todo)


def _asha(opened: OpenSweep) -> Iterator[Round]:
    if not (todo := opened.todo()):
        return
    left = {trial.outcome.trial for trial in todo}
    ended = [trial for trial in opened.trials if trial.outcome.trial not in left]
    tune, verdicts = opened.sweep.tune, opened.folder / "asha"
    durable.make_folder(verdicts)
    for trial in todo:  # of an earlier search, which did not settle it
        durable.remove(verdicts / f"{trial.outcome.trial}.json")
    ladders = {trial.outcome.trial: ladder_of(opened, trial) for trial in opened.trials}
    ladder = ladders[todo[0].outcome.trial]

    def scheduler() -> Any:
        from ddpm.adapters.asha import Halving

        return Halving(ladder, grace=tune.GRACE, reduction=tune.REDUCTION, verdicts=verdicts)

    plain = {name: asdict(one) for name, one in ladders.items()}
    search = Search(scheduler=scheduler, ladders=plain, verdicts=verdicts)
    yield Round(trials=[*ended, *todo], search=search)


def _bayes(opened: OpenSweep) -> Iterator[Round]:
    if not opened.todo() and len(opened.trials) >= opened.sweep.tune.trials:
        return
    (seed,) = opened.sweep.seeds

    def searcher() -> Any:
        from ddpm.adapters.bayes import Bayes

        return Bayes(
            opened.sweep,
            opened.trials,
            opened.ledger,
            plan=lambda cell: opened.plan(cell, seed),
            added=lambda trial: opened.add([trial]),
            is_stopped=opened.stop_file.exists,
        )

    yield Round(trials=[], search=Search(searcher=searcher))


def _race(opened: OpenSweep) -> Iterator[Round]:
    """A round for each look, with the seeds it needs more; what it finds is kept in race.json."""
    race = opened.sweep.race
    assert race is not None
    path, cells = opened.folder / RACE, {cell_name(t.outcome.cell) for t in opened.pool}
    taken = durable.read_json(path).get("looks", [])
    if [one["seeds"] for one in taken] != list(race.looks[: len(taken)]):
        taken = []  # of another START or MAX: what was trained stays, the looks begin anew
    racing: Collection[str] = cells
    for number, count in enumerate(race.looks, 1):
        there = {trial.outcome.trial for trial in opened.trials}
        opened.add(
            trial
            for trial in opened.pool
            if trial.outcome.seed < count
            and cell_name(trial.outcome.cell) in racing
            and trial.outcome.trial not in there
        )
        if todo := opened.todo():
            yield Round(trials=todo)
        if number > len(taken):
            found = look(_numbers(opened, racing), number, len(race.looks), len(cells))
            facts = {"candidates": found.candidates, "racing": found.racing}
            taken.append({"seeds": count, "is_decided": found.is_decided, **facts})
            durable.write_json(path, {"of": len(race.looks), "looks": taken})
        racing = taken[number - 1]["racing"]
        if taken[number - 1]["is_decided"]:
            return


def _numbers(opened: OpenSweep, racing: Collection[str]) -> dict[str, dict[str, dict[int, float]]]:
    """What the cells that race have measured: the report's numbers, compared as logarithms."""
    standings = report.rank(report.read(opened.folder)).standings
    cells = {cell_name(one.cell): one.summaries for one in standings}
    return {
        measure: {
            name: {
                seed: value if measure == MEASURES[0] else log10(value)
                for seed, one in cells.get(name, {}).items()
                if (value := one.value(measure)) > 0 or measure == MEASURES[0]
            }
            for name in racing
        }
        for measure in MEASURES
    }
