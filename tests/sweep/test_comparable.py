"""ddpm.sweep.comparable: measures that cells do not share are refused; where rungs lie."""

from math import inf, nan
from pathlib import Path
from typing import get_args

import pytest

from ddpm.config import MEASURES, X0_MEASURES
from ddpm.config.schema import keys_under
from ddpm.errors import InputError
from ddpm.sweep import comparable, spec
from ddpm.sweep.comparable import Ladder, to_minimise
from ddpm.sweep.plan import load_sweep
from ddpm.sweep.spec import Metric, Race, SearchPlan, Tune
from tests.support.tree import ROOT

HEAD = f"BASE: {ROOT / 'configs' / 'digits.yaml'}\nEVALUATION: {{EVERY: 10}}\n"
RATE = "GRID: {TRAINING.HYPER_PARAMETERS.LEARNING_RATE: [0.001, 0.002]}\n"
SPACE = "SPACE: {TRAINING.HYPER_PARAMETERS.LEARNING_RATE: {loguniform: [1.0e-4, 1.0e-2]}}\n"


def test_a_search_may_compare_by_every_measure() -> None:
    assert get_args(spec.Metric) == tuple(MEASURES)


def test_the_document_names_every_key() -> None:
    text = (ROOT / "docs" / "search.md").read_text()
    for key in keys_under(SearchPlan):
        assert f"`.{key.rpartition('.')[2]}`" in text or f"`{key}`" in text, key
    searches = get_args(keys_under(Tune)["SEARCH"].annotation)
    for name in (*get_args(Metric), *searches, *keys_under(Race)):
        assert name in text


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    path = folder / "test.yaml"
    path.write_text(HEAD + text)
    try:
        load_sweep(path, overrides)
    except InputError as error:
        assert error.exit_code == 2
        return list(error.problems)
    return []


def grid(key: str, values: str) -> str:
    return f"GRID: {{{key}: {values}}}\n"


@pytest.mark.parametrize("search", ["grid", "asha", "bayes"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("TRAINING.PRED_TYPE", "[noise, velocity]"),
        ("TRAINING.LOSS_SPACE", "[noise, velocity]"),
        ("TRAINING.LOSS_WEIGHTING", "[uniform, min_snr]"),
        ("TRAINING.NETWORK.SCHEDULER", "[linear, cosine]"),
        ("TRAINING.NETWORK.TIMESTEPS", "[500, 1000]"),
    ],
)
def test_a_loss_is_refused_where_its_scale_or_average_varies(
    tmp_path: Path, search: str, key: str, values: str
) -> None:
    text = grid(key, values) + f"TUNE: {{SEARCH: {search}, METRIC: loss}}\n"
    (line,) = problems(tmp_path, text)
    assert f"TUNE.METRIC is loss but cells differ in {key}" in line
    assert f"use {X0_MEASURES[0]} or {X0_MEASURES[1]}, which compare all cells" in line
    for measure in X0_MEASURES:
        assert not problems(tmp_path, text.replace("METRIC: loss", f"METRIC: {measure}"))


@pytest.mark.parametrize("search", ["grid", "asha", "bayes"])
@pytest.mark.parametrize("metric", ["mean_log10_mse", "loss"])
@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("TRAINING.INPUT_IMAGE_SIZE", "[8, 16]"),
        ("DATASET.PREPROCESSING.RESIZE", "[true, false]"),
        ("DATASET.PREPROCESSING.CROP_SIZE", "[null, 8]"),
        ("DATASET.PREPROCESSING.CROP_POSITION", "[center, top_left]"),
    ],
)
def test_cells_of_different_images_are_refused(
    tmp_path: Path, search: str, metric: str, key: str, values: str
) -> None:
    """Their x0-errors, samples and references are of different images."""
    text = grid(key, values) + f"TUNE: {{SEARCH: {search}, METRIC: {metric}}}\n"
    (line,) = problems(tmp_path, text)
    assert f"cells differ in {key}: they would be measured on different images" in line
    assert f"run one sweep for each value, with {key}=VALUE behind the sweep file" in line


