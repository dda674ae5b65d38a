"""An evaluation over two nodes is that of one process; one that cannot be is refused at once."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import evaluate
from tests.slurm.jobs import submit
from tests.slurm.lab import Lab
from tests.support.digits_runs import digit_images


@pytest.mark.slow
def test_two_nodes_find_the_numbers_of_one_process(lab: Lab, packed: Path, folder: Path) -> None:
    found = []
    for name in ("alone", "shared"):
        samples = folder / f"{name}.npz"
        images, labels = digit_images(400, 30)
        np.savez(samples, images=images, labels=labels)
        words = [str(samples), "--against", str(packed), "--features", "pixels"]
        words += ["--cache", str(folder / f"cache-{name}")]
        if name == "alone":
            assert evaluate.main(words) == 0
        else:
            options = ("--nodes=2", "--cpus-per-task=1")
            job = submit(lab, "slurm/evaluate.sh", *words, options=options, output=folder)
            job.completes(400)
            assert "protocol: 400 samples" in job.read_log()
        record = folder / f"{name}.npz.evaluation_of_samples_pixels.json"
        found.append(json.loads(record.read_text())["measures"])
    alone, shared = ({key: told["value"] for key, told in one.items()} for one in found)
    assert {key for key in shared if shared[key] is None} == {"class_score", "class_accuracy"}
    assert all(shared[key] == pytest.approx(alone[key], rel=1e-9) for key in alone if alone[key])


@pytest.mark.slow
def test_what_is_not_there_ends_the_job_with_code_2(lab: Lab, folder: Path) -> None:
    job = submit(lab, "slurm/evaluate.sh", str(folder / "none"), options=(), output=folder)
    assert job.end() == ("FAILED", "2:0") and "does not exist" in job.read_log()
