"""Published results, made again: trains, measures, says what was found and whether it agrees.

examples:
  python launch/results.py                      what there is, and how long it takes
  python launch/results.py hidden_plane         whole
  python launch/results.py few_steps --short    less of everything, to see that it works
  python launch/results.py loss_space TUNE.MAX_CONCURRENT=1

A result rests on trainings that never run again once they are finished: run the same command again
to continue. It is written to OUTPUT_DIR/results/NAME/: result.md, result.json and pictures.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ddpm.errors import InputError, run_main


def main(argv: list[str] | None = None) -> int:
    """Make the result named on the command line; 0 whether it agrees or not."""
    parser = argparse.ArgumentParser(
        prog="results.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="one of the results; none: list them")
    parser.add_argument(
        "overrides", nargs="*", metavar="SECTION.KEY=value", help="changes of its sweep"
    )
    parser.add_argument("--short", action="store_true", help="fewer steps, cells and images")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("training_outputs"),
        metavar="DIR",
        help="OUTPUT_DIR of the trainings and of the result",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made")
    args = parser.parse_intermixed_args(argv)

    from ddpm.published.studies import STUDIES
    from ddpm.published.trials import Options

    if args.name is None:
        for name, study in STUDIES.items():
            print(f"{name:14} {study.question}\n{'':14} {study.time} with --short")
        return 0
    if args.name not in STUDIES:
        raise InputError(f"{args.name!r} is no result; give one of {', '.join(STUDIES)}")
    study, folder = STUDIES[args.name], args.output / "results" / args.name
    if args.overrides and not study.has_sweep:
        raise InputError(f"{args.name} has no sweep; give it no overrides, only --short, --output")
    if any(word.upper().startswith("TRAINING.OUTPUT_DIR=") for word in args.overrides):
        raise InputError("TRAINING.OUTPUT_DIR: give --output DIR, which holds for the result too")
    if args.dry_run:
        print(f"would make {folder / 'result.md'}: {study.question}")
        return 0
    from launch.signals import stop_on_signals

    found = study.make(
        Options(
            output=args.output,
            is_short=args.short,
            overrides=tuple(args.overrides),
            should_stop=stop_on_signals(),
        )
    )
    found = replace(found, changed=tuple(args.overrides))
    print(f"\n{found.markdown()}")
    print(f"written: {found.save(folder)}")
    return 0


def cli() -> int:
    """Entry point: main() with the project's exit codes."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(cli())
