"""Two sections of the page: differences between cells, and what each factor of the grid does."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path

import numpy as np

from ddpm.metrics import MEASURES
from ddpm.report import best_samples, figures, strips
from ddpm.report.charts import table
from ddpm.report.costs import cost, speed
from ddpm.report.effects import Analysis, Comparison, Gap, Term, against, against_baseline, analyse
from ddpm.report.race import decided_for
from ddpm.report.ranking import (
    Axes,
    Ranking,
    Standing,
    axes_of,
    cell_label,
    duration,
    listed,
    number_with_error,
    part,
    signed,
    size,
    spoken,
    text,
    varied,
)
from ddpm.report.reading import (
    SweepResults,
    TrialResult,
    Value,
    mapping,
    number,
    read_json,
    sequence,
)
from ddpm.report.strips import sample_grid, shown_trials
from ddpm.report.verdict import (
    NAMES,
    Conclusion,
    apart,
    commit,
    differences,
    flags,
    is_confounded,
    pairing,
    probability,
    sentences,
)
from ddpm.sweep import cell_name

_MANY = 60  # rows shown at once; the rest is folded
OUTCOMES = {
    "higher": "higher by both",
    "lower": "lower by both",
    "mixed": "by one measure only",
    "level": "cannot be told apart",
}


@dataclass(frozen=True, kw_only=True)
class Against:
    """All cells against one of them: a sentence before the table, and the table's caption."""

    lead: str
    caption: str
    found: tuple[Comparison, ...]


def differences_section(ranking: Ranking) -> str:
    """Every cell against the lowest, and against the baseline; "" where nothing is compared."""
    if len(ranking.standings) < 2:
        return ""
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in of_pairs(ranking))
    tables = "".join(map(_against, compared(ranking)))
    return told + tables + _note(ranking)


def of_pairs(ranking: Ranking) -> list[str]:
    """What pairing by seed does to the intervals, and which cells scatter more than the others."""
    return list(filter(None, [pairing(ranking), _second_ratio(ranking), apart(ranking)]))


def compared(ranking: Ranking) -> list[Against]:
    """Against the lowest, then against the baseline where one was named."""
    best = ranking.standings[0]
    found = [
        Against(
            lead="",
            caption=f"Against {best.label}, the lowest {NAMES[MEASURES[0]]}. Intervals hold at 95 "
            "% for all pairs of cells together (Tukey), as the data have picked the cell",
            found=against(ranking, best, "pairs"),
        )
    ]
    if ranking.baseline is not None:
        base = ranking.standings[ranking.baseline]
        caption = (
            f"Against {base.label}, the baseline that was named. Intervals hold at 95 % for all of "
            "its comparisons together (Dunnett)"
        )
        rows = against(ranking, base, "baseline")
        found.append(Against(lead=against_baseline(ranking), caption=caption, found=rows))
    return found


def _second_ratio(ranking: Ranking) -> str:
    found = ranking.spread(MEASURES[1])
    if found is None or not np.isfinite(found.ratio):
        return ""
    kind = "paired" if found.is_paired else "unpaired"
    return f"For the {NAMES[MEASURES[1]]} it is {found.ratio:.2f} times; intervals are {kind}."


def basis(ranking: Ranking) -> str:
    """What the numbers of a difference are."""
    one_seed = (
        "One seed: \u00b1 is evaluation error over validation pairs and speaks of these trained "
        "networks only. "
        if ranking.spread(MEASURES[0]) is None
        else ""
    )
    return f"{one_seed}Differences are of log10: 0.1 is an error 26 % larger."


def _note(ranking: Ranking) -> str:
    return (
        f"<p class='note'>{basis(ranking)} <em>Paired "
        "/ unpaired</em>: variance of the difference over the seeds both cells have, as a share of "
        "what it would be if the seeds had nothing in common; from few seeds it is rough.</p>"
    )


