"""The log of a run; of a sweep or of images in bulk, the output of their jobs.

examples:
  ddpm logs latest
  ddpm logs 3f2a -f         goes on as lines come, until Ctrl-C
"""

import argparse
import subprocess
from contextlib import suppress
from pathlib import Path

from ddpm.cli.options import command_line
from ddpm.errors import InputError
from ddpm.runs import find_run


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm logs`."""
    result = command_line("logs", __doc__)
    result.add_argument("run", type=find_run, help="run (directory, digits of its id, latest) ...")
    result.add_argument("-f", "--follow", action="store_true", help="show what comes, too")
    result.add_argument(
        "-n", "--lines", type=int, default=20, metavar="N", help="last lines of each (default: 20)"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Show them; 0."""
    args = parser().parse_args(argv)
    folder: Path = args.run
    found = [folder / "train.log"] if (folder / "train.log").is_file() else []
    found = found or sorted(folder.glob("submitit/*_log.out"))
    if not found:
        raise InputError(
            f"{folder}: no train.log and no output of jobs in submitit/; give a run directory, a "
            "sweep of --cluster, or its images in bulk"
        )
    how = ["--follow=name", "--retry"] if args.follow else []  # of a resumed run it is cut back
    with suppress(KeyboardInterrupt):
        return subprocess.call(["tail", f"--lines={args.lines}", *how, "--", *map(str, found)])
    return 0
