"""Writes report.html and results.csv of a sweep or of a run; before training, a forecast."""

import argparse
import sys
import webbrowser
from pathlib import Path

from ddpm import report
from ddpm.errors import run_main

EXAMPLES = """examples:
  python launch/report.py training_outputs/sweeps/pred_types
  python launch/report.py training_outputs/sweeps/pred_types --open
  python launch/report.py training_outputs/digits_8x8x1/.../linear_1000_velocity_MSE_... --dry-run
  python launch/report.py --predict configs/digits.yaml      what is known before any training
"""


def main(argv: list[str] | None = None) -> int:
    """Builds the report of the folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/report.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", help="OUTPUT_DIR/sweeps/NAME or a run directory"
    )
    parser.add_argument(
        "--predict",
        nargs="+",
        metavar=("CONFIG", "SECTION.KEY=value"),
        help="before training: what steps, schedule and terminal SNR will cost on these data",
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.add_argument("--dry-run", action="store_true", help="print the answer, write nothing")
    arguments = parser.parse_args(argv)
    if arguments.predict:
        from ddpm.forecast_page import predict

        return predict(arguments.predict, dry_run=arguments.dry_run)
    if arguments.folder is None:
        parser.error("give a sweep folder or a run directory, or --predict CONFIG")
    made = (report.assess if arguments.dry_run else report.build)(arguments.folder)
    made.print()
    if arguments.dry_run:
        print(f"would write {made.html} and {made.csv.name}")
        return 0
    if arguments.open:
        webbrowser.open(made.html.resolve().as_uri())
    print(f"report: {made.html}")
    return 0


def cli() -> int:
    """Entry point: main() with the project's exit codes."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
