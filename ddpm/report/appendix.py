"""The back of a report: samples, what failed or was skipped, configurations and provenance."""

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path

from ddpm.report.axes import Axes
from ddpm.report.data import Sweep, Trial
from ddpm.report.files import Value, mapping, number, sequence
from ddpm.report.film import shown_trials
from ddpm.report.flags import commit, differences
from ddpm.report.grids import sample_grid
from ddpm.report.labels import cell_label, listed, number_with_error, text, varied
from ddpm.report.ranking import Ranking
from ddpm.report.tabular import table

# Facts of provenance.json that differ from trial to trial by their nature, or repeat others.
_OF_ONE_TRIAL = ("attempts", "command", "config_sha256", "job", "run_id", "sequence", "started")


def samples(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
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


def _caption(trial: Trial, axes: Axes) -> str:
    return f"{escape(cell_label(trial.cell, tuple(axes.values)))}, seed {trial.seed}"


def _columns(trials: Sequence[Trial], axes: Axes) -> dict[str, int]:
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


def bits(sweep: Sweep) -> str:
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


def failures(sweep: Sweep, ranking: Ranking) -> str:
    """Failed trials, skipped cells and finished ones that could not be ranked, with reasons."""
    rows = failed(sweep, ranking)
    return table(("cell", "seed", "", "reason"), rows, wrap=(3,)) if rows else ""


def failed(sweep: Sweep, ranking: Ranking) -> list[tuple[str, str, str, str]]:
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


def varied_keys(sweep: Sweep) -> tuple[str, ...]:
    """The varied keys, in the order labels use."""
    return varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])


def configuration(sweep: Sweep) -> str:
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


def provenance(sweep: Sweep) -> str:
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


def reproduce(trial: Trial) -> str:
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


def _shared_facts(trials: Sequence[Trial]) -> list[tuple[str, str]]:
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
