"""Sweeps as many small jobs, through real submitit: its processes of this machine ("local"), its
jobs in the driver's process ("debug"), and what it would hand to sbatch.
"""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from ddpm.cli import sweep
from ddpm.cli.main import launch
from ddpm.cluster import submit
from ddpm.cluster.open_sweep import opened
from ddpm.cluster.run_trial import TrialTask, run_trial
from ddpm.cluster.submit import JobOptions, Submitted
from ddpm.cluster.submit_sweep import group_size, left, record_death
from ddpm.cluster.task import Journal, TaskFile, write_tasks
from ddpm.cluster.workers import Workers
from ddpm.errors import InputError
from ddpm.runs import provenance, storage
from ddpm.sweep.ledger import Ledger, Outcome
from ddpm.sweep.plan import load_sweep
from ddpm.training import TrainingJob
from tests.cluster import test_sweep_run
from tests.support.processes import exit_codes, forked, until
from tests.support.tree import ROOT

pytestmark = pytest.mark.timeout(1800)
SWEEP = """
BASE: {base}
GRID:
  TRAINING.PRED_TYPE: [image, velocity]
  TRAINING.NETWORK.SCHEDULER: [linear, cosine]
"""
SMALL = test_sweep_run.SMALL | {"CLUSTER.CPUS_PER_WORKER": 1}
LONG = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 30}


class Small:
    """A sweep of four small trials whose file and results lie in a folder of the test's own.

    data: instead of all digits.
    """

    def __init__(self, place: Path, data: Path | str = "digits") -> None:
        self.data = data
        self.file, self.out = place / "small.yaml", place / "out"
        self.folder = self.out / "sweeps" / "small"
        self.file.write_text(SWEEP.format(base=ROOT / "configs" / "digits.yaml"))

    def argv(self, *options: str, **changed: object) -> list[str]:
        places = {"TRAINING.OUTPUT_DIR": self.out, "DATASET.PATH": self.data}
        words = [f"{key}={value}" for key, value in (places | SMALL | changed).items()]
        return [sys.executable, str(ROOT / "launch" / "sweep.py"), str(self.file), *words, *options]

    def main(self, *options: str, **changed: object) -> int:
        """The command in this process."""
        return sweep.main(self.argv(*options, **changed)[2:])

    def refused(self, message: str, *options: str, **changed: object) -> None:
        """The command ends with this message and has written nothing."""
        with pytest.raises(InputError, match=re.escape(message)):
            self.main(*options, **changed)
        assert not self.out.exists()

    def start(self, said: Path, jobs: int, **changed: object) -> BaseProcess:
        """The command as a process, with jobs of this machine; said: the file of what it prints."""
        argv = self.argv("--cluster", "local", "--jobs", str(jobs), **changed)
        return forked(launch, "sweep", argv[2:], said=said)

    def outcomes(self) -> dict[str, Outcome]:
        return Ledger(self.folder / "ledger").outcomes()

    def statuses(self) -> list[str]:
        return sorted(outcome.status for outcome in self.outcomes().values())

    def attempts(self) -> dict[str, int]:
        """How often each trial was started."""
        found = [json.loads(path.read_text()) for path in self.out.glob("*/*/*/provenance.json")]
        return {facts["run_id"]: len(facts["attempts"]) for facts in found}

    def runners(self) -> list[psutil.Process]:
        """The processes that train."""
        mine = str(self.folder)
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if (words := process.info["cmdline"] or [])
            and words[1:4] == ["-m", "ddpm.cluster", "trials"]
            and words[-1].startswith(mine)
        ]

    def steps(self) -> int:
        """Rows of metrics in all runs."""
        return sum(p.read_bytes().count(b"\n") for p in self.out.glob("*/*/*/metrics.jsonl"))


