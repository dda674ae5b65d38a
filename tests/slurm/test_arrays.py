"""Sweeps as array jobs, from the controller as login node: `launch/sweep.py --cluster slurm`."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from ddpm.cluster import submit as job_list
from ddpm.cluster.task import Journal
from ddpm.sweep.ledger import Ledger, Outcome
from tests.slurm.hosts import REPOSITORY, patience, wait_until
from tests.slurm.lab import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
GRID = """
BASE: {base}
GRID:
  TRAINING.PRED_TYPE: [noise, image, velocity]
  TRAINING.NETWORK.SCHEDULER: [linear, cosine, cos6]
"""
SMALL = {
    "TRAINING.NETWORK.FIRST_CHANNEL": 8,
    "TRAINING.NETWORK.NUM_RES_BLOCKS": 1,
    "TRAINING.NETWORK.DROPOUT_RATE": 0.2,
    "TRAINING.INLINE_GEN.ENABLE": "false",
    "TRAINING.INLINE_GEN.NUMS": 10,
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 2,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 60,
    "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD": 30,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 2,
    "EVALUATION.NUM": 16,
    "CLUSTER.CPUS_PER_WORKER": 1,
}


class Sweep:
    """A sweep of nine small trials in a folder that all hosts share."""

    def __init__(self, lab: Lab, folder: Path, data: Path, grid: str = GRID) -> None:
        self.lab, self.out, self.file = lab, folder / "out", folder / "nine.yaml"
        self.folder, self.data = self.out / "sweeps" / "nine", data
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(grid.format(base=REPOSITORY / "configs" / "digits.yaml"))

    def start(self, *options: str, **changed: object) -> "subprocess.Popen[str]":
        """launch/sweep.py on the controller."""
        places = {"DATASET.PATH": self.data, "TRAINING.OUTPUT_DIR": json.dumps(str(self.out))}
        words = [f"{key}={value}" for key, value in (SMALL | places | changed).items()]
        command = [sys.executable, "launch/sweep.py", self.file, *words, *options]
        return subprocess.Popen(
            self.lab.ctl.command(*command),
            env=self.lab.ctl.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, *options: str, **changed: object) -> "subprocess.Popen[str]":
        """The same, as array jobs of one or two trials a task."""
        return self.start(
            "--cluster", "slurm", "--group-size", "2", "--jobs", "3", *options, **changed
        )

    def outcomes(self) -> dict[str, Outcome]:
        return Ledger(self.folder / "ledger").outcomes()

    def done(self) -> set[str]:
        return {trial for trial, o in self.outcomes().items() if o.status == "done"}

    def attempts(self) -> dict[str, int]:
        found = [json.loads(path.read_text()) for path in self.out.glob("*/*/*/provenance.json")]
        return {facts["run_id"]: len(facts["attempts"]) for facts in found}

    def rows(self) -> int:
        return sum(p.read_bytes().count(b"\n") for p in self.out.glob("*/*/*/metrics.jsonl"))

    def array(self) -> str:
        """Number of the newest array job."""
        return job_list.read_jobs(self.folder)[-1].job.partition("_")[0]

    def states(self, job: str) -> dict[str, list[str]]:
        """Task -> the State of each of its starts, as sacct has them."""
        shown = self.lab.ctl.run(*"sacct -X -D -P -n -o JobID,State -j".split(), job)
        found: dict[str, list[str]] = {}
        for line in shown.stdout.splitlines():
            task, _, state = line.partition("|")
            found.setdefault(task, []).append(state.split()[0])
        return found

    def steps_are_whole(self) -> bool:
        """Whether every run has each of its steps once."""
        for path in self.out.glob("*/*/*/metrics.jsonl"):
            steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
            if steps != list(range(2, steps[-1] + 1, 2)):
                return False
        return True

    def weights(self) -> dict[str, str]:
        """SHA-256 of the last weights of each trial, by run id."""
        found = {}
        for path in self.out.glob("*/*/*/provenance.json"):
            last = max((path.parent / "checkpoints").glob("step-*"))
            content = b"".join(file.read_bytes() for file in sorted(last.glob("*.safetensors")))
            found[json.loads(path.read_text())["run_id"]] = sha256(content).hexdigest()
        return found


@pytest.fixture
def nine(lab: Lab, folder: Path, packed: Path) -> Sweep:
    return Sweep(lab, folder, packed)


def ends(driver: "subprocess.Popen[str]", code: int, seconds: float = 300) -> str:
    """What a driver printed, when it has ended with this exit code."""
    output, _ = driver.communicate(timeout=patience(seconds))
    assert driver.returncode == code, output
    return output


def test_nine_trials_interrupted_and_submitted_again(
    nine: Sweep, lab: Lab, figure: Callable[[str], None]
) -> None:
    """scancel, again, detached, scancel, then the plain way: no finished trial runs twice."""
    first = nine.submit()
    wait_until("two trials are done", lambda: len(nine.done()) >= 2, 200)
    lab.ctl.run("scancel", nine.array())
    assert "have not ended" in ends(first, 75)
    states = nine.states(nine.array())
    assert ["CANCELLED"] in states.values()
    assert all(ends in (["CANCELLED"], ["COMPLETED"]) for ends in states.values())
    assert not lab.ctl.run("squeue", "-h").stdout
    done, before = nine.done(), nine.attempts()
    assert 2 <= len(done) < 9

    second = nine.submit()
    wait_until("two more are done", lambda: len(nine.done()) >= len(done) + 2, 200)
    for process in psutil.Process(second.pid).children(recursive=True):  # behind nsenter
        process.send_signal(signal.SIGINT)
    assert "detached" in ends(second, 75)
    assert lab.ctl.run("squeue", "-h").stdout, "the jobs go on without the driver"
    assert "hold trials of it" in ends(nine.start(), 3)
    lab.ctl.run("scancel", nine.array())
    wait_until("the queue is empty", lambda: not lab.ctl.run("squeue", "-h").stdout, 60)
    assert all(nine.attempts()[trial] == before[trial] for trial in done)

    done, before = nine.done(), nine.attempts()
    assert 4 <= len(done) < 9
    output = ends(nine.start(), 0)
    assert f"9 trials, {9 - len(done)} to run" in output
    assert len(nine.done()) == 9 and (nine.folder / "report.html").exists()
    assert all(nine.attempts()[trial] == before[trial] for trial in done)
    assert nine.steps_are_whole()
    attempts = sorted(nine.attempts().values())
    figure(f"attempts of the nine trials over three commands: {attempts}")


def test_usr2_requeues_a_task_which_goes_on_bit_for_bit(
    lab: Lab, folder: Path, packed: Path, figure: Callable[[str], None]
) -> None:
    """USR2 to every process of the step, as before the time limit: saved, requeued, continued; W&B
    has the run in one piece.
    """
    grid = GRID.replace("[noise, image, velocity]", "[velocity]").replace(", cos6", "")
    swept = Sweep(lab, folder, packed, grid)
    driver = swept.submit()
    wait_until("a trial trains", lambda: swept.rows() >= 5, 120)
    (job,) = job_list.read_jobs(swept.folder)
    lab.ctl.run("scancel", "--signal=USR2", job.job)
    output = ends(driver, 0)
    assert swept.states(job.job)[job.job] == ["REQUEUED", "COMPLETED"], output
    assert sorted(swept.attempts().values()) == [1, 2]
    assert swept.steps_are_whole()
    logs = "".join(path.read_text() for path in swept.out.glob("*/*/*/train.log"))
    assert "no longer mirrored" not in logs
    fragments = list(swept.out.glob("*/*/*/wandb/offline-run-*"))
    assert len(fragments) == 2

    other = Sweep(lab, folder / "undisturbed", packed, grid)
    ends(other.start("--cluster", "debug"), 0)
    assert swept.weights() == other.weights()
    figure("a task requeued by USR2 ends with the weights of an undisturbed one")


def test_a_task_that_dies_is_its_trials_failure_and_the_next_command_tries_again(
    nine: Sweep, lab: Lab
) -> None:
    """kill -9 of everything in a task, as the kernel does: sacct says FAILED, and so does the
    ledger; the task's other trial is left for the next command.
    """
    driver = nine.submit("--group-size", "5")
    wait_until("trials train", lambda: nine.rows() >= 10, 120)
    victim = job_list.read_jobs(nine.folder)[0]
    trial = Journal(Path(victim.group)).open_item
    for node in lab.nodes.values():
        for process in node.tree():
            words = process.cmdline()
            if victim.group in words or _is_task(process, victim.job):
                process.kill()
    output = ends(driver, 75)
    assert nine.states(victim.job)[victim.job] == ["FAILED"], output
    assert f"job {victim.job} was ended: FAILED" in output
    failed = nine.outcomes()[trial]
    assert failed.status == "failed" and f"job {victim.job}: FAILED" in (failed.reason or "")
    ends(nine.submit(), 0)
    assert len(nine.done()) == 9
    for node in lab.nodes.values():  # what a process leaves that had no chance to tidy up
        for left in (node.own / "tmp").glob("ddpm-*"):
            if left.name not in lab.folder.parts:
                shutil.rmtree(left)


def _is_task(process: psutil.Process, job: str) -> bool:
    """Whether it is the process that submitit runs for this task of an array."""
    words, env = process.cmdline(), process.environ()
    task = f"{env.get('SLURM_ARRAY_JOB_ID')}_{env.get('SLURM_ARRAY_TASK_ID')}"
    return "submitit.core._submit" in words and "SLURM_PROCID" in env and task == job


def test_hostile_names(lab: Lab, folder: Path, packed: Path) -> None:
    grid = GRID.replace("[noise, image, velocity]", "[velocity]").replace(", cosine, cos6", "")
    swept = Sweep(lab, folder / 'it\'s a "$(touch pwned)"\n# `dir`; x', packed, grid)
    output = ends(swept.submit(), 0)
    assert len(swept.done()) == 1, output
    assert not list(folder.rglob("pwned")) and not (REPOSITORY / "pwned").exists()


def test_without_records_of_ended_jobs(
    nine: Sweep, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sacct missing: squeue and the journals say enough to end and to go on."""
    driver = nine.submit()
    wait_until("a trial is done", lambda: nine.done(), 200)
    database = [p for p in lab.ctl.tree() if p.name() == "slurmdbd"]
    for process in database:
        process.suspend()
    try:
        lab.ctl.run("scancel", nine.array())
        assert "have not ended" in ends(driver, 75)
    finally:
        for process in database:
            process.resume()
    assert not any(outcome.status == "failed" for outcome in nine.outcomes().values())