def test_one_sweep_of_another_size_and_random_crops_of_training_are_allowed(tmp_path: Path) -> None:
    assert not problems(tmp_path, RATE, "TRAINING.INPUT_IMAGE_SIZE=16")
    assert not problems(tmp_path, grid("DATASET.PREPROCESSING.CROP_TYPE", "[center, random]"))


def test_a_loss_is_allowed_where_it_compares(tmp_path: Path) -> None:
    assert not problems(tmp_path, RATE + "TUNE: {SEARCH: asha, METRIC: loss}\n")
    one = RATE.replace("}\n", ", TRAINING.PRED_TYPE: [noise]}\n")  # one value varies nothing
    assert not problems(tmp_path, one + "TUNE: {SEARCH: asha, METRIC: loss}\n")


def test_bits_per_dim_is_refused_across_schedules_and_before_the_end(tmp_path: Path) -> None:
    across = grid("TRAINING.NETWORK.TIMESTEPS", "[500, 1000]")
    (line,) = problems(tmp_path, across + "TUNE: {SEARCH: bayes, METRIC: bits_per_dim}\n")
    assert "bits_per_dim but cells differ in TRAINING.NETWORK.TIMESTEPS" in line
    types = grid("TRAINING.PRED_TYPE", "[noise, velocity]")
    assert not problems(tmp_path, types + "TUNE: {SEARCH: bayes, METRIC: bits_per_dim}\n")
    (line,) = problems(tmp_path, types + "TUNE: {SEARCH: asha, METRIC: bits_per_dim}\n")
    assert "measured at the end alone" in line


def test_samples_are_compared_only_where_they_are_drawn_alike(tmp_path: Path) -> None:
    across = grid("TRAINING.NETWORK.TIMESTEPS", "[20, 1000]")
    tune = "TUNE: {SEARCH: asha, METRIC: fid_infinity}\n"
    lines = problems(tmp_path, across + tune)
    assert any("EVALUATION.FEATURES is null; give `classifier`" in line for line in lines)
    lines = problems(tmp_path, across + tune, "EVALUATION.FEATURES=pixels")
    assert ["cells draw with 20 and 50 network calls" in line for line in lines] == [True]
    wide = across.replace("20,", "100,")
    assert not problems(tmp_path, wide + tune, "EVALUATION.FEATURES=pixels")
    assert not problems(
        tmp_path, wide + tune.replace("fid_infinity", "kid"), "EVALUATION.FEATURES=pixels"
    )


@pytest.mark.parametrize(
    ("metric", "overrides", "words"),
    [
        (
            "fid_infinity",
            ["EVALUATION.FEATURES=classifier", "EVALUATION.SAMPLES=128"],
            "SAMPLES is 128, and an FID of classifier",
        ),
        ("class_accuracy", ["EVALUATION.FEATURES=pixels"], "pixels, which tells no classes"),
        (
            "class_accuracy",
            [
                *("EVALUATION.FEATURES=classifier", "TRAINING.NETWORK.NUM_CLASSES=null"),
                "IMAGE_GENERATION.GEN_TASK=random_uncond",
            ],
            "NUM_CLASSES is null, so no image is drawn of a class",
        ),
    ],
)
def test_a_measure_that_its_samples_lack_is_refused(
    tmp_path: Path, metric: str, overrides: list[str], words: str
) -> None:
    text = RATE + f"TUNE: {{SEARCH: asha, METRIC: {metric}}}\n"
    (line,) = problems(tmp_path, text, *overrides)
    assert words in line


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("TUNE: {SEARCH: asha}", ["EVALUATION.EVERY=null"], "EVALUATION.EVERY is null; give"),
        ("TUNE: {SEARCH: asha}\nSEEDS: auto", [], "a race needs every cell trained to its end"),
        ("TUNE: {SEARCH: bayes}\nSEEDS: [0, 1]", [], "give one seed"),
        ("TUNE: {SEARCH: bayes, BUDGET: {TRIALS: 3}}", [], "TUNE.TRIALS says how many"),
        ("TUNE: {METRIC: fid_infinity}\nSEEDS: auto", ["EVALUATION.FEATURES=pixels"],
         "a race is decided by what the report compares"),
    ],
)  # fmt: skip
def test_what_a_search_cannot_do_is_refused(
    tmp_path: Path, text: str, overrides: list[str], words: str
) -> None:
    lines = problems(tmp_path, RATE + text + "\n", *overrides)
    assert any(words in line for line in lines), lines


