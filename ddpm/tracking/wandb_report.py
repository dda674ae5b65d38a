"""What an online report shows, as plain data: sections of text and of panels that draw runs.

A renderer turns a Specification into the blocks of a service; `as_json` into what is kept beside
the offline report. Runs are named by where they are (Place) and how they are found there; numbers
by their names in `ddpm.tracking.wandb_log`, factors of the grid by their dotted configuration keys.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from ddpm.errors import InputError
from ddpm.metrics import MEASURES, QUALITY_MEASURES
from ddpm.report import (
    GAUSSIAN,
    LEFT_OUT,
    MEMORISATION,
    NAMES,
    OUTCOMES,
    Against,
    Axes,
    Conclusion,
    Gap,
    Ranking,
    ReportFiles,
    Standing,
    SweepResults,
    axes_of,
    basis,
    bullets,
    compared,
    costs_of_cells,
    escaped,
    flags,
    is_on_gpu,
    left_out,
    mapping,
    markdown,
    number,
    of_pairs,
    on_front,
    page,
    part,
    progress,
    ratio_text,
    read_json,
    shown_path,
    signed,
    spoken,
    table,
    text,
    total,
    with_error,
)
from ddpm.runs import storage
from ddpm.tracking import wandb_log
from ddpm.tracking.wandb_log import address, first_line, has_key, why_not_online

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines of numbers that runs have logged, over another one."""

    title: str
    x: str
    y: tuple[str, ...]
    has_log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One number of each run's summary."""

    title: str
    number: str


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Two numbers of each run's summary against each other."""

    title: str
    x: str
    y: str


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Parallel coordinates: a line a run, through its factors and then its numbers."""

    title: str
    factors: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Logged pictures side by side; with their steps beside the runs where `has_steps`."""

    title: str
    key: str
    has_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The configuration keys in which runs differ."""

    title: str


Panel = Curves | Bars | Scatter | Parallel | Pictures | Differences


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A heading, Markdown below it, then panels.

    is_grouped: runs that differ in their seed alone are drawn as one.  has_table: the table of runs
    stands below the panels.
    """

    title: str
    text: str = ""
    panels: tuple[Panel, ...] = ()
    is_grouped: bool = False
    has_table: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """A project and whose it is; entity None is the default of who is logged in."""

    entity: str | None
    project: str


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A whole report.

    places: where the runs are; the report belongs to the first.  group: the sweep that the runs
    belong to, None for a single run.  runs: their ids.  columns: the table's numbers, and it is
    ordered by the first of them, lowest first.  summaries: run id -> numbers of the comparison,
    which only the whole sweep knows, for the run's own summary.
    """

    title: str
    description: str
    places: tuple[Place, ...]
    group: str | None
    runs: tuple[str, ...]
    factors: tuple[str, ...]
    columns: tuple[str, ...]
    sections: tuple[ReportSection, ...]
    summaries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def as_json(specification: Specification) -> dict[str, object]:
    """The same as JSON values; each panel with its kind, each with its format's number."""
    plain = {f.name: getattr(specification, f.name) for f in fields(specification)}
    return {
        "format": 1,
        **plain,
        "places": [asdict(place) for place in specification.places],
        "sections": [_section(section) for section in specification.sections],
    }


def _section(section: ReportSection) -> dict[str, object]:
    panels = [{"kind": type(panel).__name__, **asdict(panel)} for panel in section.panels]
    return {**asdict(section), "panels": panels}


# --------
# A Specification as the blocks of a W&B Report (wandb-workspaces, reports.v2).
#
# Configuration keys are nested in W&B, and what follows the first word stands behind its `.value`:
# TRAINING.NETWORK.SCHEDULER is config:TRAINING.value.NETWORK.SCHEDULER in a table's columns.

WIDTH = 24  # of a grid of panels, in W&B's units
MOST_RUNS = 100  # that a panel draws at once


