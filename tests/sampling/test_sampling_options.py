"""Clipping, guidance, constraints, zero terminal SNR, and arguments that are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.process import PRED_TYPES, convert, diffuse, q_sample
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.samplers import SampleState, ddim_step, sample, sample_steps
from ddpm.sampling.spacing import Level
from tests.support.diffusion_cases import (
    SHAPE,
    corners,
    every_pred_type,
    every_schedule,
    ideal_network,
)


@every_pred_type
def test_clipping_bounds_the_estimate_and_the_images(pred_type: str) -> None:
    schedule, ids = NoiseSchedule("cosine", 20), torch.arange(8)
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


@every_pred_type
@pytest.mark.parametrize("recompute", [True, False])
def test_after_clipping_noise_fits_the_image_if_asked(pred_type: str, recompute: bool) -> None:
    """v3 kept the noise of the unclipped image; Ho et al. 2020 use the one of the clipped."""
    schedule, ids = NoiseSchedule("cosine", 20), torch.arange(8)
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
    x0_hat = convert(pred, x_t, *pair, pred_type, "image").clamp(-1, 1)
    noise_hat = convert(pred, x_t, *pair, pred_type, "noise")
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


def labelled_network(calls: list[list[int]]) -> Callable:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        calls.append(labels.tolist())
        return 0.1 * x_t + labels.view(-1, 1, 1, 1) * 0.01

    return network


def test_guidance_one_calls_the_network_once_a_step_with_the_labels() -> None:
    calls: list[list[int]] = []
    arguments = {"pred_type": "velocity", "num_steps": 3, "labels": torch.tensor([4, 2])}
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(2)
    sample(labelled_network(calls), schedule, ids, SHAPE, guidance=1.0, null_label=9, **arguments)
    assert calls == [[4, 2]] * 3


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_the_null_label(guidance: float) -> None:
    calls: list[list[int]] = []
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(2)
    labels = torch.tensor([4, 2])
    arguments = {"pred_type": "velocity", "num_steps": 3}
    guided = sample(
        labelled_network(calls),
        schedule,
        ids,
        SHAPE,
        labels=labels,
        guidance=guidance,
        null_label=9,
        **arguments,
    )
    assert sorted(calls) == sorted([[4, 2], [9, 9]] * 3)
    mixed = 9 + guidance * (labels - 9)  # the network is linear in its label
    expected = sample(labelled_network([]), schedule, ids, SHAPE, labels=mixed, **arguments)
    assert_close(guided, expected, rtol=1e-5, atol=1e-5)


@every_schedule
def test_guidance_does_not_depend_on_the_prediction_type(name: str) -> None:
    """It is linear, and so is every conversion."""
    schedule, ids = NoiseSchedule(name, 50), torch.arange(4)
    images = corners().float()

    def network_of(pred_type: str) -> Callable:
        of_class = [ideal_network(schedule, images[k : k + 2], pred_type) for k in (0, 2)]
        of_all = ideal_network(schedule, images, pred_type)

        def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            chosen = of_all if int(labels[0]) == 2 else of_class[int(labels[0])]
            return chosen(x_t, time, None)

        return network

    drawn = [
        sample(
            network_of(pred_type),
            schedule,
            ids,
            (1, 2, 2),
            pred_type=pred_type,
            num_steps=10,
            labels=torch.ones(4, dtype=torch.int64),
            guidance=2.0,
            null_label=2,
        )
        for pred_type in PRED_TYPES
    ]
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(50))[0])
    for other in drawn[1:]:
        assert_close(other, drawn[0], rtol=0, atol=1e-4 + 256 * 2.0**-24 * gain)


def test_a_constraint_is_applied_to_every_state_the_network_sees_and_to_the_image() -> None:
    """A known channel, noised to each level with fixed noise; v3 put the clean one there."""
    schedule, ids = NoiseSchedule("cosine", 30), torch.arange(3)
    known, fixed = torch.full((3, 1, 3, 3), 0.4), normal(0, Stream.EVAL, ids, (1, 3, 3))
    seen: list[Tensor] = []
    levels: list[int] = []

    def constrain(x_s: Tensor, level: Level, of: Tensor) -> Tensor:
        assert torch.equal(of, ids)
        levels.append(round(30 * level.time))
        alpha, sigma = schedule.alpha_sigma_at(torch.tensor(levels[-1]))
        assert (level.alpha, level.sigma) == (alpha, sigma)
        assert level.logsnr == schedule.logsnr_at(torch.tensor(levels[-1]))
        return torch.cat([diffuse(known, fixed, level.alpha, level.sigma), x_s[:, 1:]], dim=1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(x_t)
        return 0 * x_t

    arguments = {"pred_type": "velocity", "reverse_stride": 10, "constrain": constrain}
    states = list(sample_steps(network, schedule, ids, SHAPE, **arguments))
    assert levels == [30, 20, 10, 0]
    for x_t, t in zip([*seen, states[-1].x_t], levels, strict=True):
        assert torch.equal(x_t[:, :1], q_sample(schedule, known, torch.full((3,), t), fixed))
    assert torch.equal(states[-1].x_t[:, :1], known)
    free = sample(network, schedule, ids, SHAPE, pred_type="velocity", reverse_stride=10)
    assert torch.equal(states[-1].x_t[:, 1:], free[:, 1:])


@every_schedule
@every_pred_type
def test_zero_terminal_snr_is_sampled_where_it_is_defined(name: str, pred_type: str) -> None:
    schedule, data = NoiseSchedule(name, 50, zero_terminal_snr=True), corners().float()
    network = ideal_network(schedule, data, pred_type)
    arguments = {"pred_type": pred_type, "num_steps": 25, "ddim_eta": 0.5}
    if pred_type == "noise":
        with pytest.raises(ValueError, match="ends at zero SNR.* predict image or velocity"):
            sample(network, schedule, torch.arange(9), (1, 2, 2), **arguments)
    else:
        drawn = sample(network, schedule, torch.arange(9), (1, 2, 2), **arguments)
        assert drawn.isfinite().all() and drawn.abs().max() < 1.1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_steps": 5, "reverse_stride": 2}, "both num_steps and reverse_stride are given"),
        ({"num_steps": 31}, "num_steps is 31; give one from 1 to 30"),
        ({"reverse_stride": 31}, "stride is 31; give one from 1 to 30"),
        ({"ddim_eta": 1.5}, "eta is 1.5"),
        ({"pred_type": "eps"}, "pred_type is 'eps'; give one of noise, image, velocity"),
        ({"labels": torch.tensor([1])}, r"labels is \(1,\); give one for each of 2 ids"),
        ({"guidance": 2.0, "null_label": 3}, "guidance is 2.0 but labels is missing"),
        ({"guidance": 2.0, "labels": torch.tensor([1, 2])}, "but null_label is missing"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict, message: str) -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError("the network was called before the arguments were checked")

    arguments = {"pred_type": "image"} | arguments
    with pytest.raises(ValueError, match=message):
        sample(network, NoiseSchedule("linear", 30), torch.arange(2), SHAPE, **arguments)


def test_a_network_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned \(2, 1, 3, 3\) for \(2, 2, 3, 3\)"):
        sample(
            lambda x_t, time, labels: x_t[:, :1],
            NoiseSchedule("linear", 30),
            torch.arange(2),
            SHAPE,
            pred_type="image",
        )


def test_states_are_keyword_only_records() -> None:
    x = torch.zeros(1)
    state = SampleState(x_t=x, x0_hat=x, t=1, s=0)
    with pytest.raises(AttributeError):
        state.t = 2
