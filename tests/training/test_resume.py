"""Killed at random and continued, a training on three workers is the undisturbed one."""

import hashlib
import json
import random
import time
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ddpm.runs import checkpoint
from ddpm.runs.directory import RunDirectory
from ddpm.training.worker import TrainingJob
from tests.support import processes, train_process
from tests.support.processes import exit_codes, forked, until
from tests.support.tiny_training import TINY, job_of

pytestmark = pytest.mark.slow

KILLS = 20


SETTINGS = TINY | {
    "TRAINING.NETWORK.DROPOUT_RATE": 0.2,
    "TRAINING.MICRO_BATCH": 4,
    "TRAINING.EMA_DECAYS": [0.9, 0.99],
    "TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 24,
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 5,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 8,
    "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": 1,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 10,
    "DATASET.VALIDATION_FRACTION": 0.5,
}


def make_job(root: Path, data: Path, changed: dict[str, object]) -> TrainingJob:
    """Digits with dropout, two micro-batches on each of three workers, batches across passes."""
    settings = SETTINGS | changed | {"TRAINING.OUTPUT_DIR": root}
    made = job_of(root, data, *(f"{key}={value}" for key, value in settings.items()))
    return replace(made, run_dir=str(root / "run_00000000"), wait_s=20.0)


def start(job: TrainingJob, root: Path, workers: int) -> list[BaseProcess]:
    """The job's workers, each a process."""
    path = root / "job.json"
    path.write_text(json.dumps(asdict(job)))
    return [
        forked(train_process.run, str(path), env=env, said=said(root, rank))
        for rank, env in enumerate(processes.workers(workers))
    ]


def said(root: Path, rank: int) -> Path:
    """What a worker prints."""
    return root / f"worker-{rank}.log"


def stop(started: list[BaseProcess]) -> None:
    for process in started:
        process.kill()
    for process in started:
        process.join()


def fingerprint(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's files and of the metrics without timings."""
    last = max((run_dir / "checkpoints").glob("step-*"))
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*last.glob("*.safetensors"), last / "state.json"]
    }
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
    ]
    hashes["metrics"] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    hashes["last"] = last.name
    return hashes


def undisturbed(
    root: Path, data: Path, workers: int, changed: dict[str, object] | None = None
) -> dict[str, str]:
    root.mkdir()
    job = make_job(root, data, changed or {})
    codes = exit_codes(start(job, root, workers))
    words = [said(root, rank).read_text()[-2000:] for rank, code in enumerate(codes) if code]
    assert codes == [0] * workers, words
    return fingerprint(Path(job.run_dir))