def _against(one: Against) -> str:
    with_ratio = any(np.isfinite(row.ratios[MEASURES[0]]) for row in one.found)
    rows = [_row(row, with_ratio) for row in one.found]
    ratio = "<th>paired /<br>unpaired</th>" if with_ratio else ""
    head = (
        f"<caption>{escape(one.caption)}</caption><thead><tr><th class='left'>cell</th>"
        f"<th>{NAMES[MEASURES[0]]}</th><th>x0-error</th><th>log10 of<br>{NAMES[MEASURES[1]]}</th>"
        f"{ratio}<th class='left'>difference</th></tr></thead>"
    )
    lead = f"<p>{escape(one.lead)}</p>" if one.lead else ""
    html = lead + _table(head, rows[:_MANY])
    if len(rows) > _MANY:
        rest = _table(head, rows[_MANY:])
        html += f"<details><summary>{len(rows) - _MANY} more cells</summary>{rest}</details>"
    return html


def _table(head: str, rows: Sequence[str]) -> str:
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f"<div class='scroll'><table class='ranking'>{head}{body}</table></div>"


def _row(one: Comparison, with_ratio: bool) -> str:
    first, second = (one.gaps[measure] for measure in MEASURES)
    ratio = f"<td>{_plain(one.ratios[MEASURES[0]], 2)}</td>" if with_ratio else ""
    return (
        f"<tr><th scope='row'>{escape(one.standing.label)}</th><td>{_difference(first)}</td>"
        f"<td>{ratio_text(10**first.mean)}</td><td>{_difference(second)}</td>"
        f"{ratio}<td class='left'>{OUTCOMES[one.outcome]}</td></tr>"
    )


def _difference(gap: Gap) -> str:
    value, width = number_with_error(gap.mean, gap.half_width)
    return f'{value} <span class="error">\u00b1 {width}</span>'


def ratio_text(ratio: float) -> str:
    """`+3.1 %`; from twice the error on, times how much it is."""
    if ratio >= 2:
        return f"\u00d7{ratio:,.1f}"
    percent = 100 * (ratio - 1)
    return f"{'+' if percent > 0 else ''}{signed(percent, 1)} %"


def _plain(value: float, digits: int) -> str:
    return signed(value, digits) if np.isfinite(value) else "\u2013"


def factors(ranking: Ranking) -> str:
    """What each factor does by both measures: sentences, table of variance, effects of levels."""
    if len(ranking.standings) < 2:
        return ""
    return "".join(_analysis(analyse(ranking, measure)) for measure in MEASURES)


def _analysis(found: Analysis) -> str:
    name = NAMES[found.measure]
    title = name[:1].upper() + name[1:] if found.measure == MEASURES[0] else f"log10 of {name}"
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(found))
    if found.reason is not None:
        return said if found.measure == MEASURES[0] else ""
    return f"<h3>{escape(title)}</h3>{said}{_variance(found)}{_effects(found)}"


def _variance(found: Analysis) -> str:
    lines = [*((found.seeds,) if found.seeds else ()), *found.terms]
    rows = [_line(term) for term in lines]
    if found.error is not None:
        rows.append(_line(found.error, f"error: {found.error.name}"))
    sums = "" if found.is_complete else " The grid is incomplete, so the squares do not add up."
    over = (
        " F is taken over the term's own changes from seed to seed."
        if found.strata is not None
        else ""
    )
    caption = (
        "Sums of squares beyond all terms that do not contain the term (type II). Share: "
        f"\u03c9\u00b2, of the variance.{over}{sums}"
    )
    head = (
        f"<caption>{escape(caption)}</caption><thead><tr><th class='left'>term</th>"
        "<th>degrees of<br>freedom</th><th>sum of<br>squares</th><th>F</th><th>over</th><th>p</th>"
        "<th>share</th></tr></thead>"
    )
    return _table(head, rows)


