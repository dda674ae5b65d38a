"""Measures by which trials may be compared, and the evaluations at which they are.

A search on a measure that its cells do not share finds the cell whose numbers are small, not the
one that is good:

    mean_log10_mse, snr_weighted_mse   the x0-error at common noise levels: compares all cells
    fid_infinity, kid, class_accuracy  of samples drawn alike: as many network calls in all cells
    loss                               only where nothing varies that its scale or average hangs on
    bits_per_dim                       only where schedule and timesteps are one; known at the end

Trials are compared at equal images seen, so rungs and lengths must be equal in images too. A rung
is an evaluation; its number is the one of the trial's summary at its end, lower is better.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from ddpm import config as configuration
from ddpm.config import FID_SAMPLES, MEASURES, X0_MEASURES, Config
from ddpm.sweep.spec import Race, Tune

_NETWORK, _HYPER = "TRAINING.NETWORK.", "TRAINING.HYPER_PARAMETERS."
_SCHEDULE = tuple(
    _NETWORK + name for name in ("SCHEDULER", "TIMESTEPS", "LOGSNR_SHIFT", "ZERO_TERMINAL_SNR")
)
_LOSS = (
    *("TRAINING.PRED_TYPE", "TRAINING.LOSS_SPACE", "TRAINING.LOSS_FN"),
    *("TRAINING.LOSS_WEIGHTING", "TRAINING.MIN_SNR_GAMMA", "TRAINING.LOSS_FLOOR"),
    "TRAINING.LABEL_DROP",
    *("TRAINING.LOGSNR_DENSITY", "TRAINING.DENSITY_PARAMETERS", "TRAINING.WEIGHTED_AS"),
    _NETWORK + "DROPOUT_RATE",
    *_SCHEDULE,
)
# They make the images on which trials are measured; those of _AUGMENT change training alone.
IMAGE_KEYS = (
    *("TRAINING.INPUT_IMAGE_SIZE", "TRAINING.INPUT_IMAGE_CHANNEL"),
    *(f"DATASET.PREPROCESSING.{name}" for name in ("RESIZE", "CROP_SIZE", "CROP_POSITION")),
)
_AUGMENT = tuple(
    f"DATASET.PREPROCESSING.{name}" for name in ("AUGMENT", "AUGMENT_TYPE", "CROP_TYPE")
)


def column(metric: str) -> str:
    """The metric's name among the numbers of a report and of a summary."""
    return metric if metric == "loss" else f"val_{metric}"


def problems(
    tune: Tune,
    race: Race | None,
    grid: Collection[str],
    space: Collection[str],
    configs: Sequence[Config],
) -> list[str]:
    """All that keeps TUNE.METRIC from comparing these configurations fairly.

    grid: the keys of GRID with several values.  space: those of SPACE.
    """
    found = [*_metric_problems(tune, {*grid, *space}, configs)]
    if tune.WITHIN is not None:
        lengths = {length for one in configs for length in one.EVALUATION.EMA_LENGTHS}
        found += _within_problems(tune, race, space, len(lengths) > 1)
    drawn = [c.EVALUATION.SAMPLING_NUM for c in configs if c.EVALUATION.SAMPLING_STEPS]
    if drawn and (few := min(drawn)) < (least := FID_SAMPLES["classifier"]):
        found.append(
            f"EVALUATION.SAMPLING_NUM is {few} but cells are compared by FID, which needs {least} "
            "samples; give some thousands, or SAMPLING_STEPS [] to compare by the x0-error"
        )
    if tune.SEARCH != "grid":
        found += [*_search_problems(tune, race, configs)]
    elif race is not None and tune.METRIC not in X0_MEASURES:
        found.append(
            f"SEEDS is auto but TUNE.METRIC is {tune.METRIC}; a race is decided by what "
            "the report compares, samples where all draw some, else the x0-error: leave METRIC out"
        )
    return found


