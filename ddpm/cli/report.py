"""Writes report.html, report.md and tables of a sweep or of a run; those of several sweeps side by
side into a folder A+B beside the first.

examples:
  ddpm report training_outputs/sweeps/pred_types
  ddpm report training_outputs/sweeps/pred_types --open
  ddpm report training_outputs/sweeps/pred_types --wandb
  ddpm report latest --tensorboard
  ddpm report training_outputs/sweeps/schedules training_outputs/sweeps/more_schedules
  ddpm report training_outputs/sweeps/schedules --baseline SCHEDULER=linear
  ddpm report training_outputs/digits_8x8x1/.../linear_1000_velocity_MSE_... --dry-run
"""

import argparse
import os
import shlex
import webbrowser

from ddpm import report
from ddpm.cli.options import command_line
from ddpm.errors import InputError
from ddpm.runs import find_run


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm report`."""
    result = command_line("report", __doc__)
    result.add_argument("folder", type=find_run, help="OUTPUT_DIR/sweeps/NAME or a run")
    result.add_argument(
        "others",
        type=find_run,
        nargs="*",
        metavar="SWEEP",
        help="sweeps to show beside it, in a folder A+B beside the first",
    )
    result.add_argument("--open", action="store_true", help="show it in the browser")
    result.add_argument("--wandb", action="store_true", help="make or update its W&B report")
    result.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard's event files beside it"
    )
    result.add_argument(
        "--baseline", metavar="KEY=VALUE,...", help="a cell that all others are compared with too"
    )
    result.add_argument("--dry-run", action="store_true", help="print the answer, write nothing")
    return result


def main(argv: list[str] | None = None) -> int:
    """Builds the report of the folder named on the command line; 0."""
    arguments = parser().parse_args(argv)
    make = report.assess if arguments.dry_run else report.build
    if arguments.others and (arguments.wandb or arguments.tensorboard):
        raise InputError(
            "--wandb and --tensorboard are of one sweep; give each a report of its own"
        )
    made = make(arguments.folder, *arguments.others, baseline=arguments.baseline)
    made.print()
    if arguments.dry_run:
        print(f"would write {made.html}, {made.markdown.name}, {made.csv.name} and tables")
        return 0
    if arguments.open:
        webbrowser.open(made.html.resolve().as_uri())
    print(f"in short: {made.markdown}")
    print(f"a row a trial: {made.csv} and {made.csv.with_suffix('.parquet').name}")
    if len(made.tables) > 1:
        names = sorted({path.stem for path in made.tables if path.parent != made.csv.parent})
        print(
            f"all numbers: {made.tables[-1].parent}{os.sep} ({', '.join(names)}; CSV and Parquet)"
        )
    if made.best is not None:
        print(f"best configuration: {made.best}")
    print(f"report: {made.html}")
    if arguments.tensorboard:
        from ddpm.tracking import write_events

        print(f"curves: tensorboard --logdir {shlex.quote(str(write_events(made)))}")
    if arguments.wandb:
        from ddpm.tracking import publish_report

        print("\n".join(publish_report(made)))
    return 0
