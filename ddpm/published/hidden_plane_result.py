"""Which prediction types find a plane hidden in D dimensions: D = 2, 8, 16, 512 (Li & He 2025).

The distance of each network's samples from the data stands over that of the yardstick, the data's
normal distribution; hidden_plane.py says how both are made.
"""

import io
import itertools
from collections.abc import Iterable, Mapping
from math import log10

from torch import Tensor

from ddpm.diffusion import PRED_TYPES
from ddpm.published.claims import Claim, Numbers, Result, spread
from ddpm.published.hidden_plane import SAMPLES, Plane, drawn, energy_distance, trained
from ddpm.published.trials import Options, each

DIMENSIONS: tuple[int, ...] = (2, 8, 16, 512)
FEWER_DIMENSIONS: tuple[int, ...] = (2, 512)
SEEDS, STEPS, FEWER_STEPS = (0, 1, 2), 5000, 700

Cell = tuple[int, str]  # D and prediction type
Ratios = Mapping[Cell, list[float]]  # by seed: log10 of distance over the yardstick's


def result(options: Options) -> Result:
    """Trains every network, here and now, and compares."""
    dimensions = FEWER_DIMENSIONS if options.is_short else DIMENSIONS
    steps = FEWER_STEPS if options.is_short else STEPS
    jobs = list(itertools.product(SEEDS, dimensions, PRED_TYPES))
    ratios: dict[Cell, list[float]] = {}
    shown: dict[Cell, Tensor] = {}
    for seed, dimension, kind in each(jobs, "hidden plane", options):
        plane = Plane(dimension=dimension, seed=seed)
        samples = drawn(trained(plane, kind, steps), plane)
        ratios.setdefault((dimension, kind), []).append(ratio(plane, samples))
        if seed == SEEDS[0]:
            shown[dimension, kind] = samples @ plane.frame
    return Result(
        name="hidden_plane",
        source="Li & He 2025, Fig. 2",
        setting=f"A spiral, {steps:,} optimizer steps of a multilayer perceptron of five layers of "
        f"256, loss on the velocity for all; log10 of the energy distance of {SAMPLES:,} samples "
        "over that of as many draws from the data's normal distribution: 0 is as far.",
        claims=claims(ratios),
        tables=(_table(ratios),),
        pictures={"hidden_plane.png": _picture(shown)},
    )


def ratio(plane: Plane, samples: Tensor) -> float:
    """log10 of the distance of samples (N, D) from the data over that of the yardstick."""
    least = 1e-5  # an unbiased distance may fall below zero
    distance = max(energy_distance(plane.fresh(), samples), least)
    return log10(distance / max(energy_distance(plane.fresh(), plane.yardstick()), least))


def claims(ratios: Ratios) -> tuple[Claim, ...]:
    """What the paper's figure shows, as signs."""
    most, least = DIMENSIONS[-1], DIMENSIONS[0]
    failing = [
        Claim(
            paper=f"{kind} prediction fails in {most} dimensions.",
            number="log10 of its distance over the normal distribution's",
            values=tuple(ratios[most, kind]),
        )
        for kind in ("noise", "velocity")
    ]
    surviving = Claim(
        paper=f"image prediction survives in {most} dimensions.",
        number="log10 of the normal distribution's distance over its own",
        values=tuple(-value for value in ratios[most, "image"]),
    )
    all_of = zip(*(ratios[least, kind] for kind in PRED_TYPES), strict=True)
    small = Claim(
        paper=f"all three learn the spiral in {least} dimensions.",
        number="log10 of the normal distribution's distance over that of the worst of them",
        values=tuple(-max(values) for values in all_of),
    )
    return (surviving, *failing, small)


def dimensions_of(cells: Iterable[Cell]) -> list[int]:
    """Every D of some cells, ascending."""
    return sorted({dimension for dimension, _ in cells})


def _table(ratios: Ratios) -> Numbers:
    return Numbers(
        title="log10 of distance over the normal distribution's, below 0 is closer to the data",
        headings=("D", *PRED_TYPES),
        rows=tuple(
            (str(d), *(spread(ratios[d, kind]) for kind in PRED_TYPES))
            for d in dimensions_of(ratios)
        ),
    )


def _picture(shown: Mapping[Cell, Tensor]) -> bytes:
    """PNG: samples in the hidden plane, a row for each D, a column for each prediction type."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dimensions = dimensions_of(shown)
    figure = Figure(figsize=(6.6, 1.65 * len(dimensions) + 0.3), layout="constrained")
    grid = figure.subplots(len(dimensions), 1 + len(PRED_TYPES), squeeze=False)
    for row, dimension in enumerate(dimensions):
        real = Plane(dimension=dimension, seed=SEEDS[0]).fresh_points()
        columns = [("data", real), *((kind, shown[dimension, kind]) for kind in PRED_TYPES)]
        for column, (name, points) in enumerate(columns):
            axes = grid[row, column]
            axes.plot(*points[:500].T.clamp(-1.5, 1.5), ".", ms=1.5, color=f"C{column}")
            axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")
            axes.set_title(name if row == 0 else "", fontsize=9)
        grid[row, 0].set_ylabel(f"D = {dimension}", fontsize=9)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
