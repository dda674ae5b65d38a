"""The quality of a run's network by the length of the average its weights are, measured afterwards.

examples:
  python launch/ema_curve.py RUN                of a run trained with TRAINING.EMA_POWER=[0.05,0.1]
  python launch/ema_curve.py RUN --shortest 0.02 --longest 0.2 --num 20
  python launch/sample.py RUN --ema power:0.07  images of the length that was found best

Prints a table and writes ema_curve.json and ema_curve.png into the run.
"""

import argparse
import sys
from pathlib import Path

from ddpm.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Measure the lengths named on the command line; 0."""
    parser = argparse.ArgumentParser(
        prog="ema_curve.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--shortest", type=float, default=0.01, metavar="LENGTH")
    parser.add_argument("--longest", type=float, default=0.25, metavar="LENGTH")
    parser.add_argument("--num", type=int, default=12, metavar="N", help="lengths between them")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    args = parser.parse_args(argv)

    from rich.console import Console

    from ddpm.metrics import ema_curve

    lengths = ema_curve.spaced(args.shortest, args.longest, args.num)
    if args.dry_run:
        errors = ema_curve.fit_errors(args.run, lengths)
        print("would measure (missing of the profile; above 10 % it is left out):")
        print(*(f"  {length:g}  {error:.1%}" for length, error in errors.items()), sep="\n")
        return 0
    curve = ema_curve.measure(args.run, lengths)
    Console().print(ema_curve.table(curve))
    numbers, picture = ema_curve.save(curve)
    print(f"written: {numbers}, {picture.name}")
    return 0


def cli() -> int:
    """Entry point: main() with the project's exit codes."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
