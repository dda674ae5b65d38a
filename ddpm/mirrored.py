"""Names under which a run's numbers stand in its mirror, and what a finished run adds there.

While a run trains, its mirror shows the rows of metrics.jsonl by `step`. The evaluation of the
final network is another curve, the x0-error over log SNR, which has an axis of its own. All of the
numbers are better when they are lower but `images_per_s` and the accuracies.
"""

from collections.abc import Mapping

STEP, LOGSNR = "step", "logsnr"
X0_ERROR = "x0_error"  # by LOGSNR
SAMPLES, FINAL_SAMPLES = "samples", "final_samples"  # by STEP; of the network in the end
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
