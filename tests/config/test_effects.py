"""Keys of whole runs: what a run, its workers and its tracker do when they change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.cluster.workers import workers_for
from ddpm.data import open_data
from ddpm.errors import InputError
from ddpm.runs.directory import RunDirectory
from ddpm.sampling import loading
from ddpm.tracking.wandb_log import wandb_tracker
from tests.runs.test_directory import DATA, report
from tests.runs.test_directory import start as start_run
from tests.support.tiny_training import rows, run, tiny
from tests.tracking.test_wandb_log import records


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Path:
    return run(tmp_path_factory.mktemp("plain"), few_digits)


@pytest.mark.slow
def test_without_enable_and_every_a_run_draws_and_measures_nothing_on_its_way(plain: Path) -> None:
    assert not list((plain / "inline_gen").glob("*.png"))
    assert not any(name.startswith("val_") for row in rows(plain) for name in row)


@pytest.mark.slow
@pytest.mark.parametrize(("period", "steps"), [(2, [4, 8]), (4, [8])])
def test_enable_and_period_say_when_grids_are_drawn(
    period: int, steps: list[int], tmp_path: Path, few_digits: Path
) -> None:
    inline = "TRAINING.INLINE_GEN."
    done = run(tmp_path, few_digits, f"{inline}ENABLE=true", f"{inline}PERIOD={period}")
    drawn = sorted(path.stem for path in (done / "inline_gen").glob("*.png"))
    assert drawn == [f"step-{step:08d}" for step in steps]


@pytest.mark.slow
def test_every_says_when_the_network_is_measured(tmp_path: Path, few_digits: Path) -> None:
    done = run(tmp_path, few_digits, "EVALUATION.EVERY=2")
    assert [row["step"] for row in rows(done) if "val_mean_log10_mse" in row] == [4, 8]


@pytest.mark.slow
def test_num_and_seed_choose_images_and_noise_of_the_evaluation(
    plain: Path, tmp_path: Path, few_digits: Path
) -> None:
    def errors(path: Path) -> np.ndarray:
        with np.load(path / "evaluation.npz") as arrays:
            return arrays["mse"]

    fewer = errors(run(tmp_path / "num", few_digits, "EVALUATION.NUM=5"))
    other = errors(run(tmp_path / "seed", few_digits, "EVALUATION.SEED=1"))
    assert errors(plain).shape[-1] == 8 and fewer.shape[-1] == 5
    assert other.shape == errors(plain).shape and (other != errors(plain)).all()


@pytest.mark.slow
def test_trained_h5_is_where_a_training_starts_unless_it_is_new(plain: Path) -> None:
    start = f"TRAINING.TRAINED_H5={plain}"
    fresh, _ = loading.build_network(tiny())
    unused, _ = loading.build_network(tiny(start))
    warm, _ = loading.build_network(tiny(start, "TRAINING.IS_NEW_TRAIN=false"))
    state = fresh.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in unused.state_dict().items())
    assert any(not torch.equal(t, state[name]) for name, t in warm.state_dict().items())


def test_validation_fraction_moves_images_out_of_training(digits: Path) -> None:
    less, more = (
        open_data(tiny(f"DATASET.VALIDATION_FRACTION={share}"), digits) for share in (0.1, 0.5)
    )
    assert less.num_train + less.num_validation == more.num_train + more.num_validation
    assert abs(more.num_validation / (more.num_train + more.num_validation) - 0.5) < 0.05
    assert less.num_validation < more.num_validation / 3


def test_cache_reads_an_image_once(few_digits: Path) -> None:
    for cache, is_read_again in (("memory", False), ("off", True)):
        data = open_data(tiny(f"DATASET.CACHE={cache}"), few_digits)
        ids = data.order(torch.arange(8))
        data.read(ids, None)
        before = data.bytes_read
        data.read(ids, None)
        assert before > 0 and (data.bytes_read > before) == is_read_again


def test_cluster_keys_say_what_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # A cluster elsewhere may have the GPUs that this machine lacks.
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    changed = tiny(
        "CLUSTER.NUM_WORKERS=3", "CLUSTER.CPUS_PER_WORKER=5", "CLUSTER.GPUS_PER_WORKER=0.5"
    )
    workers = workers_for(changed)
    assert (workers.count, workers.cpus, workers.gpus) == (3, 5, 0.5)
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(InputError, match="a job server; give HOST:PORT"):
        workers_for(changed)


@pytest.mark.slow
def test_project_and_entity_are_where_the_tracker_goes(tmp_path: Path) -> None:
    keys = ("WANDB.MODE=offline", "WANDB.PROJECT=elsewhere", "WANDB.ENTITY=somebody")
    settings = tiny(*keys, f"TRAINING.OUTPUT_DIR={tmp_path}")
    directory = RunDirectory.find_or_name(settings, DATA)
    start_run(directory, settings)
    tracker = wandb_tracker(None)(settings, directory)
    tracker.log(replace(report(1), samples=None))
    tracker.finish({})
    directory.close()
    (sent,) = records(directory, "run")
    assert (sent["project"], sent["entity"]) == ("elsewhere", "somebody")
