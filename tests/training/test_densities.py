"""Training by a density of log SNR: the schedule then only says where images are drawn."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm import config as c
from ddpm.config.schema import Training
from ddpm.data.dataset import Dataset
from ddpm.diffusion.density import FEWEST_DRAWS
from ddpm.diffusion.layers import init_weights
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError
from ddpm.metrics.bits_per_dim import bound_timesteps, variational_bound
from ddpm.metrics.validation import measure_x0_error
from ddpm.sampling.loading import build_network, start_problems
from ddpm.sampling.samplers import sample
from ddpm.training.step import TrainState
from ddpm.training.trainer import train
from tests.support.small_run import make_run
from tests.support.tree import ROOT
from tests.training.test_trainer import digits, final, network, same, settings

DIGITS = ROOT / "configs" / "digits.yaml"
LINEAR, COSINE = (NoiseSchedule(name, 100, time_input="logsnr") for name in ("linear", "cosine"))
LEVELS, ENDS = (-4, 0, 2), (-4.0, 4.0)


def trained(
    options: Training, schedule: NoiseSchedule, unet: nn.Module, state: TrainState | None = None
) -> TrainState:
    return final(list(train(options, unet, schedule, digits(), state=state)))


def images_of(unet: nn.Module, schedule: NoiseSchedule) -> Tensor:
    return sample(
        unet.eval(),
        schedule,
        torch.arange(4),
        (1, 8, 8),
        labels=torch.arange(4),
        pred_type="velocity",
        sampler="dpmpp_2m",
        spacing="logsnr",
        num_steps=6,
        between=ENDS,
    )


@pytest.mark.slow
@pytest.mark.parametrize("density, stratified", [("edm", True), ("laplace", False)])
def test_two_schedules_train_one_network_under_one_density(density: str, stratified: bool) -> None:
    """To the bit; and on one grid of log SNR they draw the same images and make the same errors."""
    options = settings(1, LOGSNR_DENSITY=density, STRATIFIED_TIME=stratified)
    networks, states, images, errors = [], [], [], []
    held_out = digits().read(torch.arange(6), None)
    for schedule in (LINEAR, COSINE):
        unet = network()
        networks.append(unet)
        states.append(trained(options, schedule, unet))
        images.append(images_of(unet, schedule))
        found = measure_x0_error(
            unet, schedule, held_out, pred_type="velocity", levels=LEVELS, seed=0
        )
        errors.append(found.mse)
    assert same(*states) and torch.equal(*images) and np.array_equal(errors[0], errors[1])
    plain = settings(1, STRATIFIED_TIME=stratified)
    by_schedule = [trained(plain, schedule, network()) for schedule in (LINEAR, COSINE)]
    assert not same(*by_schedule) and not same(by_schedule[0], states[0])


@pytest.mark.slow
def test_density_and_its_parameters_change_the_weights() -> None:
    states = [
        trained(settings(1, **changed), COSINE, network())
        for changed in (
            {},
            {"LOGSNR_DENSITY": "logit_normal"},
            {"LOGSNR_DENSITY": "logit_normal", "DENSITY_PARAMETERS": (0.5, 1.0)},
            # the same family in other words
            {"LOGSNR_DENSITY": "edm", "DENSITY_PARAMETERS": (0.5, 1.0)},
            {"WEIGHTED_AS": "logit_normal"},
        )
    ]
    assert not same(states[0], states[4]) and not same(states[1], states[4])
    assert not same(states[0], states[1]) and not same(states[1], states[2])
    assert same(states[2], states[3])


@pytest.mark.slow
@pytest.mark.parametrize("stratified", [False, True])
def test_a_training_by_a_density_resumes_to_the_bit(stratified: bool) -> None:
    def options(epochs: int) -> Training:
        return settings(epochs, LOGSNR_DENSITY="edm", STRATIFIED_TIME=stratified)

    whole = trained(options(2), COSINE, network())
    half = trained(options(1), COSINE, network())
    assert same(trained(options(2), COSINE, network(), half), whole)


class Remembers(nn.Module):
    """A network that predicts nothing and keeps the times that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append(time.double())
        return x_t * self.weight

    def logsnr(self) -> Tensor:
        return 20 - 40 * torch.cat(self.seen)


