"""A sweep's report as a W&B report: made once, then the same one is brought up to date.

The words and comparisons are the offline report's own sections, since a service that sees single
runs knows no intervals over seeds and no levels that all cells share; panels that draw the runs
stand below them. Every ranked run's summary gets its numbers over the levels that all cells share,
so that W&B's tables sort as the report ranks.

wandb_report.json beside the report keeps its text, and where it was published: the report is known
by its id there, and where the file was lost by its title in the project.
"""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddpm.config import X0_MEASURES
from ddpm.errors import InputError, as_typed
from ddpm.metrics import QUALITY_MEASURES
from ddpm.report import (
    TITLES,
    ReportFiles,
    answer,
    axes_of,
    section_text,
    short_path,
)
from ddpm.runs import read_facts, storage
from ddpm.tracking import wandb_log
from ddpm.tracking.wandb_log import address, first_line, has_wandb_key, said_mode, why_not_online

if TYPE_CHECKING:
    import wandb
    import wandb_workspaces.reports.v2 as wr

FILE, UPLOADS = "wandb_report.json", "wandb_uploads.txt"
OF_THE_SWEEP = "sweep/"  # what numbers begin with that one run alone does not know
_LOSSES = tuple(f"train/{name}" for name in ("loss", "n_loss", "i_loss", "v_loss"))
_LONGEST_TITLE = 128  # of a W&B report
_WIDTH = 24  # of a grid of panels, in W&B's units
_MOST_RUNS = 100  # that a panel draws at once
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A project and whose it is; entity None is the default of who is logged in."""

    entity: str | None
    project: str


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A report and the runs that it shows.

    places: where the runs are; the report belongs to the first.  group: the sweep that the runs
    belong to, None for a single run.  runs: their ids.  columns: the table's numbers, and it is
    ordered by the first of them, lowest first.  sections: title -> Markdown.  summaries: run id ->
    numbers of the comparison for the run's own summary.
    """

    title: str
    description: str
    places: tuple[Place, ...]
    group: str | None
    runs: tuple[str, ...]
    factors: tuple[str, ...]
    columns: tuple[str, ...]
    sections: Mapping[str, str]
    summaries: Mapping[str, Mapping[str, float]]


def specification(made: ReportFiles) -> Specification:
    """The W&B report of a sweep or a run: an answer, then the sections of the page."""
    sweep, ranking = made.sweep, made.ranking
    numbers = _numbers(made)
    places = Counter(
        Place(project=project, entity=entity if isinstance(entity, str) else None)
        for trial in sweep.trials
        if isinstance(project := trial.config.get("WANDB.PROJECT"), str)
        for entity in [trial.config.get("WANDB.ENTITY")]
    )
    summaries = {
        trial.name: {
            f"{OF_THE_SWEEP}{measure}": value
            for measure, numbers in standing.numbers.items()
            if seed in numbers and isfinite(value := numbers[seed].value)
        }
        for standing in ranking.standings
        for seed, trial in standing.trials.items()
    }
    qualities = (name for t in sweep.trials for name in wandb_log.final_quality(t.quality))
    return Specification(
        title=f"{'Sweep' if sweep.is_sweep else 'Run'} {sweep.name}"[:_LONGEST_TITLE],
        description=sweep.question or made.verdict.headline,
        places=tuple(place for place, _ in places.most_common()),
        group=sweep.name if sweep.is_sweep else None,
        runs=tuple(trial.name for trial in sweep.trials),
        factors=tuple(axes_of(sweep).values),
        columns=(*numbers, *dict.fromkeys(qualities), "images_per_s", _cost(made),
                 "peak_memory_bytes"),
        sections={"Answer": answer(made)} | {one.title: section_text(one) for one in made.sections},
        summaries=summaries if sweep.is_sweep else {},
    )  # fmt: skip


def _numbers(made: ReportFiles) -> tuple[str, ...]:
    """The measures of the headline; a run's x0-error over its own levels."""
    start = OF_THE_SWEEP if made.sweep.is_sweep else "val/"
    return tuple(f"{start}{measure}" for measure in made.ranking.measures)


def _cost(made: ReportFiles) -> str:
    """The seconds that trainings cost: of GPUs where they used some."""
    on_gpu = any(trial.number("gpu_seconds") is not None for trial in made.sweep.trials)
    return "gpu_seconds" if on_gpu else "core_seconds"


