"""Published results, made again: trains, measures, says what was found and whether it agrees.

examples:
  python -m experiments                       the list, and how long each takes
  python -m experiments hidden_plane          whole
  python -m experiments few_steps --short     less of everything, to see that it works
  python -m experiments loss_space TUNE.MAX_CONCURRENT=1
  python -m experiments forecast configs/digits.yaml    before training: error of steps and schedule
  python -m experiments skip_prefix RUN       FID with the first part of the reverse chain left out

A result rests on trainings that never run again once they are finished: run the same command again
to continue. It is written to OUTPUT_DIR/results/NAME/: result.md, result.json and pictures.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from ddpm.errors import InputError, run_main


@dataclass(frozen=True, kw_only=True)
class Study:
    """A result that can be made: experiments/NAME.py with `result(options)`.

    time: on two quiet cores, whole and with --short; trainings where nobody has timed it.
    """

    question: str
    time: str
    has_sweep: bool = True


STUDIES: dict[str, Study] = {
    "hidden_plane": Study(
        question="which prediction types find a plane hidden in up to 512 dimensions?",
        time="about 30 minutes; 4",
        has_sweep=False,
    ),
    "loss_space": Study(
        question="does the loss space matter more than the prediction type? (Fashion-MNIST)",
        time="63 trainings of 313 or 939 steps, not timed; 36 of 33 or 99",
    ),
    "truncated_snr": Study(
        question="which prediction types gain by the truncated SNR?",
        time="about 20 minutes; 5",
    ),
    "few_steps": Study(
        question="linear against cosine in few steps, and with a part of the chain skipped",
        time="about 30 minutes; 10 trainings of 300 steps",
    ),
    "schedule_shift": Study(
        question="does the best shift of the schedule grow with the resolution?",
        time="about 70 minutes; 18 trainings of 150 steps",
    ),
    "moved_density": Study(
        question="is it better to draw noise levels oftener, or to weigh them more?",
        time="about 20 minutes; 6 trainings of 150 steps",
    ),
    "terminal_snr": Study(
        question="does the signal left at t = T shift the brightness of samples as predicted?",
        time="about 12 minutes; 3",
    ),
}
MEASUREMENTS = ("forecast", "skip_prefix")  # experiments/NAME.py with `main(arguments)`


def main(argv: list[str] | None = None) -> int:
    """Makes the result named on the command line; 0 whether it agrees or not."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] and given[0] in MEASUREMENTS:
        code: int = import_module(f"experiments.{given[0]}").main(given[1:])
        return code
    args = _parser().parse_intermixed_args(given)
    if args.name is None:
        for name, study in STUDIES.items():
            print(f"{name:14} {study.question}\n{'':14} {study.time} with --short")
        return 0
    if args.name not in STUDIES:
        choices = ", ".join((*STUDIES, *MEASUREMENTS))
        raise InputError(f"{args.name!r} is no result; give one of {choices}")
    study, folder = STUDIES[args.name], args.output / "results" / args.name
    if args.overrides and not study.has_sweep:
        raise InputError(f"{args.name} has no sweep; give it no overrides, only --short, --output")
    if any(word.upper().startswith("TRAINING.OUTPUT_DIR=") for word in args.overrides):
        raise InputError("TRAINING.OUTPUT_DIR: give --output DIR, which holds for the result too")
    if args.dry_run:
        print(f"would make {folder / 'result.md'}: {study.question}")
        return 0
    from ddpm.cli.signals import stop_on_signals
    from experiments.trials import StudyOptions

    overrides = tuple(args.overrides)
    options = StudyOptions(
        output=args.output,
        is_short=args.short,
        overrides=overrides,
        should_stop=stop_on_signals(),
    )
    found = import_module(f"experiments.{args.name}").result(options)
    found = replace(found, changed=overrides)
    print(f"\n{found.markdown()}")
    print(f"written: {found.save(folder)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("name", nargs="?", help="one of the results; none: list them")
    result.add_argument(
        "overrides", nargs="*", metavar="SECTION.KEY=value", help="changes of its sweep"
    )
    result.add_argument("--short", action="store_true", help="fewer steps, cells and images")
    result.add_argument(
        "--output",
        type=Path,
        default=Path("training_outputs"),
        metavar="DIR",
        help="OUTPUT_DIR of the trainings and of the result",
    )
    result.add_argument("--dry-run", action="store_true", help="say what would be made")
    return result


if __name__ == "__main__":
    sys.exit(run_main(main))
