"""The notebook face of the library: network, schedule and prediction type that train and sample.

model = DiffusionModel(network, NoiseSchedule("cosine", 1000), pred_type="velocity")
model.fit(dataset, epochs=100)
images = model.sample_images(num_images=64)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.progress import track
from torch import Tensor, nn

from ddpm.config import HyperParameters, Training
from ddpm.data import Dataset
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import Group, best_device
from ddpm.metrics import sigma_data_of
from ddpm.sampling import grids
from ddpm.training.loss import standard_loss
from ddpm.training.step import TrainState, with_weights
from ddpm.training.trainer import StepReport, train


class DiffusionModel:
    """A network that learns to undo `schedule`'s noise.

    network: any callable module (x_t (N, C, H, W), time (N,) in [0, 1], labels (N,) or None) ->
    (N, C, H, W).  pred_type: one of PRED_TYPES; sigma_data that the schedule lacks is measured by
    the first fit() of edm.  seed: of everything random in training.
    Override `loss` for another objective.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        pred_type: str = "velocity",
        *,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.schedule = schedule
        self.pred_type = pred_type
        self.seed = seed
        self.ema_network = with_weights(network, None)
        self.image_shape: tuple[int, int, int] | None = None
        self.state: TrainState | None = None

    def loss(self, prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        """Loss per sample (N,). prediction, target: (N, C, H, W) of pred_type; logsnr: (N,)."""
        training = self._training(HyperParameters())
        return standard_loss(training, self.schedule.sigma_data)(prediction, target, logsnr)

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int,
        batch_size: int = 64,
        learning_rate: float = 2e-4,
        ema_decay: float = 0.999,
        show_progress: bool = True,
    ) -> list[StepReport]:
        """Train for `epochs` passes over the dataset, from where the last fit ended; all reports.

        Called again with a larger `epochs` it continues as if it had never stopped.
        """
        hyper = HyperParameters(
            EPOCHS=epochs,
            BATCH_SIZE=batch_size,
            LEARNING_RATE=learning_rate,
            LR_TYPE="constant",
            SAVE_PERIOD=None,
        )
        training = dataclasses.replace(self._training(hyper), EMA_DECAYS=(ema_decay,))
        if self.schedule.sigma_data is None:
            sigma_data = sigma_data_of(training, dataset)
            self.schedule = dataclasses.replace(self.schedule, sigma_data=sigma_data)
        self.image_shape = dataset.image_shape
        reports = train(
            training,
            self.network,
            self.schedule,
            dataset,
            loss=self.loss,
            state=self.state,
            group=Group(device=best_device()),
        )
        history = list(track(reports, "training", disable=not show_progress))
        if history:
            self.state = history[-1].state
            assert self.state is not None
            self.ema_network = with_weights(self.network, self.state.tensors[f"ema-{ema_decay:g}"])
        return history

    def sample_images(
        self, num_images: int = 64, labels: Sequence[int] | Tensor | None = None, seed: int = 0
    ) -> np.ndarray:
        """Images of the averaged weights, uint8 (N, H, W, C); image i depends on (seed, i)."""
        return grids.sample_images(self, num_images, labels, seed)

    def _training(self, hyper: HyperParameters) -> Training:
        given: Any = self.pred_type  # which Training checks
        return Training(PRED_TYPE=given, SEED=self.seed, HYPER_PARAMETERS=hyper)
