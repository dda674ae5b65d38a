"""What status says is so: of living, dead, failed, waiting and finished trainings, from outside."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ddpm.cli.main import launch
from ddpm.cluster import slurm
from ddpm.cluster import status as status_table
from ddpm.cluster.status import RunStatus, Status, StatusSection, totals
from ddpm.errors import InputError, NonFiniteError
from ddpm.runs import storage
from ddpm.runs.directory import RunDirectory
from ddpm.runs.logs import failure_recorded
from ddpm.sweep.ledger import Ledger, Outcome
from tests.runs.test_directory import DATA, make_config, report, start
from tests.support import train_process
from tests.support.processes import forked, until
from tests.support.tiny_training import DIGITS, overrides

ROOT = Path(__file__).resolve().parent.parent.parent
FACTS = {"total_steps": 40, "workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 0}


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for PATH, without SLURM's commands until a test puts them there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    return commands


def began(out: Path, step: int = 10, seed: int = 0, **facts: Any) -> RunDirectory:
    """A run that holds its directory, at a step of 40."""
    settings = make_config(out, SEED=seed)
    run = RunDirectory.find_or_name(settings, DATA)
    start(run, settings, facts=FACTS | facts)
    if step:
        speed = {"time/images_per_s": 640.0, "time/core_seconds": 1.0}
        run.record(report(step, saved=True, **speed))
    return run


def only(folder: Path) -> RunStatus:
    (section,) = Status(folder).read()
    (row,) = section.rows
    return row


def digest(folder: Path) -> str:
    """Of every name, content and time of change below a folder."""
    lines = [
        f"{p} {p.lstat().st_mtime_ns} {p.read_bytes() if p.is_file() else ''!r}"
        for p in sorted(folder.rglob("*"))
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_run_through_its_life(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = began(out, step=0)
    first = only(run.path)
    assert (first.state, first.step, first.total, first.note) == ("running", 0, 40, "starting")
    assert first.node == socket.gethostname()
    run.record(report(10, saved=True, **{"time/images_per_s": 640.0}))
    now = only(run.path)
    assert (now.state, now.step, now.loss, now.images_per_s) == ("running", 10, 0.1, 640.0)
    assert now.eta_s == pytest.approx(30 * 64 / 640) and now.note == ""
    run.record(report(40, saved=True, **{"time/images_per_s": 640.0}))
    assert only(run.path).note == "evaluating"
    run.close()
    assert only(run.path).state == "stopped"
    again = began(out, step=0)
    assert again.path == run.path and only(run.path).state == "running"
    again.finish({"steps": 40})
    again.close()
    ended = only(run.path)
    assert (ended.state, ended.step, ended.total, ended.eta_s) == ("done", 40, 40, None)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = began(out)
    sweep_of(out, [run])
    before = digest(out)
    for folder in (run.path, out, out / "sweeps" / "grid"):
        status_table.as_lines(Status(folder).read())
    assert digest(out) == before
    run.close()


@pytest.mark.slow
def test_a_killed_run_is_stopped_the_moment_it_dies(tmp_path: Path, few_digits: Path) -> None:
    """A real training, alive and then killed with -9."""
    from tests.training.test_resume import make_job

    job = make_job(tmp_path, few_digits, {"TRAINING.HYPER_PARAMETERS.EPOCHS": 2000})
    (tmp_path / "job.json").write_text(json.dumps(asdict(job)))
    process = forked(train_process.run, str(tmp_path / "job.json"), said=tmp_path / "said")
    try:
        run_dir = Path(job.run_dir)
        until("it trains", lambda: (run_dir / "metrics.jsonl").exists() or process.exitcode)
        assert process.exitcode is None
        alive = only(run_dir)
        assert alive.state == "running" and alive.total == 10_000 and alive.step > 0
    finally:
        process.kill()
        process.join()
    dead = only(run_dir)
    assert dead.state == "stopped" and dead.note.startswith("since 20")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run of another host, whose lock cannot be seen from here."""
    run = began(tmp_path / "out")
    run.close()
    signed = {"host": "n7", "pid": 5, "job": "31", "started": "2026-01-01T00:00:00+00:00"}
    (run.path / ".lock").write_text(json.dumps(signed))
    yield run


