"""A plane hidden in D dimensions, learned by a network narrower than D (Li & He 2025, Fig. 2).

Points of a spiral in two dimensions are carried into D of them by a random isometry x = P p that
no network knows. A multilayer perceptron of width 256 learns noise, image or velocity there, each
with the same loss on the velocity. The image lies in the plane, and a narrow network can say it;
noise and velocity fill all D dimensions, and must pass through it whole.

Distance of samples from the data, for vectors in D dimensions (Szekely & Rizzo 2013):

    energy distance = 2 E|x - y| - E|x - x'| - E|y - y'|

The yardstick is the normal distribution with the data's mean and covariance: who is farther from
the data than that has learned no more of it than two moments.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor, nn

from ddpm.data import Dataset
from ddpm.diffusion import (
    NoiseSchedule,
    Stream,
    elementwise_loss,
    init_weights,
    loss_weight,
    philox,
    sinusoids,
)
from ddpm.distributed import device_of
from ddpm.sampling import sample
from ddpm.training import DiffusionModel
from experiments.claims import Claim, Numbers, Result, new_figure, png, spread
from experiments.trials import PREDICTIONS, StudyOptions, each

WIDTH, HIDDEN_LAYERS, TIME_FEATURES = 256, 5, 32
POINTS, BATCH, LEARNING_RATE, EMA_DECAY = 8192, 256, 1e-3, 0.995
SAMPLES, SAMPLE_STEPS = 1024, 50
DIMENSIONS: tuple[int, ...] = (2, 8, 16, 512)
FEWER_DIMENSIONS: tuple[int, ...] = (2, 512)
SEEDS, STEPS, FEWER_STEPS = (0, 1, 2), 5000, 700
Cell = tuple[int, str]  # D and prediction type
Ratios = Mapping[Cell, list[float]]  # by seed: log10 of distance over the yardstick's
# Training points are numbered from 0, fresh ones from here.
_FRESH = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The hidden plane: frame (D, 2), columns of length 1 at right angles, keyed by the seed."""

    dimension: int
    seed: int

    @property
    def frame(self) -> Tensor:
        """The orthonormal columns, float64."""
        ids = torch.arange(self.dimension) + (self.dimension << 16)
        draws = philox.normal(self.seed, Stream.INIT, ids, (2,)).double()
        return torch.linalg.qr(draws).Q

    def points(self, ids: Tensor) -> Tensor:
        """Points of the spiral, (N, 2): one turn and a half, inside the unit circle."""
        angle = (1.5 + 3 * philox.uniform(self.seed, Stream.ORDER, ids).double()) * torch.pi
        blur = philox.normal(self.seed, Stream.AUGMENT, ids, (2,)).double()
        arm = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) / (5 * torch.pi)
        return arm + 0.01 * blur

    def vectors(self, ids: Tensor) -> Tensor:
        """The same points in D dimensions, (N, D)."""
        return self.points(ids) @ self.frame.T

    def fresh_points(self) -> Tensor:
        """SAMPLES points that no network was trained on, (N, 2)."""
        return self.points(torch.arange(SAMPLES) + _FRESH)

    def fresh(self) -> Tensor:
        """The same in D dimensions."""
        return self.fresh_points() @ self.frame.T

    def yardstick(self) -> Tensor:
        """SAMPLES draws from the normal distribution with the data's moments, (N, D)."""
        data = self.points(torch.arange(POINTS))
        draws = philox.normal(self.seed, Stream.EVAL, torch.arange(SAMPLES), (2,)).double()
        root = torch.linalg.cholesky(torch.cov(data.T))
        return (data.mean(dim=0) + draws @ root.T) @ self.frame.T

    def dataset(self) -> Dataset:
        """POINTS training vectors as images of D channels and one pixel."""
        values = (self.vectors(torch.arange(POINTS)) + 1) / 2  # a data set holds [0, 1]
        return Dataset.from_arrays(
            values.float().numpy()[:, None, None, :], seed=self.seed, validation_fraction=0.0
        )


