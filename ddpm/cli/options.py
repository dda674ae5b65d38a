"""Parts of command lines that several commands share: the parser itself, options of many jobs."""

import argparse
import re
from typing import TYPE_CHECKING

from ddpm.errors import InputError, as_typed

if TYPE_CHECKING:
    from ddpm.cluster import JobOptions


def command_line(name: str, text: str | None, more: str | None = None) -> argparse.ArgumentParser:
    """A parser of `ddpm NAME`; text: description, more: what follows the options.

    Examples in both are lines `  ddpm NAME ...`, shown as the command was called.
    """

    def shown(part: str | None) -> str:
        return re.sub(rf"^  ddpm {name}\b", f"  {as_typed(name)}", part or "", flags=re.M)

    return argparse.ArgumentParser(
        prog=as_typed(name).removeprefix("python "),
        description=shown(text),
        epilog=shown(more),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_verbose(result: argparse.ArgumentParser) -> None:
    """Adds -v, for --dry-run."""
    result.add_argument("-v", "--verbose", action="store_true", help="--dry-run with all there is")


def job_options(args: argparse.Namespace, *more: str) -> "JobOptions | None":
    """The options of many small jobs; None without --cluster, InputError for the others alone.

    more: names of options beyond those of add_jobs().
    """
    names = ("jobs", "time", "partition", "sbatch", *more)
    given = {name: value for name in names if (value := getattr(args, name)) not in (None, [])}
    if args.cluster:
        from ddpm.cluster import JobOptions

        return JobOptions(cluster=args.cluster, **given)
    if given:
        name = next(iter(given)).replace("_", "-")
        raise InputError(f"--{name} says how to submit jobs; give --cluster slurm or local too")
    return None


def add_jobs(result: argparse.ArgumentParser, title: str, unit: str) -> argparse._ArgumentGroup:
    """Adds the options of many small jobs under `title`; unit: the work of one job."""
    jobs = result.add_argument_group(title)
    jobs.add_argument(
        "--cluster",
        choices=("slurm", "local", "debug"),
        help=f"array jobs; processes of this machine; or one {unit} after the other here",
    )
    jobs.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="tasks that run at once (default: 16; local: as many as this machine holds)",
    )
    jobs.add_argument(
        "--time",
        metavar="LIMIT",
        help="of a task, which goes on in a new one when it is over (default: 1:00:00)",
    )
    jobs.add_argument("--partition", metavar="NAME", help="default: SBATCH_PARTITION, the site's")
    jobs.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another option of sbatch, such as mem=4G; may be given often",
    )
    return jobs
