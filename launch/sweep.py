"""A grid of trainings, compared. Run the same command again to continue; finished trials never run
again.

examples:
  python launch/sweep.py sweeps/pred_types.yaml
  python launch/sweep.py sweeps/timesteps.yaml TRAINING.HYPER_PARAMETERS.EPOCHS=10
  python launch/sweep.py sweeps/full_grid.yaml --dry-run
"""

import argparse
import sys

from ddpm import sweep
from ddpm.errors import run_main


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("sweep", help="YAML file with BASE, GRID, SEEDS, TUNE")
    result.add_argument("overrides", nargs="*", metavar="SECTION.KEY=value", help="changes of BASE")
    result.add_argument("--dry-run", action="store_true", help="check every cell, write nothing")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the sweep; the exit code."""
    args = parser().parse_intermixed_args(argv)
    planned = sweep.load_sweep(args.sweep, args.overrides)

    from ddpm.adapters import run_sweep
    from launch.signals import stop_on_signals

    if args.dry_run:
        return run_sweep.dry_run(planned)
    return run_sweep.run(planned, should_stop=stop_on_signals())


def cli() -> int:
    """Console entry point."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