def _line(term: Term, name: str = "") -> str:
    tested = np.isfinite(term.f)
    share = f"{100 * term.share:.0f} %" if tested else "\u2013"
    p = probability(term.p).removeprefix("p ").removeprefix("= ") if tested else "\u2013"
    over = f"{term.over:.0f}" if tested else "\u2013"
    f = f"{term.f:,.1f}" if tested else "\u2013"
    return (
        f"<tr><th scope='row'>{escape(name or term.name)}</th><td>{term.dof}</td>"
        f"<td>{term.squares:.3g}</td><td>{f}</td><td>{over}</td><td>{escape(p)}</td>"
        f"<td>{share}</td></tr>"
    )


def _effects(found: Analysis) -> str:
    if found.error is None:
        return ""
    rows = []
    for key in found.factors:
        effect = found.effect(key)
        for value, mean, width in zip(effect.levels, effect.means, effect.half_widths, strict=True):
            shown, error = number_with_error(float(mean), float(width))
            rows.append(
                f"<tr><th scope='row'>{escape(spoken(key))}</th>"
                f"<td class='left'>{escape(part(key, value))}</td>"
                f'<td>{shown} <span class="error">\u00b1 {error}</span></td></tr>'
            )
    caption = (
        "Each level's distance from the mean of its factor, over all values of the others, with "
        "its own 95 % interval. Lower is better."
    )
    head = (
        f"<caption>{escape(caption)}</caption><thead><tr><th class='left'>factor</th>"
        "<th class='left'>level</th><th>effect</th></tr></thead>"
    )
    return _table(head, rows[:_MANY])


# --------
# The back of a report: samples, what failed or was skipped, configurations and provenance.

# Facts of provenance.json that differ from trial to trial by their nature, or repeat others.
_OF_ONE_TRIAL = ("attempts", "command", "config_sha256", "job", "run_id", "sequence", "started")


