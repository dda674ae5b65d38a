"""Noise levels drawn oftener, or weighed more: one expected loss, two variances (Hang et al. 2024).

The three cells of sweeps/moved_density.yaml. With p the density of the schedule, q that of
laplace, and mse(l) the loss at log SNR l, one training minimises E over q of mse, another E over p
of (q / p) mse, which is the same number; the third, E over p of mse, is where both set out.
"""

from collections.abc import Sequence

from ddpm.report import SweepResults
from experiments.claims import Claim, Numbers, Result, spread
from experiments.trials import (
    SHORT_OF_SAMPLES,
    Cell,
    StudyOptions,
    by_cell,
    failures,
    log_fid,
    num_samples,
    planned,
    trained,
    unlearned,
)

DENSITY, WEIGHT = "TRAINING.LOGSNR_DENSITY", "TRAINING.WEIGHTED_AS"
PLAIN, WEIGHED, DRAWN = ("schedule", None), ("schedule", "laplace"), ("laplace", None)


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, and compares."""
    return compare(trained(planned("moved_density", options, SHORT_OF_SAMPLES), options))


def compare(found: SweepResults) -> Result:
    """The trainings of the sweep."""
    cells = by_cell(found.with_status("done"), [DENSITY, WEIGHT], (PLAIN, WEIGHED, DRAWN))

    def logs(cell: Cell) -> list[float]:
        return [log_fid(cells.trials[cell][seed]) for seed in cells.seeds]

    def less(cell: Cell, other: Cell) -> tuple[float, ...]:
        return tuple(a - b for a, b in zip(logs(cell), logs(other), strict=True))

    claims = (
        Claim(
            paper="training oftener at the middle noise levels gives better samples than the "
            "cosine schedule's density.",
            number="ln FID of the schedule's density less that of laplace",
            values=less(PLAIN, DRAWN),
        ),
        Claim(
            paper="to draw levels oftener is better than to weigh them more.",
            number="ln FID of the weight less that of the density, one expected loss",
            values=less(WEIGHED, DRAWN),
        ),
    )
    return Result(
        name="moved_density",
        source="Hang et al. 2024, sections 3.2 and 4.2",
        setting=f"Handwritten digits, 8x8, instead of ImageNet; FID of {num_samples(found.trials)} "
        "by a classifier of digits, extrapolated to infinitely many samples; 25 steps of "
        "DPM-Solver++(2M) over the levels where the data are resolved, the same for all.",
        claims=claims,
        tables=(_table({cell: logs(cell) for cell in (PLAIN, WEIGHED, DRAWN)}),),
        failed=failures(found),
        unlearned=unlearned(found),
    )


def _table(logs: dict[Cell, Sequence[float]]) -> Numbers:
    return Numbers(
        title="ln FID, lower is better",
        headings=("levels drawn as", "weighed as", "ln FID"),
        rows=tuple(
            (str(cell[0]), str(cell[1] or cell[0]), spread(list(values)))
            for cell, values in logs.items()
        ),
    )
