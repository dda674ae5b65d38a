"""The specification of a sweep's online report: the sections of report.html as text and panels.

The words and the comparisons are the offline report's own, since a service that sees single runs
knows no intervals over seeds and no levels that all cells share. The panels draw the runs.
"""

from collections import Counter
from math import isfinite

from ddpm import mirrored
from ddpm.measures import MEASURES
from ddpm.report import panel_text
from ddpm.report.axes import Axes, axes_of
from ddpm.report.data import Sweep
from ddpm.report.files import Value, mapping, number, read_json
from ddpm.report.panels import (
    Bars,
    Curves,
    Differences,
    Panel,
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
        _ranking(sweep, ranking, axes, numbers),
        Section(title="Heat maps", text=panel_text.heat_maps(ranking, axes)),
        _errors(sweep, ranking),
        _samples(sweep),
        _sampling(sweep),
        _losses(sweep),
        _costs(sweep, numbers),
        _bits(sweep),
        Section(title="Failed, skipped and not ranked", text=panel_text.failures(sweep, ranking)),
        _configuration(sweep),
        Section(title="Provenance", text=panel_text.provenance(sweep)),
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


def _ranking(sweep: Sweep, ranking: Ranking, axes: Axes, numbers: tuple[str, ...]) -> Section:
    panels: list[Panel] = []
    if sweep.is_sweep:
        panels = [
            Parallel(title="Factors and numbers", factors=tuple(axes.values), numbers=numbers)
        ]
        panels += [
            Bars(title=NAMES[measure], number=name)
            for measure, name in zip(MEASURES, numbers, strict=True)
        ]
    text = panel_text.ranked(ranking) if ranking.standings and sweep.is_sweep else ""
    return Section(title="Ranking", text=text, panels=tuple(panels), has_table=True)


def _errors(sweep: Sweep, ranking: Ranking) -> Section:
    curve = Curves(
        title="x0-error over log SNR", x=mirrored.LOGSNR, y=(mirrored.X0_ERROR,), has_log_y=True
    )
    return Section(
        title="x0-error over noise level",
        text=panel_text.reference_lines(sweep, ranking),
        panels=(curve,) if any(trial.error is not None for trial in sweep.trials) else (),
        is_grouped=_has_seeds(sweep),
    )


def _samples(sweep: Sweep) -> Section:
    panels: list[Panel] = []
    if any(trial.samples is not None for trial in sweep.trials):
        panels.append(Pictures(title="In the end", key=mirrored.FINAL_SAMPLES))
    if any(trial.inline for trial in sweep.trials):
        panels.append(Pictures(title="While training", key=mirrored.SAMPLES, has_steps=True))
    text = (
        "Every grid starts from the same noise and has the same class in the same place, so grids "
        "differ by the trained network alone."
    )
    return Section(title="Samples", text=text if panels else "", panels=tuple(panels))


def _sampling(sweep: Sweep) -> Section:
    """A panel for each measure of samples, with a line for each sampler and eta."""
    names = dict.fromkeys(
        name for found in _measured(sweep) for row in mirrored.quality_rows(found) for name in row
    )
    panels = []
    for measure in mirrored.QUALITIES:
        lines = tuple(name for name in names if name.startswith(f"{mirrored.QUALITY}{measure} "))
        if lines:
            panels.append(Curves(title=measure, x=mirrored.SAMPLING_STEPS, y=lines))
    return Section(
        title="Samples over sampling steps", panels=tuple(panels), is_grouped=_has_seeds(sweep)
    )


def _qualities(sweep: Sweep) -> tuple[str, ...]:
    """The numbers that runs carry of their samples."""
    return tuple(
        dict.fromkeys(name for found in _measured(sweep) for name in mirrored.final_quality(found))
    )


def _measured(sweep: Sweep) -> list[dict[str, Value]]:
    """What trials have left of the quality of their samples."""
    folders = [trial.run_dir for trial in sweep.trials if trial.run_dir is not None]
    return [mapping(read_json(folder / "sample_quality.json")) for folder in folders]


def _losses(sweep: Sweep) -> Section:
    shown = tuple(
        Curves(title=name, x=mirrored.STEP, y=(name,), has_log_y=True)
        for name in _LOSSES
        if any(name in trial.metrics or name == "loss" for trial in sweep.trials)
    )
    text = (
        "**Not comparable across schedules or timesteps**: each trial averages these over its own "
        "noise levels. Use them to see whether training was stable and had levelled off, not to "
        "rank."
    )
    validation = tuple(
        Curves(title=f"val_{measure}", x=mirrored.STEP, y=(f"val_{measure}",))
        for measure in MEASURES
        if any(trial.config.get("EVALUATION.EVERY") is not None for trial in sweep.trials)
    )
    return Section(
        title="Training losses",
        text=text,
        panels=(*shown, *validation),
        is_grouped=_has_seeds(sweep),
    )


def _costs(sweep: Sweep, numbers: tuple[str, ...]) -> Section:
    memory, spent = ["process_rss", "process_peak"], _cost(sweep)
    if any(number(trial.provenance.get("gpus_per_worker")) > 0 for trial in sweep.trials):
        memory += ["gpu_allocated", "gpu_peak"]
    panels: list[Panel] = [
        Curves(title=f"memory/{name}, bytes", x=mirrored.STEP, y=(f"memory/{name}",))
        for name in memory
    ]
    panels += [Bars(title="Peak memory, bytes", number="peak_memory_bytes")]
    panels += [
        Scatter(title=f"{NAMES[measure]} over {spent}", x=spent, y=name)
        for measure, name in zip(MEASURES, numbers, strict=True)
    ]
    return Section(title="Memory and cost", panels=tuple(panels))


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