@pytest.fixture
def small(tmp_path: Path, few_digits: Path) -> Iterator[Small]:
    made = Small(tmp_path, few_digits)
    yield made
    for process in made.runners():
        process.kill()


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment whose sbatch keeps the script it is given, and says that it has a job."""
    tools = tmp_path / "tools"
    tools.mkdir()
    answers = {
        "sbatch": f'n=$(ls "{tools}" | grep -c kept)\n'
        f'cp "$1" "{tools}/kept-$n"\nenv | grep ^SBATCH_ >"{tools}/env-$n"\n'
        f'echo "$PYTHONPATH" >"{tools}/path-$n"\n'
        "echo Submitted batch job 7$n",
        "srun": "exit 1",
        "squeue": 'touch "$0.asked"; exit 0',
        "sacct": "exit 1",
        "scontrol": "echo 'MaxArraySize            = 3'",
    }
    for name, text in answers.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    return {"PATH": f"{tools}:{os.environ['PATH']}"}


@pytest.mark.long
def test_local_jobs_a_killed_process_fails_its_trial_alone(small: Small, tmp_path: Path) -> None:
    """What the kernel kills for want of memory is that trial's end; its group goes on, and the same
    command tries it again, and nothing else.
    """
    driver = small.start(said := tmp_path / "said", 1, **LONG)
    until("a trial trains", lambda: small.steps() > 2)
    (runner,) = small.runners()
    runner.kill()
    until("another process goes on", lambda: small.runners() not in ([], [runner]))
    for path in small.out.glob("*/*/*/metrics.jsonl"):
        assert path.stat().st_size  # the killed trial has left its directory as it was
        facts = json.loads((path.parent / "provenance.json").read_text())
        code = small.folder / "code" / facts["source_sha256"][:12]
        assert facts["frozen"] == str(code) and (code / "ddpm" / "errors.py").is_file()
    until("a trial is recorded as failed", lambda: "failed" in small.statuses())
    (small.folder / "stop").touch()
    assert exit_codes([driver]) == [75]
    assert "3 of 4 trials have not ended" in said.read_text()
    (failed,) = small.outcomes().values()
    assert failed.reason == "its process was ended by SIGKILL; out of memory?"
    assert not small.runners()


@pytest.mark.long
def test_debug_jobs_run_a_sweep_to_its_report(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 1, "GRID.TRAINING.PRED_TYPE": "[image]"}
    short |= {"GRID.TRAINING.NETWORK.SCHEDULER": "[linear, cosine, cos6]"}
    assert small.main("--cluster", "debug", "--group-size", "2", **short) == 0
    assert small.statuses() == ["done"] * 3
    assert (small.folder / "report.html").exists() and (small.folder / "best.yaml").exists()
    assert len(list((small.folder / "jobs").glob("*.json"))) == 2
    before = small.attempts()
    assert "3 to submit" in capsys.readouterr().out
    assert small.main("--cluster", "debug", **short) == 0
    assert "0 to submit" in capsys.readouterr().out
    assert small.attempts() == before == dict.fromkeys(before, 1)


def test_a_sweep_with_jobs_is_not_trained_here_while_slurm_does_not_answer(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue
    job = Submitted(job="7_0", name="small", cluster="slurm", trials=("a",), group="b")
    storage.make_folder(small.folder)
    storage.write_json(small.folder / submit.JOBS_FILE, [asdict(job)])
    with pytest.raises(InputError, match="jobs.json names jobs and squeue does not answer"):
        small.main("--no-probe")
    assert not small.attempts()


@pytest.mark.ray
@pytest.mark.long
def test_ctrl_c_detaches_and_every_way_goes_on_with_what_is_left(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = small.start(said := tmp_path / "first", 2, **LONG)
    until("two processes train", lambda: len(small.runners()) == 2 and small.steps() > 4)
    runners = small.runners()
    for runner in runners:
        runner.suspend()  # they are not at their end, however quick they are
    os.kill(first.pid or 0, signal.SIGINT)
    assert exit_codes([first]) == [75] and "detached; 2 job(s) go on" in said.read_text()
    assert small.runners() == runners

    plain = small.argv("--no-probe", **LONG, **{"TUNE.MAX_CONCURRENT": 1})[2:]
    assert launch("sweep", plain) == 3 and "hold trials of it" in capsys.readouterr().err
    second = small.start(said := tmp_path / "second", 2, **LONG)
    until("it watches them", lambda: said.exists() and "look: " in said.read_text())
    for runner in runners:
        runner.resume()
    until("a trial ends", lambda: small.statuses())
    small.folder.joinpath("stop").touch()
    assert exit_codes([second]) == [75] and not small.runners()
    assert "0 to submit, 4 held by living jobs" in said.read_text()
    finished = {trial for trial, o in small.outcomes().items() if o.status == "done"}
    assert 1 <= len(finished) < 4
    before = small.attempts()
    assert launch("sweep", plain) == 0
    assert small.statuses() == ["done"] * 4
    assert all(small.attempts()[trial] == before[trial] for trial in finished)


def weights(out: Path) -> dict[str, str]:
    """SHA-256 of the last weights of each trial, by run id."""
    found = {}
    for run in out.glob("*/*/*/provenance.json"):
        last = max((run.parent / "checkpoints").glob("step-*"))
        content = b"".join(path.read_bytes() for path in sorted(last.glob("*.safetensors")))
        found[json.loads(run.read_text())["run_id"]] = sha256(content).hexdigest()
    return found


@pytest.mark.long
def test_usr2_saves_and_requeues_and_the_result_is_the_same(small: Small, tmp_path: Path) -> None:
    """The task gets USR2 from submitit's local controller as it does from SLURM; W&B is on."""
    changed = LONG | {"WANDB.MODE": "offline"}
    text = small.file.read_text().replace("PRED_TYPE: [image, velocity]", "PRED_TYPE: [image]")
    small.file.write_text(text)
    driver = small.start(said := tmp_path / "said", 1, **changed)
    until("a trial trains", lambda: small.steps() > 4)
    (runner,) = small.runners()
    for process in (*runner.children(recursive=True), runner, runner.parents()[0]):
        process.send_signal(signal.SIGUSR2)  # as SLURM does: every process of the step
    assert exit_codes([driver]) == [0], said.read_text()
    (log,) = (small.folder / "submitit").glob("*_log.out")
    assert "Requeued job" in log.read_text()
    assert sorted(small.attempts().values()) == [1, 2]
    assert "no longer mirrored" not in "".join(p.read_text() for p in small.out.rglob("train.log"))
    for path in small.out.glob("*/*/*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == sorted(set(steps))

    overrides = small.argv(**LONG, **{"TRAINING.OUTPUT_DIR": tmp_path / "other"})[3:]
    one = Workers(count=1, cpus=1, gpus=0)
    with opened(load_sweep(small.file, overrides), workers=one, packed=False) as undisturbed:
        for trial in undisturbed.trials:
            task = TrialTask.of(undisturbed, trial)
            assert run_trial(task, should_stop=lambda: False) == "done"
    assert weights(small.out) == weights(tmp_path / "other")


@pytest.mark.long
def test_term_saves_and_ends_for_good(small: Small, tmp_path: Path) -> None:
    driver = small.start(said := tmp_path / "said", 1, **LONG)
    until("a trial trains", lambda: small.steps() > 4)
    (runner,) = small.runners()
    runner.parents()[0].terminate()
    assert exit_codes([driver]) == [75], said.read_text()
    assert not small.runners() and not small.outcomes()
    (log,) = (small.folder / "submitit").glob("*_log.out")
    assert "Requeued" not in log.read_text()
    (job,) = submit.read_jobs(small.folder)
    assert job.journal.exit_code == 75
    saved = max(int(p.name[5:]) for p in small.out.glob("*/*/*/checkpoints/step-*"))
    assert saved > 4


@pytest.mark.slow
def test_what_a_runner_starts_survives_the_signals_of_the_step(tmp_path: Path) -> None:
    script = """
import subprocess, sys, time
from ddpm.cluster.task import stop_asked
asked = stop_asked()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
while not asked():
    time.sleep(0.05)
print("asked", child.poll(), flush=True)
child.kill()
"""
    runner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    sleeper = int(runner.stdout.readline())
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(sleeper, number)
        for _ in range(3):  # however often: SLURM and the task may both send it
            os.kill(runner.pid, number)
    assert runner.stdout.read().split() == ["asked", "None"]
    assert runner.wait(timeout=10) == 0


@pytest.mark.slow
def test_a_runner_stops_when_its_task_is_gone() -> None:
    script = """
import time
from ddpm.cluster.task import stop_asked
asked = stop_asked()
while not asked():
    time.sleep(0.05)
"""
    runner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert runner.stdin is not None
    runner.stdin.close()
    assert runner.wait(timeout=30) == 0


@pytest.mark.slow
def test_sbatch_gets_what_the_dry_run_has_shown(
    small: Small,
    slurm: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The script, the arrays that the site allows, the folder that is its owner's alone, and the
    command line above the environment.
    """
    options = ("--cluster", "slurm", "--group-size", "1", "--time", "0:30:00", "--sbatch", "mem=4G")
    env = slurm | {"SBATCH_TIMELIMIT": "1-00", "SBATCH_PARTITION": "gpu", "SBATCH_WAIT": "1"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert small.main(*options, "--dry-run", "--no-probe", "-v") == 0
    shown = capsys.readouterr().out
    assert not small.out.exists()
    assert launch("sweep", small.argv(*options, "--no-probe")[2:]) == 75
    assert "4 of 4 trials have not ended" in capsys.readouterr().err
    first, second = (tmp_path / "tools" / f"kept-{n}" for n in (0, 1))
    assert first.read_text().rstrip() in shown
    assert "#SBATCH --array=0-2%3" in first.read_text() and "--array" not in second.read_text()
    for line in ("--time=30", "--mem=4G", "--signal=USR2@120", "--requeue", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in first.read_text()
    assert (tmp_path / "tools" / "env-0").read_text() == "SBATCH_PARTITION=gpu\n"
    code = (tmp_path / "tools" / "path-0").read_text().strip().split(os.pathsep)[0]
    assert code == str(small.folder / "code" / provenance.source_sha256()[:12])
    assert "from the environment: --partition=gpu" in shown
    folder = small.folder / "submitit"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.pkl"):
        assert b"ddpm.cluster.task" in path.read_bytes() and path.stat().st_size < 1000
    jobs = submit.read_jobs(small.folder)
    assert [job.job for job in jobs] == ["70_0", "70_1", "70_2", "71"]
    assert all(len(job.trials) == 1 for job in jobs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ((), {"CLUSTER.NUM_WORKERS": 2}, "CLUSTER.NUM_WORKERS above 1"),
        ((), {"CLUSTER.GPUS_PER_WORKER": 0.5}, "shares of a GPU"),
        (("--time", "5"), {}, "--time 15 or more"),
        (("--time", "soon"), {}, "time limit 'soon'"),
        (("--jobs", "0"), {}, "--jobs is 0; give at least 1"),
        (("--sbatch", "array=1-5"), {}, "sets --array itself"),
        (("--sbatch", "time=5"), {}, "use --time"),
        (("--sbatch", "a b"), {}, "give KEY=VALUE"),
        (("--sbatch", "comment=a\nb"), {}, "a value is one line"),
        ((), {"TRAINING.OUTPUT_DIR": "out%j"}, "choose another TRAINING.OUTPUT_DIR"),
    ],
)
def test_bad_requests_write_nothing(
    small: Small,
    slurm: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    changed: dict[str, object],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", slurm["PATH"])
    small.refused(message, "--cluster", "slurm", *options, **changed)


def test_a_number_of_requeues_that_is_none_is_refused(
    small: Small, slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**slurm, "DDPM_REQUEUES": "often"}.items():
        monkeypatch.setenv(name, value)
    small.refused("DDPM_REQUEUES is 'often'", "--cluster", "slurm")


def test_without_sbatch_it_says_what_to_do(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of its own: /usr/bin has sbatch where SLURM's packages are installed.
    monkeypatch.setenv("PATH", str(small.file.parent / "empty"))
    small.refused("not found on this machine", "--cluster", "slurm")
    small.refused("give --cluster slurm or local too", "--jobs", "2")


def test_group_sizes() -> None:
    def size(todo: int, seconds: float | None = None, **options: object) -> int:
        asked = JobOptions(**({"cluster": "slurm"} | options))  # type: ignore[arg-type]
        return group_size(todo, asked, jobs=4, seconds=seconds)

    assert size(9) == 3 and size(3) == 1
    assert size(9, 600.0) == 3, "long trials: as many tasks as may run at once"
    assert size(100, 10.0) == 25 and size(20, 10.0) == 13, "short ones: two minutes' worth"
    assert size(9, 1.0, group_size=2) == 2 and size(2, group_size=5) == 2
    with pytest.raises(InputError, match="--group-size 3 or more"):
        size(9, cluster="local", group_size=2)


def test_a_journal_outlives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.json")
    assert not journal.begun and journal.open_item is None
    journal.begin("00000001")
    journal.end("00000001", "done")
    journal.begin("00000002")
    assert (journal.ended, journal.open_item) == ({"00000001"}, "00000002")
    with journal.path.open("a") as file:
        file.write('{"end": "0000')
    assert journal.open_item == "00000002" and journal.exit_code is None


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    def trial(number: int) -> TrialTask:
        place = f"/r/{number} it's $(a) run\n"
        return TrialTask(
            folder=str(tmp_path),
            outcome=Outcome(trial=f"{number:08x}", cell={"A.B": 1}, seed=number, run_dir=place),
            job=TrainingJob(config={}, run_dir=place, data_dir="/d", threads=1, command=("a", "b")),
            workers=Workers(count=1, cpus=1, gpus=0.0),
        )

    (task,) = write_tasks(tmp_path, [{f"{n:08x}": asdict(trial(n)) for n in range(2)}])
    first, second = left(TaskFile.read(task.path))
    assert (first.outcome, second.outcome) == (trial(0).outcome, trial(1).outcome)
    assert second.job.run_dir == trial(1).job.run_dir and second.workers == trial(1).workers
    first.ledger.record(first.outcome.done({}))
    assert [one.outcome for one in left(task)] == [second.outcome]
    assert record_death(task, "nobody knows") is None
    task.journal.begin("00000001")
    assert record_death(task, "crash") == second.outcome.failed("crash")
    assert left(task) == []
