"""The noise schedule shifted with the resolution, by -2 ln(d / d0) (simple diffusion, 2023).

sweeps/schedule_shift.yaml at each of three sizes of the same digits, enlarged. Only the levels of
training move: images are drawn over the same levels by all cells of a size.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ddpm.report import SweepResults
from experiments.claims import Claim, Numbers, Result, spread
from experiments.trials import (
    SHORT_OF_SAMPLES,
    Cells,
    StudyOptions,
    by_cell,
    failures,
    log_fid,
    num_samples,
    planned,
    trained,
    unlearned,
)

BLOCKS = {8: 1, 16: 2, 32: 4}  # pixels of a side -> pixels of a block's side
SHIFTS = {8: 0.0, 16: -1.3863, 32: -2.7726}  # of the paper: -2 ln(side / 8)
SHIFT = "TRAINING.NETWORK.LOGSNR_SHIFT"


def result(options: StudyOptions) -> Result:
    """Trains what is not trained at each size, and compares."""
    found = {}
    for side, block in BLOCKS.items():
        own = (f"TRAINING.INPUT_IMAGE_SIZE={side}", f"TRAINING.NETWORK.BLOCK_SIZE={block}")
        output = (options.output or Path("training_outputs")) / f"schedule_shift_{side}"
        of_size = replace(options, output=output, overrides=(*own, *options.overrides))
        found[side] = trained(planned("schedule_shift", of_size, SHORT_OF_SAMPLES), options)
    return compare(found)


def compare(found: Mapping[int, SweepResults]) -> Result:
    """The sweeps of all sizes."""
    cells = {
        side: by_cell(sweep.with_status("done"), [SHIFT], [(shift,) for shift in SHIFTS.values()])
        for side, sweep in found.items()
    }

    def lost(side: int, shift: float, against: float) -> tuple[float, ...]:
        """ln FID with a shift less that with another, by seed."""
        one, other = cells[side].trials[shift,], cells[side].trials[against,]
        return tuple(log_fid(one[k]) - log_fid(other[k]) for k in cells[side].seeds)

    claims = (
        *(
            Claim(
                paper=f"images of {side // 8} times the side want the schedule shifted by "
                f"-2 ln {side // 8}.",
                number=f"ln FID at {side}x{side} without the shift less that with it",
                values=lost(side, SHIFTS[8], SHIFTS[side]),
            )
            for side in (16, 32)
        ),
        Claim(
            paper="the shift belongs to the resolution: small images do not want it.",
            number="ln FID at 8x8 shifted by -2 ln 4 less that without",
            values=lost(8, SHIFTS[32], SHIFTS[8]),
        ),
    )
    return Result(
        name="schedule_shift",
        source="Hoogeboom et al. 2023, section 2.1; Chen 2023, section 2.2",
        setting="Handwritten digits of 8x8, enlarged to 16x16 and 32x32, instead of ImageNet from "
        "64x64 to 256x256; one network for all, of blocks of pixels; FID of "
        f"{num_samples(trial for sweep in found.values() for trial in sweep.trials)} by a "
        "classifier of digits of each size, extrapolated to infinitely many samples; 25 steps of "
        "DPM-Solver++(2M) over the levels where the data are resolved, the same for all shifts.",
        claims=claims,
        tables=(_table(cells),),
        failed=tuple(line for sweep in found.values() for line in failures(sweep)),
        unlearned=tuple(
            f"{side}x{side}, {line}" for side, sweep in found.items() for line in unlearned(sweep)
        ),
    )


def _table(cells: Mapping[int, Cells]) -> Numbers:
    names = ("0", "-2 ln 2", "-2 ln 4")
    return Numbers(
        title="ln FID, lower is better, by the shift of log SNR in training",
        headings=("size", *names),
        rows=tuple(
            (
                f"{side}x{side}",
                *(
                    spread([log_fid(trial) for trial in of.trials[shift,].values()])
                    for shift in SHIFTS.values()
                ),
            )
            for side, of in cells.items()
        ),
    )