def silent(run: RunDirectory) -> None:
    """The run wrote nothing for an hour."""
    for path in [*run.path.iterdir(), run.path]:
        os.utime(path, (time.time() - 3600,) * 2)


def test_on_another_host_a_run_is_alive_that_writes(foreign: RunDirectory) -> None:
    found = only(foreign.path)
    assert (found.state, found.node, found.job) == ("running", "n7", "31")
    silent(foreign)
    assert only(foreign.path).state == "stopped"


def test_on_another_host_a_run_that_let_go_is_not_alive(foreign: RunDirectory) -> None:
    (foreign.path / ".lock").write_text("")  # as an end in order leaves it
    assert only(foreign.path).state == "stopped"


def put(commands: Path, name: str, *lines: str) -> None:
    """A command of SLURM's that prints these lines."""
    path = commands / name
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    path.chmod(0o755)


def test_on_another_host_a_run_is_dead_whose_job_slurm_does_not_run(
    foreign: RunDirectory, no_slurm: Path
) -> None:
    put(no_slurm, "squeue", "31|31|RUNNING|None|train", "40|40|PENDING|Priority|train")
    assert only(foreign.path).state == "running"
    put(no_slurm, "squeue", "40|40|PENDING|Priority|train")
    put(no_slurm, "sacct", "31|31|NODE_FAIL|0:0")
    found = only(foreign.path)
    assert found.state == "stopped" and found.note.endswith("; job 31: NODE_FAIL")
    put(no_slurm, "squeue", "31|31|PENDING|BeginTime|train")
    found = only(foreign.path)
    assert (found.state, found.note) == ("queued", "job 31 waits (BeginTime)")
    silent(foreign)
    put(no_slurm, "squeue", "31|31|RUNNING|None|train")  # which has gone on to something else
    assert only(foreign.path).state == "stopped"


