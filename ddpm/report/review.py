"""The specification of a sweep's online report: the sections of report.html as text and panels.

The words and the comparisons are the offline report's own, since a service that sees single runs
knows no intervals over seeds and no levels that all cells share. The panels draw the runs.
"""

from collections import Counter
from dataclasses import replace
from math import isfinite

from ddpm import mirrored, quality_file
from ddpm.measures import MEASURES
from ddpm.report import markdown, panel_text
from ddpm.report.axes import Axes, axes_of
from ddpm.report.costs import is_on_gpu
from ddpm.report.data import Sweep
from ddpm.report.panels import (
    Bars,
    Curves,
    Differences,
    Parallel,
    Pictures,
    Place,
    Scatter,
    Section,
    Specification,
)
from ddpm.report.ranking import Ranking
from ddpm.report.verdict import NAMES, Verdict

LONGEST_TITLE = 128  # of a W&B report
OF_THE_SWEEP = "sweep/"  # what numbers begin with that one run alone does not know
_LOSSES = ("loss", "n_loss", "i_loss", "v_loss")


def specification(sweep: Sweep, ranking: Ranking, verdict: Verdict) -> Specification:
    """What the online report of a sweep or a run shows."""
    axes = axes_of(sweep)
    numbers = _numbers(sweep)
    sections = (
        Section(title="Answer", text=panel_text.answer(sweep, ranking, verdict)),
        *(_of_the_comparison(sweep, ranking, axes, numbers) if ranking.standings else ()),
        *_samples(sweep),
        _sampling(sweep, axes),
        _training(sweep),
        Section(title="Search", text=panel_text.search(sweep) if sweep.is_sweep else ""),
        Section(title="Failed, skipped and not ranked", text=markdown.failures(sweep, ranking)),
        _configuration(sweep),
        Section(title="Provenance", text=panel_text.provenance(sweep, ranking)),
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


def _numbers(sweep: Sweep) -> tuple[str, ...]:
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


def _places(sweep: Sweep) -> tuple[Place, ...]:
    """Where the trials were mirrored, the place of most of them first."""
    found: Counter[Place] = Counter()
    for trial in sweep.trials:
        project, entity = trial.config.get("WANDB.PROJECT"), trial.config.get("WANDB.ENTITY")
        if isinstance(project, str):
            found[Place(project=project, entity=entity if isinstance(entity, str) else None)] += 1
    return tuple(place for place, _ in found.most_common())


def _of_the_comparison(
    sweep: Sweep, ranking: Ranking, axes: Axes, numbers: tuple[str, ...]
) -> tuple[Section, ...]:
    """What is said of evaluated trials; of a single run its curve alone."""
    if not sweep.is_sweep:
        return (_errors(sweep, ranking),)
    return (
        _ranking(ranking, axes, numbers),
        Section(title="Differences", text=panel_text.differences(ranking)),
        Section(title="Factors", text=markdown.factors(ranking)),
        Section(title="Heat maps", text=panel_text.heat_maps(ranking, axes)),
        _errors(sweep, ranking),
        _costs(sweep, ranking, numbers),
    )


def _ranking(ranking: Ranking, axes: Axes, numbers: tuple[str, ...]) -> Section:
    bars = [Bars(title=NAMES[m], number=name) for m, name in zip(MEASURES, numbers, strict=True)]
    lines = Parallel(title="Factors and numbers", factors=tuple(axes.values), numbers=numbers)
    return Section(
        title="Ranking", text=panel_text.ranked(ranking), panels=(lines, *bars), has_table=True
    )


def _errors(sweep: Sweep, ranking: Ranking) -> Section:
    curve = Curves(
        title="x0-error over log SNR", x=mirrored.LOGSNR, y=(mirrored.X0_ERROR,), has_log_y=True
    )
    return Section(
        title="x0-error over noise level",
        text=panel_text.reference_lines(sweep, ranking),
        panels=(curve,),
        is_grouped=_has_seeds(sweep),
    )


def _samples(sweep: Sweep) -> tuple[Section, Section]:
    """The grids of the final networks, and those drawn while they trained."""
    end, during = Section(title="Samples"), Section(title="Samples over training")
    if any(trial.samples is not None for trial in sweep.trials):
        text = (
            "Every grid starts from the same noise and has the same class in the same place, so "
            "grids differ by the trained network alone."
        )
        pictures = Pictures(title="In the end", key=mirrored.FINAL_SAMPLES)
        end = replace(end, text=text, panels=(pictures,))
    if any(len(trial.inline) > 1 for trial in sweep.trials):
        text = "The same noise and the same classes at every step, by the weights of that moment."
        pictures = Pictures(title="While training", key=mirrored.SAMPLES, has_steps=True)
        during = replace(during, text=text, panels=(pictures,))
    return end, during


def _sampling(sweep: Sweep, axes: Axes) -> Section:
    """A panel for each measure of samples, with a line for each sampler and eta."""
    names = dict.fromkeys(
        name
        for trial in sweep.trials
        for row in mirrored.quality_rows(trial.quality)
        for name in row
    )
    panels = []
    for measure in quality_file.MEASURES:
        lines = tuple(name for name in names if name.startswith(f"{mirrored.QUALITY}{measure} "))
        if lines:
            panels.append(Curves(title=measure, x=mirrored.SAMPLING_STEPS, y=lines))
    return Section(
        title="Samples over sampling steps",
        text=panel_text.sampling(sweep, axes),
        panels=tuple(panels),
        is_grouped=_has_seeds(sweep),
    )


def _qualities(sweep: Sweep) -> tuple[str, ...]:
    """The numbers that runs carry of their samples."""
    return tuple(
        dict.fromkeys(
            name for trial in sweep.trials for name in mirrored.final_quality(trial.quality)
        )
    )


def _training(sweep: Sweep) -> Section:
    """The measures that compare, then the losses, which do not, and memory, over steps."""
    logged = {name for trial in sweep.trials for name in trial.metrics}
    measures = tuple(f"val_{measure}" for measure in MEASURES)
    names = [name for name in (*measures, *_LOSSES) if name in logged]
    memory = ["process_rss", "process_peak"]
    if any(map(is_on_gpu, sweep.trials)):
        memory += ["gpu_allocated", "gpu_peak"]
    curves = [
        Curves(title=name, x=mirrored.STEP, y=(name,), has_log_y=name in _LOSSES)
        for name in (*names, *(f"memory/{name}" for name in memory))
    ]
    text = (
        "Losses are **not comparable across schedules or timesteps**: each trial averages them "
        "over its own noise levels. Use them to see whether training was stable and had levelled "
        "off, not to rank. Memory is in bytes."
    )
    return Section(
        title="Training curves",
        text=text if names else "",
        panels=tuple(curves) if names else (),
        is_grouped=_has_seeds(sweep),
    )


def _costs(sweep: Sweep, ranking: Ranking, numbers: tuple[str, ...]) -> Section:
    spent = _cost(sweep)
    over = [
        Scatter(title=f"{NAMES[measure]} over {spent}", x=spent, y=name)
        for measure, name in zip(MEASURES, numbers, strict=True)
    ]
    peak = Bars(title="Peak memory, bytes", number="peak_memory_bytes")
    return Section(title="Cost", text=panel_text.costs(sweep, ranking), panels=(*over, peak))


def _cost(sweep: Sweep) -> str:
    """The seconds that trainings cost: of GPUs where they used some."""
    on_gpu = any(trial.number("gpu_seconds") is not None for trial in sweep.trials)
    return "gpu_seconds" if on_gpu else "core_seconds"


def _bits(sweep: Sweep) -> Section:
    text = panel_text.bits(sweep)
    bars = (Bars(title="bits/dim", number=mirrored.BITS_PER_DIM),) if text else ()
    return Section(title="Bits per dimension", text=text, panels=bars)


def _configuration(sweep: Sweep) -> Section:
    panels = (Differences(title="Configurations"),) if sweep.is_sweep else ()
    return Section(title="Configuration", text=panel_text.configuration(sweep), panels=panels)


def _has_seeds(sweep: Sweep) -> bool:
    """Whether some cell was trained with more than one seed."""
    return len({trial.key for trial in sweep.trials}) < len(sweep.trials)