def samples(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """Sample grids side by side: same seeds, same classes; the best cells when there are many."""
    having = [trial for trial in sweep.trials if trial.samples is not None]
    shown = shown_trials(sweep, ranking, axes, having)
    cells = len({trial.key for trial in having})
    order = _columns(shown, axes) if cells == len(shown) else {}
    figures = [
        _figure(sample_grid(t.samples), _caption(t, axes), column=order.get(t.key, 0))
        for t in shown
        if t.samples and t.samples.images.size
    ]
    if not figures:
        return ""
    real = None if sweep.references is None else sweep.references.samples
    if real is not None and real.images.size:
        figures.insert(0, _figure(sample_grid(real), "real validation images", "real"))
    if not sweep.is_sweep:
        return f'<div class="samples">{"".join(figures)}</div>'
    note = (
        "<p class='note'>Every grid starts from the same noise and has the same class in the same "
        "column, so grids differ by the trained network alone"
    )
    is_part = cells > len(shown)
    note += f"; the {len(shown)} best cells of {cells}, best first.</p>" if is_part else ".</p>"
    columns = max(order.values(), default=0)
    fixed = f' style="--columns:{columns}"' if columns else ""
    return f'{note}<div class="samples{" fixed" * bool(fixed)}"{fixed}>{"".join(figures)}</div>'


def _caption(trial: TrialResult, axes: Axes) -> str:
    return f"{escape(cell_label(trial.cell, tuple(axes.values)))}, seed {trial.seed}"


def _columns(trials: Sequence[TrialResult], axes: Axes) -> dict[str, int]:
    """Column of each trial where prediction types (or the like) can stand side by side."""
    if axes.series is None:
        return {}
    places = {trial.key: axes.style(trial.cell) for trial in trials}
    used = sorted(set(places.values()))
    if not 2 <= len(used) <= 4:
        return {}
    return {key: used.index(place) + 1 for key, place in places.items()}


def _figure(url: str, caption: str, kind: str = "", column: int = 0) -> str:
    mark = f' class="{kind}"' if kind else ""
    mark += f' style="--column:{column}"' if column else ""
    image = f'<img src="{url}" alt="{caption or "Sample grid"}">'
    return f"<figure{mark}>{image}<figcaption>{caption}</figcaption></figure>"


def bits(sweep: SweepResults) -> str:
    """The bound on bits/dim of each trial, in the order of the grid: nothing is ranked by it."""
    keys, rows = varied_keys(sweep), []
    for trial in sweep.trials:
        found = mapping(trial.evaluation.get("bits_per_dim"))
        value, error = number(found.get("value")), number(found.get("evaluation_error"))
        if not isfinite(value):
            continue
        shown, spread = number_with_error(value, error)
        terms = [number(term) for term in sequence(found.get("terms"))]
        ends = [f"{terms[k]:.2g}" for k in (0, -1)] if terms else ["", ""]
        steps = str(len(sequence(found.get("timesteps"))) - 1)
        label = cell_label(trial.cell, keys) if sweep.is_sweep else "this run"
        rows.append((label, str(trial.seed), f"{shown} \u00b1 {spread}", *ends, steps))
    if not rows:
        return ""
    note = (
        "<p class='note'>The variational bound, lower is better, \u00b1 evaluation error; over a "
        "walk of so many steps, not all timesteps. Not comparable across schedules or numbers of "
        "timesteps: what goes below the step between two grey values pays for noise that nobody "
        "sees.</p>"
    )
    return note + table(("cell", "seed", "bits/dim", "prior", "decoder", "steps"), rows)


def failures(sweep: SweepResults, ranking: Ranking) -> str:
    """Failed trials, skipped cells and finished ones that could not be ranked, with reasons."""
    rows = failed(sweep, ranking)
    return table(("cell", "seed", "", "reason"), rows, wrap=(3,)) if rows else ""


def failed(sweep: SweepResults, ranking: Ranking) -> list[tuple[str, str, str, str]]:
    """Cell, seed, what became of it and why, of every trial and cell without a place."""
    keys = tuple(dict.fromkeys(key for trial in sweep.trials for key in trial.cell))
    rows = [
        (cell_label(t.cell, keys), str(t.seed), t.status, t.reason or "no reason was recorded")
        for t in sweep.trials
        if t.status != "done" and sweep.is_sweep
    ]
    rows += [(cell_label(one.cell, keys), "\u2013", "skipped", one.reason) for one in sweep.skipped]
    named = {t.key for t in sweep.trials if t.status != "done"}
    short = varied_keys(sweep)
    done = {cell_label(t.cell, short) for t in sweep.trials if t.key not in named}
    rows += [(label, "", "not ranked", why) for label, why in ranking.excluded if label in done]
    return rows


def varied_keys(sweep: SweepResults) -> tuple[str, ...]:
    """The varied keys, in the order labels use."""
    return varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])


def configuration(sweep: SweepResults) -> str:
    """The keys in which trials differ, then one whole configuration, folded."""
    trials = [trial for trial in sweep.trials if trial.config]
    if not trials:
        return "<p>No trial has left its configuration.</p>"
    rows = [(key, listed(values, limit=12)) for key, values in differences(trials).items()]
    differing = {key for key, _ in rows}
    shown = table(("key", "values"), rows, wrap=(1,)) if rows else ""
    same = [(k, text(v)) for k, v in trials[0].config.items() if k not in differing]
    said = "What all trials share" if len(trials) > 1 else "The whole configuration"
    folded = (
        f"<details><summary>{said} ({len(same)} keys)</summary>"
        f"{table(('key', 'value'), same, wrap=(1,))}</details>"
    )
    seeds = sorted({trial.seed for trial in trials})
    return f"{shown}<p>Seeds: {escape(listed([str(seed) for seed in seeds]))}.</p>{folded}"


