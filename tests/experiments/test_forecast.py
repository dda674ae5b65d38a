"""The forecast before training: where the data's variance is resolved, what is printed and kept."""

import json
import math
from pathlib import Path

import pytest
import torch

from ddpm.config.loading import load
from ddpm.data import open_data
from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule
from ddpm.errors import run_main
from ddpm.sampling.spacing import walk_levels
from experiments import forecast as forecasts
from experiments.forecast import (
    SPACINGS,
    forecast,
    picture,
    resolved_band,
    sentences,
    shifted,
    suggested_shift,
)
from experiments.gaussian_walk import GaussianFit, drawn
from tests.support.tree import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"


def images(size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(400, size // 2, size // 2, generator=generator, dtype=torch.float64)
    rough = 0.1 * torch.randn(400, size, size, generator=generator, dtype=torch.float64)
    return smooth.repeat_interleave(2, 1).repeat_interleave(2, 2) + rough


def test_one_direction_is_resolved_where_its_own_snr_is_one() -> None:
    for variance in (0.01, 1.0, 50.0):
        low, middle, high = resolved_band(torch.tensor([variance, 0.0], dtype=torch.float64))
        assert middle == pytest.approx(-math.log(variance), abs=0.011)
        # sigmoid is 5 % at -ln 19
        assert (low, high) == pytest.approx(
            (middle - math.log(19), middle + math.log(19)), abs=0.02
        )


def test_images_of_twice_the_side_are_resolved_two_ln_two_lower() -> None:
    small = images()
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    bands = [resolved_band(GaussianFit.of(one.flatten(1)).variance) for one in (small, large)]
    for before, after in zip(*bands, strict=True):
        assert after - before == pytest.approx(-2 * math.log(2), abs=0.021)


def test_the_suggested_shift_leaves_nothing_to_suggest() -> None:
    band = resolved_band(GaussianFit.of(images().flatten(1)).variance)
    for name in ("linear", "cosine", "iddpm_cosine"):
        schedule = NoiseSchedule(name, 100)
        again = suggested_shift(shifted(schedule, suggested_shift(schedule, band)), band)
        assert again == pytest.approx(0.0, abs=1e-6)


@pytest.fixture(scope="module")
def of_digits(digits: Path) -> forecasts.SamplingForecast:
    config = load(DIGITS, ["IMAGE_GENERATION.NUM_STEPS=7"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasts, "STEPS", (5, 10, 20))
        return forecast(config, open_data(config, digits))


@pytest.mark.slow
def test_the_configured_walk_has_the_error_of_the_ideal_denoiser(
    of_digits: forecasts.SamplingForecast, digits: Path
) -> None:
    config = load(DIGITS)
    data = open_data(config, digits)
    train = data.read(data.order(torch.arange(data.num_train)).sort().values).images.flatten(1)
    fit = GaussianFit.of(train)
    distance = drawn(fit, walk_levels(NoiseSchedule("cosine", 1000), num_steps=7)).distance(fit)
    assert of_digits.chosen is not None
    assert of_digits.chosen.error == pytest.approx(127.5 * distance / 8, rel=1e-9)
    assert of_digits.num_images == data.num_train


@pytest.mark.slow
def test_every_schedule_spacing_and_sampler_is_there(of_digits: forecasts.SamplingForecast) -> None:
    assert {walk.spacing for walk in of_digits.walks} == set(SPACINGS)
    assert len({walk.schedule for walk in of_digits.walks}) == len(SCHEDULES) == 9
    assert all(math.isfinite(walk.error) for walk in of_digits.walks)
    plain = [w for w in of_digits.walks if (w.sampler, w.spacing) == ("ddim", "trailing")]
    for schedule in SCHEDULES:
        errors = [walk.error for walk in plain if walk.schedule == schedule]
        assert errors == sorted(errors, reverse=True), "more steps, less error"


@pytest.mark.slow
def test_what_is_said_is_what_was_found(of_digits: forecasts.SamplingForecast) -> None:
    text = " ".join(sentences(of_digits))
    assert of_digits.chosen is not None
    assert f"miss the data's Gaussian by {of_digits.chosen.error:.2f} grey levels" in text
    assert "cosine leaves 1.75 % of the signal at t = T" in text
    assert f"LOGSNR_SHIFT={of_digits.own.suggested:.1f}" in text
    assert picture(of_digits).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_prints_and_keeps_it(
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a schedule that ends at zero SNR, and so has no bias."""
    monkeypatch.setattr(forecasts, "STEPS", (5, 20, 50))
    monkeypatch.setattr(forecasts, "TRIED", ("ddim",))
    words = [
        str(DIGITS),
        f"TRAINING.OUTPUT_DIR={tmp_path}",
        f"DATASET.PATH={digits}",
        "TRAINING.NETWORK.TIMESTEPS=20",
        "TRAINING.NETWORK.ZERO_TERMINAL_SNR=true",
    ]
    assert forecasts.main([*words, "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert forecasts.main(words) == 0
    folder = tmp_path / "forecasts" / "digits"
    facts = json.loads((folder / "forecast.json").read_text())
    assert facts["timesteps"] == 20 and facts["values_of_an_image"] == 64
    # what cannot be is left out: iddpm_linear has no 20 timesteps, 20 timesteps no 50 steps
    assert {one["schedule"] for one in facts["terminals"]} == {*SCHEDULES} - {"iddpm_linear"}
    assert {w["num_steps"] for w in facts["walks"] if w["spacing"] == "trailing"} == {5, 20}
    assert (folder / "forecast.png").stat().st_size > 10_000
    own = next(one for one in facts["terminals"] if one["schedule"] == "cosine")
    assert own["signal"] == own["brightness"] == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert "of the Gaussian fitted to 1,6" in shown and "ends at zero SNR" in shown


def test_bad_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(DIGITS), "TRAINING.PRED_TYPE=speed"]
    assert run_main(lambda: forecasts.main(words)) == 2
    assert "TRAINING.PRED_TYPE is" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        forecasts.main([])
