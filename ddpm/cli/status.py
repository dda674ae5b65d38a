"""What runs, what waits, what failed and why: a run, a sweep or a whole OUTPUT_DIR. Works from any
machine that sees the files, while they are written, and changes nothing.

examples:
  ddpm status training_outputs
  ddpm status training_outputs/sweeps/pred_types --watch
"""

import argparse
from pathlib import Path

from ddpm.cli.options import command_line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("status", __doc__)
    result.add_argument("dir", type=Path, help="run directory, sweep folder, or OUTPUT_DIR")
    result.add_argument("--watch", action="store_true", help="show it until all has ended")
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

    from ddpm.cluster import Status, show, watch

    console, status = Console(), Status(args.dir)
    if args.watch:
        every = args.every or (2.0 if console.is_terminal else 30.0)
        watch(status, console, every)
    else:
        show(status.read(), console)
    return 0
