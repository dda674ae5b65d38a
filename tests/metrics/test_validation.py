"""The x0-error knows nothing of the cell it measures, and equals what theory says it is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.config.schema import Config
from ddpm.data import open_data
from ddpm.data.dataset import Batch, Dataset
from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.diffusion.process import convert_prediction
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.metrics.validation import (
    evaluate_run,
    gaussian_fit,
    logsnr_levels,
    measure_x0_error,
    memorisation,
    metrics_of,
    training_weights,
    validation_metrics,
    write_evaluation,
    write_references,
)
from ddpm.metrics.window import data_deviation, data_window, resolved_window
from ddpm.metrics.x0_error import X0Error, x0_summary
from ddpm.report.reading import read_results
from ddpm.sampling.loading import load_network
from tests.support.small_run import make_run
from tests.support.tiny_training import tiny

V3 = ("linear", "cosine", "cos6")
MEAN, VARIANCE = 0.5, 0.25
LEVELS = range(-8, 6)
Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]  # x_t, alpha, sigma -> x0_hat, float64


def batch_of(images: Tensor, labels: Tensor | None = None) -> Batch:
    return Batch(images, labels, torch.arange(len(images)) * 7, None)


def gaussian_images(count: int, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    draws = philox.normal(5, Stream.INIT, torch.arange(count), shape)
    return MEAN + math.sqrt(VARIANCE) * draws


def posterior_mean(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x_t] of N(MEAN, VARIANCE) data, each value on its own."""
    return (alpha * VARIANCE * x_t + sigma**2 * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def network_of(estimate: Estimate, schedule: NoiseSchedule, pred_type: str) -> Callable:
    """A network that predicts `pred_type` and estimates x0 by `estimate`."""

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time.double())
        wide = [one.reshape(-1, 1, 1, 1) for one in (alpha, sigma)]
        x0_hat = estimate(x_t.double(), *wide)
        return convert_prediction(x0_hat, x_t.double(), alpha, sigma, "image", pred_type)

    return network


def measured(
    network: Callable,
    schedule: NoiseSchedule,
    batch: Batch,
    levels: Sequence[int] = LEVELS,
    pred_type: str = "image",
    batch_size: int = 256,
) -> X0Error:
    return measure_x0_error(
        network,
        schedule,
        batch,
        pred_type=pred_type,
        levels=levels,
        seed=0,
        batch_size=batch_size,
    )


@pytest.mark.parametrize("name", V3)
def test_the_error_of_the_ideal_denoiser_is_the_posterior_variance(name: str) -> None:
    schedule = NoiseSchedule(name, 1000)
    network = network_of(posterior_mean, schedule, "velocity")
    error = measured(network, schedule, batch_of(gaussian_images(1000)), pred_type="velocity")
    mean, spread = error.curve()
    abar = 1 / (1 + np.exp(-np.asarray(LEVELS, dtype=np.float64)))
    expected = VARIANCE * (1 - abar) / (abar * VARIANCE + 1 - abar)
    assert (np.abs(mean - expected) < 5 * spread).all()
    assert (spread < 0.02 * expected).all()


@pytest.mark.parametrize("name", V3)
@pytest.mark.parametrize("pred_type", ["noise", "velocity"])
def test_the_same_estimate_has_the_same_error_whatever_is_predicted(
    name: str, pred_type: str
) -> None:
    schedule = NoiseSchedule(name, 1000)
    batch = batch_of(gaussian_images(20))

    def errors(kind: str) -> np.ndarray:
        network = network_of(lambda x, a, s: 0.9 * posterior_mean(x, a, s), schedule, kind)
        return measured(network, schedule, batch, logsnr_levels(schedule), kind).mse

    # The network reads its time in float32, which moves alpha and sigma by some 1e-7.
    np.testing.assert_allclose(errors(pred_type), errors("image"), rtol=1e-3, atol=1e-7)


def test_schedules_and_timesteps_do_not_change_the_pairs() -> None:
    batch = batch_of(gaussian_images(20))
    curves = []
    for name, steps in (("linear", 50), ("cosine", 1000), ("cos6", 250), ("laplace", 1000)):
        schedule = NoiseSchedule(name, steps)
        network = network_of(posterior_mean, schedule, "image")
        curves.append(measured(network, schedule, batch, (-3, 0, 3)).mse)
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)


