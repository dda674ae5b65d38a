"""Names under which a run's numbers stand in its mirror, and what a finished run adds there.

While a run trains, its mirror shows the rows of metrics.jsonl by `step`. What is measured of the
final network are curves with axes of their own: the x0-error over log SNR, and what its samples are
worth over the number of sampling steps. Lower is better for all of them but the accuracies.
"""

from collections.abc import Mapping

from ddpm.quality_file import MEASURES, Point, Quality

STEP, LOGSNR = "step", "logsnr"
X0_ERROR = "x0_error"  # by LOGSNR
SAMPLES, FINAL_SAMPLES = "samples", "final_samples"  # by STEP; of the network in the end
SAMPLING_STEPS, QUALITY = "sampling_steps", "quality/"  # the second is what names begin with
BITS_PER_DIM = "bits_per_dim"


def error_rows(found: Mapping[str, object]) -> list[dict[str, float]]:
    """The x0-error by log-SNR level, a row each, ascending; levels without a number are left out.

    found: the run's evaluation.json, empty where there is none.
    """
    levels, errors = found.get("levels"), found.get("mse")
    if not isinstance(levels, list) or not isinstance(errors, list):
        return []
    pairs = zip(levels, errors, strict=True)
    return [{LOGSNR: level, X0_ERROR: error} for level, error in pairs if error is not None]


def bits_per_dim(found: Mapping[str, object]) -> float | None:
    """The bound on bits/dim, where the data have one."""
    bound = found.get("bits_per_dim")
    value = bound.get("value") if isinstance(bound, dict) else None
    return value if isinstance(value, float) else None


def quality_rows(quality: Quality | None) -> list[dict[str, float]]:
    """What samples are worth by the number of sampling steps, a row each, the fewest first.

    A sampler and its eta are part of a number's name: `quality/fid ddim eta=0`.
    """
    rows: dict[int, dict[str, float]] = {}
    for point in quality.points if quality is not None else ():
        row = rows.setdefault(point.num_steps, {SAMPLING_STEPS: point.num_steps})
        where = f"{point.sampler} eta={point.eta:g}"
        row |= {f"{QUALITY}{name} {where}": value for name, value in _values(point).items()}
    return [rows[steps] for steps in sorted(rows) if len(rows[steps]) > 1]


def final_quality(quality: Quality | None) -> dict[str, float]:
    """The numbers at the most sampling steps and the least eta: what a table shows of a run."""
    points = quality.points if quality is not None else ()
    last = min(points, key=lambda point: (-point.num_steps, point.eta), default=None)
    values = _values(last) if last is not None else {}
    return {f"{QUALITY}{name}": value for name, value in values.items()}


def _values(point: Point) -> dict[str, float]:
    found = {name: point.interval(name) for name in MEASURES}
    return {name: one.value for name, one in found.items() if one is not None}