def rows_of(run_dir: Path) -> int:
    """Rows of metrics so far."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_a_random_instant(
    rng: random.Random, run_dir: Path, started: list[BaseProcess]
) -> bool:
    """A while after some more epochs (one time in four: after the start); whether all still run."""
    more, deadline = rng.randrange(1, 3), time.monotonic() + 60
    if rng.random() < 0.25:
        more, deadline = 10**6, time.monotonic() + rng.uniform(0.0, 1.0)
    wanted = rows_of(run_dir) + more

    def alive() -> bool:
        return all(process.exitcode is None for process in started)

    while alive() and rows_of(run_dir) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.2))
    return alive()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_twenty_kills_leave_no_trace_on_three_workers(tmp_path: Path, few_digits: Path) -> None:
    """kill -9 of one worker or all at random instants; weights, EMAs, optimizer, metrics equal."""
    hyper = "TRAINING.HYPER_PARAMETERS"
    longer = {f"{hyper}.EPOCHS": 45, f"{hyper}.STEPS_PER_EPOCH": 2}
    reference = undisturbed(tmp_path / "reference", few_digits, 3, longer)
    root = tmp_path / "killed"
    root.mkdir()
    job = make_job(root, few_digits, longer)
    rng, steps = random.Random(0), set()
    for _ in range(KILLS):
        started = start(job, root, 3)
        assert wait_for_a_random_instant(rng, Path(job.run_dir), started), "ended unkilled"
        if rng.random() < 0.3:
            stop([started[rng.randrange(3)]])
            time.sleep(0.3)
        stop(started)
        steps |= {path.name for path in Path(job.run_dir).glob("checkpoints/step-*")}
    assert len(steps) > 5, f"the kills hit few stages: {sorted(steps)}"
    assert exit_codes(start(job, root, 3)) == [0, 0, 0]
    assert fingerprint(Path(job.run_dir)) == reference


@pytest.mark.timeout(300)
def test_a_pause_is_at_its_very_step_and_leaves_no_trace(tmp_path: Path, few_digits: Path) -> None:
    """On all workers; and what the finished run cost is what the cores of all of them did."""
    short = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 4}
    reference = undisturbed(tmp_path / "reference", few_digits, 2, short)
    paid = [float(said(tmp_path / "reference", n).read_text().split()[-1]) for n in (0, 1)]
    summary = RunDirectory(tmp_path / "reference" / "run_00000000").summary
    assert summary["trial_core_seconds"] == pytest.approx(sum(paid), rel=0.1)

    root = tmp_path / "paused"
    root.mkdir()
    job = make_job(root, few_digits, short | {"TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": "null"})
    paused = start(replace(job, pause_at=13), root, 2)  # within an epoch of 5 steps
    assert exit_codes(paused) == [75, 75]
    run = RunDirectory(Path(job.run_dir))
    assert checkpoint.steps(run.checkpoints) == [13]
    before = run.metrics()
    assert [row["step"] for row in before] == [5, 10]
    kept = checkpoint.load(checkpoint.folder_of(run.checkpoints, 13)).state["window"]["times"]
    assert exit_codes(start(job, root, 2)) == [0, 0]
    assert fingerprint(Path(job.run_dir)) == reference
    paid = [float(said(root, n).read_text().split()[-1]) for n in (0, 1)]
    known = sum(row["time/core_seconds"] for row in [*before, kept])
    assert run.summary["trial_core_seconds"] == pytest.approx(sum(paid) + known, rel=0.1)
    after = next(row for row in run.metrics() if row["step"] == 15)
    for name in ("time/seconds", "time/core_seconds"):
        assert after[name] > kept[name] > 0, "steps before the pause took no time"
    assert run.summary["trial_seconds"] > sum(row["time/seconds"] for row in run.metrics())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("workers", "changed"),
    [((1, 2, 4), {}), ((1, 3), {"PRED_TYPE": "edm", "LOGSNR_DENSITY": "adaptive"})],
)
def test_exact_numerics_give_the_same_bits_for_any_number_of_workers(
    workers: tuple[int, ...], changed: dict[str, str], tmp_path: Path, few_digits: Path
) -> None:
    exact = {
        "TRAINING.NUMERICS": "exact",
        "TRAINING.MICRO_BATCH": 6,
        "TRAINING.HYPER_PARAMETERS.EPOCHS": 2,
        "EVALUATION.EVERY": 1,  # all workers share in it
        **{f"TRAINING.{key}": value for key, value in changed.items()},
    }
    first, *others = (undisturbed(tmp_path / f"{n}", few_digits, n, exact) for n in workers)
    assert others == [first] * len(others)


@pytest.mark.timeout(300)
def test_any_number_of_workers_follows_the_same_loss(tmp_path: Path, few_digits: Path) -> None:
    """fast numerics: the same samples and draws, sums in another order."""
    losses = []
    for workers in (1, 3):
        root = tmp_path / str(workers)
        undisturbed(root, few_digits, workers, {"TRAINING.HYPER_PARAMETERS.EPOCHS": 2})
        text = (root / "run_00000000" / "metrics.jsonl").read_text()
        losses.append([json.loads(line)["loss"] for line in text.splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_worker_ends_a_stopped_run_before_it_is_saved(
    tmp_path: Path, few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train kills the others when one worker ends; a save takes seconds on slow storage."""
    monkeypatch.setenv("DDPM_TEST_FSYNC_S", "0.1")
    job = make_job(
        tmp_path,
        few_digits,
        {
            "TRAINING.HYPER_PARAMETERS.EPOCHS": 100_000,
            "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": "null",
        },
    )
    run = RunDirectory(Path(job.run_dir))
    started = start(job, tmp_path, 2)
    try:
        until("it trains", lambda: rows_of(run.path))
        assert not checkpoint.steps(run.checkpoints)
        run.request_stop()
        assert exit_codes(started[1:]) == [75]
        assert checkpoint.steps(run.checkpoints)
        assert exit_codes(started) == [75, 75]
    finally:
        stop(started)