class Perceptron(nn.Module):
    """(x_t (N, D, 1, 1), time (N,), labels) -> (N, D, 1, 1), through five ReLU layers of 256."""

    def __init__(self, dimension: int, seed: int) -> None:
        super().__init__()
        widths = [dimension + TIME_FEATURES, *[WIDTH] * HIDDEN_LAYERS]
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, dimension))
        init_weights(self, seed)

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        features = sinusoids(time, TIME_FEATURES).to(x_t.dtype)
        return self.layers(torch.cat([x_t.flatten(1), features], dim=1)).view_as(x_t)


class VelocityLoss(DiffusionModel):
    """A model of any pred_type whose squared error is that of the velocity it implies."""

    def loss(self, prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        # (snr + 1) |x0_hat - x0|^2 is the velocity's; in the terms of pred_type
        per_image = 1 / loss_weight(logsnr, "velocity", "snr")  # (snr + 1) / snr, on the noise
        factor = {
            "noise": per_image,
            "image": logsnr.exp() + 1,
            "velocity": torch.ones_like(logsnr),
        }
        return factor[self.pred_type] * elementwise_loss(prediction, target, "MSE")


def trained(plane: Plane, pred_type: str, steps: int) -> VelocityLoss:
    """A perceptron after so many optimizer steps, rounded up to whole passes over the points."""
    torch.set_num_threads(1)  # enough for it; two would wait for each other on a busy machine
    network = Perceptron(plane.dimension, plane.seed)
    # The paper keeps its denominators above 0.05; 50 timesteps end at a log SNR of 6.9.
    model = VelocityLoss(network, NoiseSchedule("cosine", 50), pred_type, seed=plane.seed)
    model.fit(
        plane.dataset(),
        epochs=-(-steps * BATCH // POINTS),
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        ema_decay=EMA_DECAY,
        show_progress=False,
    )
    return model


def drawn(model: DiffusionModel, plane: Plane) -> Tensor:
    """Samples of the averaged weights, (N, D), by DDIM without clipping."""
    found = sample(
        model.ema_network,
        model.schedule,
        torch.arange(SAMPLES, device=device_of(model.ema_network)),
        (plane.dimension, 1, 1),
        pred_type=model.pred_type,
        num_steps=SAMPLE_STEPS,
        seed=plane.seed,
    )
    return found.flatten(1).double().cpu()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Of two samples, unbiased: pairs of a point with itself are left out.  (N, D) both."""
    within = [torch.cdist(part, part).sum() / (len(part) * (len(part) - 1)) for part in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])


def result(options: StudyOptions) -> Result:
    """Trains every network, here and now, and compares."""
    dimensions = FEWER_DIMENSIONS if options.is_short else DIMENSIONS
    steps = FEWER_STEPS if options.is_short else STEPS
    jobs = list(itertools.product(SEEDS, dimensions, PREDICTIONS))
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
    """The paper's figure as signs."""
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
    all_of = zip(*(ratios[least, kind] for kind in PREDICTIONS), strict=True)
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
        headings=("D", *PREDICTIONS),
        rows=tuple(
            (str(d), *(spread(ratios[d, kind]) for kind in PREDICTIONS))
            for d in dimensions_of(ratios)
        ),
    )


def _picture(shown: Mapping[Cell, Tensor]) -> bytes:
    """PNG: samples in the hidden plane, a row for each D, a column for each prediction type."""
    dimensions = dimensions_of(shown)
    figure = new_figure(6.6, 1.65 * len(dimensions) + 0.3)
    grid = figure.subplots(len(dimensions), 1 + len(PREDICTIONS), squeeze=False)
    for row, dimension in enumerate(dimensions):
        real = Plane(dimension=dimension, seed=SEEDS[0]).fresh_points()
        columns = [("data", real), *((kind, shown[dimension, kind]) for kind in PREDICTIONS)]
        for column, (name, points) in enumerate(columns):
            axes = grid[row, column]
            axes.plot(*points[:500].T.clamp(-1.5, 1.5), ".", ms=1.5, color=f"C{column}")
            axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], aspect="equal")
            axes.set_title(name if row == 0 else "", fontsize=9)
        grid[row, 0].set_ylabel(f"D = {dimension}", fontsize=9)
    return png(figure)
