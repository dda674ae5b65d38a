"""Samples measured while training: by all workers, with the numbers of one."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddpm.config.rules import FID_SAMPLES
from ddpm.data import packing
from ddpm.distributed import Group
from ddpm.errors import InputError
from ddpm.metrics.classifier import FEATURES
from ddpm.metrics.distances import IMAGES_PER_DIMENSION
from ddpm.metrics.features import PIXEL_DIMENSIONS
from ddpm.metrics.inception import DIMENSION
from ddpm.metrics.network_samples import sample_metrics
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.loading import build, open_data
from tests.config.test_effects import rows, run, tiny
from tests.support.digits_runs import digit_images
from tests.training.test_resume import make_job, start

FID, KID, ACCURACY = "val_fid_infinity", "val_kid", "val_class_accuracy"
SAMPLED = {
    "EVALUATION.EVERY": 2,
    "EVALUATION.FEATURES": "pixels",
    "EVALUATION.SAMPLES": 200,
    "TRAINING.INLINE_GEN.REVERSE_STRIDE": 250,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 2,
}


@pytest.mark.slow
def test_one_two_and_five_workers_measure_the_same(tmp_path: Path, digits: Path) -> None:
    """200 samples are four batches, so one worker of five has nothing to draw."""
    exact = SAMPLED | {"TRAINING.NUMERICS": "exact", "TRAINING.MICRO_BATCH": 13}
    found = []
    for workers in (1, 2, 5):
        root = tmp_path / str(workers)
        root.mkdir()
        job = make_job(root, digits, exact)
        assert [p.wait(240) for p in start(job, root, workers)] == [0] * workers
        text = (Path(job.run_dir) / "metrics.jsonl").read_text()
        first, last = (json.loads(line) for line in text.splitlines())
        assert not {FID, KID} & first.keys()
        found.append((last[FID], last[KID]))
    for numbers in zip(*found, strict=True):
        assert numbers[0] > 0 and numbers == pytest.approx([numbers[0]] * 3, rel=1e-9)


@pytest.mark.slow
def test_features_and_samples_say_what_is_measured_of_samples(tmp_path: Path, digits: Path) -> None:
    """The classifier's features tell classes, too; fewer samples are other ones."""
    common = ("EVALUATION.EVERY=2", "TRAINING.INLINE_GEN.REVERSE_STRIDE=50")
    output = f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}"
    more, fewer = (
        rows(
            run(
                tmp_path / str(samples),
                digits,
                *common,
                output,
                "EVALUATION.FEATURES=classifier",
                f"EVALUATION.SAMPLES={samples}",
                f"EVALUATION.BEST={best}",
            )
        )
        for samples, best in ((256, "fid_infinity"), (128, "kid"))
    )
    assert [row["step"] for row in more if FID in row] == [4, 8]
    assert all(0 <= row[ACCURACY] <= 1 for row in more if FID in row)
    assert more[-1][KID] != fewer[-1][KID]
    assert not any(FID in row for row in fewer)  # it would mean nothing
    best = RunDirectory(tmp_path / "128" / "run").best_step
    assert best == min((row[KID], row["step"]) for row in fewer if KID in row)[1]
    plain = rows(run(tmp_path / "plain", digits, *common, output))
    assert not any(FID in row for row in plain)


def test_inception_is_opened_from_the_file_that_weights_names(tmp_path: Path, digits: Path) -> None:
    config = tiny(
        "EVALUATION.EVERY=4",
        "EVALUATION.FEATURES=inception",
        "EVALUATION.WEIGHTS=its/file.safetensors",
        f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}",
    )
    network, schedule = build(config)
    measure = sample_metrics(config, schedule, open_data(config, digits), Group())
    with pytest.raises(InputError, match="EVALUATION.WEIGHTS its/file.safetensors: No such file"):
        measure(network)


def test_a_best_that_too_few_training_images_could_never_give_is_refused(
    digits: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    np.savez(tmp_path / "x.npz", images=digit_images(60)[0], labels=np.arange(60) % 10)
    packing.pack(tmp_path / "x.npz", few, progress=False)
    config = tiny("EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels", "EVALUATION.BEST=kid")
    network, schedule = build(config)
    data = open_data(config, few)
    with pytest.raises(InputError, match="BEST is kid, which needs 64 training images"):
        sample_metrics(config, schedule, data, Group())
    fine = tiny("EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels")
    sample_metrics(fine, schedule, data, Group())


def test_samples_that_an_fid_needs_are_five_a_dimension() -> None:
    dimensions = {"classifier": FEATURES, "pixels": PIXEL_DIMENSIONS, "inception": DIMENSION}
    assert {name: IMAGES_PER_DIMENSION * d for name, d in dimensions.items()} == FID_SAMPLES


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("EVALUATION.FEATURES=pixels",), "FEATURES is pixels but EVERY is null"),
        (
            ("EVALUATION.EVERY=1", "EVALUATION.BEST=fid_infinity"),
            "BEST is fid_infinity but FEATURES is null",
        ),
        (
            (
                "EVALUATION.EVERY=1",
                "EVALUATION.FEATURES=classifier",
                "DATASET.LABEL_KEY=null",
                "TRAINING.NETWORK.NUM_CLASSES=null",
            ),
            "FEATURES is classifier but DATASET.LABEL_KEY is null",
        ),
        (("EVALUATION.SAMPLES=10",), "SAMPLES is 10"),
    ],
)
def test_what_cannot_be_measured_is_refused(keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny(*keys)
