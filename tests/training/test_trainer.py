"""Training as a pure function of the seed: reports, resume, accumulation, stops, NaN, spaces."""

import base64
import dataclasses
import math
import re
import time
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddpm.config.schema import HyperParameters, Training
from ddpm.data.dataset import Dataset
from ddpm.diffusion.layers import init_weights
from ddpm.diffusion.power_ema import power_ema_gamma
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError, NonFiniteError
from ddpm.metrics.window import data_deviation
from ddpm.training.fit import DiffusionModel
from ddpm.training.loss import bin_names
from ddpm.training.step import TrainState
from ddpm.training.trainer import Every, StepReport, total_steps, train

SCHEDULE = NoiseSchedule("cosine", 100)


def digits(count: int = 150) -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return Dataset.from_arrays(images, np.arange(count) % 10)


def network(dropout: float = 0.0, levels: int = 1) -> UNet:
    multipliers, attends = ((1,), (True,)) if levels == 1 else ((1, 2), (False, True))
    unet = UNet(8, 1, 8, multipliers, attends, 1, norm_groups=4, dropout=dropout, num_classes=10)
    return init_weights(unet, 0)


def settings(epochs: int = 2, **changed: object) -> Training:
    """A training of `epochs` epochs of 5 steps; other keys of TRAINING or HYPER_PARAMETERS."""
    hyper = {f.name for f in dataclasses.fields(HyperParameters)}
    base: dict[str, object] = {
        "EPOCHS": epochs,
        "STEPS_PER_EPOCH": 5,
        "BATCH_SIZE": 32,
        "SAVE_PERIOD": 1,
        "LR_TYPE": "constant",
        "LEARNING_RATE": 1e-2,
    }
    own = {k: v for k, v in changed.items() if k in hyper}
    rest = {k: v for k, v in changed.items() if k not in hyper}
    made = HyperParameters(**(base | own))  # type: ignore[arg-type]
    return Training(HYPER_PARAMETERS=made, **rest)  # type: ignore[arg-type]


def final(reports: list[StepReport]) -> TrainState:
    state = reports[-1].state
    assert state is not None
    return state


def same(one: TrainState, two: TrainState) -> bool:
    """Whether two states are equal in every bit."""
    return one.scalars == two.scalars and all(
        torch.equal(tensor, two.tensors[part][name])
        for part, tensors in one.tensors.items()
        for name, tensor in tensors.items()
    )


def same_part(one: TrainState, two: TrainState, part: str) -> bool:
    return all(torch.equal(t, two.tensors[part][name]) for name, t in one.tensors[part].items())


def untimed(reports: list[StepReport]) -> list[tuple[int, dict[str, float]]]:
    return [
        (r.step, {k: v for k, v in r.metrics.items() if not k.startswith("time/")}) for r in reports
    ]


@pytest.mark.slow
def test_reports_come_every_epoch_and_carry_a_state_every_save_period() -> None:
    reports = list(train(settings(4, SAVE_PERIOD=2), network(), SCHEDULE, digits()))
    assert [r.step for r in reports] == [5, 10, 15, 20]
    assert [r.state is not None for r in reports] == [False, True, False, True]
    assert [r.images for r in reports] == [160, 320, 480, 640]


@pytest.mark.slow
def test_long_epochs_report_within() -> None:
    reports = list(
        train(settings(1, STEPS_PER_EPOCH=205, BATCH_SIZE=1), Poisoned(None), SCHEDULE, digits())
    )
    assert [r.step for r in reports] == [100, 200, 205]


