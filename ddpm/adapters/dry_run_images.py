"""--dry-run of images in bulk: what would be drawn, by whom, the batch script. Writes nothing."""

import os

from ddpm import slurm_queue, spans
from ddpm.adapters import submitit_jobs
from ddpm.adapters.dry_run import framed
from ddpm.adapters.submitit_jobs import Request
from ddpm.batch_script import from_environment
from ddpm.draws import shared_out
from ddpm.series_plan import Plan
from ddpm.spans import Span


def show(plan: Plan, request: Request | None) -> int:
    """Prints it; the exit code."""
    if request is not None and request.cluster == "slurm":
        slurm_queue.require_slurm()
    print(f"would draw {plan.describe()}")
    missing = _missing(plan)
    there = plan.num - spans.total(missing)
    print(
        f"into {plan.folder}, in units of {plan.unit}: {there:,} are there already, "
        f"{spans.total(missing):,} to draw; nothing was written"
    )
    if request is None:
        print("in this process")
        return 0
    tasks = len(shared_out(missing, plan.unit, request.jobs))
    print(
        f"by {tasks} task(s), {request.jobs} at a time, each with {request.cpus} core(s), "
        f"{request.gpus} GPU and {request.minutes} minutes, after which it goes on in a new one"
    )
    if request.cluster != "slurm" or not tasks:
        return 0
    text = submitit_jobs.script(
        request, plan.folder / "submitit", min(tasks, slurm_queue.largest_array())
    )
    print("\n" + framed("what sbatch gets", text))
    with submitit_jobs.undisturbed(request, text):
        for option, value in from_environment(os.environ).items():
            print(f"from the environment: --{option}={value}")
    return 0


def _missing(plan: Plan) -> list[Span]:
    """What is missing by the manifests' names; damage shows when the command really runs."""
    if plan.series is None:
        return [Span(0, plan.num)]
    return plan.series.missing(plan.num)