def test_training_sampling_and_measuring_agree_on_what_the_network_sees() -> None:
    """Its input says the log SNR of its states: levels of a walk, of the bound, of the errors."""
    unet, grid = Remembers(), torch.linspace(*ENDS, 6, dtype=torch.float64)
    images_of(unet, LINEAR)
    torch.testing.assert_close(torch.stack(unet.seen)[:, 0], (20 - grid) / 40, atol=1e-6, rtol=0)
    held_out = Dataset.from_arrays(np.zeros((6, 8, 8, 1), np.uint8)).read(torch.arange(2), None)

    unet = Remembers()
    measure_x0_error(unet, LINEAR, held_out, pred_type="velocity", levels=LEVELS, seed=0)
    expected = torch.tensor(LEVELS).double().repeat_interleave(2)
    torch.testing.assert_close(unet.logsnr(), expected, atol=1e-4, rtol=0)

    unet, walk = Remembers(), bound_timesteps(LINEAR, 5)
    variational_bound(unet, LINEAR, held_out, pred_type="velocity", timesteps=walk, seed=0)
    expected = LINEAR.logsnr_at(torch.tensor(walk[:-1])).repeat_interleave(2)
    torch.testing.assert_close(unet.logsnr(), expected, atol=1e-4, rtol=0)

    unet = Remembers()
    trained(settings(1, LOGSNR_DENSITY="uniform", DENSITY_PARAMETERS=(-3.0, 5.0)), LINEAR, unet)
    drawn = unet.logsnr()
    assert len(drawn) == 160 and -3 < drawn.min() < -2 and 4 < drawn.max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("stratified", [False, True])
def test_a_training_by_an_adaptive_density_resumes_to_the_bit(stratified: bool) -> None:
    def options(epochs: int) -> Training:
        return settings(epochs, LOGSNR_DENSITY="adaptive", STRATIFIED_TIME=stratified)

    schedule = NoiseSchedule("linear", 10)
    whole = trained(options(5), schedule, network())
    half = trained(options(3), schedule, network())
    assert half.density and min(n for n in half.density["draws"] if n) > FEWEST_DRAWS
    assert same(trained(options(5), schedule, network(), half), whole)
    forgetful = dataclasses.replace(half, density=None)
    assert not same(trained(options(5), schedule, network(), forgetful), whole)


@pytest.mark.slow
def test_an_adaptive_density_leaves_the_loss_as_it_was_and_makes_it_less_noisy() -> None:
    """A network that learns nothing: zero for the noise, whose squared error in the image is
    1 / snr times that, so that the loss hangs on few timesteps.
    """

    def losses(density: str) -> tuple[list[float], dict[str, float]]:
        options = settings(
            60,
            LOGSNR_DENSITY=density,
            LOSS_SPACE="image",
            PRED_TYPE="noise",
            STEPS_PER_EPOCH=1,
            BATCH_SIZE=64,
            LEARNING_RATE=1e-30,
        )
        unet = init_weights(UNet(8, 1, 4, (1,), (False,), 1, norm_groups=4), 0)
        reports = list(train(options, unet, NoiseSchedule("cos6", 100), digits()))
        return [report.metrics["loss"] for report in reports[20:]], reports[-1].metrics

    (uniform, plain), (adapted, metrics) = losses("schedule"), losses("adaptive")
    schedule = NoiseSchedule("cos6", 100)
    exact = (-schedule.logsnr_at(torch.arange(1, 101))).exp().mean().item()
    error = np.std(adapted) / len(adapted) ** 0.5
    assert abs(np.mean(adapted) - exact) < 4 * error < 0.2 * exact
    assert np.std(adapted) < 0.5 * np.std(uniform)
    shares = {name: share for name, share in metrics.items() if name.startswith("share/")}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda name: shares[name]) == "share/logsnr_-inf_-6"
    assert not any(name.startswith("share/") for name in plain)