@pytest.mark.slow
def test_one_noise_keyed_by_the_sample_serves_every_level() -> None:
    schedule, batch = NoiseSchedule("cosine", 1000), batch_of(gaussian_images(6))
    seen = []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(float(time[0]))
        seen.append((x_t - alpha * batch.images) / sigma)
        return x_t

    measure_x0_error(network, schedule, batch, pred_type="image", levels=(-4, 0, 4), seed=3)
    expected = philox.normal(3, Stream.EVAL, batch.ids, (1, 8, 8))
    for draws in seen:
        torch.testing.assert_close(draws.float(), expected, atol=1e-4, rtol=0)
    assert not torch.equal(expected, philox.normal(4, Stream.EVAL, batch.ids, (1, 8, 8)))


def test_the_batch_size_changes_nothing() -> None:
    schedule, batch = NoiseSchedule("linear", 1000), batch_of(gaussian_images(13))
    network = network_of(posterior_mean, schedule, "noise")
    few, all_at_once = (
        measured(network, schedule, batch, pred_type="noise", batch_size=size).mse
        for size in (4, 256)
    )
    np.testing.assert_array_equal(few, all_at_once)


def test_estimates_are_not_clipped() -> None:
    schedule, batch = NoiseSchedule("linear", 1000), batch_of(gaussian_images(4))
    error = measured(lambda x, time, labels: torch.full_like(x, 3.0), schedule, batch, (0,))
    expected = (3 - batch.images.double()).square().flatten(1).mean(dim=1)
    np.testing.assert_allclose(error.mse[0], expected.numpy(), rtol=1e-12)


def test_labels_reach_the_network() -> None:
    batch, seen = batch_of(gaussian_images(5), torch.arange(5)), []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(labels)
        return x_t

    measured(network, NoiseSchedule("linear", 1000), batch, (0,), batch_size=3)
    assert torch.equal(torch.cat(seen), batch.labels)


def test_a_level_the_schedule_does_not_reach_is_refused() -> None:
    schedule, batch = NoiseSchedule("linear", 1000), batch_of(gaussian_images(2))
    with pytest.raises(ValueError, match="linear with 1000 timesteps goes from"):
        measured(lambda x, t, y: x, schedule, batch, (-12,))


@pytest.mark.parametrize(
    ("variances", "window"),
    [
        ([1.0], (-4, 4)),  # F is sigmoid(l): 1 % at -4.595, 99 % at 4.595
        ([math.exp(3)] * 5, (-7, 1)),  # twice the side, 4 times the eigenvalue, 2 ln 2 lower
        ([math.exp(-3), 0.0], (-1, 7)),
        ([math.exp(3)] + [math.exp(-3)] * round(math.exp(6)), (-6, 6)),  # half each: 2 % of either
        ([0.0, 0.0], (-4, 4)),
    ],
)
def test_the_window_is_where_1_to_99_percent_of_the_variance_is_resolved(
    variances: list[float], window: tuple[int, int]
) -> None:
    assert resolved_window(torch.tensor(variances, dtype=torch.float64)) == window


@pytest.mark.parametrize("count", [300, 40])
def test_the_window_of_data_is_that_of_their_covariance(count: int) -> None:
    """Of 64 values: more images than values, and fewer, through the other Gram matrix."""
    images = data(count)
    train = images.read(images.order(torch.arange(images.num_train))).images.flatten(1).double()
    variance = torch.linalg.eigvalsh(torch.cov(train.T, correction=0)).clamp_min(0)
    assert data_window(images) == resolved_window(variance)
    other = Dataset.from_arrays(np.full((count, 8, 8, 1), 7, np.uint8))
    assert data_window(other) == (-4, 4)  # images that do not vary


@pytest.mark.parametrize("count", [300, 40])
def test_the_deviation_of_data_is_that_of_their_values_about_one_mean(count: int) -> None:
    images = data(count)
    train = images.read(images.order(torch.arange(images.num_train))).images.double()
    assert data_deviation(images) == pytest.approx(float(train.std(correction=0)), rel=1e-12)
    assert data_deviation(Dataset.from_arrays(np.full((count, 8, 8, 1), 77, np.uint8))) == 0


@pytest.mark.slow
def test_the_window_of_digits_is_reached_by_v3s_schedules_at_50_timesteps(digits: Path) -> None:
    low, high = data_window(open_data(tiny(), digits))
    assert (low, high) == (-4, 5)
    for name in V3:
        levels = logsnr_levels(NoiseSchedule(name, 50))
        assert set(range(low, high + 1)) <= set(levels)