@pytest.mark.slow
def test_slurm_that_hangs_or_fails_is_done_without(
    foreign: RunDirectory, no_slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_PATIENCE_S", 0.3)
    (no_slurm / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (no_slurm / "squeue").chmod(0o755)
    began_at = time.monotonic()
    assert only(foreign.path).state == "running"
    assert time.monotonic() - began_at < 30  # squeue sleeps for 60 s
    (no_slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert only(foreign.path).state == "running"


def test_slurm_is_asked_seldom(foreign: RunDirectory, no_slurm: Path, tmp_path: Path) -> None:
    for name in ("squeue", "sacct"):
        (no_slurm / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/asked\n")
        (no_slurm / name).chmod(0o755)
    status = Status(foreign.path)
    for _ in range(20):
        status.read()
    assert (tmp_path / "asked").read_text().split() == ["squeue", "sacct"]


def test_a_failed_run_says_why_until_it_starts_again(tmp_path: Path) -> None:
    run = began(tmp_path / "out")
    with pytest.raises(NonFiniteError), failure_recorded(run.path):
        raise NonFiniteError("step 11: non-finite loss\nlower LEARNING_RATE")
    run.close()
    found = only(run.path)
    assert found.state == "failed" and found.note == "lower LEARNING_RATE (exit code 4)"
    last = (run.path / "train.log").read_text().splitlines()[-1]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR exit code 4: "
        r"step 11: non-finite loss \| lower LEARNING_RATE",
        last,
    )
    again = began(tmp_path / "out", step=0)
    assert only(run.path).state == "running"
    assert not (run.path / "FAILED.json").exists()
    with pytest.raises(ZeroDivisionError), failure_recorded(run.path):
        1 / 0  # noqa: B018
    again.close()
    note = only(run.path).note
    assert note.startswith("ZeroDivisionError: division by zero (test_status.py:")
    assert note.endswith("(exit code 1)")


@pytest.mark.slow
def test_a_training_that_fails_leaves_its_reason(tmp_path: Path, few_digits: Path) -> None:
    """A real one, whose numbers run away."""
    out = tmp_path / "out"
    diverging = ("TRAINING.HYPER_PARAMETERS.LEARNING_RATE=1e4", "TRAINING.CLIP_NORM=null")
    length = "TRAINING.HYPER_PARAMETERS.EPOCHS=10"
    places = (f"DATASET.PATH={few_digits}", f"TRAINING.OUTPUT_DIR={out}")
    words = overrides(*diverging, length, *places)
    assert launch("train", [str(DIGITS), *words]) == 4
    found = only(out)
    assert found.state == "failed" and "non-finite" in found.note
    assert found.note.endswith("(exit code 4)") and found.total == 20


def test_hours_of_an_unfinished_run_are_what_its_attempts_held(tmp_path: Path) -> None:
    run = began(tmp_path / "out")
    run.close()
    first = RunDirectory(run.path).provenance
    hour = timedelta(hours=1)
    began_at = datetime.fromisoformat(first["started"]) - 3 * hour
    # an attempt of one hour, killed long ago: the next one finds its last sign in memory.csv
    facts = first | {"started": began_at.isoformat()}
    storage.write_json(run.path / "provenance.json", facts | {"attempts": [facts]})
    sign = (began_at + hour).timestamp()
    os.utime(run.path / "memory.csv", (sign, sign))
    again = began(tmp_path / "out", step=0)
    found = only(run.path)
    assert found.core_hours == pytest.approx(1 * 2 * 3, abs=0.05) and found.gpu_hours == 0
    again.close()
    facts = again.provenance
    facts["attempts"][0] |= {"gpus_per_worker": 0.5}
    storage.write_json(run.path / "provenance.json", facts)
    found = only(run.path)
    assert found.gpu_hours == pytest.approx(1 * 2 * 0.5, abs=0.01)
    assert found.core_hours < 0.05


def test_a_finished_run_cost_what_the_report_says(tmp_path: Path) -> None:
    run = began(tmp_path / "out")
    cost = {"trial_core_seconds": 900.0, "core_seconds": 600.0, "trial_seconds": 1800.0}
    run.finish({"steps": 40, **cost})
    run.close()
    found = only(run.path)
    assert (found.core_hours, found.gpu_hours) == (0.25, 0)
    facts = run.provenance | {"workers": 2, "gpus_per_worker": 0.5}
    storage.write_json(run.path / "provenance.json", facts)
    found = only(run.path)
    assert (found.core_hours, found.gpu_hours) == (0, 0.5)


def planned(run: RunDirectory | None, trial: str, cell: str) -> dict[str, Any]:
    run_dir = run.path if run else Path("/elsewhere/a/b") / f"never_{trial}"
    return {"trial": trial, "cell": {"K": cell}, "seed": 0, "run_dir": str(run_dir), "steps": 40}


def sweep_of(out: Path, runs: list[RunDirectory]) -> Path:
    """A sweep folder of these runs, a trial that was never begun, and one that its ledger knows."""
    folder = out / "sweeps" / "grid"
    storage.make_folder(folder)
    trials = [planned(run, run.run_id, f"c{i}") for i, run in enumerate(runs)]
    trials += [planned(None, "aaaaaaaa", "never"), planned(None, "bbbbbbbb", "died")]
    storage.write_json(folder / "sweep.json", {"name": "grid", "planned": trials})
    blank = Outcome(**{k: trials[-1][k] for k in ("trial", "cell", "seed", "run_dir")})
    Ledger(folder / "ledger").record(blank.failed("the trial's process died: no memory"))
    return folder


def test_a_sweep_shows_every_trial_and_its_totals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    alive, done = began(out, seed=1), began(out, step=40, seed=2)
    done.finish({"steps": 40})
    done.close()
    folder = sweep_of(out, [alive, done])
    with storage.lock(folder / "sweep.lock", "it"):
        (section,) = Status(folder).read()
    assert section.is_driven
    states = [row.state for row in section.rows]
    assert states == ["running", "done", "planned", "failed"]
    assert [row.name for row in section.rows][:2] == ["c0 · seed 0", "c1 · seed 0"]
    assert section.rows[3].note == "the trial's process died: no memory"
    found = totals([section])
    assert found.counts["running"] == found.counts["planned"] == 1 and not found.has_ended
    # 30 of 40 steps of one and all of another, at ten steps a second, one at a time
    assert found.eta_s == pytest.approx(7.0)
    line = status_table.summary([section])
    assert line.startswith("4 trainings: 1 running, 1 done, 1 failed, 1 planned; 0.0")
    assert line.endswith("all end in about 7.0 s")
    alive.close()
    assert totals(Status(folder).read()).has_ended


def test_trials_of_array_jobs_wait_with_slurms_reason(tmp_path: Path, no_slurm: Path) -> None:
    out = tmp_path / "out"
    run = began(out)
    run.close()
    folder = sweep_of(out, [run])
    jobs = [{"job": "70_0", "trials": [run.run_id]}, {"job": "70_1", "trials": ["aaaaaaaa"]}]
    storage.write_json(folder / "jobs.json", jobs)
    put(no_slurm, "squeue", "70_0|71|RUNNING|None|train", "70_1|70|PENDING|Priority|train")
    rows = [row for row in Status(folder).read()[0].rows]
    assert [row.state for row in rows] == ["queued", "queued", "failed"]
    assert rows[0].note == "job 70_0 has not come to it yet"
    assert rows[1].note == "job 70_1 waits (Priority)" and rows[1].job == "70_1"
    put(no_slurm, "squeue")
    put(no_slurm, "sacct", "70_0|71|TIMEOUT|0:0", "70_1|70|CANCELLED by 0|0:0")
    rows = [row for row in Status(folder).read()[0].rows]
    assert [row.state for row in rows] == ["stopped", "planned", "failed"]
    assert rows[1].note == "job 70_1: CANCELLED by 0"


def test_an_output_dir_shows_sweeps_and_the_runs_of_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trial, alone = began(out, seed=1), began(out, seed=2)
    sweep_of(out, [trial])
    sweep, runs = Status(out).read()
    assert (sweep.title, runs.title) == ("sweep grid", "runs")
    assert len(sweep.rows) == 3
    (row,) = runs.rows
    assert row.name == f"cosine_1000_velocity_MSE {alone.run_id}"
    # the same after the whole folder was moved
    trial.close()
    alone.close()
    out.rename(tmp_path / "moved")
    sweep, runs = Status(tmp_path / "moved").read()
    assert [row.state for row in sweep.rows] == ["stopped", "planned", "failed"]
    assert [row.state for row in runs.rows] == ["stopped"]


def test_files_torn_by_a_kill_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    run = began(tmp_path / "out")
    run.close()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 20, "ima')
    assert only(run.path).step == 10
    (run.path / "provenance.json").write_text('{"host": ')
    assert only(run.path).state == "stopped"


@pytest.mark.parametrize("name", ["missing", "empty", "file", "out/sweeps"])
def test_another_folder_is_refused_with_what_is_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    sweep_of(tmp_path / "out", [])
    with pytest.raises(InputError, match="no run directory .* no sweep .* no OUTPUT_DIR") as caught:
        Status(tmp_path / name)
    assert caught.value.exit_code == 2


def test_the_command_prints_plain_lines_and_ends_with_the_totals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = began(tmp_path / "out")
    assert launch("status", [str(tmp_path / "out")]) == 0
    header, row, _, last = capsys.readouterr().out.splitlines()[1:]
    assert header.split()[:3] == ["state", "training", "step"] and "job" not in header
    assert re.match(r"running  cosine_1000_velocity_MSE \w{8}  10/40  0\.1000 ", row)
    assert last.startswith("1 training: 1 running; 0.0")
    assert launch("status", [str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    run.close()


@pytest.mark.slow
def test_watch_ends_when_all_has_ended_and_ctrl_c_ends_it_before(tmp_path: Path) -> None:
    run = began(tmp_path / "out", step=40)
    watch = [sys.executable, str(ROOT / "launch" / "status.py"), str(run.path)]
    watch += ["--watch", "--every", "0.2"]
    first, second = (
        subprocess.Popen(
            watch,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # pytest in the background of a shell ignores it, and what it starts would, too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for _ in range(2)
    )
    assert first.stdout and second.stdout
    while "1 running" not in (line := second.stdout.readline()):
        assert line
    second.send_signal(signal.SIGINT)
    assert second.communicate(timeout=60)[1] == "" and second.returncode == 0
    while "1 running" not in (line := first.stdout.readline()):
        assert line
    assert first.poll() is None
    run.finish({"steps": 40})
    run.close()
    out, errors = first.communicate(timeout=60)
    assert first.returncode == 0 and errors == "" and "1 done" in out.splitlines()[-1]


def test_a_terminal_gets_a_table_that_fits(tmp_path: Path) -> None:
    run = began(tmp_path / "out")
    with pytest.raises(NonFiniteError), failure_recorded(run.path):
        raise NonFiniteError("[red] " + "long " * 50)
    run.close()
    sections = Status(run.path).read()
    with (tmp_path / "shown").open("w") as file:
        console = Console(file=file, force_terminal=True, width=100, color_system=None)
        status_table.show_status(sections, console)
    lines = (tmp_path / "shown").read_text().splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 100
    assert " ... " in "".join(lines) and "(exit code 4)" in status_table.as_lines(sections)
    assert "[red]" in "".join(lines)


def test_on_a_low_screen_the_totals_and_what_needs_a_look_come_first(tmp_path: Path) -> None:
    states = ["done"] * 30 + ["running", "planned", "failed"]
    rows = [RunStatus(name=f"t{i}", state=s) for i, s in enumerate(states)]
    sections = [StatusSection(title="sweep x", rows=rows)]
    with (tmp_path / "shown").open("w") as file:
        console = Console(file=file, force_terminal=True, width=100, color_system=None)
        console.print(status_table.rendered(sections, height=24))
        console.print(status_table.rendered(sections, height=50))
    lines = [line.split() for line in (tmp_path / "shown").read_text().splitlines()]
    words = [line[0] if line else "" for line in lines]
    assert words[:7] == ["33", "", "sweep", "state", "failed", "running", "planned"]
    assert words[-1] == "33" and words[-4:-2] == ["planned", "failed"]


@pytest.mark.slow
def test_a_glance_at_the_lock_refuses_nobody(tmp_path: Path) -> None:
    """Two look without a pause while the lock is taken three hundred times."""
    path = tmp_path / ".lock"
    path.touch()
    glance = "import sys, pathlib, ddpm.runs.storage\nprint(flush=True)\n"
    glance += "while True: ddpm.runs.storage.is_held(pathlib.Path(sys.argv[1]))"
    look = [sys.executable, "-c", glance, str(path)]
    looking = [subprocess.Popen(look, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in looking:
            assert process.stdout and process.stdout.readline()
        for _ in range(300):
            with storage.lock(path, "it"):
                assert storage.is_held(path)
    finally:
        for process in looking:
            process.kill()
            process.communicate()
    assert storage.is_held(path) is False and storage.is_held(tmp_path / "none") is False


def test_json_has_every_number_and_the_run_s_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = began(out, seed=1)
    sweep_of(out, [run])
    assert launch("status", [str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (section,) = shown["sections"]
    assert section["title"] == "sweep grid" and not section["is_driven"]
    first = section["rows"][0]
    assert (first["state"], first["step"], first["total"], first["loss"]) == (
        "running",
        10,
        40,
        0.1,
    )
    assert first["path"] == str(run.path)
    assert shown["totals"]["counts"]["running"] == 1 and shown["totals"]["eta_s"] is not None
    with pytest.raises(SystemExit, match="^2$"):
        launch("status", [str(out), "--json", "--watch"])
    run.close()


def test_an_imported_run_is_done(tmp_path: Path) -> None:
    run = began(tmp_path / "out", step=0, imported={"file": "v3.h5", "sha256": "0"})
    run.close()
    found = only(run.path)
    assert (found.state, found.note) == ("done", "imported from v3.h5")


def test_cancel_asks_a_run_to_stop_and_says_where_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = began(tmp_path / "out")
    assert launch("cancel", [str(tmp_path / "out" / "latest")]) == 0
    assert capsys.readouterr().out == f"{run.path}: asked to save and stop\n"
    assert run.stop_requested
    storage.remove(run.path / "STOP")
    run.close()
    assert launch("cancel", [str(run.path)]) == 0
    assert "nothing runs or waits" in capsys.readouterr().out and not run.stop_requested
    assert launch("cancel", [str(tmp_path)]) == 2
    assert "no run, no sweep and no images in bulk" in capsys.readouterr().err


def test_cancel_stops_a_sweep_and_takes_its_jobs_out_of_the_queue(
    tmp_path: Path, no_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep_of(tmp_path / "out", [])
    assert launch("cancel", [str(folder)]) == 0
    assert "nothing runs or waits" in capsys.readouterr().out and not (folder / "stop").exists()
    with storage.lock(folder / "sweep.lock", "it"):
        assert launch("cancel", [str(folder)]) == 0
    assert (folder / "stop").exists() and "asked to save and stop" in capsys.readouterr().out
    storage.remove(folder / "stop")
    blank = {"name": "sweep-grid", "cluster": "slurm", "group": "jobs/x.json"}
    jobs = [blank | {"job": f"70_{n}", "trials": [f"{n}" * 8]} for n in (0, 1)]
    storage.write_json(folder / "jobs.json", jobs)
    put(no_slurm, "squeue", *(f"70_{n}|7{n}|PENDING|Priority|sweep-grid" for n in (0, 1)))
    (no_slurm / "scancel").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/cancelled\n')
    (no_slurm / "scancel").chmod(0o755)
    assert launch("cancel", [str(folder)]) == 0
    assert (tmp_path / "cancelled").read_text() == "70\n" and (folder / "stop").exists()
    assert capsys.readouterr().out.splitlines()[1:] == ["scancel 70"]


def test_cancel_takes_a_run_that_waits_out_of_the_queue(
    foreign: RunDirectory, no_slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(no_slurm, "squeue", "31|31|PENDING|BeginTime|train")
    put(no_slurm, "scancel")
    assert launch("cancel", [str(foreign.path)]) == 0
    assert capsys.readouterr().out == "scancel 31\n" and not foreign.stop_requested
    (no_slurm / "scancel").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    assert launch("cancel", [str(foreign.path)]) == 1
    assert capsys.readouterr().err == "error: scancel 31: Access denied\n"


def test_logs_are_the_last_lines_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    run = began(tmp_path / "out")
    run.close()
    (run.path / "train.log").write_text("one\ntwo\nthree\n")
    assert launch("logs", [str(run.path), "-n", "2"]) == 0
    assert capfd.readouterr().out == "two\nthree\n"
    folder = sweep_of(tmp_path / "out", [run])
    assert launch("logs", [str(folder)]) == 2
    assert "no train.log and no output of jobs" in capfd.readouterr().err
    (folder / "submitit").mkdir()
    for job in ("7_0", "7_1"):
        (folder / "submitit" / f"{job}_0_log.out").write_text(f"of {job}\n")
    assert launch("logs", [str(folder)]) == 0
    shown = capfd.readouterr().out
    assert "of 7_0\n" in shown and "of 7_1\n" in shown