def provenance(sweep: SweepResults) -> str:
    """Code, versions, machine and the command that reproduces each trial."""
    facts = _shared_facts(sweep.trials)
    keys = varied_keys(sweep)
    rows = [
        (cell_label(t.cell, keys), str(t.seed), t.name, reproduce(t))
        for t in sweep.trials
        if t.run_dir is not None
    ]
    head = (
        ("cell", "seed", "trial", "reproduce with")
        if sweep.is_sweep
        else ("", "", "run", "reproduce with")
    )
    commands = table(head, rows, wrap=(3,), code=(2, 3))
    if len(rows) > 12:
        commands = f"<details><summary>Commands of {len(rows)} trials</summary>{commands}</details>"
    made = f"<p>Made by <code>{escape(sweep.command)}</code></p>" if sweep.command else ""
    return f"{made}{table(('', ''), facts, wrap=(1,))}{commands}"


def reproduce(trial: TrialResult) -> str:
    """The command that trains this trial again from nothing."""
    assert trial.run_dir is not None
    name = commit(trial)
    checkout = f"git checkout {name.rstrip('+')[:12]} && " if name else ""
    config = shown_path(trial.run_dir / "training_config.yaml")
    return f"{checkout}python launch/train.py {config} --new"


def shown_path(path: Path) -> str:
    """A path as one types it here: relative where it lies below the working directory."""
    whole, here = path.absolute(), Path.cwd()
    return shlex.quote(str(whole.relative_to(here) if whole.is_relative_to(here) else whole))


def _shared_facts(trials: Sequence[TrialResult]) -> list[tuple[str, str]]:
    """Every fact of provenance.json but the commands, with all values it takes over the trials."""
    values: dict[str, dict[str, None]] = {}
    for trial in trials:
        for key, value in _flat(trial.provenance):
            if key.split(".")[0] not in _OF_ONE_TRIAL and value not in (None, []):
                values.setdefault(key, {})[text(value)] = None
    return [(key, listed(list(seen), limit=4)) for key, seen in values.items()]


def _flat(tree: Mapping[str, Value], path: str = "") -> list[tuple[str, Value]]:
    found: list[tuple[str, Value]] = []
    for key, value in tree.items():
        inner = mapping(value)
        found += _flat(inner, f"{path}{key}.") if inner else [(f"{path}{key}", value)]
    return found


# --------
# The first screen of a report: the question, its answer, the next command, and what to doubt.

_EPOCHS = "TRAINING.HYPER_PARAMETERS.EPOCHS"


