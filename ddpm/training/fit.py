"""The notebook face of the library: network, schedule and prediction type that train and sample.

model = DiffusionModel(network, NoiseSchedule("cosine", 1000), pred_type="velocity")
model.fit(dataset, epochs=100)
images = model.sample_images(num_images=64)
"""

import base64
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from ddpm.training.trainer import LONGEST_WINDOW, StepReport, steps_per_epoch, train

if TYPE_CHECKING:
    from pandas import DataFrame


class History(list[StepReport]):
    """Reports of a training; prints as a table, and a notebook draws its losses above that."""

    @property
    def table(self) -> "DataFrame":
        """The numbers, a row a report, by step."""
        from pandas import DataFrame

        rows = [{"step": one.step, "images": one.images, **one.metrics} for one in self]
        return DataFrame(rows, columns=None if rows else ["step"]).set_index("step")

    def __repr__(self) -> str:
        return str(self.table.to_string(max_rows=20, max_cols=8, float_format="{:.4g}".format))

    def _repr_html_(self) -> str:
        table = self.table
        html: str = table.to_html(max_rows=10)
        losses = [name for name in table if name == "loss" or name.startswith("val_")]
        if not losses:
            return html
        import vl_convert

        rows = table[losses].reset_index().melt("step", var_name="measure").dropna()
        axes = {"x": ("step", "quantitative"), "y": ("value", "quantitative")}
        encoding: dict[str, Any] = {
            channel: {"field": name, "type": kind} for channel, (name, kind) in axes.items()
        }
        encoding["color"] = {"field": "measure", "type": "nominal"}
        spec = {
            "data": {"values": rows.to_dict("records")},
            "mark": {"type": "line", "point": True},
            "encoding": encoding,
            "width": 420,
            "height": 200,
        }
        picture = base64.b64encode(vl_convert.vegalite_to_svg(spec).encode()).decode()
        return f'<img alt="loss" src="data:image/svg+xml;base64,{picture}">{html}'


class DiffusionModel:
    """A network that learns to undo `schedule`'s noise.

    network: any callable module (x_t (N, C, H, W), time (N,) in [0, 1], labels (N,) or None) ->
    (N, C, H, W).  pred_type: one of PRED_TYPES; sigma_data that the schedule lacks is measured by
    the first fit() of edm.  seed: of noise, timesteps, dropout and dropped labels; the order of
    images is the dataset's, the first weights are the network's.
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
    ) -> History:
        """Train up to `epochs` passes over the dataset in all; the reports, which print as a table.

        Called again with a larger `epochs` it continues as if it had never stopped. Raises
        ValueError for another ema_decay than before: no average of it was kept.
        """
        ema = f"ema-{ema_decay:g}"
        if self.state is not None and ema not in self.state.tensors:
            kept = ", ".join(one[4:] for one in self.state.tensors if one.startswith("ema-"))
            raise ValueError(f"ema_decay is {ema_decay:g}; an earlier fit has {kept}, give that")
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
        epoch = steps_per_epoch(training, dataset.num_train)
        ahead = epochs - (self.state.step // epoch if self.state else 0)
        number = ahead * -(-epoch // LONGEST_WINDOW)
        history = History(track(reports, "training", total=number, disable=not show_progress))
        if history:
            self.state = history[-1].state
            assert self.state is not None
            self.ema_network = with_weights(self.network, self.state.tensors[ema])
        return history

    def sample_images(
        self, num_images: int = 64, labels: Sequence[int] | Tensor | None = None, seed: int = 0
    ) -> np.ndarray:
        """Images of the averaged weights, uint8 (N, H, W, C); image i depends on (seed, i)."""
        return grids.sample_images(self, num_images, labels, seed)

    def _training(self, hyper: HyperParameters) -> Training:
        given: Any = self.pred_type  # which Training checks
        return Training(PRED_TYPE=given, SEED=self.seed, HYPER_PARAMETERS=hyper)
