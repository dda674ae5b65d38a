"""The options of commands that submit their work as many small jobs."""

import argparse


def add(result: argparse.ArgumentParser, title: str, unit: str) -> argparse._ArgumentGroup:
    """Adds them under `title`; unit: what one job does.  Returns their group."""
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
