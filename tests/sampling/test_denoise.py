"""Predictions as clean images and noise: clipped, guided within an interval, rescaled."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import PRED_TYPES, convert_prediction, diffuse
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.denoise import Network, guided
from ddpm.sampling.samplers import ddim_step, sample, sample_steps
from ddpm.sampling.spacing import walk_levels
from tests.support.diffusion_cases import (
    SHAPE,
    SIGMA_DATA,
    affine_network,
    corners,
    every_pred_type,
    ideal_network,
)

LABELS, NULL = torch.tensor([4, 2]), 9
EVERYTHING = (-1000.0, 1000.0)


def labelled(calls: list[tuple[str, list[int]]], name: str = "main", scale: float = 1.0) -> Network:
    """A network that is linear in its labels, and tells of each call."""

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        numbers = torch.zeros(len(x_t)) if labels is None else labels.float()
        calls.append((name, numbers.int().tolist()))
        return scale * torch.tanh(x_t) + 0.01 * numbers.view(-1, 1, 1, 1) * (1 + x_t)

    return network


def draw(network: Network, guidance: float, **options) -> Tensor:
    arguments = {
        "pred_type": "velocity",
        "num_steps": 6,
        "labels": LABELS,
        "null_label": NULL,
        **options,
    }
    schedule = NoiseSchedule("cosine", 30, sigma_data=SIGMA_DATA)
    ids = torch.arange(2)
    return sample(network, schedule, ids, SHAPE, guidance=guidance, **arguments)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_the_null_label(guidance: float) -> None:
    calls: list = []
    drawn = draw(labelled(calls), guidance)
    assert sorted(calls) == sorted([("main", [4, 2]), ("main", [9, 9])] * 6)

    def mixed(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        null, pred = (labelled([])(x_t, time, of) for of in (torch.full((2,), NULL), LABELS))
        return null + guidance * (pred - null)

    assert torch.equal(drawn, draw(mixed, 1.0))


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_an_interval_that_covers_everything_is_plain_guidance(sampler: str) -> None:
    options = {"sampler": sampler}
    plain = draw(labelled([]), 3.0, **options)
    assert torch.equal(draw(labelled([]), 3.0, guidance_interval=EVERYTHING, **options), plain)
    assert not torch.equal(draw(labelled([]), 3.0, guidance_interval=(-2, 2), **options), plain)


def test_outside_of_the_interval_the_network_is_called_once() -> None:
    path = walk_levels(NoiseSchedule("cosine", 30), num_steps=6)[:-1]
    for chosen in (path[2:4], path[:1], path[5:]):
        low, high = float(chosen[0].logsnr), float(chosen[-1].logsnr)
        calls: list = []
        draw(labelled(calls), 3.0, guidance_interval=(low, high))  # both ends are inside
        expected = []
        for level in path:
            null = [("main", [NULL, NULL])] if level in chosen else []
            expected += [*null, ("main", [4, 2])]
        assert calls == expected
    nowhere = draw(labelled([]), 3.0, guidance_interval=(100, 101))
    assert torch.equal(nowhere, draw(labelled([]), 1.0))


def test_the_level_of_zero_snr_is_outside_of_any_finite_interval() -> None:
    calls: list = []
    schedule = NoiseSchedule("cosine", 30, zero_terminal_snr=True)
    network, ids = labelled(calls), torch.arange(2)
    arguments = {"labels": LABELS, "null_label": NULL, "guidance": 2.0}
    arguments["guidance_interval"] = EVERYTHING
    sample(network, schedule, ids, SHAPE, pred_type="velocity", num_steps=3, **arguments)
    assert [labels for _, labels in calls] == [[4, 2], *[[NULL, NULL], [4, 2]] * 2]


@pytest.mark.parametrize("guidance", [0.5, 2.0, 5.0])
def test_a_guide_takes_the_place_of_the_null_prediction(guidance: float) -> None:
    calls: list = []
    main, guide = labelled(calls), labelled(calls, "guide", 0.5)
    drawn = draw(main, guidance, guide=guide, null_label=None)
    assert sorted(calls) == sorted([("main", [4, 2]), ("guide", [4, 2])] * 6)

    def mixed(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        worse, pred = (network(x_t, time, labels) for network in (guide, main))
        return worse + guidance * (pred - worse)

    assert torch.equal(drawn, draw(mixed, 1.0))


@every_pred_type
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_a_network_that_guides_itself_is_itself(pred_type: str, rescale: float) -> None:
    network, options = labelled([]), {"pred_type": pred_type}
    plain = draw(network, 1.0, **options)
    drawn = draw(network, 4.0, guide=network, guidance_rescale=rescale, **options)
    assert torch.equal(drawn, plain)


def test_a_guide_needs_no_classes() -> None:
    drawn = draw(affine_network, 2.0, guide=labelled([]), labels=None, null_label=None)
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, draw(affine_network, 1.0, labels=None))


def test_guidance_off_asks_no_guide() -> None:
    def never(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("the guide was asked")

    options = {"guide": never, "guidance_interval": EVERYTHING, "guidance_rescale": 1.0}
    assert torch.equal(draw(labelled([]), 1.0, **options), draw(labelled([]), 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine", "laplace"])
def test_a_guide_does_not_depend_on_the_prediction_type(name: str) -> None:
    schedule, images = NoiseSchedule(name, 50, sigma_data=SIGMA_DATA), corners().float()
    drawn = [
        sample(
            ideal_network(schedule, images[:3], pred_type),
            schedule,
            torch.arange(4),
            (1, 2, 2),
            pred_type=pred_type,
            num_steps=10,
            guidance=2.0,
            guide=ideal_network(schedule, images, pred_type),
        )
        for pred_type in PRED_TYPES
    ]
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(50))[0])
    for other in drawn[1:]:
        assert_close(other, drawn[0], rtol=0, atol=1e-4 + 256 * 2.0**-24 * gain)


# Clipping


@every_pred_type
def test_clipping_bounds_the_estimate_and_the_images(pred_type: str) -> None:
    schedule = NoiseSchedule("cosine", 20, sigma_data=SIGMA_DATA)
    ids = torch.arange(8)
    states = list(
        sample_steps(
            lambda x_t, time, labels: 3 * x_t,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            clip_denoise=True,
        )
    )
    assert all(state.x0_hat.abs().max() <= 1 for state in states)
    assert max(state.x0_hat.abs().max() for state in states) == 1
    assert torch.equal(states[-1].x_t, states[-1].x0_hat)


@pytest.mark.slow
@every_pred_type
@pytest.mark.parametrize("recompute", [True, False])
def test_after_clipping_noise_fits_the_image_if_asked(pred_type: str, recompute: bool) -> None:
    """v3 kept the noise of the unclipped image; Ho et al. 2020 use the one of the clipped."""
    schedule, ids = NoiseSchedule("cosine", 20, sigma_data=SIGMA_DATA), torch.arange(8)
    x_t = normal(0, Stream.X_T, ids, SHAPE)
    pred = 2 * x_t
    state = next(
        sample_steps(
            lambda x_t, time, labels: pred,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            reverse_stride=5,
            clip_denoise=True,
            recompute_noise=recompute,
        )
    )
    pair = schedule.alpha_sigma_at(torch.tensor(20))
    x0_hat = convert_prediction(pred, x_t, *pair, pred_type, "image", SIGMA_DATA).clamp(-1, 1)
    noise_hat = convert_prediction(pred, x_t, *pair, pred_type, "noise", SIGMA_DATA)
    assert_close(state.x0_hat, x0_hat, rtol=0, atol=0)
    consistent = ddim_step(schedule, x_t, x0_hat, 20, 15, 0.0)
    kept = diffuse(x0_hat, noise_hat, *schedule.alpha_sigma_at(torch.tensor(15)))
    assert (consistent - kept).abs().max() > 1e-2
    assert_close(state.x_t, consistent if recompute else kept, rtol=1e-5, atol=1e-5)


def test_clipping_leaves_unclipped_pixels_alone() -> None:
    schedule, ids = NoiseSchedule("cosine", 1000), torch.arange(3)
    arguments = {"pred_type": "velocity", "num_steps": 10}

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time[0])
        return ((alpha * x_t - 0.9 * torch.tanh(x_t)) / sigma).float()

    plain = sample(network, schedule, ids, SHAPE, **arguments)
    assert torch.equal(sample(network, schedule, ids, SHAPE, clip_denoise=True, **arguments), plain)


# Rescaling


def predicted(guidance: float, network: Network | None = None, rescale: float = 0.0) -> Tensor:
    x_t = normal(0, Stream.X_T, torch.arange(2), SHAPE)
    options = {"guidance": guidance, "null_label": NULL, "rescale": rescale}
    predict = guided(network or labelled([]), LABELS, 2, **options)
    return predict(x_t, torch.full((2,), 0.5), 0.0)


def stds(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1)


@pytest.mark.parametrize("guidance", [0.5, 3.0, 8.0])
def test_rescaling_wholly_keeps_the_standard_deviation_of_each_image(guidance: float) -> None:
    plain, mixed = predicted(1.0), predicted(guidance)
    rescaled = predicted(guidance, rescale=1.0)
    assert (stds(mixed) - stds(plain)).abs().min() > 1e-3
    assert_close(stds(rescaled), stds(plain), rtol=1e-5, atol=0)
    assert_close(rescaled / mixed, (rescaled / mixed)[:, :1, :1, :1].expand_as(mixed))


def test_rescaling_in_part_mixes_what_is_rescaled_with_what_is_not() -> None:
    """Lin et al. 2023, Eq. 16."""
    mixed, rescaled = predicted(3.0), predicted(3.0, rescale=1.0)
    partly = predicted(3.0, rescale=0.7)
    assert_close(partly, 0.7 * rescaled + 0.3 * mixed, rtol=1e-5, atol=1e-6)


def test_a_constant_prediction_is_not_rescaled() -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return torch.ones_like(x_t) * labels.view(-1, 1, 1, 1)

    rescaled = predicted(3.0, network, rescale=0.7)
    assert torch.equal(rescaled, predicted(3.0, network))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_interval": (1.0, 0.0)}, "give the lower logsnr first"),
        ({"guidance_interval": (float("nan"), 0.0)}, "give the lower logsnr first"),
        ({"guidance_rescale": 1.5}, "rescale is 1.5; give one from 0 to 1"),
    ],
)
def test_impossible_guidance_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(labelled([]), 2.0, **options)