def build_report(specification: Specification, places: Sequence[Place]) -> wr.Report:
    """The report, in the first place; nothing is asked of a server before it is saved.

    places: those of the specification, their entities known.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for section in specification.sections:
        blocks.append(wr.H1(section.title))
        if section.text:
            blocks.append(wr.MarkdownBlock(section.text))
        if section.panels or section.has_table:
            blocks.append(_grid(specification, section, places))
    return wr.Report(
        project=places[0].project,
        entity=_place_entity(places[0]),
        title=specification.title,
        description=specification.description,
        blocks=blocks,
        width="fluid",
    )


def _place_entity(place: Place) -> str:
    assert place.entity is not None  # whoever asks for a report has looked it up
    return place.entity


def _grid(
    specification: Specification, section: ReportSection, places: Sequence[Place]
) -> wr.PanelGrid:
    across = 3 if len(section.panels) > 2 else max(len(section.panels), 1)
    wide = [isinstance(panel, Parallel | Pictures | Differences) for panel in section.panels]
    panels, x, y = [], 0, 0
    for panel, is_wide in zip(section.panels, wide, strict=True):
        width = WIDTH if is_wide else WIDTH // across
        if x + width > WIDTH:
            x, y = 0, y + 10
        panels.append(_panel(panel, wr.Layout(x=x, y=y, w=width, h=10)))
        x += width
    return wr.PanelGrid(
        runsets=[_run_set(specification, section, place) for place in places],
        hide_run_sets=not section.has_table,
        panels=panels,
    )


def _run_set(specification: Specification, section: ReportSection, place: Place) -> wr.Runset:
    """The runs of a sweep, or the one run, in the order of the first number, lowest first."""
    found = (
        expr.Metric("Group") == specification.group
        if specification.group is not None
        else expr.Metric("ID").isin(list(specification.runs))
    )
    columns = [
        "run:displayName",
        *(f"config:{_nested(key)}" for key in specification.factors),
        *(f"summary:{name}" for name in specification.columns),
    ]
    return wr.Runset(
        entity=_place_entity(place),
        project=place.project,
        name=specification.group or specification.title,
        filters=expr.And(found),
        groupby=[f"config.{key}" for key in specification.factors] if section.is_grouped else [],
        order=[wr.OrderBy(wr.SummaryMetric(specification.columns[0]), ascending=True)],
        pinned_columns=columns[:1],
        visible_columns=columns[1:],
        lock_columns=True,
    )


def _nested(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _panel(panel: Panel, layout: wr.Layout) -> Any:
    match panel:
        case Curves():
            return wr.LinePlot(
                title=panel.title,
                x=panel.x,
                y=list(panel.y),
                title_x=panel.x,
                log_y=panel.has_log_y,
                max_runs_to_show=MOST_RUNS,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                layout=layout,
            )
        case Bars():
            return wr.BarPlot(
                title=panel.title,
                metrics=[panel.number],
                max_runs_to_show=MOST_RUNS,
                max_bars_to_show=MOST_RUNS,
                layout=layout,
            )
        case Scatter():
            return wr.ScatterPlot(
                title=panel.title,
                x=wr.SummaryMetric(panel.x),
                y=wr.SummaryMetric(panel.y),
                layout=layout,
            )
        case Parallel():
            keys: list[wr.Config | wr.SummaryMetric] = [*map(wr.Config, panel.factors)]
            keys += map(wr.SummaryMetric, panel.numbers)
            columns = [wr.ParallelCoordinatesPlotColumn(metric=key) for key in keys]
            return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns, layout=layout)
        case Pictures():
            mode: Literal["grid", "gallery"] = "grid" if panel.has_steps else "gallery"
            return wr.MediaBrowser(
                title=panel.title,
                media_keys=[panel.key],
                mode=mode,
                gallery_axis=None if panel.has_steps else "run",
                grid_x_axis="step" if panel.has_steps else None,
                grid_y_axis="run" if panel.has_steps else None,
                layout=layout,
            )
        case Differences():
            return wr.RunComparer(diff_only="split", layout=layout)


# --------
# The words and tables of an online report, in Markdown: what panels of single runs cannot show.
#
# What report.md says too is its own text (ddpm.report.markdown).

MANY = 60  # rows of a table, and tables of a section: a report is read, results.csv has the rest


def answer(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> str:
    """The question, the answer of report.md, and what to bear in mind."""
    doubts = flags(sweep)
    parts = [
        f"*{escaped(sweep.question)}*" if sweep.question else "",
        markdown.answer(sweep, ranking, verdict),
        f"{_capital(progress(sweep))}.",
        f"Read with this in mind:\n\n{bullets(doubts)}" if doubts else "",
    ]
    return "\n\n".join(filter(None, parts))


def ranked(ranking: Ranking) -> str:
    """The ranking of report.md, and what the service's own table of runs is not."""
    below = "In the table of runs below a row is one training, and has no interval."
    return f"{markdown.ranked(ranking)} {below}"


