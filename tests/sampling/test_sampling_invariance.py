"""What a drawn image depends on, bit for bit, and what it does not."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.samplers import ddim_step, sample, sample_steps
from tests.support.diffusion_cases import SHAPE, affine_network, every_pred_type


@every_pred_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stride", [1, 5])
def test_an_image_is_bitwise_the_same_in_any_batch_and_order(
    pred_type: str, eta: float, stride: int
) -> None:
    schedule = NoiseSchedule("cos6", 12)

    def draw(ids: Tensor) -> Tensor:
        return sample(
            affine_network,
            schedule,
            ids,
            SHAPE,
            pred_type=pred_type,
            ddim_eta=eta,
            reverse_stride=stride,
            clip_denoise=True,
            seed=4,
        )

    ids = torch.tensor([3, 0, 2**40, 17, 8, 5, 1000])
    together = draw(ids)
    assert together.dtype == torch.float32 and together.shape == (7, *SHAPE)
    assert torch.equal(draw(ids.flip(0)), together.flip(0))
    for i in (0, 2, 6):
        assert torch.equal(draw(ids[i : i + 1])[0], together[i])
    assert len(torch.unique(together.flatten(1), dim=0)) == 7


def test_seeds_and_labels_matter_and_are_all_that_matters() -> None:
    schedule = NoiseSchedule("linear", 20)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return affine_network(x_t, time, None) + labels.view(-1, 1, 1, 1)

    def draw(seed: int, labels: list[int]) -> Tensor:
        return sample(
            network,
            schedule,
            torch.arange(2),
            SHAPE,
            pred_type="velocity",
            labels=torch.tensor(labels),
            seed=seed,
            ddim_eta=0.5,
        )

    base = draw(0, [0, 1])
    assert torch.equal(base, draw(0, [0, 1]))
    assert not torch.equal(base, draw(1, [0, 1]))
    other = draw(0, [0, 2])
    assert torch.equal(other[0], base[0]) and not torch.equal(other[1], base[1])


def test_grids_of_other_lengths_start_from_the_same_noise() -> None:
    seen = []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        seen.append((x_t.clone(), time.clone()))
        return 0 * x_t

    for num_timesteps in (10, 1000):
        schedule = NoiseSchedule("cosine", num_timesteps)
        sample(network, schedule, torch.arange(3), SHAPE, pred_type="image", num_steps=2)
    assert torch.equal(seen[0][0], normal(0, Stream.X_T, torch.arange(3), SHAPE))
    assert torch.equal(seen[0][0], seen[2][0])
    assert [time.tolist() for _, time in seen] == [[1.0] * 3, [0.5] * 3] * 2
    assert seen[0][1].dtype == torch.float32


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_adds_the_keyed_noise_of_its_timestep(eta: float) -> None:
    schedule, ids = NoiseSchedule("linear", 20), torch.arange(4)
    x_t = normal(7, Stream.X_T, ids, SHAPE)
    arguments = {"pred_type": "image", "ddim_eta": eta, "seed": 7, "reverse_stride": 6}
    states = list(sample_steps(affine_network, schedule, ids, SHAPE, **arguments))
    assert [(state.t, state.s) for state in states] == [(20, 14), (14, 8), (8, 2), (2, 0)]
    for state in states:
        x0_hat = affine_network(x_t, torch.full((4,), state.t / 20), None)
        noise = normal(7, Stream.STEP_NOISE, ids, SHAPE, step=state.s)
        x_t = ddim_step(schedule, x_t, x0_hat, state.t, state.s, eta, noise)
        assert_close(state.x0_hat, x0_hat, rtol=0, atol=0)
        assert_close(state.x_t, x_t, rtol=1e-5, atol=1e-6)
    assert torch.equal(states[-1].x_t, states[-1].x0_hat)
    assert torch.equal(states[-1].x_t, sample(affine_network, schedule, ids, SHAPE, **arguments))


def test_sampling_neither_tracks_gradients_nor_changes_the_callers_mode() -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    schedule, ids = NoiseSchedule("linear", 4), torch.arange(2)
    states = sample_steps(
        lambda x_t, time, labels: weight * x_t, schedule, ids, SHAPE, pred_type="velocity"
    )
    for state in states:
        assert not state.x_t.requires_grad and torch.is_grad_enabled()


def test_autocast_around_the_sampler_changes_nothing_but_the_network() -> None:
    schedule, ids = NoiseSchedule("cosine", 10), torch.arange(3)

    def draw() -> Tensor:
        return sample(affine_network, schedule, ids, SHAPE, pred_type="noise", ddim_eta=0.5)

    plain = draw()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(), plain)


@every_pred_type
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_state_is_float32_whatever_the_network_returns(
    pred_type: str, dtype: torch.dtype
) -> None:
    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        assert x_t.dtype == time.dtype == torch.float32
        return affine_network(x_t, time, labels).to(dtype)

    schedule, ids = NoiseSchedule("cosine", 10), torch.arange(3)
    for state in sample_steps(network, schedule, ids, SHAPE, pred_type=pred_type, ddim_eta=0.5):
        assert state.x_t.dtype == state.x0_hat.dtype == torch.float32