def test_a_schedule_that_misses_a_part_of_the_window_is_measured_where_it_is() -> None:
    mse = np.array([[4.0], [2.0], [1.0], [0.5]])

    def number(levels: list[int]) -> float:
        error = X0Error(levels=np.array(levels), mse=mse[: len(levels)], ids=np.arange(1))
        return metrics_of(error, (-1, 3))["val_mean_log10_mse"]

    assert number([-3, -2, -1, 0]) == pytest.approx(np.log10([1.0, 0.5]).mean())
    assert number([-1, 0, 1, 2]) == pytest.approx(np.log10(mse).mean())
    assert number([7, 8]) == pytest.approx(np.log10([4.0, 2.0]).mean())  # none of it
    assert metrics_of(X0Error(levels=np.arange(0), mse=mse[:0], ids=np.arange(1)), (0, 1)) == {}


def test_levels_are_bounded_where_the_terminal_snr_is_zero() -> None:
    levels = logsnr_levels(NoiseSchedule("cosine", 1000, zero_terminal_snr=True))
    assert levels[0] == -20 and levels == tuple(range(levels[0], levels[-1] + 1))


def test_a_schedule_without_any_level_gives_an_empty_curve() -> None:
    schedule, batch = NoiseSchedule("linear", 1), batch_of(gaussian_images(3))
    assert logsnr_levels(schedule) == ()
    error = measured(lambda x, t, y: x, schedule, batch, ())
    assert error.mse.shape == (0, 3)
    with pytest.raises(ValueError, match="no log-SNR level"):
        x0_summary(error, ())


def test_the_gaussian_fit_is_the_wiener_filter_measured_as_a_network() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(16, 16)
    train = torch.randn(500, 16) @ mixing * 0.2 + 0.1
    batch = batch_of((torch.randn(50, 16) @ mixing * 0.2 + 0.1).reshape(50, 1, 4, 4))
    mean, covariance = train.double().mean(dim=0), torch.cov(train.double().T, correction=0)

    def estimate(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        a, s = float(alpha.flatten()[0]), float(sigma.flatten()[0])
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(16).double())
        return (mean + (x_t.flatten(1) - a * mean) @ gain.T).reshape(x_t.shape)

    schedule = NoiseSchedule("cosine", 1000)
    curve, _ = measured(network_of(estimate, schedule, "image"), schedule, batch).curve()
    draws = philox.normal(0, Stream.EVAL, batch.ids, (1, 4, 4)).flatten(1)
    line = gaussian_fit(train, batch.images.flatten(1), draws, LEVELS)
    np.testing.assert_allclose(curve, line, rtol=1e-4)