def differences(ranking: Ranking) -> str:
    """Every cell against the lowest, and against the baseline; "" where nothing is compared."""
    if len(ranking.standings) < 2:
        return ""
    told = map(escaped, of_pairs(ranking))
    return "\n\n".join([*told, *map(_against, compared(ranking)), basis(ranking)])


def _against(one: Against) -> str:
    rows = [
        (
            row.standing.label,
            _difference(row.gaps[MEASURES[0]]),
            ratio_text(10 ** row.gaps[MEASURES[0]].mean),
            _difference(row.gaps[MEASURES[1]]),
            OUTCOMES[row.outcome],
        )
        for row in one.found[:MANY]
    ]
    head = ("cell", NAMES[MEASURES[0]], "x0-error", f"log10 of {NAMES[MEASURES[1]]}", "difference")
    words = [escaped(one.lead)] if one.lead else []
    return "\n\n".join([*words, f"{escaped(one.caption)}.", table(head, rows, right=(1, 2, 3))])


def _difference(gap: Gap) -> str:
    return with_error(gap.mean, gap.half_width)


def costs(sweep: SweepResults, ranking: Ranking) -> str:
    """What the sweep took, the cells on the Pareto front, and a row a cell."""
    head, rows = costs_of_cells(ranking)
    fronts = [
        f"By {NAMES[measure]}, from the cheapest: "
        + ", ".join(f"**{escaped(label)}** {words}" for label, words in found)
        + "."
        for measure in MEASURES
        if (found := on_front(ranking, measure))
    ]
    note = ["A cell is on the front when no other is both cheaper and better.", *fronts]
    shown = table(head, rows[:MANY], right=range(1, len(head)))
    return "\n\n".join([total(sweep), *(note if fronts else ()), shown])


def sampling(sweep: SweepResults, axes: Axes) -> str:
    """The best cell at each number of steps, and the points that were left out."""
    rows = left_out(sweep, axes)
    parts = [markdown.sampling(sweep), table(LEFT_OUT, rows[:MANY]) if rows else ""]
    return "\n\n".join(filter(None, parts))


def search(sweep: SweepResults) -> str:
    """How the sweep was searched; empty for a plain grid of which nothing was predicted."""
    return "\n\n".join(
        f"{escaped(one.text)}\n\n{table(one.head, one.rows) if one.rows else ''}".rstrip()
        for one in page.parts(sweep)
    )