def _metric_problems(
    tune: Tune, varied: Collection[str], configs: Sequence[Config]
) -> Iterable[str]:
    instead = f"use {' or '.join(X0_MEASURES)}, which compare all cells"
    reasons = {
        "loss": (
            (*_LOSS, *_AUGMENT),
            "on which a loss's scale or average hangs, not a network's worth",
        ),
        "bits_per_dim": (_SCHEDULE, "and one ideal denoiser scores differently by them"),
    }
    if tune.METRIC in reasons:
        keys, why = reasons[tune.METRIC]
        if bad := [key for key in keys if key in varied]:
            yield f"TUNE.METRIC is {tune.METRIC} but cells differ in {', '.join(bad)}, {why}; " + (
                instead
            )
    if bad := [key for key in IMAGE_KEYS if key in varied]:
        yield (
            f"cells differ in {', '.join(bad)}: they would be measured on different images; run "
            f"one sweep for each value, with {bad[0]}=VALUE behind the sweep file"
        )
    if MEASURES[tune.METRIC].of == "samples":
        if any(one.EVALUATION.FEATURES is None for one in configs):
            yield (
                f"TUNE.METRIC is {tune.METRIC} but EVALUATION.FEATURES is null; give `classifier` "
                f"(or `pixels`), or {instead}"
            )
        if any(one.EVALUATION.EVERY is None for one in configs):
            yield (
                f"TUNE.METRIC is {tune.METRIC} but EVALUATION.EVERY is null; samples are measured "
                "at evaluations, so give the epochs between them"
            )
        yield from {problem for one in configs if (problem := _unmeasured(tune.METRIC, one))}
        if len({_calls(one) for one in configs}) > 1:
            calls = " and ".join(map(str, sorted({_calls(one) for one in configs})))
            yield (
                f"TUNE.METRIC is {tune.METRIC} but cells draw with {calls} network calls an image; "
                f"let TRAINING.INLINE_GEN.REVERSE_STRIDE and TIMESTEPS be one for all, or {instead}"
            )


def _unmeasured(metric: str, config: Config) -> str | None:
    """The reason that samples of evaluations would lack a measure; None where they have it."""
    options = config.EVALUATION
    if options.FEATURES is None:
        return None  # said already
    least = FID_SAMPLES[options.FEATURES]
    if metric == "fid_infinity" and options.SAMPLES < least:
        return (
            f"TUNE.METRIC is fid_infinity but EVALUATION.SAMPLES is {options.SAMPLES}, and an FID "
            f"of {options.FEATURES} features needs {least}; give as many, or METRIC kid"
        )
    if metric == "class_accuracy" and options.FEATURES != "classifier":
        return (
            f"TUNE.METRIC is class_accuracy but EVALUATION.FEATURES is {options.FEATURES}, which "
            "tells no classes of these data; give classifier"
        )
    if metric == "class_accuracy" and config.TRAINING.NETWORK.NUM_CLASSES is None:
        return (
            "TUNE.METRIC is class_accuracy but TRAINING.NETWORK.NUM_CLASSES is null, so no image "
            "is drawn of a class; give the number of classes, or METRIC kid"
        )
    return None


def _within_problems(
    tune: Tune, race: Race | None, space: Collection[str], has_lengths: bool
) -> Iterable[str]:
    named = "TUNE.WITHIN is cell"
    if not space and not has_lengths:
        yield (
            f"{named} but SPACE is empty; give what is to be chosen within each cell, such as "
            f"{_HYPER}LEARNING_RATE: {{loguniform: [1.0e-3, 1.0e-2]}}"
        )
    if f"{_HYPER}EPOCHS" in space:
        yield f"{named} but SPACE has {_HYPER}EPOCHS; cells are compared at one length"
    if tune.SEARCH != "grid":
        yield f"{named} but TUNE.SEARCH is {tune.SEARCH}; every draw is trained alike: use grid"
    if race is not None:
        yield f"{named} but SEEDS is auto; give a list of SEEDS"


