"""Few reverse steps, and a part of the chain left out: linear against cosine betas (iDDPM, 2021).

Every network of sweeps/few_steps.yaml draws images in 5 to 50 steps, and in 50 steps of which the
first are skipped (ddpm/skip_prefix.py).
"""

from math import log

from ddpm.published.claims import Claim, Numbers, Result, spread
from ddpm.published.trials import Options, by_cell, failures, planned, shared_seeds, trained
from ddpm.skip_prefix import Judge, Point, chart

LINEAR, COSINE = ("iddpm_linear",), ("iddpm_cosine",)
STEPS = (5, 10, 20, 50)
SKIPPED = (0, 5, 10, 15, 20, 25, 30)  # of the last of STEPS
IMAGES = 1024
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=30",
    "TRAINING.INLINE_GEN.PERIOD=30",
)

Points = dict[tuple[int, int], Point]  # by steps and how many of them are skipped


def result(options: Options) -> Result:
    """Trains what is not trained, draws, and compares."""
    found = trained(planned("few_steps", options, SHORT), options)
    cells = by_cell(found.with_status("done"), "TRAINING.NETWORK.SCHEDULER")
    seeds = shared_seeds(cells)
    images = IMAGES // 2 if options.is_short else IMAGES
    measured: dict[tuple[object, ...], dict[int, Points]] = {
        cell: {seed: _points(trials[seed].run_dir, images) for seed in seeds}
        for cell, trials in cells.items()
    }

    def logs(cell: tuple[object, ...], steps: int, skipped: int = 0) -> list[float]:
        return [log(measured[cell][seed][steps, skipped].fid.value) for seed in seeds]

    def gap(steps: int, skipped: int = 0) -> list[float]:
        """ln FID of linear less that of cosine, by seed."""
        pairs = zip(logs(LINEAR, steps, skipped), logs(COSINE, steps, skipped), strict=True)
        return [linear - cosine for linear, cosine in pairs]

    most, fifth = STEPS[-1], 10
    claims = (
        Claim(
            paper="the cosine schedule gives better samples than the linear one (ImageNet 64x64, "
            "FID 27.0 against 31.3).",
            number=f"ln FID(linear) - ln FID(cosine) in {most} steps",
            values=tuple(gap(most)),
        ),
        Claim(
            paper="its advantage is larger the fewer the steps.",
            number=f"how much that difference grows from {most} steps to {STEPS[1]}",
            values=tuple(few - many for few, many in zip(gap(STEPS[1]), gap(most), strict=True)),
        ),
        Claim(
            paper="the first 20 % of the linear chain can be skipped at little cost, unlike those "
            "of the cosine chain.",
            number="how much more ln FID rises by that for cosine than for linear",
            values=tuple(b - a for a, b in zip(gap(most, fifth), gap(most), strict=True)),
        ),
    )
    return Result(
        name="few_steps",
        source="Nichol & Dhariwal 2021, Tables 1 and 2, Fig. 4",
        setting=f"Handwritten digits, 8x8, noise predicted under the plain loss; FID of {images:,} "
        "samples by the features of a classifier of digits, DDIM with eta 0 instead of the paper's "
        "ancestral sampler with learned variances.",
        claims=claims,
        tables=(_steps_table(measured), _skips_table(measured)),
        pictures={
            "few_steps.png": chart(
                {
                    f"{cell[0]}, seed {seed}": [points[most, count] for count in SKIPPED]
                    for cell, by_seed in measured.items()
                    for seed, points in by_seed.items()
                }
            )
        },
        failed=failures(found),
    )


def _points(run: object, images: int) -> Points:
    from pathlib import Path

    judge = Judge(Path(str(run)), images)
    wanted = [*((steps, 0) for steps in STEPS[:-1]), *((STEPS[-1], count) for count in SKIPPED)]
    return {(steps, count): judge.point(steps, count) for steps, count in wanted}


def _steps_table(measured: dict[tuple[object, ...], dict[int, Points]]) -> Numbers:
    return Numbers(
        title="FID by number of steps",
        headings=("schedule", *(f"{steps} steps" for steps in STEPS)),
        rows=tuple(
            (
                str(cell[0]),
                *(spread([points[steps, 0].fid.value for points in by_seed.values()]) for steps in STEPS),
            )
            for cell, by_seed in measured.items()
        ),
    )


def _skips_table(measured: dict[tuple[object, ...], dict[int, Points]]) -> Numbers:
    most = STEPS[-1]
    return Numbers(
        title="FID over that of the whole chain, by the share skipped",
        headings=("schedule", *(f"{count / most:.0%}" for count in SKIPPED)),
        rows=tuple(
            (
                str(cell[0]),
                *(
                    spread([p[most, count].fid.value / p[most, 0].fid.value for p in by_seed.values()])
                    for count in SKIPPED
                ),
            )
            for cell, by_seed in measured.items()
        ),
    )
