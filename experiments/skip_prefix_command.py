"""What the first part of a run's reverse chain is worth: FID of samples begun later, in noise.

examples:
  python launch/skip_prefix.py RUN
  python launch/skip_prefix.py RUN --steps 50 --longest 0.6 --points 7 --num 2000

Prints a table and writes skip_prefix.json and skip_prefix.png into the run.
"""

import argparse
import sys
from pathlib import Path

from ddpm.errors import run_main


def main(argv: list[str] | None = None) -> int:
    """Measure the run named on the command line; 0."""
    parser = argparse.ArgumentParser(
        prog="skip_prefix.py",
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

    from rich.console import Console

    from ddpm.sampling import locate
    from experiments import skip_prefix

    skipped = skip_prefix.skips(args.steps, args.longest, args.points)
    run, _ = locate(args.run)
    if args.dry_run:
        shares = ", ".join(f"{count / args.steps:.0%}" for count in skipped)
        print(
            f"would draw {args.num:,} images of {run} with {shares} of {args.steps} steps skipped"
        )
        return 0
    console = Console()
    points = skip_prefix.measure(run, args.steps, skipped, num=args.num)
    console.print(skip_prefix.table(points))
    numbers, picture = skip_prefix.save(run, points)
    console.print(f"written: {numbers}, {picture.name}", soft_wrap=True, highlight=False)
    return 0


def cli() -> int:
    """Entry point: main() with the project's exit codes."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
