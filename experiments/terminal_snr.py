"""The brightness of samples and the signal a schedule leaves at t = T (Lin et al. 2023).

A network draws two sets of images with the same noise: begun in pure noise, as samplers do, and in
training images noised to t = T, as it was trained. Nothing but the signal at t = T differs, so the
difference of their means is its bias, and no error of the network's. Beside it stands what the
closed form says of data with the same mean and covariance (gaussian_walk.py), exactly and by
sampling its ideal denoiser. The networks are those of sweeps/terminal_snr.yaml, on digits, and a
perceptron on images of constant, normally distributed brightness, of which the closed form is true.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.data import Dataset, open_data
from ddpm.diffusion import NoiseSchedule, Stream, philox
from ddpm.distributed import device_of
from ddpm.report import TrialResult
from ddpm.runs import RunDirectory
from ddpm.sampling import Network, WalkStart, load_network, sample, walk_levels
from ddpm.training import DiffusionModel
from experiments.claims import Claim, Numbers, Result, spread
from experiments.gaussian_walk import GaussianFit, drawn, ideal_network, noised
from experiments.hidden_plane import Perceptron
from experiments.trials import StudyOptions, by_cell, each, failures, planned, run_of, trained

IMAGES, FEWER_IMAGES, STEPS, GREY = 1024, 128, 50, 127.5
PLAIN_MEAN, PLAIN_STD, PLAIN_SHIFT, PLAIN_EPOCHS = -0.4, 0.25, 4.0, 32
NEAR = 0.25  # of the closed form: what is called "as predicted"
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=20",
    "TRAINING.INLINE_GEN.PERIOD=20",
    "GRID.TRAINING.NETWORK.LOGSNR_SHIFT=[0.0,4.0]",
)


@dataclass(frozen=True, kw_only=True)
class Bias:
    """Shift of the mean brightness of samples by pure noise at t = T, in grey levels of 255.

    trained: of the network.  sampled: of the ideal denoiser.  predicted: the same in closed form.
    signal: sqrt(abar_T).  left: the network's samples less the digits, its own error included.
    """

    trained: float
    sampled: float
    predicted: float
    signal: float
    left: float


def result(options: StudyOptions) -> Result:
    """Trains what is not trained, draws, and compares."""
    found = trained(planned("terminal_snr", options, SHORT), options)
    cells = by_cell(found.with_status("done"), ["TRAINING.NETWORK.LOGSNR_SHIFT"])
    seeds, images = cells.seeds, FEWER_IMAGES if options.is_short else IMAGES
    digits: dict[object, list[Bias]] = {cell[0]: [] for cell in cells.trials}
    for cell, seed in each(list(product(cells.trials, seeds)), "digits", options):
        digits[cell[0]].append(of_trial(cells.trials[cell][seed], images))
    plain = [of_plain_images(seed, images) for seed in each(seeds, "constant images", options)]
    most = digits[max(digits, key=lambda shift: digits[shift][0].signal)]
    claims = (
        Claim(
            paper="a schedule that leaves signal at t = T draws samples towards medium brightness.",
            number=f"how much brighter the dark digits become, where {100 * most[0].signal:.1f} % "
            "of the signal is left, in grey levels",
            values=tuple(bias.trained for bias in most),
        ),
        Claim(
            paper="(by the closed form, not in the paper) images of constant brightness shift by "
            f"{plain[0].predicted:.1f} grey levels.",
            number=f"how far inside ±{NEAR:.0%} of that the shift is, in grey levels",
            values=tuple(
                NEAR * abs(bias.predicted) - abs(bias.trained - bias.predicted) for bias in plain
            ),
        ),
    )
    rows = [*((f"digits, shift {shift:g}", biases) for shift, biases in digits.items())]
    rows.append((f"constant images, shift {PLAIN_SHIFT:g}", plain))
    return Result(
        name="terminal_snr",
        source="Lin et al. 2023, section 3.1",
        setting=f"Handwritten digits, 8x8, without classes, and 8x8 images of constant brightness, "
        f"normal with mean {PLAIN_MEAN} and deviation {PLAIN_STD} in [-1, 1]; {images:,} images in "
        f"{STEPS} steps of DDIM, eta 0, nothing clipped. Digits are far from Gaussian, so for them "
        "the closed form tells the sign and not the size.",
        claims=claims,
        tables=(_table(rows),),
        failed=failures(found),
    )


def of_trial(trial: TrialResult, images: int) -> Bias:
    """The bias of a trained network."""
    model, run = load_network(run_of(trial)), RunDirectory(run_of(trial))
    torch.set_num_threads(run.threads)
    data = open_data(model.config, Path(run.provenance["data_dir"]))
    return measured(model.network, model.schedule, model.pred_type, data, images)


def of_plain_images(seed: int, images: int) -> Bias:
    """The bias of a perceptron trained here on images of constant brightness."""
    torch.set_num_threads(1)  # enough for it; two would wait for each other on a busy machine
    draws = philox.normal(seed, Stream.ORDER, torch.arange(8192), (1, 1)).numpy()
    values = np.clip((PLAIN_MEAN + PLAIN_STD * draws + 1) / 2, 0, 1)
    data = Dataset.from_arrays(np.broadcast_to(values, (8192, 8, 8)), validation_fraction=0.0)
    schedule = NoiseSchedule("cosine", 1000, logsnr_shift=PLAIN_SHIFT)
    model = DiffusionModel(Perceptron(64, seed), schedule, "image", seed=seed)
    model.fit(
        data,
        epochs=PLAIN_EPOCHS,
        batch_size=256,
        learning_rate=1e-3,
        ema_decay=0.995,
        show_progress=False,
    )
    return measured(model.ema_network, schedule, model.pred_type, data, images)


def measured(
    network: Network, schedule: NoiseSchedule, pred_type: str, data: Dataset, images: int
) -> Bias:
    """The bias of a network, and of the Gaussian fitted to what it was trained on."""
    everything = data.read(data.order(torch.arange(data.num_train)).sort().values).images
    fit, path = GaussianFit.of(everything.flatten(1)), walk_levels(schedule, num_steps=STEPS)
    x0 = data.read(data.order(torch.arange(images))).images
    apart = drawn(fit, path).mean - drawn(fit, path, begin=noised(fit, path[0])).mean
    ideal = shift_of(ideal_network(fit, schedule), schedule, x0, "image")
    own = shift_of(network, schedule, x0.to(device_of(network)), pred_type)
    return Bias(
        trained=own[0] - own[1],
        sampled=ideal[0] - ideal[1],
        predicted=GREY * float(apart @ fit.brightness),
        signal=float(path[0].alpha),
        left=own[0] - GREY * float(everything.mean()),
    )


def shift_of(
    network: Network, schedule: NoiseSchedule, x0: Tensor, pred_type: str
) -> tuple[float, float]:
    """Mean brightness, grey levels from black's and white's middle, of images begun in pure noise,
    and in x0 (N, C, H, W) noised by the same draws. All on the device of x0.
    """

    def brightness(start: Callable[[Tensor], WalkStart]) -> float:
        means = [
            sample(
                network,
                schedule,
                ids,
                tuple(x0.shape[1:]),
                pred_type=pred_type,
                num_steps=STEPS,
                start=start(ids),
            ).mean(dim=(1, 2, 3))
            for ids in torch.arange(len(x0), device=x0.device).split(256)
        ]
        return GREY * float(torch.cat(means).double().mean())

    return brightness(lambda ids: WalkStart()), brightness(lambda ids: WalkStart(x0=x0[ids]))


def _table(rows: Sequence[tuple[str, Sequence[Bias]]]) -> Numbers:
    return Numbers(
        title="Shift of the mean brightness of samples, grey levels of 255",
        headings=(
            *("data", "signal at T", "closed form", "ideal denoiser, sampled"),
            *("trained networks", "their samples less the data"),
        ),
        rows=tuple(
            (
                name,
                f"{100 * found[0].signal:.2f} %",
                f"{found[0].predicted:.3f}",
                f"{found[0].sampled:.3f}",
                spread([bias.trained for bias in found]),
                spread([bias.left for bias in found]),
            )
            for name, found in rows
        ),
    )