def test_rungs_lie_at_equal_images(tmp_path: Path) -> None:
    """A batch size that varies needs epochs of equally many images."""
    sizes = grid("TRAINING.HYPER_PARAMETERS.BATCH_SIZE", "[64, 128]")
    (line,) = problems(tmp_path, sizes + "TUNE: {SEARCH: asha}\n")
    assert "different numbers of images" in line
    free = "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH=null"
    assert not problems(tmp_path, sizes + "TUNE: {SEARCH: asha}\n", free)
    assert not problems(tmp_path, sizes)  # a plain grid may compare batch sizes at equal steps


def test_levels_that_a_cell_does_not_reach_keep_it_out_of_a_search() -> None:
    reached = {"cosine": range(-9, 9), "T=10": range(-6, 4)}
    assert comparable.missed_levels(reached, (-8, 5)) == {"T=10": (-8, -7, 4, 5)}
    (line,) = comparable.window_problems(reached, (-8, 5), Tune(SEARCH="asha"))
    assert line.startswith("T=10 reaches no log SNR of -8, -7, 4, 5, and a search averages over")
    assert "the window of the data, -8 to 5" in line
    # what every trial is trained for is measured where it is, and so are samples
    assert not comparable.window_problems(reached, (-8, 5), Tune())
    assert not comparable.window_problems(reached, (-8, 5), Tune(SEARCH="asha", METRIC="kid"))


def test_a_window_that_no_cell_reaches_is_refused() -> None:
    reached = {"a": range(-9, -4), "b": range(3, 9)}
    assert not comparable.window_problems(reached, (-4, 3), Tune())
    (line,) = comparable.window_problems(reached, (-4, 2), Tune())
    assert line.startswith("no cell reaches a log SNR from -4 to 2")


LADDER = Ladder(metric="mean_log10_mse", every=20, total=50)


def row(step: int, value: float | None = -1.0) -> dict[str, object]:
    return {"step": step, "images": 8 * step, "val_mean_log10_mse": value, "loss": 0.5}


def test_rungs_lie_after_equally_many_steps_and_at_the_end() -> None:
    rows = [row(10), row(20), {"step": 30, "images": 240, "loss": 1.0}, row(40), row(50)]
    found = [rung for one in rows if (rung := LADDER.rung(one))]
    assert [(rung.evaluation, rung.step, rung.images) for rung in found] == [
        (1, 20, 160),
        (2, 40, 320),
        (3, 50, 400),
    ]
    assert LADDER.evaluations == 3


def test_a_number_that_is_not_finite_is_the_worst() -> None:
    """NaN in a report, null in the file that keeps it."""
    assert [to_minimise("loss", value) for value in (nan, inf, None)] == [inf] * 3
    rung = LADDER.rung(row(20, None))
    assert rung is not None
    assert rung.value == inf


def test_lower_is_better_for_every_metric() -> None:
    assert to_minimise("class_accuracy", 0.9) < to_minimise("class_accuracy", 0.8)
    assert to_minimise("fid_infinity", 1.0) < to_minimise("fid_infinity", 2.0)
