"""Status of a run, a sweep or a whole OUTPUT_DIR: progress, what waits, what failed and why.

Works from any machine that sees the files, while they are written, and changes nothing.

examples:
  ddpm status                    of training_outputs
  ddpm status latest
  ddpm status training_outputs/sweeps/pred_types --watch
  ddpm status --json             the same for programs
"""

import argparse
import json

from ddpm.cli.options import command_line
from ddpm.config import Training
from ddpm.runs import find_run


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm status`."""
    result = command_line("status", __doc__)
    result.add_argument(
        "dir",
        type=find_run,
        nargs="?",
        default=Training.OUTPUT_DIR,
        help="run (directory, first digits of its id, latest), sweep folder, or OUTPUT_DIR",
    )
    how = result.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="show it until all has ended")
    how.add_argument("--json", action="store_true", help="one object: sections with runs, totals")
    result.add_argument(
        "--every",
        type=float,
        default=None,
        metavar="S",
        help="seconds between looks of --watch (default: 2 on a terminal, else 30)",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Print the table; the exit code."""
    args = parser().parse_args(argv)
    from rich.console import Console

    from ddpm.cluster import Status, as_plain, show_status, watch_status

    console, status = Console(), Status(args.dir)
    if args.watch:
        every = args.every or (2.0 if console.is_terminal else 30.0)
        watch_status(status, console, every)
    elif args.json:
        print(json.dumps(as_plain(status.read()), indent=2))
    else:
        show_status(status.read(), console)
    return 0
