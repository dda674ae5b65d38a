"""What a trial measured at its end besides the x0-error: columns of results.csv, and terms by step.

continuous_bound        bits/dim between the lowest and the highest log SNR ranked on
bits_per_dim            the discrete bound, which is not comparable across schedules and T
energy_joules           where a GPU told it
fid_10_eta0, ..._low, ..._high, ..._evaluations, ..._seconds      of samples in 10 steps, eta 0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm.measures import continuous_bound
from ddpm.quality_file import MEASURES, Point, Quality
from ddpm.report.data import Sweep, Trial
from ddpm.report.files import Value, mapping, number, sequence

_FIXED = (
    "continuous_bound",
    "continuous_bound_evaluation_error",
    "bits_per_dim",
    "bits_per_dim_evaluation_error",
    "energy_joules",
    "sampling_images",
)


@dataclass(frozen=True, kw_only=True)
class DiscreteBound:
    """The bound of the model with its timesteps, and what each of its steps costs, in bits/dim.

    timesteps: of the walk, from T to 0.  terms: at pure noise, then of each step; one a timestep.
    """

    value: float
    evaluation_error: float
    num_images: int
    timesteps: tuple[int, ...]
    terms: tuple[float, ...]
    term_errors: tuple[float, ...]


def discrete_bound(evaluation: Mapping[str, Value]) -> DiscreteBound | None:
    """The bound that evaluation.json holds; None where the images are not bytes or it is not there.

    Numbers that are not finite are NaN.
    """
    facts = mapping(evaluation.get("bits_per_dim"))
    timesteps, terms, errors = (
        tuple(map(number, sequence(facts.get(name))))
        for name in ("timesteps", "terms", "term_errors")
    )
    if not terms or not len(terms) == len(timesteps) == len(errors):
        return None
    return DiscreteBound(
        value=number(facts.get("value")),
        evaluation_error=number(facts.get("evaluation_error")),
        num_images=int(number(facts.get("num_images", 0))),
        timesteps=tuple(map(int, timesteps)),
        terms=terms,
        term_errors=errors,
    )


def columns(sweep: Sweep) -> tuple[str, ...]:
    """The columns that any trial of the sweep may fill, the fewest steps first."""
    points = {_tag(p): p for t in sweep.trials if t.quality for p in t.quality.points}
    ordered = sorted(points.values(), key=lambda point: (point.num_steps, point.eta))
    return (*_FIXED, *(name for point in ordered for name in _of_point(point)))


def cells(trial: Trial, levels: Sequence[int]) -> dict[str, object]:
    """What a trial puts into them; None, or no entry, where it has nothing.

    levels: of log SNR, that the trials are ranked on; none where they cannot be.
    """
    found: dict[str, object] = {"energy_joules": trial.number("energy_joules")}
    if trial.error is not None and len(levels) > 1:
        bound = continuous_bound(trial.error, levels)
        found["continuous_bound"] = bound.value
        found["continuous_bound_evaluation_error"] = bound.evaluation_error
    discrete = discrete_bound(trial.evaluation)
    if discrete is not None:
        found["bits_per_dim"] = discrete.value
        found["bits_per_dim_evaluation_error"] = discrete.evaluation_error
    return found | _of_samples(trial.quality)


def _of_samples(quality: Quality | None) -> dict[str, object]:
    if quality is None:
        return {}
    found: dict[str, object] = {"sampling_images": quality.num}
    for point in quality.points:
        found |= _of_point(point)
    return found


def _of_point(point: Point) -> dict[str, object]:
    found: dict[str, object] = {}
    for measure in MEASURES:
        one, name = point.interval(measure), f"{measure}_{_tag(point)}"
        found[name] = one and one.value
        found[f"{name}_low"], found[f"{name}_high"] = one and one.low, one and one.high
    found[f"evaluations_{_tag(point)}"] = point.evaluations
    found[f"sampling_seconds_{_tag(point)}"] = point.seconds
    return found


def _tag(point: Point) -> str:
    """A point as part of a column's name: 10_eta0, 25_eta0.5."""
    return f"{point.num_steps}_eta{point.eta:g}"
