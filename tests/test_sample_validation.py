"""Samples measured while training: by all workers, with the numbers of one."""

import json
from pathlib import Path

import pytest

from ddpm.errors import InputError
from tests.test_config_effects import rows, run, tiny
from tests.test_resume import make_job, start

FID, ACCURACY = "val_fid_infinity", "val_class_accuracy"
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
        measured = [json.loads(line).get(FID) for line in text.splitlines()]
        assert [value is None for value in measured] == [True, False]
        found.append(measured[1])
    assert found[0] > 0 and found == pytest.approx([found[0]] * 3, rel=1e-9)


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
                "EVALUATION.BEST=fid_infinity",
            )
        )
        for samples in (256, 192)
    )
    assert [row["step"] for row in more if FID in row] == [4, 8]
    assert all(0 <= row[ACCURACY] <= 1 for row in more if FID in row)
    assert more[-1][FID] != fewer[-1][FID]
    plain = rows(run(tmp_path / "plain", digits, *common, output))
    assert not any(FID in row for row in plain)


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
