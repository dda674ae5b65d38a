"""Quality of samples: FID, KID, precision, recall and others with 95 % intervals, beside the
floor that real images give, and the line that says how they were measured.

SOURCE is a run or a checkpoint, of which images are drawn, or images: a folder of pictures, an NPZ
file, an IDX file, a folder of shards.

examples:
  ddpm evaluate RUN
  ddpm evaluate RUN --num 10000 IMAGE_GENERATION.NUM_STEPS=100
  ddpm evaluate RUN --workers 4
  ddpm evaluate samples.npz --against digits --features pixels
  ddpm evaluate PNG_FOLDER --against cifar.npz --features inception --weights FILE
  ddpm evaluate RUN --ema-curve    x0-error by length of the average, of a run with EMA_POWER
"""

import argparse
import sys
from pathlib import Path

from ddpm.cli.options import command_line
from ddpm.cli.signals import interrupt_on_signals
from ddpm.metrics import FEATURES, EvaluationOptions, ema_curve_run
from ddpm.runs import find_run


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm evaluate`."""
    result = command_line("evaluate", __doc__)
    result.add_argument("source", type=find_run, metavar="SOURCE", help="run, checkpoint or images")
    result.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="IMAGE_GENERATION.KEY=value",
        help="how a run is drawn from",
    )
    result.add_argument(
        "--against",
        metavar="DATA|CONFIG",
        help="the real images: a YAML, a run, or what DATASET.PATH takes (default: the run's own)",
    )
    result.add_argument(
        "--num", type=int, metavar="N", help="samples (default: 2000 of a run, else all there are)"
    )
    result.add_argument(
        "--features",
        choices=FEATURES,
        help="what images are compared by (default: classifier where there are labels)",
    )
    result.add_argument(
        "--split",
        choices=("train", "validation"),
        default="train",
        help="the real images compared with; the floor is of the others (default: train)",
    )
    result.add_argument(
        "--weights", type=Path, metavar="FILE", help="of inception or clip, safetensors"
    )
    result.add_argument(
        "--ema", type=float, metavar="DECAY", help="averaged weights; 0 = as trained, unaveraged"
    )
    result.add_argument(
        "--ema-curve",
        action="store_true",
        help="x0-error of averages of N lengths (default: 12) instead, into RUN/ema_curve.json",
    )
    result.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where classifiers and reference statistics are kept (default: OUTPUT_DIR/metrics)",
    )
    result.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share all of it (default: one a GPU, else one)",
    )
    result.add_argument(
        "--dry-run", action="store_true", help="check all, draw and measure nothing"
    )
    result.add_argument("--plan", metavar="FILE", help=argparse.SUPPRESS)  # for slurm/job.sh
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit code."""
    args = parser().parse_intermixed_args(argv)
    interrupt_on_signals()
    if args.ema_curve:
        num = 12 if args.num is None else args.num
        ema_curve_run(args.source, num)
        from ddpm.metrics import ema_curve

        ema_curve(args.source, num, dry=args.dry_run)
        return 0
    options = EvaluationOptions(
        source=args.source,
        overrides=args.overrides,
        against=args.against,
        num=args.num,
        features=args.features,
        split=args.split,
        weights=args.weights,
        ema=args.ema,
        cache=args.cache,
        workers=args.workers,
        where=Path.cwd(),
        command=tuple(sys.argv),
    )
    options.request()  # what is wrong is said before torch is loaded
    if args.plan:
        from ddpm.cluster import plan_evaluation
        from ddpm.config import Training

        return plan_evaluation(
            args.cache or Path(Training.OUTPUT_DIR), args.workers, Path(args.plan)
        )
    from ddpm.cluster import run_evaluation

    return run_evaluation.run(options, dry=args.dry_run)
