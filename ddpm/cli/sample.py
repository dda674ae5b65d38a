"""Images from a trained network. The same command draws the same images, and of many only those
that are missing.

examples:
  ddpm sample RUN IMAGE_GENERATION.NUM_GEN_IMAGES=100 IMAGE_GENERATION.DDIM_ETA=0
  ddpm sample RUN/checkpoints/step-00001000 --ema 0
  ddpm sample RUN --ema power:0.07      of a run trained with TRAINING.EMA_POWER
  ddpm sample options.yaml       of the run, checkpoint or v3 .h5 its MODEL_PATH names
  ddpm sample RUN --num 50000 --format npz
  ddpm sample RUN --num 1000000 --cluster slurm --jobs 32 --sbatch gpus-per-node=1
  ddpm sample FOLDER --status    how far it is; --verify: whether all is as written

With --num images are drawn in bulk: as WebDataset shards, each image exactly once, in a folder
(FOLDER) that goes on where it ended, however it ended. --cluster slurm runs on a login node: jobs
draw, this process only watches, and Ctrl-C leaves them alone.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.cli.options import add_jobs, add_verbose, command_line, job_options
from ddpm.config import is_keras_file, load_generation
from ddpm.errors import InputError, as_typed
from ddpm.runs import find_run
from ddpm.sampling import BATCH_SIZE, BulkOptions, is_bulk_folder, parse_ema, read_request

if TYPE_CHECKING:
    from ddpm.sampling import BulkFolder, SampleRequest


_OF_JOBS = ("jobs", "time", "partition", "sbatch")
_OF_BULK = ("unit", "format")


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm sample`."""
    result = command_line("sample", __doc__)
    result.add_argument(
        "source",
        type=find_run,
        help="run (directory, first digits of its id, latest), checkpoint, YAML, folder of --num",
    )
    result.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="IMAGE_GENERATION.KEY=value",
        help="changed keys",
    )
    result.add_argument(
        "--ema",
        type=parse_ema,
        metavar="DECAY",
        help="averaged weights; 0 = as trained, unaveraged; power:LENGTH = made from snapshots",
    )
    result.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images of one network call (default: {BATCH_SIZE}; in bulk as many as fit)",
    )
    result.add_argument("--dry-run", action="store_true", help="check all, draw and write nothing")
    add_verbose(result)
    bulk = result.add_argument_group("in bulk")
    bulk.add_argument("--num", type=int, metavar="N", help="images in all, drawn in units")
    bulk.add_argument("--unit", type=int, metavar="N", help="images of a unit (default: by --num)")
    bulk.add_argument(
        "--format",
        choices=("shards", "npz", "adm", "png"),
        help="what is made of the shards at the end (default: a picture of the first images); "
        "adm: an NPZ that the evaluator of guided-diffusion reads",
    )
    bulk.add_argument("--status", action="store_true", help="how far it is; changes nothing")
    bulk.add_argument("--verify", action="store_true", help="check every image; changes nothing")
    add_jobs(result, "in bulk, by many jobs", "part")
    result.add_argument("--plan", type=Path, help=argparse.SUPPRESS)  # for slurm/job.sh
    return result


def main(argv: list[str] | None = None) -> int:
    """Draw the images; the exit code."""
    args = parser().parse_intermixed_args(argv)
    if args.source.suffix in (".yaml", ".yml") and args.source.is_file():
        _import_keras(args)
    if args.status or args.verify:
        return _look(args)
    if args.num is None and args.cluster is None:
        return _draw(args)
    images = _request(args)
    if args.plan:
        return _write_plan(args.plan)
    from ddpm.cli.signals import stop_on_signals
    from ddpm.cluster import submit_images

    plan, request = submit_images.check(images, job_options(args))
    if args.dry_run:
        from ddpm.cluster import dry_run

        return dry_run.images(plan, request, verbose=args.verbose)
    return submit_images.run(plan, request, should_stop=stop_on_signals())


def _import_keras(args: argparse.Namespace) -> None:
    """Imports the v3 weights that MODEL_PATH of a YAML names, and samples that run instead."""
    own = [text for text in args.overrides if text.upper().startswith("IMAGE_GENERATION.")]
    model = load_generation(args.source, own).MODEL_PATH
    if not is_keras_file(model):
        return
    from ddpm.cli.import_v3 import import_run

    looks = args.dry_run or args.status or args.verify
    run = import_run(args.source, Path(model), dry=looks)
    if not run.is_dir():
        raise InputError(
            f"{model} is imported where images are drawn; leave --dry-run, --status and --verify "
            "out"
        )
    args.overrides.append(f"IMAGE_GENERATION.MODEL_PATH={run}")


def _draw(args: argparse.Namespace) -> int:
    """A few images, in this process, as one file."""
    for name in (*_OF_BULK, *_OF_JOBS):
        if getattr(args, name) not in (None, []):
            what = "--cluster slurm" if name in _OF_JOBS else "--num"
            raise InputError(f"--{name} is for images in bulk; give {what} too")
    request = read_request(args.source, args.overrides, ema=args.ema, batch_size=args.batch_size)
    if args.dry_run:
        print(f"would draw {request.describe()}; nothing was written")
        return 0
    if args.plan:
        return _write_plan(args.plan)

    from ddpm.sampling import ImageGenerator

    print(ImageGenerator(request).run().describe())
    return 0


def _write_plan(path: Path) -> int:
    from ddpm.cluster import write_plan

    write_plan(path)  # no folder of the job, no Ray
    return 0


def _look(args: argparse.Namespace) -> int:
    """--status and --verify: what there is, without changing it; 1 where --verify finds a fault."""
    found, num = _folder(args)
    if args.status:
        from ddpm.cluster import BulkWatch

        print(f"images in {found.folder}", *BulkWatch(found, num).look().lines(), sep="\n")
    if not args.verify:
        return 0
    from ddpm.sampling import check_bulk

    verdict = check_bulk(found, num, progress=True)
    print(*verdict.lines(), sep="\n")
    if verdict.is_whole:
        return 0
    again = as_typed("sample", found.folder, "--num", num)
    print(f"to draw what is wrong again: {again}")
    return 1


def _folder(args: argparse.Namespace) -> "tuple[BulkFolder, int]":
    """The images in bulk that the command line names, and how many of them are wanted."""
    from ddpm.sampling import BulkFolder

    if args.num is not None and args.num < 1:
        raise InputError(f"--num is {args.num}; give at least 1")
    if is_bulk_folder(args.source) and not args.overrides:  # torch is not needed
        found = BulkFolder.open(args.source)
    else:
        request = _request(args)
        from ddpm.sampling import BulkSampler

        found = BulkFolder.open(BulkSampler(request).folder)
    return found, args.num or found.asked


def _request(args: argparse.Namespace) -> "SampleRequest":
    """The images in bulk that the command line asks for."""
    bulk = BulkOptions(num=args.num, unit=args.unit, format=args.format or "shards")
    return read_request(
        args.source, args.overrides, ema=args.ema, batch_size=args.batch_size, bulk=bulk
    )
