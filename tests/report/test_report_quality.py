"""results.csv tells what each trial's samples are worth, its bounds and its energy; or nothing."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddpm import report
from ddpm.metrics import quality as quality_file
from ddpm.metrics.quality import LeftOut, Quality, QualityPoint, SamplePictures
from ddpm.metrics.x0_error import X0Error, continuous_bound
from ddpm.report import reading
from tests.support.known_sweeps import PRED_TYPE, around, point_of, points_of
from tests.support.synthetic_sweep import make_sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("quality")
    plain = {"inline": 0, "has_quality": False, "has_bits": False}
    grid = {PRED_TYPE: ["noise", "velocity", "image"]}
    make_sweep(output_dir, grid, (0,), rows=12, **plain)  # type: ignore[arg-type]
    return output_dir


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The sweep folder of a copy of its own."""
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out" / "sweeps" / "tiny"


def run_dir(folder: Path, number: int) -> Path:
    return folder.parents[1] / "digits_8x8x1" / f"run_{number:08x}"


def point(num_steps: int, eta: float, fid: float) -> QualityPoint:
    own = {"fid": around(fid, 1, 512), "accuracy": around(0.5, 0.1, 512)}
    return point_of(num_steps, eta=eta, seconds=1.25, reasons={"kid": "too few"}, **own)


def written(place: Path, *points: QualityPoint) -> tuple[Quality, SamplePictures]:
    left = LeftOut(num_steps=60, eta=0.0, reason="too many")
    quality = points_of(*points, num=512, identity={"step": 12}, left_out=(left,))
    images = np.random.default_rng(0).integers(0, 256, (len(points), 5, 8, 8, 1), np.uint8)
    pictures = SamplePictures(images=images, labels=np.arange(5))
    quality_file.store_quality(place, quality, pictures)
    return quality, pictures


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """Of results.csv, by prediction type."""
    text = report.build(folder).csv.read_text()
    return {row[PRED_TYPE]: row for row in csv.DictReader(io.StringIO(text))}


@pytest.mark.slow
def test_a_trial_reads_its_quality_and_its_pictures(folder: Path) -> None:
    quality, pictures = written(run_dir(folder, 0), point(5, 0.0, 2.0), point(10, 1.0, 1.5))
    (run_dir(folder, 1) / quality_file.FACTS).write_text('{"format": 1, "points": [3]}')
    first, second, third = (trial.quality for trial in reading.read_results(folder).trials)
    assert first == quality and second is None and third is None
    found = quality_file.read_pictures(run_dir(folder, 0))
    assert found is not None and (found.images == pictures.images).all()
    facts = json.loads((run_dir(folder, 0) / quality_file.FACTS).read_text())
    assert facts["points"][0]["kid"] is None and facts["points"][0]["fid"]["value"] == 2.0
    with np.load(run_dir(folder, 0) / quality_file.QUALITY_FILE) as arrays:
        assert arrays["num_steps"].tolist() == [5, 10] and arrays["eta"].tolist() == [0.0, 1.0]


@pytest.mark.slow
def test_results_csv_has_a_column_for_every_point_of_any_trial(folder: Path) -> None:
    written(run_dir(folder, 0), point(10, 0.0, 2.0), point(25, 0.5, 1.0))
    written(run_dir(folder, 1), point(5, 0.0, 3.0))
    found = rows(folder)
    noise, velocity, image = (found[name] for name in ("noise", "velocity", "image"))
    tags = [name.removeprefix("fid_") for name in noise if name.startswith("fid_")]
    assert tags[::3] == ["5_eta0", "10_eta0", "25_eta0.5"]
    assert (noise["fid_10_eta0"], noise["fid_10_eta0_low"]) == ("2.0", "1.0")
    assert (noise["accuracy_25_eta0.5_high"], noise["kid_25_eta0.5"]) == ("0.6", "")
    assert (noise["evaluations_25_eta0.5"], noise["sampling_seconds_10_eta0"]) == ("25", "1.25")
    assert (velocity["fid_5_eta0"], velocity["fid_10_eta0"]) == ("3.0", "")
    assert noise["sampling_images"] == "512" and image["sampling_images"] == ""
    assert all(image[f"fid_{tag}"] == "" for tag in tags[::3])


def test_results_csv_has_the_bounds_and_the_energy(folder: Path) -> None:
    evaluation = run_dir(folder, 0) / "evaluation.json"
    facts = json.loads(evaluation.read_text())
    bits = {"value": 3.5, "evaluation_error": 0.25, "num_images": 16}
    walk = {"timesteps": [2, 1, 0], "terms": [0.5, 1.0, 2.0], "term_errors": [0.1, None, 0.2]}
    evaluation.write_text(json.dumps(facts | {"bits_per_dim": bits | walk}))
    outcome = folder / "ledger" / f"{0:08x}.json"
    facts = json.loads(outcome.read_text())
    facts["summary"]["energy_joules"] = 12.5
    outcome.write_text(json.dumps(facts))
    found = rows(folder)
    levels = report.assess(folder).ranking.levels
    with np.load(run_dir(folder, 1) / "evaluation.npz") as saved:
        bound, spread = continuous_bound(X0Error(**saved), levels)
    assert float(found["velocity"]["continuous_bound"]) == pytest.approx(bound)
    error = float(found["velocity"]["continuous_bound_evaluation_error"])
    assert error == pytest.approx(spread)
    assert (found["noise"]["bits_per_dim"], found["velocity"]["bits_per_dim"]) == ("3.5", "")
    assert found["noise"]["bits_per_dim_evaluation_error"] == "0.25"
    assert (found["noise"]["energy_joules"], found["image"]["energy_joules"]) == ("12.5", "")
