"""What the classifier of a data set takes, before it is there and after."""

from pathlib import Path

import pytest

from ddpm import config as configuration
from ddpm.cluster import cost
from ddpm.cluster.workers import Workers
from ddpm.config.schema import Config
from ddpm.data import preparing
from ddpm.metrics.reference import classifier_features, real_data
from ddpm.runs import storage
from tests.support.tree import ROOT


def digits(out: Path, *overrides: str) -> Config:
    settings = [f"TRAINING.OUTPUT_DIR={out}", "TRAINING.NETWORK.FIRST_CHANNEL=8", *overrides]
    return configuration.load(ROOT / "configs" / "digits.yaml", settings)


UNCONDITIONAL = (
    "TRAINING.NETWORK.NUM_CLASSES=null",
    "IMAGE_GENERATION.GEN_TASK=random_uncond",
    "EVALUATION.SAMPLING_STEPS=[10]",
)
MEASURED = ("EVALUATION.EVERY=1", "EVALUATION.FEATURES=classifier")


def test_it_costs_nothing_where_nothing_needs_it(tmp_path: Path) -> None:
    for overrides in (
        [],
        ["EVALUATION.EVERY=1"],
        ["EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels"],
        [*UNCONDITIONAL, "DATASET.LABEL_KEY=null"],
    ):
        assert cost.classifier_s([digits(tmp_path, *overrides)]) == 0


@pytest.mark.slow
def test_it_costs_where_it_is_needed_and_asking_writes_nothing(tmp_path: Path) -> None:
    config = digits(tmp_path, *MEASURED)
    # measured by it because the data have labels, whether the network sees them or not
    at_the_end = digits(tmp_path, *UNCONDITIONAL)
    assert cost.classifier_s([config]) > 0 < cost.classifier_s([at_the_end])
    assert not list(tmp_path.iterdir())
    preparing.prepare(config)
    before = sorted(tmp_path.rglob("*"))
    assert cost.classifier_s([config]) > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_it_costs_nothing_once_it_is_there(digits_output: Path) -> None:
    config, at_the_end = (digits(digits_output, *words) for words in (MEASURED, UNCONDITIONAL))
    preparing.prepare(config)
    classifier_features(real_data(config, None))
    assert cost.classifier_s([config]) == 0 == cost.classifier_s([at_the_end])


@pytest.mark.long
def test_the_first_trial_of_a_sweep_pays(tmp_path: Path) -> None:
    """The others wait for it."""
    config = digits(tmp_path / "out", *MEASURED)
    workers = Workers(count=1, cpus=1, gpus=0)
    cost.keep_forecast(tmp_path, {"a": config, "b": config}, workers, 2)
    facts = storage.read_json(tmp_path / cost.PREDICTION_FILE)
    first, second = (facts["trials"][name] for name in "ab")
    assert first["seconds"] - second["seconds"] > 0.5
    assert first["core_seconds"] - second["core_seconds"] > 0.5
    assert facts["wall_seconds"] == pytest.approx(first["seconds"])
