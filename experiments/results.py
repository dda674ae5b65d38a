"""The published results that are shipped, by name."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm.errors import InputError, run_main
from experiments import few_steps, hidden_plane, loss_space, terminal_snr, truncated_snr
from experiments.claims import Result
from experiments.trials import StudyOptions


@dataclass(frozen=True, kw_only=True)
class Study:
    """A result that can be made.  time: on two quiet cores, whole and with --short."""

    question: str
    time: str
    make: Callable[[StudyOptions], Result]
    has_sweep: bool = True


STUDIES: dict[str, Study] = {
    "hidden_plane": Study(
        question="which prediction types find a plane hidden in up to 512 dimensions?",
        time="about 30 minutes; 4",
        make=hidden_plane.result,
        has_sweep=False,
    ),
    "loss_space": Study(
        question="does the loss space matter more than what the network says? (Fashion-MNIST)",
        time="about 30 minutes; 5",
        make=loss_space.result,
    ),
    "truncated_snr": Study(
        question="does noise prediction diverge under the truncated SNR?",
        time="about 20 minutes; 5",
        make=truncated_snr.result,
    ),
    "few_steps": Study(
        question="linear against cosine in few steps, and with a part of the chain skipped",
        time="about 12 minutes; 5",
        make=few_steps.result,
    ),
    "terminal_snr": Study(
        question="does the signal left at t = T shift the brightness of samples as predicted?",
        time="about 12 minutes; 3",
        make=terminal_snr.result,
    ),
}


# --------
# Published results, made again: trains, measures, says what was found and whether it agrees.
#
# examples:
#   python launch/results.py                      what there is, and how long it takes
#   python launch/results.py hidden_plane         whole
#   python launch/results.py few_steps --short    less of everything, to see that it works
#   python launch/results.py loss_space TUNE.MAX_CONCURRENT=1
#
# A result rests on trainings that never run again once they are finished: run the same command again
# to continue. It is written to OUTPUT_DIR/results/NAME/: result.md, result.json and pictures.


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

    from experiments.trials import StudyOptions

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
    from ddpm.cli.signals import stop_on_signals

    found = study.make(
        StudyOptions(
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
