"""The brightness of samples and the signal a schedule leaves at t = T (Lin et al. 2023).

Every network of sweeps/terminal_snr.yaml draws two sets of images with the same noise: begun in pure
noise, as samplers do, and in digits noised to t = T, as it was trained. Nothing but the signal at
t = T differs, so the difference of their means is its bias, and no error of the network's. Beside
it stands what the closed form says of data with the digits' mean and covariance (gaussian_walk.py),
exactly and by sampling its ideal denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm.gaussian_walk import GaussianFit, drawn, ideal_network, noised
from ddpm.guidance import Network
from ddpm.loaded import load_network
from ddpm.method import Start
from ddpm.published.claims import Claim, Numbers, Result, spread
from ddpm.published.trials import Options, by_cell, failures, planned, shared_seeds, trained
from ddpm.report.data import Trial
from ddpm.rundir import RunDirectory
from ddpm.sampling import sample
from ddpm.schedule import NoiseSchedule
from ddpm.spacing import levels
from ddpm.starting import open_data

IMAGES, STEPS, GREY = 1024, 50, 127.5
NEAR = 0.25  # of the closed form: what is called "as predicted"
SHORT = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=20",
    "TRAINING.INLINE_GEN.PERIOD=20",
    "GRID.TRAINING.NETWORK.LOGSNR_SHIFT=[0.0,4.0]",
)


@dataclass(frozen=True, kw_only=True)
class Bias:
    """What pure noise at t = T does to the mean brightness of samples, in grey levels of 255.

    trained: of the network.  sampled: of the ideal denoiser.  predicted: the same in closed form.
    signal: sqrt(abar_T).  left: the network's samples less the digits, its own error included.
    """

    trained: float
    sampled: float
    predicted: float
    signal: float
    left: float


def result(options: Options) -> Result:
    """Trains what is not trained, draws, and compares."""
    found = trained(planned("terminal_snr", options, SHORT), options)
    cells = by_cell(found.with_status("done"), "TRAINING.NETWORK.LOGSNR_SHIFT")
    seeds = shared_seeds(cells)
    biases = {
        cell[0]: [measured(trials[seed]) for seed in seeds] for cell, trials in cells.items()
    }
    most = biases[max(biases, key=lambda shift: biases[shift][0].signal)]
    claims = (
        Claim(
            paper="a schedule that leaves signal at t = T draws samples towards medium "
            "brightness.",
            number=f"how much brighter the dark digits become, where {100 * most[0].signal:.1f} % "
            "of the signal is left, in grey levels",
            values=tuple(bias.trained for bias in most),
        ),
        Claim(
            paper="the shift is that of the Gaussian closed form.",
            number=f"how far, in grey levels, the shift is inside ±{NEAR:.0%} of the "
            f"{most[0].predicted:.2f} predicted",
            values=tuple(
                NEAR * abs(bias.predicted) - abs(bias.trained - bias.predicted) for bias in most
            ),
        ),
    )
    return Result(
        name="terminal_snr",
        source="Lin et al. 2023, section 3.1; the closed form is ours",
        setting=f"Handwritten digits, 8x8, without classes; {IMAGES:,} images in {STEPS} steps of "
        "DDIM, eta 0, nothing clipped.",
        claims=claims,
        tables=(_table(biases),),
        failed=failures(found),
    )


def measured(trial: Trial) -> Bias:
    """The bias of one network, and of the Gaussian fitted to what it was trained on."""
    model = load_network(Path(str(trial.run_dir)))
    data = open_data(model.config, Path(RunDirectory(Path(str(trial.run_dir))).provenance["data_dir"]))
    everything = data.read(data.order(torch.arange(data.num_train)).sort().values).images
    fit, path = GaussianFit.of(everything.flatten(1)), levels(model.schedule, num_steps=STEPS)
    x0 = data.read(data.order(torch.arange(IMAGES))).images
    apart = drawn(fit, path).mean - drawn(fit, path, begin=noised(fit, path[0])).mean
    ideal = ideal_network(fit, model.schedule)
    own = shift_of(model.network, model.schedule, x0, model.pred_type)
    return Bias(
        trained=own[0] - own[1],
        sampled=float.__sub__(*shift_of(ideal, model.schedule, x0, "image")),
        predicted=GREY * float(apart @ fit.brightness),
        signal=float(path[0].alpha),
        left=own[0] - GREY * float(everything.mean()),
    )


def shift_of(
    network: Network, schedule: NoiseSchedule, x0: Tensor, pred_type: str
) -> tuple[float, float]:
    """Mean brightness, grey levels from black's and white's middle, of images begun in pure noise,
    and in x0 (N, C, H, W) noised by the same draws.
    """

    def brightness(start: Callable[[Tensor], Start]) -> float:
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
            for ids in torch.arange(len(x0)).split(256)
        ]
        return GREY * float(torch.cat(means).double().mean())

    return brightness(lambda ids: Start()), brightness(lambda ids: Start(x0=x0[ids]))


def _table(biases: dict[object, list[Bias]]) -> Numbers:
    return Numbers(
        title="Shift of the mean brightness of samples, grey levels of 255",
        headings=(
            *("LOGSNR_SHIFT", "signal at T", "closed form", "ideal denoiser, sampled"),
            *("trained networks", "their samples less the digits"),
        ),
        rows=tuple(
            (
                f"{shift:g}",
                f"{100 * found[0].signal:.2f} %",
                f"{found[0].predicted:.3f}",
                f"{found[0].sampled:.3f}",
                spread([bias.trained for bias in found]),
                spread([bias.left for bias in found]),
            )
            for shift, found in biases.items()
        ),
    )