def _search_problems(tune: Tune, race: Race | None, configs: Sequence[Config]) -> Iterable[str]:
    named = f"TUNE.SEARCH is {tune.SEARCH}"
    if race is not None:
        yield f"{named} but SEEDS is auto; a race needs every cell trained to its end: use grid"
    if tune.SEARCH == "bayes" and len({one.TRAINING.SEED for one in configs}) > 1:
        yield (
            f"{named} but there are several SEEDS; it trains each choice once: give one seed, and "
            "compare the best of what it finds in a grid with seeds of their own"
        )
    if tune.SEARCH == "bayes" and tune.BUDGET.TRIALS is not None:
        yield f"{named} and TUNE.BUDGET.TRIALS is given; TUNE.TRIALS says how many it trains"
    if tune.SEARCH != "bayes":
        if any(one.EVALUATION.EVERY is None for one in configs):
            yield (
                f"{named} but EVALUATION.EVERY is null; give the epochs between evaluations, at "
                "which trials are compared"
            )
        if tune.METRIC == "bits_per_dim":
            yield f"{named} but bits_per_dim is measured at the end alone; use {X0_MEASURES[0]}"
    if len({_length(one) for one in configs}) > 1:
        yield (
            f"{named} but cells see different numbers of images between evaluations or in all; "
            f"{_HYPER}EPOCHS, BATCH_SIZE x STEPS_PER_EPOCH and EVALUATION.EVERY must give the same "
            "in every cell (STEPS_PER_EPOCH: null makes an epoch one pass)"
        )


def _length(config: Config) -> tuple[int, int | None, int | None]:
    """Equal for trainings that see as many images, in all and by each evaluation."""
    hyper = config.TRAINING.HYPER_PARAMETERS
    steps = hyper.STEPS_PER_EPOCH
    return hyper.EPOCHS, steps and steps * hyper.BATCH_SIZE, config.EVALUATION.EVERY


def _calls(config: Config) -> int:
    """Network calls of one image of a sample grid."""
    total = config.TRAINING.NETWORK.TIMESTEPS
    steps = configuration.sampling_steps(config.TRAINING.INLINE_GEN, total)
    return steps.get("num_steps") or -(-total // steps["reverse_stride"])


def missed_levels(
    levels: Mapping[str, Collection[int]], window: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """The levels of the window that cells do not reach, of those that miss some.

    levels: by cell, those that its schedule reaches.
    """
    wanted = range(window[0], window[1] + 1)
    lacking = {name: tuple(set(wanted).difference(own)) for name, own in levels.items()}
    return {name: tuple(sorted(those)) for name, those in lacking.items() if those}


def window_problems(
    levels: Mapping[str, Collection[int]], window: tuple[int, int], tune: Tune
) -> list[str]:
    """Reasons that cells cannot be measured over the window: all of them, or some of a search,
    which would average over other levels than the rest.
    """
    lacking, (low, high) = missed_levels(levels, window), window
    if levels and all(len(lacking.get(name, ())) == 1 + high - low for name in levels):
        return [
            f"no cell reaches a log SNR from {low} to {high}, where these images are resolved; "
            "give another TRAINING.NETWORK.LOGSNR_SHIFT, or more TIMESTEPS"
        ]
    if tune.SEARCH == "grid" or tune.METRIC not in X0_MEASURES:
        return []
    return [
        f"{name} reaches no log SNR of {', '.join(map(str, those))}, and a search averages over "
        f"the window of the data, {low} to {high}; leave this cell out, or give it more TIMESTEPS"
        for name, those in lacking.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One evaluation. value: lower is better; infinite where the network gave no finite number."""

    evaluation: int
    step: int
    images: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs of a trial: after every `every` optimizer steps, and at the end."""

    metric: str
    every: int
    total: int

    @property
    def evaluations(self) -> int:
        """Their number."""
        return -(-self.total // self.every)

    def rung(self, row: Mapping[str, Any]) -> Rung | None:
        """The rung that a row of metrics is; None between two of them."""
        step, name = int(row["step"]), column(self.metric)
        if name not in row or (step % self.every and step != self.total):
            return None
        return Rung(
            evaluation=-(-step // self.every),
            step=step,
            images=int(row["images"]),
            value=to_minimise(self.metric, row[name]),
        )


def to_minimise(metric: str, value: object) -> float:
    """The metric's value so that lower is better; infinite where it is no finite number."""
    is_number = isinstance(value, int | float) and isfinite(value)
    return MEASURES[metric].sign * float(value) if is_number else inf  # type: ignore[arg-type]
