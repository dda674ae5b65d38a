"""A grid of trainings, or a search, compared. Run the same command again to continue; what is done
is never run again.

examples:
  ddpm sweep sweeps/pred_types.yaml
  ddpm sweep sweeps/timesteps.yaml TRAINING.HYPER_PARAMETERS.EPOCHS=10
  ddpm sweep sweeps/full_grid.yaml --dry-run
  ddpm sweep sweeps/full_grid.yaml --cluster slurm --time 2:00:00 --sbatch account=me

--cluster slurm runs on a login node: an array job trains the sweep in groups of trials, each task
on one worker; this process only watches. Ctrl-C leaves the jobs alone. Without --cluster the trials
run here, or on the whole allocation inside `sbatch slurm/sweep.sh SWEEP`. Each way continues what
another has begun.
"""

import argparse
from pathlib import Path

from ddpm.cli.options import add_jobs, add_verbose, command_line, job_options
from ddpm.sweep import load_sweep


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm sweep`."""
    result = command_line("sweep", __doc__)
    result.add_argument("sweep", help="YAML file with BASE, GRID, SPACE, SEEDS, TUNE")
    result.add_argument(
        "overrides", nargs="*", default=[], metavar="SECTION.KEY=value", help="changes of BASE"
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="check every cell, print time and job; write nothing",
    )
    result.add_argument(
        "--no-probe",
        dest="probe",
        action="store_false",
        help="do not measure a few steps: no predicted time, groups by number alone",
    )
    add_verbose(result)
    jobs = add_jobs(result, "many small jobs", "group")
    jobs.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="trials of a task (default: trials over --jobs, and at least two minutes' worth)",
    )
    result.add_argument("--plan", metavar="FILE", help=argparse.SUPPRESS)  # for slurm/job.sh
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the sweep; the exit code."""
    args = parser().parse_intermixed_args(argv)
    planned, options = load_sweep(args.sweep, args.overrides), job_options(args, "group_size")
    if args.plan:
        from ddpm.cluster import plan

        return plan([t.config for t in planned.trials], uses_ray=True, output=Path(args.plan))
    if args.dry_run:
        from ddpm.cluster import dry_run

        return dry_run.sweep(planned, options, probe=args.probe, verbose=args.verbose)
    from ddpm.cli.signals import stop_on_signals

    if options:
        from ddpm.cluster import submit_sweep

        return submit_sweep.run_array(
            planned, options, should_stop=stop_on_signals(), probe=args.probe
        )
    from ddpm.cluster import run_sweep

    return run_sweep.run(planned, should_stop=stop_on_signals(), probe=args.probe)