def test_steps_per_epoch_null_sees_every_image_once() -> None:
    data = digits()
    assert total_steps(settings(3, STEPS_PER_EPOCH=None), data.num_train) == 3 * math.ceil(
        data.num_train / 32
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pred_type", "expected"),
    [("noise", "one"), ("image", "x0"), ("velocity", "mixed"), ("edm", "one"), ("flow", "sum")],
)
def test_the_first_loss_of_a_zero_head_is_the_targets_power(pred_type: str, expected: str) -> None:
    """1 for noise, E[x0^2] for image, abar-weighted for velocity (all three are logged).

    1 for edm, which is preconditioned to that, and 1 + E[x0^2] for flow.
    """
    data = digits(3000)
    sigma_data = data_deviation(data)
    report = next(
        train(
            settings(
                1, STEPS_PER_EPOCH=1, BATCH_SIZE=2000, PRED_TYPE=pred_type, LEARNING_RATE=1e-9
            ),
            network(),
            dataclasses.replace(SCHEDULE, sigma_data=sigma_data),
            data,
        )
    )
    batch = data.read(data.order(torch.arange(2000)))
    power = batch.images.square().mean().item()
    abar = SCHEDULE.alphas_cumprod[1:].mean().item()
    wanted = {"one": 1.0, "x0": power, "mixed": abar + (1 - abar) * power, "sum": 1 + power}
    wanted = wanted[expected]
    assert report.metrics["loss"] == pytest.approx(wanted, rel=0.02)
    name = {"noise": "n_loss", "image": "i_loss", "velocity": "v_loss"}.get(pred_type, "loss")
    assert report.metrics[name] == pytest.approx(report.metrics["loss"], rel=1e-6)


@pytest.mark.slow
def test_edm_of_data_of_deviation_1_trains_the_network_of_velocity_with_the_sign_turned() -> None:
    schedule = NoiseSchedule("cosine", 100, time_input="logsnr", sigma_data=1.0)
    states = [
        final(list(train(settings(1, PRED_TYPE=kind), network(), schedule, digits())))
        for kind in ("edm", "velocity")
    ]
    edm, velocity = (state.tensors["model"] for state in states)
    for name, weights in edm.items():
        sign = -1 if name.startswith("head.") else 1
        torch.testing.assert_close(weights, sign * velocity[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_fitted_edm_model_measures_its_data_and_draws_by_it() -> None:
    data, schedule = digits(), NoiseSchedule("cosine", 100, time_input="logsnr")
    model = DiffusionModel(network(), schedule, pred_type="edm")
    model.fit(data, epochs=1, batch_size=32, show_progress=False)
    with pytest.raises(ValueError, match=r"ema_decay is 0.9; an earlier fit has 0.999, give that"):
        model.fit(data, epochs=2, batch_size=32, ema_decay=0.9, show_progress=False)
    assert model.schedule.sigma_data == data_deviation(data)
    assert model.state is not None and model.state.sigma_data == data_deviation(data)
    assert model.sample_images(2).shape == (2, 8, 8, 1)
    same_images = Dataset.from_arrays(np.zeros((20, 8, 8, 1), np.uint8))
    with pytest.raises(InputError, match="PRED_TYPE is edm but every value of every training"):
        DiffusionModel(network(), schedule, pred_type="edm").fit(same_images, epochs=1)


@pytest.mark.slow
def test_the_bins_of_log_snr_average_to_the_loss() -> None:
    (report,) = train(settings(1), network(), SCHEDULE, digits())
    means = [report.metrics[name] for name in bin_names() if name in report.metrics]
    assert len(means) >= 5 and min(means) <= report.metrics["loss"] <= max(means)


@pytest.mark.slow
def test_training_learns() -> None:
    images = np.zeros((100, 8, 8, 1), np.uint8)
    images[:, 2:6] = 255
    data = Dataset.from_arrays(images)
    unet = init_weights(UNet(8, 1, 8, (1,), (False,), 1, norm_groups=4), 0)
    reports = list(train(settings(8, LEARNING_RATE=5e-3), unet, SCHEDULE, data))
    assert reports[-1].metrics["loss"] < 0.5 * reports[0].metrics["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_continued_run_is_the_uninterrupted_run_bit_for_bit(stop_at: int) -> None:
    """Stopped at a boundary or between two; dropout, two micro-batches, a batch over a pass."""
    options = settings(3, MICRO_BATCH=20)
    whole = list(train(options, network(0.2, levels=2), SCHEDULE, digits()))
    asked = iter([False] * (stop_at - 1) + [True])
    first = list(
        train(options, network(0.2, levels=2), SCHEDULE, digits(), should_stop=lambda: next(asked))
    )
    assert first[-1].stopped and first[-1].step == stop_at
    stopped = final(first)
    again = TrainState.restored(stopped.tensors, stopped.scalars)
    second = list(train(options, network(0.2, levels=2), SCHEDULE, digits(), state=again))
    assert same(final(whole), final(second))
    rows = untimed([r for r in first + second if r.metrics])
    assert rows == untimed(whole)


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 3])
def test_accumulation_equals_the_big_batch(micro: int) -> None:
    cut = {"BATCH_SIZE": 8, "MICRO_BATCH": micro}
    whole, parts = (
        final(list(train(settings(1, **more), network(), SCHEDULE, digits())))
        for more in ({"BATCH_SIZE": 8}, cut)
    )
    for name, tensor in whole.tensors["model"].items():
        torch.testing.assert_close(parts.tensors["model"][name], tensor, rtol=1e-2, atol=2e-3)
    first = [
        next(train(settings(1, STEPS_PER_EPOCH=1, **more), network(), SCHEDULE, digits())).metrics
        for more in ({"BATCH_SIZE": 8}, cut)
    ]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-5)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "share"), [(1e-6, 1.0), (1e6, 0.0), (None, None)])
