"""A plane hidden in D dimensions, learned by a network narrower than D (Li & He 2025, Fig. 2).

Points of a spiral in two dimensions are carried into D of them by a random isometry x = P p, which
no network is told. A multilayer perceptron of width 256 learns noise, image or velocity there, each
with the same loss on the velocity. The image lies in the plane, and a narrow network can say it;
noise and velocity fill all D dimensions, and must pass through it whole.

Distance of samples from the data, for vectors in D dimensions (Szekely & Rizzo 2013):

    energy distance = 2 E|x - y| - E|x - x'| - E|y - y'|

The yardstick is the normal distribution with the data's mean and covariance: who is farther from
the data than that has learned no more of it than two moments.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm import noise
from ddpm.dataset import Dataset
from ddpm.diffusion import elementwise_loss, loss_weight
from ddpm.distributed import device_of
from ddpm.initialization import init_weights
from ddpm.layers import sinusoids
from ddpm.model import DiffusionModel
from ddpm.noise import Stream
from ddpm.sampling import sample
from ddpm.schedule import NoiseSchedule

WIDTH, HIDDEN_LAYERS, TIME_FEATURES = 256, 5, 32
POINTS, BATCH, LEARNING_RATE, EMA_DECAY = 8192, 256, 1e-3, 0.995
SAMPLES, SAMPLE_STEPS = 1024, 50
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
        draws = noise.normal(self.seed, Stream.INIT, ids, (2,)).double()
        return torch.linalg.qr(draws).Q

    def points(self, ids: Tensor) -> Tensor:
        """Points of the spiral, (N, 2): one turn and a half, inside the unit circle."""
        angle = (1.5 + 3 * noise.uniform(self.seed, Stream.ORDER, ids).double()) * torch.pi
        blur = noise.normal(self.seed, Stream.AUGMENT, ids, (2,)).double()
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
        draws = noise.normal(self.seed, Stream.EVAL, torch.arange(SAMPLES), (2,)).double()
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
