"""Images from a trained network, drawn in this process. The same command draws the same images.

examples:
  python launch/sample.py RUN IMAGE_GENERATION.NUM_GEN_IMAGES=100 IMAGE_GENERATION.DDIM_ETA=0
  python launch/sample.py RUN/checkpoints/step-00001000 --ema 0
  python launch/sample.py options.yaml       of the run or checkpoint its MODEL_PATH names
"""

import argparse
import sys
from pathlib import Path

from ddpm.errors import run_main
from ddpm.request import BATCH_SIZE, read_request


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="sample.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("source", type=Path, help="run directory, checkpoint, or YAML naming one")
    result.add_argument(
        "overrides", nargs="*", metavar="IMAGE_GENERATION.KEY=value", help="changed keys"
    )
    result.add_argument(
        "--ema", type=float, metavar="DECAY", help="averaged weights; 0 = as trained, unaveraged"
    )
    result.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="images of one network call (%(default)s)",
    )
    result.add_argument("--dry-run", action="store_true", help="check all, draw and write nothing")
    result.add_argument("--plan", type=Path, help=argparse.SUPPRESS)  # for slurm/job.sh
    return result


def main(argv: list[str] | None = None) -> int:
    """Draw the images; the exit code."""
    args = parser().parse_intermixed_args(argv)
    request = read_request(args.source, args.overrides, ema=args.ema, batch_size=args.batch_size)
    if args.dry_run:
        print(f"would draw {request.describe()}; nothing was written")
        return 0
    if args.plan:
        args.plan.write_bytes(bytes([0, ord("0"), 0]))  # checked above; no folder, no Ray
        return 0

    from ddpm.image_generator import generate

    print(generate(request).describe())
    return 0


def cli() -> int:
    """Console entry point."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