def heat_maps(ranking: Ranking, axes: Axes) -> str:
    """For each number and each value of the other factors, a table of two factors."""
    if axes.series is None or axes.rows is None:
        return ""
    standings = {id(standing.cell): standing for standing in ranking.standings}
    groups = axes.grouped([standing.cell for standing in ranking.standings], axes.panels)
    shown = []
    for name, cells in list(groups.items())[: MANY // 2]:
        for measure in MEASURES:
            found = {
                (axes.place(axes.rows, cell), axes.place(axes.series, cell)): standings[id(cell)]
                for cell in cells
            }
            title = f"**{_capital(NAMES[measure])}**{f', {escaped(name)}' if name else ''}"
            shown.append(f"{title}\n\n{_map(found, axes.rows, axes.series, axes, measure)}")
    return "\n\n".join(shown)


def _map(
    found: Mapping[tuple[int, int], Standing], rows: str, columns: str, axes: Axes, measure: str
) -> str:
    body = [
        [part(rows, value)]
        + [
            _number(found[at, place], measure) if (at, place) in found else "\u2013"
            for place in range(len(axes.values[columns]))
        ]
        for at, value in enumerate(axes.values[rows])
    ]
    head = (
        f"{spoken(rows)} / {spoken(columns)}",
        *(part(columns, v) for v in axes.values[columns]),
    )
    return table(head, body)


def reference_lines(sweep: SweepResults, ranking: Ranking) -> str:
    """The two reference curves at the levels of the ranking, beside the recommended cell."""
    lines, best = sweep.references, ranking.recommended
    if lines is None or best is None:
        return ""
    levels = [level for level in ranking.levels if level in lines.levels]
    curves = {best.label: dict(zip(levels, best.curve(levels), strict=True))}
    for name, values in ((GAUSSIAN, lines.gaussian), (MEMORISATION, lines.memorisation)):
        if values is not None:
            curves[name] = dict(zip(lines.levels, values, strict=True))
    rows = [[signed(level), *(f"{one[level]:.3g}" for one in curves.values())] for level in levels]
    if not levels:
        return ""
    note = (
        f"{GAUSSIAN}: the best linear estimate from the training data's mean and covariance. "
        f"{MEMORISATION.capitalize()}: the ideal denoiser that only remembers training images, on "
        "training pairs."
    )
    return f"{table(('log SNR', *curves), rows)}\n\n{note}"


def bits(sweep: SweepResults) -> str:
    """What the bound may not be used for; empty where no trial has one."""
    found = [mapping(trial.evaluation.get("bits_per_dim")).get("value") for trial in sweep.trials]
    if not any(isfinite(number(value)) for value in found):
        return ""
    return (
        "The variational bound, lower is better. Not comparable across schedules or numbers of "
        "timesteps: what goes below the step between two grey values pays for noise that nobody "
        "sees."
    )


def configuration(sweep: SweepResults) -> str:
    """The keys in which trials differ, with their values; all keys of a single run."""
    trials = [trial for trial in sweep.trials if trial.config]
    if not trials:
        return "No trial has left its configuration."
    if sweep.is_sweep:
        return markdown.configuration(sweep)
    return table(("key", "value"), [(key, text(value)) for key, value in trials[0].config.items()])


def provenance(sweep: SweepResults, ranking: Ranking) -> str:
    """How to make it again, what it ran on, and the folder that is the truth."""
    where = (
        f"The whole report is report.html in `{sweep.folder.name}`, every number in results.csv."
    )
    return "\n\n".join(filter(None, [markdown.again(sweep, ranking), where]))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _number(standing: Standing, measure: str) -> str:
    return with_error(standing.value(measure), standing.error(measure))


# --------
# The specification of a sweep's online report: the sections of report.html as text and panels.
#
# The words and the comparisons are the offline report's own, since a service that sees single runs
# knows no intervals over seeds and no levels that all cells share. The panels draw the runs.

LONGEST_TITLE = 128  # of a W&B report
OF_THE_SWEEP = "sweep/"  # what numbers begin with that one run alone does not know
_LOSSES = ("loss", "n_loss", "i_loss", "v_loss")


def specification(sweep: SweepResults, ranking: Ranking, verdict: Conclusion) -> Specification:
    """What the online report of a sweep or a run shows."""
    axes = axes_of(sweep)
    numbers = _numbers(sweep)
    sections = (
        ReportSection(title="Answer", text=answer(sweep, ranking, verdict)),
        *(_of_the_comparison(sweep, ranking, axes, numbers) if ranking.standings else ()),
        *_samples(sweep),
        _sampling(sweep, axes),
        _training(sweep),
        ReportSection(title="Search", text=search(sweep) if sweep.is_sweep else ""),
        ReportSection(
            title="Failed, skipped and not ranked", text=markdown.failures(sweep, ranking)
        ),
        _configuration(sweep),
        ReportSection(title="Provenance", text=provenance(sweep, ranking)),
        _bits(sweep),
    )
    kind = "Sweep" if sweep.is_sweep else "Run"
    return Specification(
        title=f"{kind} {sweep.name}"[:LONGEST_TITLE],
        description=sweep.question or verdict.headline,
        places=_places(sweep),
        group=sweep.name if sweep.is_sweep else None,
        runs=tuple(trial.name for trial in sweep.trials),
        factors=tuple(axes.values),
        columns=(*numbers, *_qualities(sweep), "images_per_s", _cost(sweep), "peak_memory_bytes"),
        sections=tuple(one for one in sections if one.text or one.panels),
        summaries=_summaries(ranking) if sweep.is_sweep else {},
    )


def _numbers(sweep: SweepResults) -> tuple[str, ...]:
    """The two measures, over the levels all cells of a sweep share; a run's over its own."""
    start = OF_THE_SWEEP if sweep.is_sweep else "val_"
    return tuple(f"{start}{measure}" for measure in MEASURES)


def _summaries(ranking: Ranking) -> dict[str, dict[str, float]]:
    found = {}
    for standing in ranking.standings:
        for seed, trial in standing.trials.items():
            values = {f"{OF_THE_SWEEP}{m}": standing.summaries[seed].value(m) for m in MEASURES}
            found[trial.name] = {name: v for name, v in values.items() if isfinite(v)}
    return found


def _places(sweep: SweepResults) -> tuple[Place, ...]:
    """Where the trials were mirrored, the place of most of them first."""
    found: Counter[Place] = Counter()
    for trial in sweep.trials:
        project, entity = trial.config.get("WANDB.PROJECT"), trial.config.get("WANDB.ENTITY")
        if isinstance(project, str):
            found[Place(project=project, entity=entity if isinstance(entity, str) else None)] += 1
    return tuple(place for place, _ in found.most_common())


def _of_the_comparison(
    sweep: SweepResults, ranking: Ranking, axes: Axes, numbers: tuple[str, ...]
) -> tuple[ReportSection, ...]:
    """What is said of evaluated trials; of a single run its curve alone."""
    if not sweep.is_sweep:
        return (_errors(sweep, ranking),)
    return (
        _ranking(ranking, axes, numbers),
        ReportSection(title="Differences", text=differences(ranking)),
        ReportSection(title="Factors", text=markdown.factors(ranking)),
        ReportSection(title="Heat maps", text=heat_maps(ranking, axes)),
        _errors(sweep, ranking),
        _costs(sweep, ranking, numbers),
    )


def _ranking(ranking: Ranking, axes: Axes, numbers: tuple[str, ...]) -> ReportSection:
    bars = [Bars(title=NAMES[m], number=name) for m, name in zip(MEASURES, numbers, strict=True)]
    lines = Parallel(title="Factors and numbers", factors=tuple(axes.values), numbers=numbers)
    return ReportSection(
        title="Ranking", text=ranked(ranking), panels=(lines, *bars), has_table=True
    )


def _errors(sweep: SweepResults, ranking: Ranking) -> ReportSection:
    curve = Curves(
        title="x0-error over log SNR", x=wandb_log.LOGSNR, y=(wandb_log.X0_ERROR,), has_log_y=True
    )
    return ReportSection(
        title="x0-error over noise level",
        text=reference_lines(sweep, ranking),
        panels=(curve,),
        is_grouped=_has_seeds(sweep),
    )


def _samples(sweep: SweepResults) -> tuple[ReportSection, ReportSection]:
    """The grids of the final networks, and those drawn while they trained."""
    end, during = ReportSection(title="Samples"), ReportSection(title="Samples over training")
    if any(trial.samples is not None for trial in sweep.trials):
        text = (
            "Every grid starts from the same noise and has the same class in the same place, so "
            "grids differ by the trained network alone."
        )
        pictures = Pictures(title="In the end", key=wandb_log.FINAL_SAMPLES)
        end = replace(end, text=text, panels=(pictures,))
    if any(len(trial.inline) > 1 for trial in sweep.trials):
        text = "The same noise and the same classes at every step, by the weights of that moment."
        pictures = Pictures(title="While training", key=wandb_log.SAMPLES, has_steps=True)
        during = replace(during, text=text, panels=(pictures,))
    return end, during


def _sampling(sweep: SweepResults, axes: Axes) -> ReportSection:
    """A panel for each measure of samples, with a line for each sampler and eta."""
    names = dict.fromkeys(
        name
        for trial in sweep.trials
        for row in wandb_log.quality_rows(trial.quality)
        for name in row
    )
    panels = []
    for measure in QUALITY_MEASURES:
        lines = tuple(name for name in names if name.startswith(f"{wandb_log.QUALITY}{measure} "))
        if lines:
            panels.append(Curves(title=measure, x=wandb_log.SAMPLING_STEPS, y=lines))
    return ReportSection(
        title="Samples over sampling steps",
        text=sampling(sweep, axes),
        panels=tuple(panels),
        is_grouped=_has_seeds(sweep),
    )


def _qualities(sweep: SweepResults) -> tuple[str, ...]:
    """The numbers that runs carry of their samples."""
    return tuple(
        dict.fromkeys(
            name for trial in sweep.trials for name in wandb_log.final_quality(trial.quality)
        )
    )


def _training(sweep: SweepResults) -> ReportSection:
    """The measures that compare, then the losses, which do not, and memory, over steps."""
    logged = {name for trial in sweep.trials for name in trial.metrics}
    measures = tuple(f"val_{measure}" for measure in MEASURES)
    names = [name for name in (*measures, *_LOSSES) if name in logged]
    memory = ["process_rss", "process_peak"]
    if any(map(is_on_gpu, sweep.trials)):
        memory += ["gpu_allocated", "gpu_peak"]
    curves = [
        Curves(title=name, x=wandb_log.STEP, y=(name,), has_log_y=name in _LOSSES)
        for name in (*names, *(f"memory/{name}" for name in memory))
    ]
    text = (
        "Losses are **not comparable across schedules or timesteps**: each trial averages them "
        "over its own noise levels. Use them to see whether training was stable and had levelled "
        "off, not to rank. Memory is in bytes."
    )
    return ReportSection(
        title="Training curves",
        text=text if names else "",
        panels=tuple(curves) if names else (),
        is_grouped=_has_seeds(sweep),
    )


def _costs(sweep: SweepResults, ranking: Ranking, numbers: tuple[str, ...]) -> ReportSection:
    spent = _cost(sweep)
    over = [
        Scatter(title=f"{NAMES[measure]} over {spent}", x=spent, y=name)
        for measure, name in zip(MEASURES, numbers, strict=True)
    ]
    peak = Bars(title="Peak memory, bytes", number="peak_memory_bytes")
    return ReportSection(title="Cost", text=costs(sweep, ranking), panels=(*over, peak))


def _cost(sweep: SweepResults) -> str:
    """The seconds that trainings cost: of GPUs where they used some."""
    on_gpu = any(trial.number("gpu_seconds") is not None for trial in sweep.trials)
    return "gpu_seconds" if on_gpu else "core_seconds"


def _bits(sweep: SweepResults) -> ReportSection:
    text = bits(sweep)
    bars = (Bars(title="bits/dim", number=wandb_log.BITS_PER_DIM),) if text else ()
    return ReportSection(title="Bits per dimension", text=text, panels=bars)


def _configuration(sweep: SweepResults) -> ReportSection:
    panels = (Differences(title="Configurations"),) if sweep.is_sweep else ()
    return ReportSection(title="Configuration", text=configuration(sweep), panels=panels)


def _has_seeds(sweep: SweepResults) -> bool:
    """Whether some cell was trained with more than one seed."""
    return len({trial.key for trial in sweep.trials}) < len(sweep.trials)


# --------
# A sweep's report as a W&B Report: made once, then the same one is brought up to date.
#
# The specification (`ddpm.tracking.wandb_report`) is always written to wandb_report.json in the sweep's
# folder, with where it was published under "published". Without a login that is all. With one, its
# text and panels become the blocks of wandb-workspaces, and every ranked run's summary gets its
# numbers over the levels that all cells share, so that W&B's tables sort as the report ranks.
#
# A report is known by its id, and where the file was lost by its title in the project.

FILE, UPLOADS = "wandb_report.json", "wandb_uploads.txt"
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was made. url: of the W&B Report, None where it could not be published from here."""

    path: Path
    url: str | None
    lines: tuple[str, ...]

    def print(self) -> None:
        """Where it is, and what is left to do."""
        print("\n".join(self.lines))


def review(made: ReportFiles) -> Review:
    """Writes the specification, and publishes it where there is a login.

    InputError, after the file was written, where a server was meant but cannot show the report.
    """
    folder = made.sweep.folder
    path, wanted = folder / FILE, specification(made.sweep, made.ranking, made.verdict)
    known = mapping(mapping(read_json(path)).get("published"))
    storage.write_json(path, {**as_json(wanted), "published": known or None})
    uploads = _uploads(made)
    reason = _why_not_published()
    if reason:
        lines = (
            f"W&B report: not published, {reason}; {path} says what it will show",
            *([f"upload the runs with: {uploads}"] if uploads else []),
            f"then publish with: python launch/report.py {shown_path(folder)} --wandb",
        )
        return Review(path=path, url=None, lines=lines)
    unreachable = why_not_online()
    if unreachable:
        raise InputError(f"W&B: {unreachable}; {path} is written, run the same command again")
    return _published(wanted, path, known, uploads)


def _why_not_published() -> str | None:
    """Why nobody asked for a server: WANDB_MODE says so, or there is no key."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return f"WANDB_MODE is {os.environ['WANDB_MODE']}"
    return None if has_key() else "no API key (set WANDB_API_KEY or run `wandb login`)"


def _uploads(made: ReportFiles) -> str | None:
    """The command that uploads what the trials have logged offline; None where all is there."""
    found = [
        fragment
        for trial in made.sweep.trials
        if trial.run_dir is not None
        for fragment in sorted(trial.run_dir.glob(f"wandb/offline-run-*-{trial.name}"))
        if not any(fragment.glob("*.wandb.synced"))
    ]
    if not found:
        return None
    path = made.sweep.folder / UPLOADS
    storage.write_text(path, "".join(f"{fragment.absolute()}\n" for fragment in found))
    return f"xargs -d '\\n' wandb sync < {shown_path(path)}"


def _published(
    wanted: Specification, path: Path, known: Mapping[str, object], uploads: str | None
) -> Review:
    """The report on the server, new or brought up to date."""
    os.environ.setdefault("WANDB_SILENT", "true")
    api = _login()
    there = [replace(place, entity=_entity(api, place)) for place in wanted.places]
    places = tuple(dict.fromkeys(there))
    found = [run for place in places for run in _runs(api, place, wanted, uploads)]
    runs = [run for run in found if run.id in wanted.runs]
    if not runs:
        raise InputError(_no_runs(places, wanted, uploads))
    for run in runs:
        _complete(run, wanted.summaries.get(run.id, {}))

    report = build_report(wanted, places)
    report.id = _known_id(api, places[0], wanted.title, known)
    where = _asked("the report cannot be saved", lambda: _where(report.save()))
    storage.write_json(path, {**as_json(wanted), "published": where})
    lines = (f"W&B report: {where['url']}", *_incomplete(wanted, len(runs), len(found), uploads))
    return Review(path=path, url=where["url"], lines=lines)


def _incomplete(wanted: Specification, ours: int, found: int, uploads: str | None) -> Iterator[str]:
    """What the report lacks, and what it shows beside."""
    if ours < len(wanted.runs):
        todo = f"; upload the others with: {uploads}" if uploads else ""
        yield f"runs on the server: {ours} of {len(wanted.runs)}{todo}"
    if found > ours:
        yield (
            f"runs of no trial in W&B's group {wanted.group}, of an earlier grid or another sweep "
            f"of this name: {found - ours}; panels show them, the ranking does not"
        )


def _login() -> "wandb.Api":
    import wandb

    advice = f"{address()} does not take the login; run `wandb login --relogin`"
    return _asked(advice, lambda: wandb.Api())


def _entity(api: "wandb.Api", place: Place) -> str:
    """Whose project it is, by the rule by which the runs were put there."""
    entity = place.entity or os.environ.get("WANDB_ENTITY")
    entity = entity or _asked("who is logged in cannot be told", lambda: api.default_entity)
    if not entity:
        raise InputError(
            f"W&B: whose project {place.project} is, is not known: WANDB.ENTITY is null and the "
            "login has no default entity; set WANDB_ENTITY to your user or team"
        )
    return entity


def _runs(api: "wandb.Api", place: Place, wanted: Specification, uploads: str | None) -> list[Any]:
    """The runs that the server has of the sweep, or the one run, in a project."""
    name = f"{place.entity}/{place.project}"
    ours = {"group": wanted.group} if wanted.group else {"name": {"$in": list(wanted.runs)}}
    return _asked(
        f"{name} on {address()} cannot be read; {_todo(uploads)}",
        lambda: list(api.runs(name, filters=ours, per_page=200, lazy=False)),
    )


def _no_runs(places: Sequence[Place], wanted: Specification, uploads: str | None) -> str:
    names = ", ".join(f"{place.entity}/{place.project}" for place in places) or "no project"
    missing = f"none of the {len(wanted.runs)} runs of {wanted.title} is in {names}"
    return f"W&B: {missing}; {_todo(uploads)}"


def _todo(uploads: str | None) -> str:
    """What to do where runs are missing."""
    if uploads:
        return f"upload the runs with: {uploads}"
    return (
        "set WANDB_ENTITY where they belong to another user or team; runs trained with "
        "WANDB.MODE=disabled are in no project"
    )


def _complete(run: Any, numbers: Mapping[str, float]) -> None:
    """Gives a run's summary its numbers of the comparison, and takes those it had before."""
    old = {name: None for name in run.summary.keys() if name.startswith(OF_THE_SWEEP)}
    wanted = {**old, **numbers}
    if any(run.summary.get(name) != value for name, value in wanted.items()):
        _asked(f"run {run.id} cannot be changed", lambda: run.summary.update(wanted))


def _known_id(api: "wandb.Api", place: Place, title: str, known: Mapping[str, object]) -> str:
    """The id of the report that is there already; empty where there is none."""
    name = f"{place.entity}/{place.project}"
    reports = _asked(f"the reports of {name} cannot be read", lambda: list(api.reports(name)))
    same = [report.id for report in reports if report.id == known.get("id")]
    return next(iter(same + [report.id for report in reports if report.display_name == title]), "")


def _where(report: Any) -> dict[str, str]:
    return {
        "server": address(),
        "entity": report.entity,
        "project": report.project,
        "id": report.id,
        "url": report.url,
    }


def _asked(problem: str, ask: Callable[[], Answer]) -> Answer:
    """The server's answer; InputError with the problem where it has none, or wandb refuses."""
    try:
        return ask()
    except Exception as error:  # wandb raises its own, those of its transport and ValueError
        raise InputError(f"W&B: {problem} ({first_line(error)})") from error
