"""FID of samples whose reverse chain begins later, in pure noise all the same.

A chain of n steps begins at its k-th level instead of its first, in N(0, 1) as if that were t = T
(Nichol & Dhariwal 2021, Fig. 4). Where quality does not fall, the schedule spends k / n of its
steps where there is nothing left to see or to decide. It needs a trained run and no retraining.

FID is of features of the data's own classifier (pixels, where there are no classes) against the
training images, the same image numbers and classes at every point: DDIM, eta 0, x0 clipped.

examples:
  python -m experiments skip_prefix RUN
  python -m experiments skip_prefix RUN --steps 50 --longest 0.6 --points 7 --num 2000

Prints a table and writes skip_prefix.json and skip_prefix.png into the run.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ddpm.diffusion import Stream, philox
from ddpm.errors import InputError
from ddpm.metrics import (
    Interval,
    collect_features,
    data_of_run,
    open_extractor,
    random_groups,
    reference_of,
)
from ddpm.runs import RunDirectory, storage
from ddpm.sampling import (
    SamplerOptions,
    WalkStart,
    draw_images,
    load_network,
    locate_run,
    walk_levels,
)
from experiments.claims import new_figure, png

BATCH = 64  # images drawn at once
PICTURE, NUMBERS = "skip_prefix.png", "skip_prefix.json"


@dataclass(frozen=True, kw_only=True)
class Point:
    """Quality with the first `skipped` of `num_steps` steps left out.

    fid: of the images drawn, to compare at their number; fid_infinity: without its bias.
    """

    skipped: int
    num_steps: int
    fid: Interval
    fid_infinity: Interval

    @property
    def share(self) -> float:
        """Of the chain that is skipped."""
        return self.skipped / self.num_steps


def quality_of_run(run: Path, num: int) -> Callable[[int, int], Point]:
    """(num_steps, skipped) -> the quality of `num` images of a run's averaged network.

    Raises InputError where the run has no checkpoint or its data are not what they were.
    """
    model, real = load_network(run), data_of_run(run)
    torch.set_num_threads(RunDirectory(run).threads)
    has_classes = (real.data.num_classes or 0) > 1
    extractor = open_extractor("classifier" if has_classes else "pixels", real, None)
    reference = reference_of(real, "train", extractor)
    classes, seed = model.config.TRAINING.NETWORK.NUM_CLASSES, model.config.EVALUATION.SEED
    labels = None if classes is None else np.arange(num) % classes
    dealt, shape = random_groups(num, labels), model.image_shape

    def point(num_steps: int, skipped: int) -> Point:
        begin = walk_levels(model.schedule, num_steps=num_steps)[skipped].time
        sampler = SamplerOptions(
            pred_type=model.pred_type, num_steps=num_steps, clip_denoise=True, seed=seed
        )
        images = draw_images(
            model.network,
            model.schedule,
            num,
            shape,
            sampler,
            labels=None if labels is None else torch.from_numpy(labels),
            batch_size=BATCH,
            start=partial(noise_start, begin, shape, seed) if skipped else None,
        )
        statistics = collect_features(extractor, [images], dealt, kept=0)
        plain, infinite = reference.frechet.fid(statistics.groups)
        return Point(skipped=skipped, num_steps=num_steps, fid=plain, fid_infinity=infinite)

    return point


def noise_start(begin: float, shape: tuple[int, int, int], seed: int, ids: Tensor) -> WalkStart:
    """A walk from time `begin`, its first state N(0, 1): alpha x0 + sigma noise of two noises."""
    return WalkStart(time=begin, x0=philox.normal(seed, Stream.KNOWN, ids, shape))


def skips(num_steps: int, longest: float, count: int) -> list[int]:
    """`count` numbers of steps to leave out, from 0 to the share `longest` of `num_steps`, even.

    Raises InputError for impossible ones.
    """
    problems = []
    if num_steps < 2:
        problems.append(f"--steps is {num_steps}; give at least 2")
    if not 0 < longest < 1:
        problems.append(f"--longest is {longest:g}; give a share of the chain between 0 and 1")
    if count < 2:
        problems.append(f"--points is {count}; give at least 2")
    if problems:
        raise InputError(problems)
    last = min(round(longest * num_steps), num_steps - 1)
    return sorted({round(last * k / (count - 1)) for k in range(count)})


def table(points: Sequence[Point]) -> Table:
    """The points as lines, and what each costs against the whole chain."""
    made = Table("skipped", "FID", "FID, infinitely many", "against the whole chain")
    for point in points:
        limit = point.fid_infinity
        made.add_row(
            f"{point.share:.0%}",
            f"{point.fid.value:.4g}",
            f"{limit.value:.4g} ({limit.low:.4g} to {limit.high:.4g})",
            f"{point.fid.value / points[0].fid.value:.2f} x",
        )
    made.caption = (
        f"{points[0].num_steps} steps, {points[0].fid.n:,} images; intervals are over images drawn"
    )
    return made


def save(run: Path, points: Sequence[Point]) -> tuple[Path, Path]:
    """skip_prefix.json and skip_prefix.png in the run directory."""
    numbers, picture = run / NUMBERS, run / PICTURE
    facts = [{"share": point.share, **asdict(point)} for point in points]
    storage.write_json(numbers, {"format": 1, "points": facts})
    storage.write_bytes(picture, chart({run.name: points}))
    return numbers, picture


def chart(curves: dict[str, Sequence[Point]]) -> bytes:
    """PNG: FID over the share skipped, a curve for each name."""
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        shares, values = [p.share for p in points], [p.fid.value for p in points]
        axes.plot(shares, values, marker="o", ms=4, label=name)
    axes.set(xlabel="share of the reverse chain that is skipped", ylabel="FID", yscale="log")
    axes.legend(fontsize=7)
    return png(figure)


def main(argv: list[str]) -> int:
    """Measures the run named on the command line; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments skip_prefix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of the whole chain")
    parser.add_argument("--longest", type=float, default=0.6, metavar="SHARE", help="most skipped")
    parser.add_argument("--points", type=int, default=7, metavar="N", help="from 0 to --longest")
    parser.add_argument("--num", type=int, default=1024, metavar="N", help="images at each point")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    args = parser.parse_args(argv)
    skipped = skips(args.steps, args.longest, args.points)
    run, _ = locate_run(args.run)
    if args.dry_run:
        shares = ", ".join(f"{count / args.steps:.0%}" for count in skipped)
        print(
            f"would draw {args.num:,} images of {run} with {shares} of {args.steps} steps skipped"
        )
        return 0
    console, point = Console(), quality_of_run(run, args.num)
    points = [point(args.steps, count) for count in skipped]
    console.print(table(points))
    numbers, picture = save(run, points)
    console.print(f"written: {numbers}, {picture.name}", soft_wrap=True, highlight=False)
    return 0