def test_memorisation_is_the_loss_floor_of_the_training_set() -> None:
    images = gaussian_images(40)
    train, batch = images.flatten(1), batch_of(images[:30])

    def ideal(x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        distance = torch.cdist(x_t.flatten(1), alpha.flatten()[0] * train.double()).square()
        weights = torch.softmax(-distance / (2 * sigma.flatten()[0] ** 2), dim=1)
        return (weights @ train.double()).reshape(x_t.shape)

    schedule = NoiseSchedule("cosine", 1000)
    levels = range(-8, 1)
    curve, other = (
        measured(network_of(one, schedule, "image"), schedule, batch, levels).curve()[0]
        for one in (ideal, posterior_mean)
    )
    draws = philox.normal(0, Stream.EVAL, batch.ids, (1, 8, 8)).flatten(1)
    line = memorisation(train, batch.images.flatten(1), draws, levels)
    np.testing.assert_allclose(curve, line, rtol=1e-3, atol=1e-9)
    assert (other > line).all()


def data(count: int = 60) -> Dataset:
    pixels = (gaussian_images(count).clamp(-1, 1) + 1) * 127.5
    images = pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Dataset.from_arrays(images, np.arange(count) % 3)


def test_reference_lines_are_written_once_and_read_back(tmp_path: Path) -> None:
    first = write_references(tmp_path, data(), seed=0, num=8)
    stamp = (tmp_path / "references.json").stat().st_mtime_ns
    assert write_references(tmp_path, data(), seed=0, num=8) == first
    assert (tmp_path / "references.json").stat().st_mtime_ns == stamp
    assert write_references(tmp_path, data(), seed=1, num=8) != first
    assert first["gaussian"] and first["memorisation"] and first["num_train"] == data().num_train
    assert first["gaussian"][-1] < first["gaussian"][0]
    with np.load(tmp_path / "references.npz") as saved:
        assert saved["images"].dtype == np.uint8 and saved["images"].shape[1:] == (8, 8, 1)
        assert set(saved["labels"]) <= {0, 1, 2}


@pytest.mark.slow
def test_an_evaluation_with_infinities_is_written_as_json_without_them(tmp_path: Path) -> None:
    schedule, batch = NoiseSchedule("iddpm_linear", 1000), batch_of(gaussian_images(3))
    error = measured(lambda x, t, y: x * float("nan"), schedule, batch, (0, 1))
    model = replace(load_network(make_run(tmp_path)), schedule=schedule)
    write_evaluation(tmp_path, model, error, "d" * 64, (-3, 2), None)
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text and '"is_beta_defined": true' in text


@pytest.mark.slow
def test_a_run_is_measured_by_its_ema_and_a_report_reads_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    draws = philox.uniform(0, Stream.INIT, torch.arange(60), (8, 8, 3))
    images = (draws * 255).round().to(torch.uint8).numpy()
    source = Dataset.from_arrays(images, np.arange(60) % 3)
    window = (-3, 2)
    numbers = evaluate_run(run, source, window)
    model = load_network(run)
    levels = logsnr_levels(model.schedule)
    error = measured(
        model.network, model.schedule, source.validation(256), levels, model.pred_type, batch_size=2
    )
    (trial,) = read_results(run).trials
    assert trial.error is not None and trial.evaluation["weights"] == model.name
    assert trial.evaluation["data_sha256"] == source.sha256
    np.testing.assert_allclose(trial.error.mse, error.mse, rtol=1e-3)
    np.testing.assert_array_equal(trial.error.ids, error.ids)
    assert read_results(run).window == window
    summary = x0_summary(trial.error, [level for level in levels if -3 <= level <= 2])
    assert numbers["val_mean_log10_mse"] == summary["mean_log10_mse"][0]

    model.network.train()
    again = validation_metrics(model.network, model.schedule, model.config, source, window)
    assert again == pytest.approx(numbers, rel=1e-3) and model.network.training


@pytest.mark.slow
def test_an_unconditional_run_is_measured_on_labelled_images(tmp_path: Path) -> None:
    run = make_run(tmp_path, NUM_CLASSES=None)
    images = np.arange(60 * 8 * 8 * 3, dtype=np.uint8).reshape(60, 8, 8, 3)
    plain, labelled = (
        evaluate_run(run, Dataset.from_arrays(images, labels), (-4, 4))
        for labels in (None, np.arange(60))
    )
    assert plain == labelled and plain


@pytest.mark.parametrize(("space", "least"), [("noise", 0), ("velocity", 1)])
def test_the_loss_weighs_the_x0_error_by_density_weight_and_space(space: str, least: int) -> None:
    """A uniform density weighs an image's loss alike at every level; others by their gain."""
    density = {"LOGSNR_DENSITY": "uniform", "DENSITY_PARAMETERS": (-6.5, 6.5)}
    of_image = training_weights(weighted(PRED_TYPE="image", **density))
    assert set(of_image) == set(range(-6, 7))
    assert np.allclose(list(of_image.values()), 1 / 13, rtol=1e-3)
    found = training_weights(weighted(PRED_TYPE=space, **density))
    for level in (-6, 0, 6):
        fine = np.linspace(level - 0.5, level + 0.5, 1001)
        assert found[level] == pytest.approx((least + np.exp(fine).mean()) / 13, rel=2e-3)
    # min-SNR on the velocity is min(snr, gamma) on the image
    clipped = training_weights(weighted(PRED_TYPE="velocity", LOSS_WEIGHTING="min_snr", **density))
    assert clipped[6] == pytest.approx(5 / 13, rel=1e-3)
    drawn = training_weights(weighted(PRED_TYPE="image", LOGSNR_DENSITY="edm"))
    as_drawn = training_weights(weighted(PRED_TYPE="image", **density, WEIGHTED_AS="edm"))
    for level in (-3, 0, 3):  # the same shape: one is cut off at -6.5 and 6.5
        assert as_drawn[level] / as_drawn[2] == pytest.approx(drawn[level] / drawn[2], rel=1e-2)
    of_schedule = training_weights(weighted(PRED_TYPE="image"))
    assert sum(of_schedule.values()) == pytest.approx(1)


def weighted(**training: Any) -> Config:
    plain = {"LOSS_WEIGHTING": "uniform", "LOSS_SPACE": None}
    return replace(tiny(), TRAINING=replace(tiny().TRAINING, **(plain | training)))
