"""Numbers of a report as rows: on the terminal, in results.csv, tables/ and statistics.json.

results           a row a trial: its cell, rank, measures with their errors, and cost
x0_error          a row a trial and log-SNR level
metrics           a row a trial and logged step: losses, validation measures, times
sampling          a row a trial, sampler and number of sampling steps
configuration     a row a trial: every configuration key
"""

import io
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid

from ddpm.config import X0_MEASURES
from ddpm.metrics import QUALITY_MEASURES, QualityPoint, continuous_bound
from ddpm.report.effects import Analysis, Term, analyse
from ddpm.report.labels import TITLES, capital, duration, number_with_error, signed, size, text
from ddpm.report.ranking import CONFIDENCE, Comparison, Family, Ranking, Standing, against
from ddpm.report.reading import SweepResults, Value, mapping, number
from ddpm.report.scatter import Groups
from ddpm.report.verdict import Conclusion, meaning_of_errors, pairing, sentences
from ddpm.runs import storage

if TYPE_CHECKING:
    import pandas

_TEXTS = ("status", "trial", "reason", "run_dir")
_MOST_CSV = 1_000_000  # rows; a longer table is written as Parquet alone


def print_table(
    sweep: SweepResults, ranking: Ranking, verdict: Conclusion, console: Console
) -> None:
    """The ranking and its verdict on the terminal."""
    if ranking.standings and sweep.is_sweep:
        _print_ranking(sweep, ranking, console)
    console.print(verdict.headline, style="bold", markup=False, highlight=False)
    for sentence in verdict.sentences:
        console.print(sentence, markup=False, highlight=False)
    for label, reason in ranking.excluded:
        console.print(f"not ranked: {label}: {reason}", markup=False, highlight=False)