def first_screen(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The page's header."""
    kind = "Sweep" if sweep.is_sweep else "Run"
    question = sweep.question[:1].upper() + sweep.question[1:] or sweep.name
    name = f"{kind} {sweep.name}" if sweep.question else kind
    sentences = "".join(
        f"<p>{escape(one).replace(' %', '&nbsp;%')}</p>" for one in verdict.sentences
    )
    return (
        f'<header><div class="kicker"><span>{escape(name)}</span>'
        f"<span>{progress(sweep)}</span></div><h1>{escape(question)}</h1>"
        f'<div class="answer"><p class="headline">{escape(headline(sweep, verdict))}</p>'
        f"{sentences}{_next(sweep, ranking, verdict)}</div>"
        f"{_facts(ranking, verdict, sweep.is_sweep)}{_flags(sweep)}</header>"
    )


def headline(sweep: SweepResults, verdict: Conclusion) -> str:
    """The verdict's headline; says so when the prediction type carries its loss space along."""
    if verdict.kind == "none" or not is_confounded(sweep.trials):
        return verdict.headline
    return f"{verdict.headline} (Prediction type and loss space vary together.)"


def progress(sweep: SweepResults) -> str:
    """`7 of 9 trials finished, 1 failed, 2 cells skipped`."""
    if not sweep.is_sweep:
        return "finished" if sweep.trials[0].status == "done" else "unfinished"
    done, failed = len(sweep.with_status("done")), len(sweep.with_status("failed"))
    parts = [f"{done} of {sweep.planned} trials finished"]
    if failed:
        parts.append(f"{failed} failed")
    for status, words in (("stopped", "ended early"), ("unrun", "left by the budget")):
        if count := len(sweep.with_status(status)):
            parts.append(f"{count} {words}")
    if sweep.skipped:
        parts.append(
            f"{len(sweep.skipped)} {'cell' if len(sweep.skipped) == 1 else 'cells'} skipped"
        )
    return ", ".join(parts)


def _next(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The next command, and the one that makes all this again where that is another one."""
    what, command = next_command(sweep, ranking, verdict)
    shown = _command(what, command) if command else ""
    if sweep.is_sweep and sweep.command and sweep.command != command:
        shown += _command("Run the whole sweep again", sweep.command)
    return shown


def _command(what: str, command: str) -> str:
    return (
        f'<div class="next"><div class="what">{escape(what)}</div><div class="command">'
        f"<code>{escape(command)}</code>"
        '<button type="button" class="copy">copy</button></div></div>'
    )


def next_command(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> tuple[str, str]:
    """What to do next and the command for it; an empty command when there is none."""
    ended = [sweep.with_status(status) for status in ("done", "failed", "stopped")]
    left = sweep.planned - sum(map(len, ended))
    if sweep.is_sweep and left > 0 and sweep.command:
        return (
            f"Unfinished: {left} of {sweep.planned} trials are left. Continue with",
            sweep.command,
        )
    if not sweep.is_sweep:
        run = sweep.trials[0].run_dir or sweep.folder
        return "Generate images from it", f"python launch/sample.py {shown_path(run)}"
    best = ranking.recommended
    if best is None:
        return "", ""
    trial = next(iter(best.trials.values()))
    config = sweep.best_yaml or (trial.run_dir and trial.run_dir / "training_config.yaml")
    if config is None:
        return "", ""
    epochs = trial.config.get(_EPOCHS)
    longer = f" {_EPOCHS}={10 * epochs}" if isinstance(epochs, int) else ""
    why = {
        "winner": f"Train the winner, {best.label}, ten times as long",
        "none": f"Train {best.label} ten times as long",
    }
    what = why.get(
        verdict.kind,
        f"Train {best.label} ten times as long (lowest sum of both ranks; a choice, not a claim)",
    )
    return what, f"python launch/train.py {shown_path(config)}{longer}"


def _facts(ranking: Ranking, verdict: Conclusion, is_sweep: bool) -> str:
    best = ranking.recommended
    if best is None:
        return ""
    costs = cost(list(best.trials.values()))
    seconds = "" if costs.seconds is None else f"{duration(costs.seconds)} of wall time"
    unit = f"Cost per trial, {costs.unit.removesuffix('-seconds')} time"
    values = [(unit, duration(costs.compute_seconds), seconds)]
    if is_sweep:
        title = {"winner": "Winner", "none": "Cell"}.get(verdict.kind, "Lowest sum of ranks")
        names = {measure: NAMES[measure][0].upper() + NAMES[measure][1:] for measure in MEASURES}
        numbers = [(names[measure], *_value(best, measure)) for measure in MEASURES]
        values = [(title, best.label, ""), *numbers, *values]
    else:
        packed = "packed: others ran beside it" if costs.is_packed else ""
        values.append(("Images per second", speed(costs).rstrip("*"), packed))
        values.append(("Peak memory", size(costs.peak_memory_bytes), ""))
    values = [value for value in values if value[1] != "\u2013"]
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in values
    )
    return f'<dl class="facts">{items}</dl>'


def _value(standing: Standing, measure: str) -> tuple[str, str]:
    value, error = number_with_error(standing.value(measure), standing.error(measure))
    kind = "95 % interval over seeds" if len(standing.summaries) > 1 else "evaluation error"
    return value, f"\u00b1 {error} {kind}"


def _flags(sweep: SweepResults) -> str:
    found = flags(sweep)
    if not found:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
    return f'<div class="flags"><p>Read with this in mind</p><ul>{items}</ul></div>'


# --------
# What a sweep was predicted to take beside what it took: its prediction.json and the ledger.
#
# Compared are trials that are done and were never interrupted. Their seconds are those of the trial
# in its processes, with evaluation and samples; Ray and their start are not in them.

FILE = "prediction.json"


@dataclass(frozen=True, kw_only=True)
class PredictedCost:
    """Predicted and measured, of the figures that have both; load: of the machine when probed."""

    trials: int
    unit: str
    seconds: tuple[float, float] | None
    memory_bytes: tuple[float, float] | None
    wall_seconds: tuple[float, float] | None
    load: float

    def __str__(self) -> str:
        parts = [
            f"{what} {shown(one[0])} predicted, {shown(one[1])} measured ({_percent(one)})"
            for what, one, shown in (
                (self.unit, self.seconds, lambda value: f"{value:,.0f}"),
                ("peak memory of a trial", self.memory_bytes, size),
                ("wall time", self.wall_seconds, duration),
            )
            if one is not None
        ]
        return f"Of {self.trials} trials: {'; '.join(parts)}. Load when probed: {self.load:.1f}."


def compare(sweep: SweepResults) -> PredictedCost | None:
    """The comparison; None where nothing was predicted or nothing has been measured."""
    facts = mapping(read_json(sweep.folder / FILE))
    predicted = {name: mapping(one) for name, one in mapping(facts.get("trials")).items()}
    both = [
        (predicted[trial.name], trial)
        for trial in sweep.with_status("done")
        if trial.name in predicted and _in_one_go(trial)
    ]
    if not both:
        return None
    gpus = max(number(one["gpu_seconds"]) / number(one["seconds"]) for one, _ in both)
    kind = "gpu_seconds" if gpus else "core_seconds"
    own, each = ("trial_seconds", gpus) if gpus else ("trial_core_seconds", 1.0)
    wall = number(facts.get("measured_wall_seconds")) if len(both) == len(predicted) else 0.0
    return PredictedCost(
        trials=len(both),
        unit="GPU-seconds" if gpus else "core-seconds",
        seconds=(_sum(both, kind), each * sum(trial.number(own) or 0.0 for _, trial in both)),
        memory_bytes=_peaks(both),
        wall_seconds=(number(facts["wall_seconds"]), wall) if wall > 0 else None,
        load=number(facts.get("load", 0.0)),
    )


def _in_one_go(trial: TrialResult) -> bool:
    """Whether its first attempt finished it, so that its seconds are all there."""
    attempts = sequence(trial.provenance.get("attempts"))
    return len(attempts) == 1 and trial.number("trial_core_seconds") is not None


def _sum(both: Sequence[tuple[Mapping[str, Value], TrialResult]], kind: str) -> float:
    return sum(number(one[kind]) for one, _ in both)


def _peaks(both: Sequence[tuple[Mapping[str, Value], TrialResult]]) -> tuple[float, float] | None:
    """The largest of all trials."""
    measured = [trial.number("peak_memory_bytes") for _, trial in both]
    if None in measured:
        return None
    return max(number(one["memory_bytes"]) for one, _ in both), max(m for m in measured if m)


def _percent(pair: tuple[float, float]) -> str:
    """How much more was measured than predicted."""
    return f"{100 * (pair[1] / pair[0] - 1):+.0f} %" if pair[0] else "nothing was predicted"


# --------
# How a sweep was searched, for its report: what asha ended early, what a population exchanged,
# what a race of seeds decided, what the budget left, and what was predicted beside what it took.

_SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class SearchedPart:
    """A paragraph and the table below it, whose columns in `wrap` are long."""

    text: str
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    wrap: tuple[int, ...] = ()


def section(sweep: SweepResults) -> str:
    """The section, empty for a plain grid of which nothing was predicted."""
    return "".join(map(_drawn, parts(sweep)))


def _drawn(part: SearchedPart) -> str:
    rows = table(part.head, part.rows, wrap=part.wrap) if part.rows else ""
    return f"<p>{escape(part.text)}</p>{rows}"


def parts(sweep: SweepResults) -> list[SearchedPart]:
    """What there is to say of the search."""
    found = (_stopped(sweep), _population(sweep), _race(sweep), _unrun(sweep), _predicted(sweep))
    return [part for part in found if part is not None]


def allowed(sweep: SweepResults, verdict: Conclusion) -> Conclusion:
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


def _stopped(sweep: SweepResults) -> SearchedPart | None:
    ended = sweep.with_status("stopped")
    if not ended:
        return None
    rows = [(cell_name(t.cell), str(t.seed), t.reason or "") for t in ended[:_SHOWN]]
    text = (
        f"asha ended {len(ended)} of {sweep.planned} trials early, each at a rung that all reach "
        "after equally many images, by the measure that the others had there. Only those it let "
        "train to the end are ranked: what is said of them is said of survivors."
    )
    return SearchedPart(text=text, head=("cell", "seed", "how it ended"), rows=rows, wrap=(2,))


def _population(sweep: SweepResults) -> SearchedPart | None:
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
    return SearchedPart(text=text, head=head, rows=rows[:_SHOWN], wrap=(1, 2, 3))


def _race(sweep: SweepResults) -> SearchedPart | None:
    looks = _looks(sweep.folder)
    if not looks:
        return None
    rows = [
        (str(one.get("seeds")), measure, listed([str(name) for name in sequence(names)]))
        for one in looks
        for measure, names in mapping(one.get("candidates")).items()
    ]
    head = ("after seeds", "by", "may still be the best, the leader first")
    return SearchedPart(text=_race_in_words(looks), head=head, rows=rows, wrap=(2,))


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


def _unrun(sweep: SweepResults) -> SearchedPart | None:
    left = sweep.with_status("unrun")
    if not left:
        return None
    reason = (left[0].reason or "").partition(": ")[2]
    text = f"{len(left)} of {sweep.planned} trials have not been run to their end: {reason}."
    return SearchedPart(text=text)


def _predicted(sweep: SweepResults) -> SearchedPart | None:
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
    return SearchedPart(text=text, head=("", "predicted", "measured", "more"), rows=rows)


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


# --------
# One self-contained page: the question and its answer first, then what they rest on.


def render_page(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The whole report.html."""
    axes = axes_of(sweep)
    sections = [
        ("Ranking", figures.ranking_table(ranking) if ranking.standings and sweep.is_sweep else ""),
        ("Differences", differences_section(ranking) if sweep.is_sweep else ""),
        ("Factors", factors(ranking) if sweep.is_sweep else ""),
        ("Heat maps", figures.heat_maps_section(sweep, ranking, axes)),
        ("x0-error over noise level", figures.x0_section(sweep, ranking, axes)),
        ("Cost", figures.cost_section(sweep, ranking, axes)),
        ("Samples", samples(sweep, ranking, axes)),
        ("Samples over training", strips.over_training(sweep, ranking, axes)),
        ("Samples over sampling steps", best_samples.sampling_section(sweep, ranking, axes)),
        ("Training curves", figures.learning_section(sweep, ranking, axes)),
        ("Search", section(sweep) if sweep.is_sweep else ""),
        ("Failed, skipped and not ranked", failures(sweep, ranking)),
        ("Configuration", configuration(sweep)),
        ("Provenance", provenance(sweep)),
        ("Bits per dimension", bits(sweep)),
    ]
    sections = [(title, html) for title, html in sections if html]
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{html}</section>'
        for title, html in sections
    )
    here = files("ddpm.report")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(sweep.name)}</title>'
        f"<style>{(here / 'report.css').read_text()}</style></head><body>"
        f"{first_screen(sweep, ranking, verdict)}{_contents([title for title, _ in sections])}"
        f"<main>{body}</main>"
        "<footer>Everything above is in this one file. Beside it: report.md, the same in short; "
        "results.csv and results.parquet, a row a trial; tables/, every curve.</footer>"
        f"<script>{(here / 'report.js').read_text()}</script></body></html>\n"
    )


def _contents(titles: list[str]) -> str:
    items = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in titles)
    return f'<nav aria-label="Sections">{items}</nav>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
