"""The averages follow their closed forms, in float32, whatever the parameters do."""

import math

import pytest
import torch

from ddpm.diffusion import ema


def linear_path(steps: int, slope: float) -> list[dict[str, torch.Tensor]]:
    """Parameters under a constant gradient: they move by `slope` a step."""
    return [{"w": torch.full((3, 2), slope * (k + 1))} for k in range(steps)]


def averaged(path: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    average = ema.init({"w": torch.zeros(3, 2)})
    for step, parameters in enumerate(path):
        ema.update(average, parameters, decay, step)
    return average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99, 0.999])
def test_constant_gradient_has_the_closed_form(decay: float) -> None:
    # theta_ema = sum over k of (1 - d_k) theta_k prod over j > k of d_j
    steps, slope = 200, 0.25
    decays = [ema.decay_at(decay, step) for step in range(steps)]
    expected = sum(
        (1 - decays[k]) * slope * (k + 1) * math.prod(decays[k + 1 :]) for k in range(steps)
    )
    result = averaged(linear_path(steps, slope), decay)["w"]
    torch.testing.assert_close(
        result, torch.full((3, 2), expected, dtype=torch.float32), rtol=1e-5, atol=0
    )


def test_the_lag_behind_a_constant_gradient_tends_to_decay_over_one_minus_decay() -> None:
    slope, decay, steps = 1.0, 0.9, 400
    result = averaged(linear_path(steps, slope), decay)["w"]
    lag = steps * slope - result.double().mean().item()
    assert lag == pytest.approx(slope * decay / (1 - decay), rel=1e-4)


def test_a_constant_parameter_is_its_own_average() -> None:
    average = ema.init({"w": torch.full((4,), 0.1)})
    for step in range(100):
        ema.update(average, {"w": torch.full((4,), 0.1)}, 0.999, step)
    assert torch.equal(average["w"], torch.full((4,), 0.1))


def test_warm_up_ramps_from_a_tenth_to_the_decay() -> None:
    assert ema.decay_at(0.999, 0) == 0.1
    assert ema.decay_at(0.999, 8) == 0.5
    assert ema.decay_at(0.999, 10**6) == 0.999
    ramp = [ema.decay_at(0.99, step) for step in range(2000)]
    assert ramp == sorted(ramp) and ramp[-1] == 0.99


def test_bfloat16_parameters_are_averaged_in_float32() -> None:
    parameters = {"w": torch.ones(8, dtype=torch.bfloat16)}
    average = ema.init({"w": torch.zeros(8, dtype=torch.bfloat16)})
    ema.update(average, parameters, 0.9999, 10**6)
    assert average["w"].dtype == torch.float32
    torch.testing.assert_close(average["w"], torch.full((8,), 1e-4), rtol=1e-4, atol=0)


def test_the_average_owns_its_tensors() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(2))}
    average = ema.init(parameters)
    ema.update(average, {"w": torch.zeros(2)}, 0.5, 100)
    assert torch.equal(parameters["w"], torch.ones(2))
    assert average["w"].grad_fn is None and not average["w"].requires_grad


def test_several_decays_are_independent() -> None:
    path = linear_path(50, 0.1)
    together = {decay: ema.init({"w": torch.zeros(3, 2)}) for decay in (0.9, 0.99)}
    for step, parameters in enumerate(path):
        for decay, average in together.items():
            ema.update(average, parameters, decay, step)
    for decay, average in together.items():
        assert torch.equal(average["w"], averaged(path, decay)["w"])


def test_continuing_in_the_middle_is_bitwise_the_uninterrupted_average() -> None:
    path = linear_path(40, 1 / 3)
    first = ema.init({"w": torch.zeros(3, 2)})
    for step in range(17):
        ema.update(first, path[step], 0.999, step)
    second = {name: tensor.clone() for name, tensor in first.items()}
    for step in range(17, 40):
        ema.update(second, path[step], 0.999, step)
    assert torch.equal(second["w"], averaged(path, 0.999)["w"])


def test_another_set_of_parameters_is_refused_by_name() -> None:
    average = ema.init({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match="differ in: b, c"):
        ema.update(average, {"a": torch.zeros(1), "c": torch.zeros(1)}, 0.9, 0)
