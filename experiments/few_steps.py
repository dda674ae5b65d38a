"""Few reverse steps, and a part of the chain left out: linear against cosine betas (iDDPM, 2021).

Every network of sweeps/few_steps.yaml draws images in 5 to 50 steps, and in 50 steps of which the
first are skipped (experiments/skip_prefix.py).
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import log

from ddpm.report import TrialResult
from experiments.claims import Claim, Numbers, Result, spread
from experiments.skip_prefix import Point, chart, quality_of_run
from experiments.trials import Cell, StudyOptions, by_cell, each, failures, planned, run_of, trained

LINEAR, COSINE = ("iddpm_linear",), ("iddpm_cosine",)
MOST, FEW, FIFTH = 50, 10, 10  # steps; a fifth of MOST is skipped
STEPS = (5, FEW, 20, MOST)
SKIPPED = (0, 5, FIFTH, 15, 20, 25, 30)  # of MOST steps
IMAGES = 1024
# With --short: half the images, and these.
_FEWER_STEPS, _FEWER_SKIPPED = (FEW, MOST), (0, FIFTH, 20, 30)
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=30",
    "TRAINING.INLINE_GEN.PERIOD=30",
)

Points = dict[tuple[int, int], Point]  # by steps and how many of them are skipped
Measured = dict[Cell, dict[int, Points]]  # by cell and seed


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, draws, and compares."""
    found = trained(planned("few_steps", options, SHORT), options)
    cells = by_cell(found.with_status("done"), ["TRAINING.NETWORK.SCHEDULER"], (LINEAR, COSINE))
    images = IMAGES // 2 if options.is_short else IMAGES
    measured: Measured = {cell: {} for cell in cells.trials}
    for cell, seed in each(list(product(cells.trials, cells.seeds)), "few steps", options):
        measured[cell][seed] = _points(cells.trials[cell][seed], images, options.is_short)
    return Result(
        name="few_steps",
        source="Nichol & Dhariwal 2021, Tables 1 and 2, Fig. 4",
        setting=f"Handwritten digits, 8x8, noise predicted under the plain loss; FID of {images:,} "
        "samples by the features of a classifier of digits, DDIM with eta 0 instead of the paper's "
        "ancestral sampler with learned variances.",
        claims=claims(measured),
        tables=_tables(measured),
        pictures={
            "few_steps.png": chart(
                {
                    f"{cell[0]}, seed {seed}": [points[MOST, count] for count in _skipped(points)]
                    for cell, by_seed in measured.items()
                    for seed, points in by_seed.items()
                }
            )
        },
        failed=failures(found),
    )


def claims(measured: Measured) -> tuple[Claim, ...]:
    """The paper's tables and figure as signs."""

    def logs(cell: Cell, steps: int, skipped: int = 0) -> list[float]:
        return [log(measured[cell][seed][steps, skipped].fid.value) for seed in measured[cell]]

    def gap(steps: int, skipped: int = 0) -> list[float]:
        """ln FID of linear less that of cosine, by seed."""
        pairs = zip(logs(LINEAR, steps, skipped), logs(COSINE, steps, skipped), strict=True)
        return [linear - cosine for linear, cosine in pairs]

    return (
        Claim(
            paper="the cosine schedule gives better samples than the linear one (ImageNet 64x64, "
            "FID 27.0 against 31.3).",
            number=f"ln FID(linear) - ln FID(cosine) in {MOST} steps",
            values=tuple(gap(MOST)),
        ),
        Claim(
            paper="its advantage is larger the fewer the steps.",
            number=f"how much that difference grows from {MOST} steps to {FEW}",
            values=tuple(few - many for few, many in zip(gap(FEW), gap(MOST), strict=True)),
        ),
        Claim(
            paper="the linear chain begins with steps of no use, 20 % of it can be skipped; the "
            "cosine schedule was made to have none.",
            number="how much more ln FID rises for cosine than for linear by skipping them",
            values=tuple(b - a for a, b in zip(gap(MOST, FIFTH), gap(MOST), strict=True)),
        ),
    )


def _points(trial: TrialResult, images: int, is_short: bool) -> Points:
    point = quality_of_run(run_of(trial), images)
    steps, skipped = (_FEWER_STEPS, _FEWER_SKIPPED) if is_short else (STEPS, SKIPPED)
    wanted = [*((count, 0) for count in steps[:-1]), *((MOST, count) for count in skipped)]
    return {(count, left_out): point(count, left_out) for count, left_out in wanted}


def _skipped(points: Points) -> list[int]:
    return sorted(skipped for steps, skipped in points if steps == MOST)


def _tables(measured: Measured) -> tuple[Numbers, Numbers]:
    some = next(iter(next(iter(measured.values())).values()))
    steps, skips = sorted(count for count, skipped in some if skipped == 0), _skipped(some)

    def rows(
        number: Callable[[Points, int], float], columns: Sequence[int]
    ) -> tuple[tuple[str, ...], ...]:
        return tuple(
            (str(cell[0]), *(spread([number(one, c) for one in by_seed.values()]) for c in columns))
            for cell, by_seed in measured.items()
        )

    return (
        Numbers(
            title="FID by number of steps",
            headings=("schedule", *(f"{count} steps" for count in steps)),
            rows=rows(lambda one, count: one[count, 0].fid.value, steps),
        ),
        Numbers(
            title="FID over that of the whole chain, by the share skipped",
            headings=("schedule", *(f"{count / MOST:.0%}" for count in skips)),
            rows=rows(
                lambda one, count: one[MOST, count].fid.value / one[MOST, 0].fid.value, skips
            ),
        ),
    )
