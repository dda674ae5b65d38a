"""One training. Run the same command again to resume.

examples:
  ddpm train configs/digits.yaml
  ddpm train configs/digits.yaml TRAINING.PRED_TYPE=noise TRAINING.SEED=1
  ddpm train configs/fashion_mnist.yaml --dry-run
"""

import argparse
from pathlib import Path

from ddpm.cli.options import add_verbose, command_line
from ddpm.errors import said_by_rank_0
from ddpm.runs import find_run, load_file


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm train`."""
    result = command_line("train", __doc__)
    result.add_argument("config", help="YAML file")
    result.add_argument(
        "overrides", nargs="*", default=[], metavar="SECTION.KEY=value", help="changed keys"
    )
    which = result.add_mutually_exclusive_group()
    which.add_argument("--new", action="store_true", help="start another run of this config")
    which.add_argument("--resume", type=find_run, metavar="DIR", help="continue exactly this run")
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="check all, print network, time and job; write nothing",
    )
    result.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="--dry-run without the seconds that measuring a few steps takes",
    )
    add_verbose(result)
    result.add_argument("--plan", metavar="FILE", help=argparse.SUPPRESS)  # for slurm/job.sh
    return result


def main(argv: list[str] | None = None) -> int:
    """Train; the exit code."""
    args = parser().parse_intermixed_args(argv)
    with said_by_rank_0():
        loaded = load_file(Path(args.config), args.overrides)

    if args.plan:
        from ddpm.cluster import plan

        return plan([loaded], uses_ray=None, output=Path(args.plan))
    from ddpm.cli.signals import stop_on_signals

    should_stop = stop_on_signals()  # before the imports, which take seconds
    from ddpm.cluster import run_training

    if args.dry_run:
        from ddpm.cluster import dry_run

        return dry_run.training(
            loaded, run_training.check(loaded), probe=args.probe, verbose=args.verbose
        )
    return run_training.run(
        loaded,
        new=args.new,
        resume=args.resume and str(args.resume),
        should_stop=should_stop,
    )
