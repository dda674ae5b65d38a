"""The quality of a run's network by the length of the average its weights are, measured afterwards.

examples:
  ddpm ema_curve RUN                of a run trained with TRAINING.EMA_POWER=[0.05,0.1]
  ddpm ema_curve RUN --shortest 0.02 --longest 0.2 --num 20
  ddpm sample RUN --ema power:0.07  images of the length that was found best

Prints a table and writes ema_curve.json and ema_curve.png into the run.
"""

from pathlib import Path

from ddpm.cli.options import command_line


def main(argv: list[str] | None = None) -> int:
    """Measure the lengths named on the command line; 0."""
    parser = command_line("ema_curve", __doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--shortest", type=float, default=0.01, metavar="LENGTH")
    parser.add_argument("--longest", type=float, default=0.25, metavar="LENGTH")
    parser.add_argument("--num", type=int, default=12, metavar="N", help="lengths between them")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    args = parser.parse_args(argv)

    from rich.console import Console

    from ddpm.metrics import ema_curve

    lengths = ema_curve.spaced(args.shortest, args.longest, args.num)
    if args.dry_run:
        errors = ema_curve.fit_errors(args.run, lengths)
        print("would measure (missing of the profile; above 10 % it is left out):")
        print(*(f"  {length:g}  {error:.1%}" for length, error in errors.items()), sep="\n")
        return 0
    curve = ema_curve.measure(args.run, lengths)
    Console().print(ema_curve.table(curve))
    numbers, picture = ema_curve.save(curve)
    print(f"written: {numbers}, {picture.name}")
    return 0
