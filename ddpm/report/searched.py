"""How a sweep was searched, for its report: what asha ended early, what a population exchanged,
what a race of seeds decided, what the budget left, and what was predicted beside what it took.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from ddpm.ledger import cell_name
from ddpm.report.appendix import table
from ddpm.report.data import Sweep
from ddpm.report.files import Value, mapping, number, read_json, sequence
from ddpm.report.labels import duration, listed, size
from ddpm.report.predicted import compare
from ddpm.report.race import decided_for
from ddpm.report.verdict import Verdict

_SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class Part:
    """A paragraph and the table below it, whose columns in `wrap` are long."""

    text: str
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    wrap: tuple[int, ...] = ()


def section(sweep: Sweep) -> str:
    """The section, empty for a plain grid of which nothing was predicted."""
    return "".join(map(_drawn, parts(sweep)))


def _drawn(part: Part) -> str:
    rows = table(part.head, part.rows, wrap=part.wrap) if part.rows else ""
    return f"<p>{escape(part.text)}</p>{rows}"


def parts(sweep: Sweep) -> list[Part]:
    """What there is to say of the search."""
    found = (_stopped(sweep), _population(sweep), _race(sweep), _unrun(sweep), _predicted(sweep))
    return [part for part in found if part is not None]


def allowed(sweep: Sweep, verdict: Verdict) -> Verdict:
    """The verdict as far as the search allows it.

    Seeds that are added while looking find a winner too easily: after a race only its own intervals
    may name one. The members of a population are no independent trainings of their cells.
    """
    race = _looks(sweep.folder)
    more: tuple[str, ...] = ()
    if race:
        winner = decided_for(race)
        more = (_race_in_words(race),)
        if verdict.kind == "winner" and winner is None:
            verdict = replace(
                verdict, kind="tie", headline="No clear winner: the race of seeds is undecided."
            )
    if _exchanges(sweep.folder):
        more = (_NOT_PAIRED,)
        if verdict.kind == "winner":
            verdict = replace(
                verdict,
                kind="tie",
                headline="No winner is named: the trials of a population share their weights.",
            )
    return replace(verdict, sentences=(*verdict.sentences, *more))


_NOT_PAIRED = (
    "Population based training: trials took over weights and values from each other, so they are "
    "neither paired nor independent, a cell's values are those it began with, and no interval here "
    "speaks of a training from scratch. Train the best values again in a grid to claim anything."
)


def _stopped(sweep: Sweep) -> Part | None:
    ended = sweep.with_status("stopped")
    if not ended:
        return None
    rows = [(cell_name(t.cell), str(t.seed), t.reason or "") for t in ended[:_SHOWN]]
    text = (
        f"asha ended {len(ended)} of {sweep.planned} trials early, each at a rung that all reach "
        "after equally many images, by the measure that the others had there. Only those it let "
        "train to the end are ranked: what is said of them is said of survivors."
    )
    return Part(text=text, head=("cell", "seed", "how it ended"), rows=rows, wrap=(2,))


def _population(sweep: Sweep) -> Part | None:
    lines = _exchanges(sweep.folder)
    names = {trial.name: f"{cell_name(trial.cell)}, seed {trial.seed}" for trial in sweep.trials}
    rows = [
        (
            str(line.get("evaluation")),
            names.get(str(one.get("member")), str(one.get("member"))),
            names.get(str(one.get("donor")), str(one.get("donor"))),
            f"{cell_name(mapping(one.get('before')))} \u2192 {cell_name(mapping(one['values']))}",
        )
        for line in lines
        for one in map(mapping, sequence(line.get("exploits")))
    ]
    if not rows:
        return None
    head = ("evaluation", "member (as it began)", "took the weights of", "its values")
    text = f"{_NOT_PAIRED} {len(rows)} exchanges:"
    return Part(text=text, head=head, rows=rows[:_SHOWN], wrap=(1, 2, 3))


def _race(sweep: Sweep) -> Part | None:
    looks = _looks(sweep.folder)
    if not looks:
        return None
    rows = [
        (str(one.get("seeds")), measure, listed([str(name) for name in sequence(names)]))
        for one in looks
        for measure, names in mapping(one.get("candidates")).items()
    ]
    head = ("after seeds", "by", "may still be the best, the leader first")
    return Part(text=_race_in_words(looks), head=head, rows=rows, wrap=(2,))


def _race_in_words(looks: list[Mapping[str, Value]]) -> str:
    last = looks[-1]
    winner, seeds = decided_for(looks), last.get("seeds")
    if winner is not None:
        how = f"{winner} is told apart from all others by both measures after {seeds} seeds"
    elif last.get("is_decided"):
        how = f"each measure has a best cell of its own after {seeds} seeds"
    else:
        left = sequence(last.get("racing"))
        how = f"after {seeds} seeds {len(left)} cells cannot be told apart"
    return (
        f"Race of seeds: {how} (intervals corrected for the cells and for looking several times, "
        "at most 5 % false winners)."
    )


def _unrun(sweep: Sweep) -> Part | None:
    left = sweep.with_status("unrun")
    if not left:
        return None
    reason = (left[0].reason or "").partition(": ")[2]
    text = f"{len(left)} of {sweep.planned} trials have not been run to their end: {reason}."
    return Part(text=text)


def _predicted(sweep: Sweep) -> Part | None:
    found = compare(sweep)
    if found is None:
        return None
    figures = (
        (found.unit, found.seconds, lambda value: f"{value:,.0f}"),
        ("peak memory of a trial", found.memory_bytes, size),
        ("wall time", found.wall_seconds, duration),
    )
    rows = [
        (what, shown(one[0]), shown(one[1]), f"{100 * (one[1] / one[0] - 1):+.0f} %")
        for what, one, shown in figures
        if one is not None and one[0]
    ]
    text = (
        f"What a probe of a few steps predicted before the first trial, and what {found.trials} "
        f"trials took. Load of the machine when probed: {found.load:.1f}."
    )
    return Part(text=text, head=("", "predicted", "measured", "more"), rows=rows)


def _looks(folder: Path) -> list[Mapping[str, Value]]:
    facts = mapping(read_json(folder / "race.json"))
    return [mapping(one) for one in sequence(facts.get("looks")) if number(facts.get("of", 0))]


def _exchanges(folder: Path) -> list[Mapping[str, Value]]:
    """The whole lines of population.jsonl."""
    path = folder / "population.jsonl"
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [mapping(json.loads(line)) for line in whole.splitlines()]