def test_the_share_of_clipped_steps_is_logged(clip: float | None, share: float | None) -> None:
    (row, *_) = train(settings(1, CLIP_NORM=clip), network(), SCHEDULE, digits())
    assert row.metrics.get("clipped_share") == share


def test_a_stop_request_ends_the_run_with_a_state() -> None:
    reports = list(train(settings(), network(), SCHEDULE, digits(), should_stop=lambda: True))
    assert [r.step for r in reports] == [1] and reports[0].stopped and reports[0].state is not None


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_frozen_parameters_stay_as_they_are(numerics: str) -> None:
    module = network()
    frozen = next(iter(dict(module.named_parameters())))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.get_parameter(frozen).requires_grad_(False)
    *_, last = train(settings(NUMERICS=numerics, WEIGHT_DECAY=0.1), module, SCHEDULE, digits())
    assert last.state is not None and f"step.{frozen}" not in last.state.tensors["optimizer"]
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) is (name == frozen), name
    with pytest.raises(InputError, match="nothing to train"):
        list(train(settings(), network().requires_grad_(False), SCHEDULE, digits()))


class Poisoned(nn.Module):
    """A network of one weight whose output turns to NaN at a call, the third one."""

    def __init__(self, call: int | None = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls, self.call = 0, call

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        self.calls += 1
        out = x * self.weight
        if self.calls == self.call:
            out[4] = math.nan
        return out


def test_a_nan_stops_before_the_step_naming_step_timestep_and_sample() -> None:
    data = digits()
    poisoned = Poisoned()
    with pytest.raises(NonFiniteError) as caught:
        list(train(settings(), poisoned, SCHEDULE, data))
    ids = data.order(torch.arange(64, 96))
    assert "step 2: non-finite loss at timestep" in str(caught.value)
    assert f"of sample {ids[4]};" in str(caught.value)
    assert torch.isfinite(poisoned.weight).all()


def test_an_infinite_gradient_stops_too() -> None:
    def loss(prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        zero = (prediction - prediction).flatten(1).sum(1)
        return zero.abs().sqrt()  # value 0, gradient infinite or NaN

    with pytest.raises(NonFiniteError, match="step 0: non-finite gradient norm"):
        list(train(settings(), network(), SCHEDULE, digits(), loss=loss))


@pytest.mark.slow
def test_the_loss_can_be_replaced() -> None:
    def loss(prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        return (prediction - target).flatten(1).abs().mean(1) * 3

    changed = next(train(settings(), network(), SCHEDULE, digits(), loss=loss))
    plain = next(train(settings(LOSS_FN="MAE"), network(), SCHEDULE, digits()))
    assert changed.metrics["loss"] == pytest.approx(3 * plain.metrics["v_loss"], rel=0.2)


@pytest.mark.slow
def test_sampler_and_evaluator_see_an_eval_copy_and_their_results_are_reported() -> None:
    seen: list[bool] = []

    def call(unet: nn.Module) -> np.ndarray:
        seen.append(unet.training)
        return np.zeros((2, 8, 8, 1), np.uint8)

    reports = list(
        train(
            settings(3),
            network(),
            SCHEDULE,
            digits(),
            sampler=Every(steps=10, call=call),
            evaluator=Every(steps=5, call=lambda unet: {"validation/x": 1.0}),
        )
    )
    assert [r.samples is not None for r in reports] == [False, True, True]
    assert all(r.metrics["validation/x"] == 1.0 for r in reports) and seen == [False, False]


@pytest.mark.slow
def test_the_time_of_sampling_is_not_that_of_training() -> None:
    begin, ends = time.perf_counter(), [0.0]
    (report,) = train(
        settings(1),
        network(),
        SCHEDULE,
        digits(),
        sampler=Every(steps=5, call=lambda unet: time.sleep(1.0)),
        on_step=lambda: ends.append(time.perf_counter() - begin),
    )
    assert report.metrics["time/seconds"] < ends[-1] + 0.5


@cache
def plain() -> TrainState:
    """Where a training of one epoch ends."""
    return final(list(train(settings(1), network(), SCHEDULE, digits())))


def changes(options: Training) -> bool:
    """Whether a training with these options ends in other weights than the plain one."""
    other = final(list(train(options, network(), SCHEDULE, digits())))
    return any(
        not torch.equal(tensor, other.tensors["model"][name])
        for name, tensor in plain().tensors["model"].items()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"SEED": 1},
        {"PRED_TYPE": "noise"},
        {"LOSS_FN": "MAE"},
        {"LOSS_SPACE": "image"},
        {"LOSS_WEIGHTING": "min_snr"},
        {"LABEL_DROP": 0.9},
        {"STRATIFIED_TIME": True},
        {"CLIP_NORM": 0.01},
        {"WEIGHT_DECAY": 0.5},
        {"PRECISION": "bf16"},
        {"LEARNING_RATE": 1e-3},
        {"LR_TYPE": "cosine_decay"},
        {"BATCH_SIZE": 16},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_training_key_changes_the_weights(changed: dict[str, object]) -> None:
    assert changes(settings(1, **changed))


@pytest.mark.slow
def test_min_snr_gamma_and_warmup_change_the_weights() -> None:
    def weights(**changed: object) -> Tensor:
        options = settings(1, **changed)
        state = final(list(train(options, network(), SCHEDULE, digits())))
        return torch.cat([t.flatten() for t in state.tensors["model"].values()])

    min_snr = [weights(LOSS_WEIGHTING="min_snr", MIN_SNR_GAMMA=g) for g in (1.0, 5.0)]
    warmup = [weights(LR_TYPE="warmup_cosine", WARMUP_STEPS=w) for w in (1, 4)]
    assert not torch.equal(*min_snr) and not torch.equal(*warmup)


@pytest.mark.slow
def test_ema_decays_are_kept_apart_and_warm_up() -> None:
    state = final(list(train(settings(1, EMA_DECAYS=(0.0, 0.999)), network(), SCHEDULE, digits())))
    assert set(state.tensors) == {"model", "ema-0", "ema-0.999", "optimizer"}
    for name, tensor in state.tensors["ema-0"].items():
        torch.testing.assert_close(tensor, state.tensors["model"][name])
    assert not torch.equal(
        state.tensors["ema-0.999"]["head.weight"], state.tensors["model"]["head.weight"]
    )


@pytest.mark.slow
def test_power_averages_are_tracked_beside_the_others() -> None:
    plain, power = (
        final(list(train(settings(2, EMA_POWER=lengths), network(), SCHEDULE, digits())))
        for lengths in ((), (0.05, 0.2))
    )
    assert set(power.tensors) == set(plain.tensors) | {"power-0.05", "power-0.2"}
    assert all(same_part(plain, power, part) for part in plain.tensors)
    # each follows its recursion over the weights, the initial ones forgotten
    path: list[dict[str, Tensor]] = []
    short = settings(2, EMA_POWER=(0.05, 0.2))
    stepping = network()
    copied = lambda: path.append({k: v.detach().clone() for k, v in stepping.named_parameters()})  # noqa: E731
    list(train(short, stepping, SCHEDULE, digits(), on_step=copied))
    for length in (0.05, 0.2):
        p = power_ema_gamma(length) + 1
        share = [((k + 1) / 10) ** p - (k / 10) ** p for k in range(10)]
        for name, tensor in power.tensors[f"power-{length:g}"].items():
            expected = sum(w * step[name].double() for w, step in zip(share, path, strict=True))
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [3, 5])
def test_power_averages_continue_bit_for_bit(stop_at: int) -> None:
    options = settings(2, EMA_POWER=(0.05, 0.1))
    whole = final(list(train(options, network(), SCHEDULE, digits())))
    steps = iter(range(1, 100))
    first = train(
        options, network(), SCHEDULE, digits(), should_stop=lambda: next(steps) == stop_at
    )
    half = final(list(first))
    assert half.step == stop_at
    assert same(final(list(train(options, network(), SCHEDULE, digits(), state=half))), whole)


@pytest.mark.slow
def test_fp16_skips_an_overflown_step_and_keeps_its_scale() -> None:
    reports = list(train(settings(2, PRECISION="fp16"), network(), SCHEDULE, digits()))
    assert reports[-1].metrics["loss_scale"] > 0 and "skipped_steps" in reports[-1].metrics
    assert final(reports).grad_scaler
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]


@pytest.mark.long
def test_compile_follows_the_eager_run() -> None:
    eager, compiled = (
        list(train(settings(1, COMPILE=c), network(), SCHEDULE, digits())) for c in (False, True)
    )
    assert eager[0].metrics["loss"] == pytest.approx(compiled[0].metrics["loss"], rel=1e-3)


@pytest.mark.slow
def test_fp16_gradients_that_never_become_finite_stop_the_run() -> None:
    """The loss scale has a floor: below it an overflow is not the scale's fault."""

    def loss(prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        return (prediction - prediction).flatten(1).sum(1).abs().sqrt()  # value 0, gradient NaN

    options = settings(10, PRECISION="fp16")
    with pytest.raises(NonFiniteError, match="non-finite gradient norm"):
        list(train(options, network(), SCHEDULE, digits(), loss=loss))


@pytest.mark.slow
def test_a_history_prints_as_a_table_and_draws_its_losses() -> None:
    model = DiffusionModel(network(), NoiseSchedule("cosine", 100), pred_type="noise")
    history = model.fit(digits(), epochs=2, batch_size=256, show_progress=False)
    shown = repr(history)
    assert len(history) == 2 and len(shown.splitlines()) < 12 and "tensor" not in shown
    assert len(repr(history[-1])) < 3000 and history[-1].state is not None
    assert list(history.table.index) == [one.step for one in history]
    assert list(history.table["loss"]) == [one.metrics["loss"] for one in history]
    html = history._repr_html_()
    picture = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert picture and b"<svg" in base64.b64decode(picture[1]) and html.count("<tr") == 4
    none = type(history)()
    assert repr(none) and "<img" not in none._repr_html_()