@pytest.mark.slow
def test_the_networks_input_is_time_unless_a_density_or_the_key_says_log_snr() -> None:
    for overrides, seen in (
        ([], "time"),
        (["TRAINING.NETWORK.TIME_INPUT=logsnr"], "logsnr"),
        (["TRAINING.LOGSNR_DENSITY=edm"], "logsnr"),
        (["TRAINING.NETWORK.TIME_INPUT=timestep"], "timestep"),
        (["TRAINING.NETWORK.KERAS_LAYERS=true"], "timestep"),
        (["TRAINING.LOGSNR_DENSITY=adaptive"], "time"),
        (["TRAINING.PRED_TYPE=edm"], "logsnr"),
        (["TRAINING.PRED_TYPE=flow"], "flow"),
        (["TRAINING.PRED_TYPE=flow", "TRAINING.LOGSNR_DENSITY=edm"], "flow"),
        (["TRAINING.PRED_TYPE=flow", "TRAINING.NETWORK.TIME_INPUT=time"], "time"),
    ):
        _, schedule = build_network(c.load(DIGITS, overrides))
        assert schedule.time_input == seen
    with pytest.raises(ValueError, match="give NoiseSchedule time_input='logsnr'"):
        trained(settings(1, LOGSNR_DENSITY="edm"), NoiseSchedule("cosine", 100), network())


@pytest.mark.parametrize(
    "parameters, words",
    [
        ("[6, 1]", "but only 3% of it lies between log SNR -8.1 and 12.9"),
        ("[-20, 0.1]", "but edm [-20.0, 0.1] has no log SNR from -20 to 20; give other"),
    ],
)
def test_a_density_beyond_the_schedule_is_refused(parameters: str, words: str) -> None:
    density = ("TRAINING.LOGSNR_DENSITY=edm", f"TRAINING.DENSITY_PARAMETERS={parameters}")
    (line,) = start_problems(c.load(DIGITS, density))
    assert line.startswith("TRAINING.LOGSNR_DENSITY is edm") and words in line
    assert "TRAINING.DENSITY_PARAMETERS" in line
    assert start_problems(c.load(DIGITS, density[:1])) == []


@pytest.mark.parametrize(
    "drawn, words",
    [
        ("uniform [8,10]", "laplace has nothing between the log SNRs 8.00 and 10.00 of the levels"),
        ("laplace null", "but LOGSNR_DENSITY laplace draws so rarely where that has its mass that"),
    ],
)
def test_losses_weighed_where_next_to_nothing_is_drawn_are_refused(drawn: str, words: str) -> None:
    name, parameters = drawn.split()
    weighed = "uniform" if name == "laplace" else "laplace"
    keys = {"LOGSNR_DENSITY": name, "DENSITY_PARAMETERS": parameters, "WEIGHTED_AS": weighed}
    *_, line = start_problems(c.load(DIGITS, [f"TRAINING.{key}={keys[key]}" for key in keys]))
    assert line.startswith(f"TRAINING.WEIGHTED_AS is {weighed}") and words in line
    assert start_problems(c.load(DIGITS, ["TRAINING.WEIGHTED_AS=laplace"])) == []


@pytest.mark.slow
def test_an_edm_network_is_no_start_for_another_prediction(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"PRED_TYPE": "edm"})
    keys = {"TRAINED_H5": run, "IS_NEW_TRAIN": "false", "NETWORK.TIME_INPUT": "logsnr"}
    with pytest.raises(InputError, match="PRED_TYPE is edm, but here it is velocity"):
        build_network(c.load(DIGITS, [f"TRAINING.{key}={value}" for key, value in keys.items()]))


@pytest.mark.slow
def test_weights_of_a_network_that_sees_something_else_are_no_start(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    overrides = (f"TRAINING.TRAINED_H5={run}", "TRAINING.IS_NEW_TRAIN=false")
    with pytest.raises(InputError, match="whose network sees time, but here it is logsnr; give"):
        build_network(c.load(DIGITS, [*overrides, "TRAINING.LOGSNR_DENSITY=edm"]))
