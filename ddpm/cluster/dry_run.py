"""--dry-run: the trainings or images to make, their time, the job; writes nothing.

Some ten lines; with -v the configuration, the network's parts, every cell and the batch script too.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import ddpm
from ddpm import config as configuration
from ddpm.cluster import cost, open_sweep, run_sweep, slurm, submit
from ddpm.cluster.cost import Forecast
from ddpm.cluster.slurm import as_submitted, from_environment
from ddpm.cluster.submit import JobOptions, JobResources
from ddpm.cluster.submit_images import shared_out
from ddpm.cluster.submit_sweep import check, group_size
from ddpm.cluster.workers import Workers
from ddpm.config import Config
from ddpm.errors import InputError
from ddpm.runs import duration
from ddpm.sampling import BulkSampler, bulk
from ddpm.sweep import Sweep, cell_name

SCRIPTS = Path(ddpm.__file__).parent / "share" / "slurm"
_NOT_FOR_JOBS = ("--dry-run", "--no-probe", "-v", "--verbose")
_FEW = 6  # cells that are shown without -v


def training(config: Config, workers: Workers, *, probe: bool, verbose: bool = False) -> int:
    """One training that has been checked."""
    options, network = config.TRAINING, config.TRAINING.NETWORK
    if verbose:
        print(configuration.to_yaml(config))
        print(cost.network_summary(config))
    print(
        f"{config.DATASET.NAME}: {network.SCHEDULER}, {network.TIMESTEPS} timesteps, "
        f"{options.PRED_TYPE}, {options.LOSS_FN}, seed {options.SEED}"
    )
    print(f"{configuration.architecture_tag(config)}: {cost.network_summary(config).line}")
    device = "GPU" if workers.gpus else "CPU"
    print(
        f"would train on the {device} with {workers.count} worker(s), each with {workers.cpus} "
        f"core(s) and {workers.gpus:g} GPU; nothing was written"
    )
    if probe:
        _print_time(_predicted([config], workers), workers, 1)
    _print_script("train.sh", verbose)
    return 0


def sweep(planned: Sweep, options: JobOptions | None, *, probe: bool, verbose: bool = False) -> int:
    """Every cell of a sweep, in one allocation or, with options, as many small jobs.

    InputError with all that keeps any trial from starting.
    """
    if options is None:
        workers, side_by_side = run_sweep.check(planned)
        open_sweep.check_window(planned)
        _print_cells(planned, verbose)
        print(
            f"would run {len(planned.trials)} trials, {side_by_side} side by side, each with "
            f"{workers.count} worker(s) of {workers.cpus} core(s) and "
            f"{workers.gpus:g} GPU; nothing was written"
        )
        if words := open_sweep.in_words(planned):
            print(words)
        if probe:
            found = _predicted(open_sweep.all_configs(planned), workers)
            _print_time(found, workers, side_by_side)
        _print_script("sweep.sh", verbose)
    else:
        _arrays(planned, options, probe=probe, verbose=verbose)
    return 0


def _arrays(planned: Sweep, options: JobOptions, *, probe: bool, verbose: bool) -> None:
    """The array jobs that --cluster would submit, or the processes it would start."""
    request, workers = check(planned, options)
    open_sweep.check_window(planned)
    if options.cluster == "slurm":
        slurm.require_slurm()
    _print_cells(planned, verbose)
    found, todo = None, len(planned.trials)
    if probe:
        found = _predicted([trial.config for trial in planned.trials], workers)
    seconds = cost.mean_s(found.predictions) if found else None
    size = group_size(todo, options, request.jobs, seconds)
    tasks = -(-todo // size)
    print(
        f"would train {todo} trials in {tasks} task(s) of up to {size}, "
        f"{min(tasks, request.jobs)} at a time, each with {request.cpus} core(s), {request.gpus} "
        f"GPU and {request.minutes} minutes, after which it goes on in a new one; nothing was "
        "written"
    )
    _print_time(found, workers, min(tasks, request.jobs))
    if options.cluster != "slurm":
        return
    most = slurm.largest_array()
    if tasks > most:
        print(f"{-(-tasks // most)} array jobs: this site allows {most} tasks in each")
    _print_array(request, open_sweep.folder_of(planned), min(tasks, most), verbose)


def _print_array(request: JobResources, folder: Path, tasks: int, verbose: bool) -> None:
    """The batch script of an array of so many tasks, and the options that it leaves to others."""
    text = submit.script(request, folder / "submitit", tasks)
    print("\n" + framed("what sbatch gets", text) if verbose else "what sbatch gets: -v")
    with submit.undisturbed(request, text):
        for option, value in from_environment(os.environ).items():
            print(f"from the environment: --{option}={value}")


def _print_cells(planned: Sweep, verbose: bool) -> None:
    console, shown = Console(), planned.trials if verbose else planned.trials[:_FEW]
    for trial in shown:
        console.print(f"{cell_name(trial.cell)} · seed {trial.seed}", markup=False)
    if more := len(planned.trials) - len(shown):
        print(f"... and {more} more (-v)")
    run_sweep.print_skipped(planned, console)


def _predicted(configs: Sequence[Config], workers: Workers) -> Forecast | None:
    """As a probe of this machine sees it; None, once it is said why, where that cannot be."""
    try:
        return cost.forecast(configs, workers, cost.LIMIT_S)
    except InputError as error:
        print(f"predicted: nothing; {error}")
        return None


def _print_time(found: Forecast | None, workers: Workers, side_by_side: int) -> None:
    """Seconds of a training and of all, and their hours of cores or GPUs."""
    if found is None:
        return
    count, longest = len(found.predictions), max(found.predictions, key=lambda one: one.seconds)
    print(f"predicted: {'the longest of them, ' if count > 1 else ''}{longest}")
    if count > 1:
        wall = cost.wall_s((one.seconds for one in found.predictions), side_by_side)
        print(f"predicted: {count} trainings, {side_by_side} at a time: {duration(wall)}")
    if found.once_s:
        print(f"predicted: {duration(found.once_s)} more, once, for a classifier of these data")
    each, what = (workers.gpus, "GPU") if workers.gpus else (workers.cpus, "core")
    all_s = found.once_s + sum(one.seconds for one in found.predictions)
    hours = all_s * workers.count * each / 3600
    print(f"predicted: {hours:.3g} {what}-hours; what starting takes comes on top")
    for line in cost.notes(found.predictions, workers):
        print(f"  {line}")


def _print_script(name: str, verbose: bool) -> None:
    """Command, and with -v the script, that would submit this command line as a SLURM job."""
    is_here = Path("slurm", name).is_file()
    path = Path("slurm", name) if is_here else SCRIPTS / name
    words = sys.argv[2:] if sys.argv[0] == "ddpm" else sys.argv[1:]
    arguments = [word for word in words if word not in _NOT_FOR_JOBS]
    where = "" if is_here else ", from a folder with slurm/ (`ddpm init DIR` makes one)"
    print(f"as a SLURM job{where}:\n  sbatch slurm/{name} {shlex.join(arguments)}")
    if verbose:
        print("\n" + framed(f"slurm/{name}", as_submitted(path.read_text(), os.environ)))
    else:
        print("more of all this: -v")


def framed(title: str, text: str) -> str:
    """A text between two rules."""
    rule = "-" * 72
    return f"{rule} {title}\n{text.rstrip()}\n{rule}"


def images(plan: BulkSampler, request: JobResources | None, *, verbose: bool = False) -> int:
    """Images in bulk that have been checked."""
    if request is not None and request.cluster == "slurm":
        slurm.require_slurm()
    print(f"would draw {plan.describe()}")
    missing = plan.missing()  # by the manifests' names; damage shows when the command really runs
    there = plan.request.num - bulk.total(missing)
    print(
        f"into {plan.folder}, in units of {plan.unit}: {there:,} are there already, "
        f"{bulk.total(missing):,} to draw; nothing was written"
    )
    if request is None:
        print("in this process")
        return 0
    tasks = len(shared_out(missing, request.jobs))
    print(
        f"by {tasks} task(s), {request.jobs} at a time, each with {request.cpus} core(s), "
        f"{request.gpus} GPU and {request.minutes} minutes, after which it goes on in a new one"
    )
    if request.cluster != "slurm" or not tasks:
        return 0
    _print_array(request, plan.folder, min(tasks, slurm.largest_array()), verbose)
    return 0