def _print_ranking(sweep: SweepResults, ranking: Ranking, console: Console) -> None:
    wide = console.width >= 100
    what = "samples" if ranking.of_samples else "x0-error"
    title = f"{sweep.name}: {len(ranking.standings)} cells by {what}"
    table = Grid(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("cell", overflow="fold")
    headings = [TITLES[measure].replace(" error", "\nerror") for measure in ranking.measures]
    by = headings[-1] if ranking.of_samples else "it"  # that of the x0-error is as wide as a column
    for heading in (*headings, f"# by {by}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("images/s", "compute", "memory") if wide else ("images/s",):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, standing in enumerate(ranking.standings):
        costs = standing.cost
        both = [
            " \u00b1".join(number_with_error(standing.value(m), standing.error(m)))
            for m in ranking.measures
        ]
        second = str(ranking.rank(place, ranking.measures[-1]) or "\u2013")
        rest = [duration(costs.compute_seconds), size(costs.peak_memory_bytes)] if wide else []
        table.add_row(str(place + 1), standing.label, *both, second, costs.speed("*"), *rest)
    console.print(table)
    packed = any(trial.summary.get("packed") is True for trial in sweep.trials)
    star = " *: packed, several trials shared the machine." if packed else ""
    on = f"log SNR {signed(ranking.levels[0])} to {signed(ranking.levels[-1])}"
    if ranking.point is not None:
        on = f"{ranking.num_samples:,} samples each, {ranking.point.evaluations} network calls"
    note = f"{capital(on)}; {meaning_of_errors(ranking.standings)}.{star}"
    console.print(note, style="dim", highlight=False)


_OF_SUMMARY = (
    *("images_per_s", "packed", "seconds", "core_seconds", "gpu_seconds"),
    *("peak_memory_bytes", "steps", "final_loss"),
)
# continuous_bound: bits/dim between the lowest and the highest log SNR ranked on.
# bits_per_dim: the discrete bound, which is not comparable across schedules and timesteps.
_COLUMNS = (
    *("rank", "status", "trial", "seed", *X0_MEASURES),
    *(f"{measure}_evaluation_error" for measure in X0_MEASURES),
    *(*_OF_SUMMARY, "reason", "run_dir"),
    *("continuous_bound", "continuous_bound_evaluation_error"),
    *("bits_per_dim", "bits_per_dim_evaluation_error", "energy_joules", "sampling_images"),
)


def csv_text(sweep: SweepResults, ranking: Ranking) -> str:
    """results.csv: one row a trial, best cell first; skipped cells last, with their reason.

    The columns of its samples, such as fid_10_eta0, stand last, the fewest steps first.
    """
    import pandas

    keys = dict.fromkeys(key for trial in sweep.trials for key in trial.cell)
    points = {_tag(p): p for t in sweep.trials if t.quality for p in t.quality.points}
    ordered = sorted(points.values(), key=lambda p: (p.guidance != 1, p.num_steps, p.eta))
    columns = [*keys, *_COLUMNS, *(name for point in ordered for name in _of_point(point))]
    rows = [[_plain(row.get(name)) for name in columns] for row in _rows(sweep, ranking)]
    frame = pandas.DataFrame(rows, columns=columns, dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def _rows(sweep: SweepResults, ranking: Ranking) -> Iterator[dict[str, object]]:
    every = [*ranking.standings, *ranking.set_apart]
    places = {t.key: place for place, one in enumerate(every) for t in one.trials.values()}
    ranked, last = len(ranking.standings), len(every)
    for trial in sorted(sweep.trials, key=lambda t: places.get(t.key, last)):
        row: dict[str, object] = {
            **trial.cell,
            "status": trial.status,
            "trial": trial.name,
            "seed": trial.seed,
            **{name: trial.summary.get(name) for name in _OF_SUMMARY},
            "reason": trial.reason,
            "run_dir": trial.run_dir,
            "energy_joules": trial.number("energy_joules"),
            "sampling_images": trial.quality and trial.quality.num,
        }
        place = places.get(trial.key, last)
        if place < ranked and trial.seed in every[place].trials:
            row["rank"] = place + 1
        for measure in X0_MEASURES if place < last else ():
            if (one := every[place].numbers[measure].get(trial.seed)) is not None:
                row |= {measure: one.value, f"{measure}_evaluation_error": one.error}
        if trial.error is not None and X0_MEASURES[0] in row and len(ranking.levels) > 1:
            bound = continuous_bound(trial.error, ranking.levels)
            row["continuous_bound"], row["continuous_bound_evaluation_error"] = bound
        bits = mapping(trial.evaluation.get("bits_per_dim"))
        row["bits_per_dim"] = number(bits.get("value"))
        row["bits_per_dim_evaluation_error"] = number(bits.get("evaluation_error"))
        for point in trial.quality.points if trial.quality else ():
            row |= _of_point(point)
        yield row
    for skipped in sweep.skipped:
        yield {**skipped.cell, "status": "skipped", "reason": skipped.reason}


def _of_point(point: QualityPoint) -> dict[str, object]:
    """The columns of a trial's samples at one point."""
    tag = _tag(point)
    return {
        **{f"{name}_{tag}{end}": value for name, end, value in _ends(point)},
        f"evaluations_{tag}": point.evaluations,
        f"sampling_seconds_{tag}": point.seconds,
    }


def _ends(point: QualityPoint) -> Iterator[tuple[str, str, float | None]]:
    """Each quality of samples with the ends of its interval, as parts of columns."""
    for name in QUALITY_MEASURES:
        one = point.interval(name)
        for end, place in (("", "value"), ("_low", "low"), ("_high", "high")):
            yield name, end, None if one is None else getattr(one, place)


def _tag(point: QualityPoint) -> str:
    """A point as part of a column's name: 10_eta0, 25_eta0.5, 25_eta0_guidance2."""
    guided = "" if point.guidance == 1 else f"_guidance{point.guidance:g}"
    length = "" if point.ema_length is None else f"_length{point.ema_length:g}"
    return f"{point.num_steps}_eta{point.eta:g}{guided}{length}"


def _plain(value: object) -> str:
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_tables(sweep: SweepResults, results: str) -> tuple[Path, ...]:
    """Writes results.parquet from the text of results.csv, and the tables of `tables/`."""
    from pyarrow import csv, parquet, string

    types = csv.ConvertOptions(
        column_types=dict.fromkeys(_TEXTS, string()), strings_can_be_null=True
    )
    parsing = csv.ParseOptions(newlines_in_values=True)
    rows = csv.read_csv(io.BytesIO(results.encode()), parse_options=parsing, convert_options=types)
    buffer = io.BytesIO()
    parquet.write_table(rows, buffer)  # the types are those that the text has
    written = [_write(sweep.folder / "results.parquet", buffer.getvalue())]
    for name, frame in tables(sweep).items():
        if frame.empty:
            continue
        path = sweep.folder / "tables" / name
        if len(frame) <= _MOST_CSV:
            text = frame.to_csv(index=False, lineterminator="\n")
            written.append(_write(path.with_suffix(".csv"), text.encode()))
        written.append(_write(path.with_suffix(".parquet"), frame.to_parquet(index=False)))
    return tuple(written)


def tables(sweep: SweepResults) -> dict[str, "pandas.DataFrame"]:
    """Each table but the results."""
    import pandas

    def joined(frames: list[dict[str, object]]) -> "pandas.DataFrame":
        return pandas.concat(map(pandas.DataFrame, frames)) if frames else pandas.DataFrame()

    errors = [(trial, trial.error) for trial in sweep.trials if trial.error is not None]
    points = [(t.name, point) for t in sweep.trials if t.quality for point in t.quality.points]
    having = [trial for trial in sweep.trials if trial.config]
    keys = dict.fromkeys(key for trial in having for key in trial.config)
    return {
        "x0_error": joined(
            [
                {"trial": trial.name, "logsnr": error.levels}
                | dict(zip(("mse", "evaluation_error"), error.curve(), strict=True))
                for trial, error in errors
            ]
        ),
        "metrics": joined(
            [{"trial": t.name, **t.metrics} for t in sweep.trials if "step" in t.metrics]
        ),
        "sampling": pandas.DataFrame([_sampling(name, point) for name, point in points]),
        "configuration": pandas.DataFrame(
            [
                {"trial": t.name, **{key: text(t.config[key]) for key in keys if key in t.config}}
                for t in having
            ]
        ),
    }


def _sampling(trial: str, point: QualityPoint) -> dict[str, Value]:
    names = ("sampler", "num_steps", "eta", "guidance", "ema_length", "evaluations", "seconds")
    row: dict[str, Value] = {"trial": trial} | {name: getattr(point, name) for name in names}
    return row | {f"{name}{end}": value for name, end, value in _ends(point)}


def _write(path: Path, content: bytes) -> Path:
    storage.make_folder(path.parent)
    storage.write_bytes(path, content)
    return path


Json = dict[str, object]


def statistics(ranking: Ranking) -> Json:
    """statistics.json: every number of the report's statistics, for programs.

    {"format": 3, "confidence": 0.95, "winner", "tied": [label], "recommended", "failed": [label],
     "real_images": {measure: {"value", "low", "high"}},
     "measures": {MEASURE: {"paired_over_unpaired_variance", "intervals", "dof", "variance",
                            "set_apart": [label], "factors": {...}, "sentences": [...]}},
     "against_recommended": {"reference", "correction", "cells"}, "against_baseline": same | null}

    Numbers are log10; null where there is none.
    """
    several = len(ranking.standings) > 1
    best = ranking.recommended if several else None
    base = None
    if several and ranking.baseline is not None:
        base = ranking.standings[ranking.baseline]
    return {
        "format": 3,
        "confidence": CONFIDENCE,
        "problem": ranking.problem,
        "winner": ranking.winner.label if several and ranking.winner else None,
        "tied": [one.label for one in ranking.tied] if several else [],
        "recommended": best and best.label,
        "failed": [one.label for one, _ in ranking.failed],
        "real_images": {
            m: {"value": one.value, "low": one.low, "high": one.high}
            for m, one in ranking.real.items()
        },
        "measures": {m: _measure(ranking, m) for m in ranking.measures} if several else {},
        "against_recommended": best and _against(ranking, best, "pairs"),
        "against_baseline": base and _against(ranking, base, "baseline"),
    }


def _against(ranking: Ranking, reference: Standing, family: Family) -> Json:
    by = "Tukey, all pairs of cells, and" if family == "pairs" else "Dunnett, and"
    return {
        "reference": reference.label,
        "correction": f"{by} Bonferroni over measures",
        "cells": [_comparison(one) for one in against(ranking, reference, family)],
    }


def _measure(ranking: Ranking, measure: str) -> Json:
    found, analysis = ranking.spread(measure), analyse(ranking, measure)
    return {
        "paired_over_unpaired_variance": _number(found.ratio) if found else None,
        "intervals": ("paired" if found.is_paired else "unpaired") if found else "evaluation error",
        "pairing": pairing(ranking, measure),
        "dof": found.dof if found else None,
        "variance": found.variance if found else None,
        "set_apart": [ranking.standings[place].label for place in found.apart] if found else [],
        "groups": _groups(ranking, found.groups) if found and found.groups else [],
        "factors": _factors(analysis),
        "sentences": list(sentences(analysis)),
    }


def _groups(ranking: Ranking, groups: Groups) -> list[Json]:
    """Cells that scatter alike, the widest group first; p: of so large a difference by chance."""
    return [
        {
            "cells": [ranking.standings[place].label for place in cells],
            "deviation": deviation,
            "p": groups.p,
        }
        for cells, deviation in zip(groups.cells, groups.deviations, strict=True)
    ]


def _factors(analysis: Analysis) -> Json:
    lines = [*((analysis.seeds,) if analysis.seeds else ()), *analysis.terms]
    return {
        "keys": list(analysis.factors),
        "reason": analysis.reason,
        "sums_of_squares": "type II",
        "terms": [_term(term) for term in lines],
        "error": _term(analysis.error) if analysis.error else None,
        "effects": [_effect(analysis, key) for key in analysis.factors] if analysis.error else [],
    }


def _term(term: Term) -> Json:
    return {
        "name": term.name,
        "keys": list(term.keys),
        "dof": term.dof,
        "sum_of_squares": term.squares,
        "f": _number(term.f),
        "over_dof": _number(term.over),
        "p": _number(term.p),
        "omega_squared": _number(term.share),
    }


def _effect(analysis: Analysis, key: str) -> Json:
    effect = analysis.effect(key)
    return {
        "key": key,
        "levels": [text(value) for value in effect.levels],
        "effects": [_number(value) for value in effect.means],
        "half_widths": [_number(value) for value in effect.half_widths],
    }


def _comparison(one: Comparison) -> Json:
    return {
        "cell": dict(one.standing.cell),
        "label": one.standing.label,
        "outcome": one.outcome,
        **{
            measure: {
                "difference": _number(gap.mean),
                "half_width": _number(gap.half_width),
                "intervals": gap.basis,
                "paired_over_unpaired_variance": _number(one.ratios[measure]),
            }
            for measure, gap in one.gaps.items()
        },
    }


def _number(value: float) -> float | None:
    return float(value) if isfinite(value) else None