def panels(made: ReportFiles) -> dict[str, list[Any]]:
    """The panels below each section, by its title, not placed yet."""
    import wandb_workspaces.reports.v2 as wr

    def curves(title: str, x: str, y: Sequence[str], is_log: bool = False) -> Any:
        return wr.LinePlot(
            title=title,
            x=x,
            y=list(y),
            title_x=x,
            log_y=is_log,
            max_runs_to_show=_MOST_RUNS,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    def bars(title: str, name: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[name],
            max_runs_to_show=_MOST_RUNS,
            max_bars_to_show=_MOST_RUNS,
        )

    def pictures(title: str, key: str, **axes: Any) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[key], **axes)

    sweep, cost = made.sweep, _cost(made)
    numbers = dict(zip(map(TITLES.__getitem__, made.ranking.measures), _numbers(made), strict=True))
    columns: list[Any] = [
        *map(wr.Config, axes_of(sweep).values),
        *map(wr.SummaryMetric, numbers.values()),
    ]
    lines = [wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
    logged = {wandb_log.shown_name(name) for trial in sweep.trials for name in trial.metrics}
    measured = [n for n in (*(f"val/{m}" for m in X0_MEASURES), *_LOSSES) if n in logged]
    of_gpu = ("gpu_allocated", "gpu_peak") if cost == "gpu_seconds" else ()
    quality = dict.fromkeys(
        name for t in sweep.trials for row in wandb_log.quality_rows(t.quality) for name in row
    )
    sampled = {
        measure: [name for name in quality if name.startswith(f"{wandb_log.QUALITY}{measure} ")]
        for measure in QUALITY_MEASURES
    }
    return {
        "Ranking": [
            wr.ParallelCoordinatesPlot(title="Factors and numbers", columns=lines),
            *(bars(title, name) for title, name in numbers.items()),
        ],
        "x0-error by noise level": [
            curves("x0-error over log SNR", wandb_log.LOGSNR, [wandb_log.X0_ERROR], is_log=True)
        ],
        "Cost": [
            *(
                wr.ScatterPlot(
                    title=f"{title} over {cost}", x=wr.SummaryMetric(cost), y=wr.SummaryMetric(name)
                )
                for title, name in numbers.items()
            ),
            bars("Peak memory, bytes", "peak_memory_bytes"),
        ],
        "Samples": [
            pictures("In the end", wandb_log.FINAL_SAMPLES, mode="gallery", gallery_axis="run")
        ],
        "Samples over training": [
            pictures(
                "While training",
                wandb_log.SAMPLES,
                mode="grid",
                grid_x_axis="step",
                grid_y_axis="run",
            )
        ],
        "Samples over sampling steps": [
            curves(measure, wandb_log.SAMPLING_STEPS, names)
            for measure, names in sampled.items()
            if names
        ],
        "Training curves": [
            curves(name, wandb_log.STEP, [name], is_log=name in _LOSSES)
            for name in (
                *measured,
                *(f"memory/{name}" for name in ("process_rss", "process_peak", *of_gpu)),
            )
        ],
        "Configuration": [wr.RunComparer(diff_only="split")] * sweep.is_sweep,
        "Bits per dimension": [bars("bits/dim", wandb_log.BITS_PER_DIM)],
    }


_WIDE = ("Samples", "Samples over training", "Configuration")  # one panel a row
_GROUPED = ("x0-error by noise level", "Samples over sampling steps", "Training curves")


def build_report(made: ReportFiles, wanted: Specification, places: Sequence[Place]) -> "wr.Report":
    """The report, in the first place; nothing is asked of a server before it is saved.

    places: those of the specification, their entities known.
    """
    import wandb_workspaces.reports.v2 as wr

    has_seeds = len({trial.key for trial in made.sweep.trials}) < len(made.sweep.trials)
    found = panels(made)
    blocks: list[Any] = [wr.TableOfContents()]
    for title, text in wanted.sections.items():
        blocks += [wr.H1(title), *([wr.MarkdownBlock(text)] if text else [])]
        if some := found.get(title):
            grouped = wanted.factors if title in _GROUPED and has_seeds else ()
            grid = wr.PanelGrid(
                runsets=[_run_set(wanted, place, grouped) for place in places],
                hide_run_sets=title != "Ranking",
                panels=_placed(some, across=1 if title in _WIDE else min(len(some), 3)),
            )
            blocks.append(grid)
    return wr.Report(
        project=places[0].project,
        entity=str(places[0].entity),
        title=wanted.title,
        description=wanted.description,
        blocks=blocks,
        width="fluid",
    )


def _placed(some: list[Any], across: int) -> list[Any]:
    """The panels row by row, `across` of them in a row."""
    import wandb_workspaces.reports.v2 as wr

    width = _WIDTH // across
    for k, panel in enumerate(some):
        panel.layout = wr.Layout(x=width * (k % across), y=10 * (k // across), w=width, h=10)
    return some


def _run_set(wanted: Specification, place: Place, grouped: Sequence[str]) -> "wr.Runset":
    """The runs of a sweep, or the one run, in the order of the first number, lowest first."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    found = (
        expr.Metric("Group") == wanted.group
        if wanted.group is not None
        else expr.Metric("ID").isin(list(wanted.runs))
    )
    # W&B nests configurations: what follows a key's first word stands behind its `.value`.
    keys = [key.partition(".") for key in wanted.factors]
    columns = [f"config:{first}.value{dot}{rest}" for first, dot, rest in keys]
    columns += [f"summary:{name}" for name in wanted.columns]
    return wr.Runset(
        entity=str(place.entity),
        project=place.project,
        name=wanted.group or wanted.title,
        filters=expr.And(found),
        groupby=[f"config.{key}" for key in grouped],
        order=[wr.OrderBy(wr.SummaryMetric(wanted.columns[0]), ascending=True)],
        pinned_columns=["run:displayName"],
        visible_columns=columns,
        lock_columns=True,
    )


def publish_report(made: ReportFiles) -> list[str]:
    """Writes the specification, and publishes it where there is a login; where it is, in lines.

    InputError, after the file was written, where a server was meant but cannot show the report.
    """
    folder = made.sweep.folder
    path, wanted = folder / FILE, specification(made)
    known = read_facts(path).get("published") or {}
    storage.write_json(path, {"format": 2, **asdict(wanted), "published": known or None})
    uploads = _uploads(made)
    if reason := _why_not_published():
        return [
            f"W&B report: not published, {reason}; {path} says what it will show",
            *([f"upload the runs with: {uploads}"] if uploads else []),
            f"then publish with: {as_typed('report', short_path(folder), '--wandb')}",
        ]
    if unreachable := why_not_online():
        raise InputError(f"W&B: {unreachable}; {path} is written, run the same command again")
    return _published(made, wanted, path, known, uploads)


def _why_not_published() -> str | None:
    """The reason not to use a server, WANDB_MODE or no key; None where one is to be used."""
    if said_mode() in ("offline", "disabled"):
        name = "WANDB_MODE" if os.environ.get("WANDB_MODE") else "WANDB_DISABLED"
        return f"{name} is {os.environ[name]}"
    return None if has_wandb_key() else "no API key (set WANDB_API_KEY or run `wandb login`)"


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
    return f"xargs -d '\\n' wandb sync < {shlex.quote(str(short_path(path)))}"


def _published(
    made: ReportFiles,
    wanted: Specification,
    path: Path,
    known: Mapping[str, object],
    uploads: str | None,
) -> list[str]:
    """The report on the server, new or brought up to date; where it is, and what it lacks."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    advice = f"{address()} does not take the login; run `wandb login --relogin`"
    api = _asked(advice, wandb.Api)
    there = [replace(place, entity=_entity(api, place)) for place in wanted.places]
    places = tuple(dict.fromkeys(there))
    found = [run for place in places for run in _runs(api, place, wanted, uploads)]
    runs = [run for run in found if run.id in wanted.runs]
    if not runs:
        names = ", ".join(f"{place.entity}/{place.project}" for place in places) or "no project"
        missing = f"none of the {len(wanted.runs)} runs of {wanted.title} is in {names}"
        raise InputError(f"W&B: {missing}; {_todo(uploads)}")
    for run in runs:
        _complete(run, wanted.summaries.get(run.id, {}))

    report = build_report(made, wanted, places)
    report.id = _known_id(api, places[0], wanted.title, known)
    saved = _asked("the report cannot be saved", report.save)
    where = {name: getattr(saved, name) for name in ("entity", "project", "id", "url")}
    where["server"] = address()
    storage.write_json(path, {"format": 2, **asdict(wanted), "published": where})
    return [f"W&B report: {saved.url}", *_incomplete(wanted, len(runs), len(found), uploads)]


def _incomplete(wanted: Specification, ours: int, found: int, uploads: str | None) -> Iterator[str]:
    """Runs that the report lacks, and those that it shows beside."""
    if ours < len(wanted.runs):
        todo = f"; upload the others with: {uploads}" if uploads else ""
        yield f"runs on the server: {ours} of {len(wanted.runs)}{todo}"
    if found > ours:
        yield (
            f"runs of no trial in W&B's group {wanted.group}, of an earlier grid or another sweep "
            f"of this name: {found - ours}; panels show them, the ranking does not"
        )


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


def _todo(uploads: str | None) -> str:
    """The remedy where runs are missing."""
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


def _asked(problem: str, ask: Callable[[], Answer]) -> Answer:
    """The server's answer; InputError with the problem where it has none, or wandb refuses."""
    try:
        return ask()
    except Exception as error:  # wandb raises its own, those of its transport and ValueError
        raise InputError(f"W&B: {problem} ({first_line(error)})") from error
