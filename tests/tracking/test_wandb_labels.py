"""Labels and summaries of a trial's tracker: its place in the sweep, and its measures.

Real wandb, offline; what it wrote is read back with wandb's own reader.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.metrics.quality import SamplePictures, store_quality
from ddpm.runs.pictures import png
from ddpm.tracking.wandb_log import final_quality, labels, quality_rows, wandb_tracker
from tests.runs.test_directory import report
from tests.support.known_sweeps import around, point_of, points_of, quality_of
from tests.tracking.test_wandb_log import everything, feed, opened, with_wandb

CELL = {
    "TRAINING.NETWORK.SCHEDULER": "cosine",
    "TRAINING.PRED_TYPE": "velocity",
    "TRAINING.NETWORK.TIMESTEPS": 250,
}
EVALUATION = {
    "levels": [-2, -1, 0, 1],
    "mse": [0.8, 0.5, None, 0.1],
    "bits_per_dim": {"value": 3.25},
}


def write_quality(folder: Path) -> None:
    """Three points, of which each lacks some measures."""

    points = (
        point_of(50, fid=around(3.0)),
        point_of(10, fid=around(9.0)),
        point_of(10, eta=1.0, accuracy=around(0.5)),
    )
    quality = points_of(*points, num=1)
    images = np.zeros((3, 1, 8, 8, 1), np.uint8)
    store_quality(folder, quality, SamplePictures(images=images, labels=np.zeros(1, np.int64)))


def test_a_trial_is_found_by_its_sweep_and_by_the_words_of_its_cell(tmp_path: Path) -> None:
    settings = with_wandb(tmp_path, TAGS=["digits", "cosine"])
    assert labels(settings, "full_grid", CELL) == {
        "group": "full_grid",
        "job_type": "trial",
        "tags": ("digits", "cosine", "velocity", "T=250"),
        "name": "cosine · velocity · T=250 seed 0",
    }
    assert labels(settings, None, None) == {
        "group": None,
        "job_type": "training",
        "tags": ("digits", "cosine"),
        "name": "cosine 1000 velocity MSE seed 0",
    }
    long = labels(settings, "full_grid", {"DATASET.PATH": "/" + "d" * 99})
    assert [len(tag) for tag in long["tags"]] == [6, 6, 64]


@pytest.mark.slow
def test_the_evaluation_has_an_axis_of_its_own_and_its_numbers_are_in_the_summary(
    tmp_path: Path,
) -> None:
    settings = with_wandb(tmp_path, TAGS=["digits"])
    run = opened(settings)
    tracker = wandb_tracker("full_grid", CELL)(settings, run)
    feed(tracker, run, [report(10), report(20)])
    (run.path / "evaluation.json").write_text(json.dumps(EVALUATION))
    write_quality(run.path)
    (run.path / "samples.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    tracker.finish({"val_mean_log10_mse": -1.5, "peak_memory_bytes": 7})
    run.close()

    found: dict[str, list[dict[str, Any]]] = {}
    for record in everything(run):
        found.setdefault(record["type"], []).append(record[record["type"]])
    (sent,) = found["run"]
    assert (sent["run_group"], sent["job_type"]) == ("full_grid", "trial")
    assert sent["tags"] == ["digits", "cosine", "velocity", "T=250"]
    rows = [record["item"] for record in found["history"]]
    judged = [(row["logsnr"], row["x0_error"]) for row in rows if "x0_error" in row]
    assert judged == [(-2, 0.8), (-1, 0.5), (1, 0.1)]
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    axes = {m.get("name", m.get("glob_name")): m.get("step_metric") for m in found["metric"]}
    assert axes["x0_error"] == "logsnr" and axes["*"] == "step"
    curves = [
        m.get("name", m.get("glob_name"))
        for m in found["metric"]
        if m.get("summary") == {"none": True}
    ]
    assert set(curves) == {"logsnr", "x0_error", "sampling_steps", "quality/*"}, found["metric"]
    assert axes["quality/*"] == "sampling_steps"
    assert [row["final_samples._type"] for row in rows if "final_samples._type" in row] == [
        "image-file"
    ]
    drawn = [row for row in rows if any(name.startswith("quality/") for name in row)]
    assert [row["sampling_steps"] for row in drawn] == [10, 50]
    assert [row["quality/fid ddim eta=0"] for row in drawn] == [9.0, 3.0]
    assert drawn[0]["quality/accuracy ddim eta=1"] == 0.5
    summary = {}
    for record in found["summary"]:
        summary |= record.get("update", {})
    assert summary["val/mean_log10_mse"] == -1.5 and summary["bits_per_dim"] == 3.25
    assert summary["peak_memory_bytes"] == 7
    assert summary["quality/fid"] == 3.0 and "quality/kid" not in summary


def test_each_length_of_the_average_has_a_curve_of_its_own() -> None:
    """The last would overwrite the first, of which the headline is."""
    (one,) = quality_of(1.0, 3.0).points
    (other,) = quality_of(2.0, 6.0).points
    points = (replace(one, ema_length=0.05), replace(other, ema_length=0.1))
    quality = replace(quality_of(1.0, 3.0), points=points)
    (row,) = quality_rows(quality)
    assert row["quality/fid dpmpp_2m eta=0 length=0.05"] == 3.0
    assert row["quality/fid dpmpp_2m eta=0 length=0.1"] == 6.0
    assert final_quality(quality)["quality/fid"] == 3.0
