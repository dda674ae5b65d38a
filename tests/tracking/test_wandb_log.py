"""The tracker shows what the run directory has, each step once, and never holds training up.

Real wandb throughout; the servers it meets are refusals, silences and errors on loopback.
"""

import hashlib
import http.server
import json
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm import config
from ddpm.cli.main import launch
from ddpm.runs.checkpoint import MANIFEST
from ddpm.runs.directory import RunDirectory
from ddpm.tracking.wandb_log import (
    FINAL_SAMPLES,
    WandbTracker,
    mode_of,
    shown_name,
    wandb_problems,
    wandb_tracker,
)
from tests.runs.test_directory import DATA, Report, make_config, report, start, state

ROOT = Path(__file__).parent.parent.parent
CANARY = "local" + "c" * 35


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no server but those a test sets."""
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    return with_wandb(tmp_path, TAGS=["digits", "first"])


def with_wandb(tmp_path: Path, **keys: object) -> config.Config:
    plain = config.to_dict(make_config(tmp_path / "out"))
    return config.from_dict(plain | {"WANDB": keys})


def opened(settings: config.Config) -> RunDirectory:
    run = RunDirectory.find_or_name(settings, DATA)
    start(run, settings)
    return run


def feed(tracker: Any, run: RunDirectory, reports: list[Report]) -> None:
    """The worker's part at each report."""
    for each in reports:
        run.record(each)
        tracker.log(each)


def fragments(run: RunDirectory) -> list[Path]:
    return sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))


def records(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in the one offline fragment."""
    return [record[kind] for record in everything(run) if record["type"] == kind]


def everything(run: RunDirectory) -> list[dict[str, Any]]:
    """All records of the one offline fragment, as wandb's own reader gives them."""
    (path,) = fragments(run)
    return inspected(path, path.stat().st_size)


@cache
def inspected(path: Path, size: int) -> list[dict[str, Any]]:
    """The same while the fragment has this size: a second look starts no process."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def history(run: RunDirectory) -> list[dict[str, Any]]:
    return [record["item"] for record in records(run, "history")]


def steps(run: RunDirectory) -> list[int]:
    """Of the rows of training: curves of the end have other axes, its samples come last."""
    final = f"{FINAL_SAMPLES}._type"
    return [row["step"] for row in history(run) if "step" in row and final not in row]


@pytest.mark.slow
def test_offline_by_default_and_every_number_arrives(settings: config.Config) -> None:
    run = opened(settings)
    tracker = wandb_tracker("sweeps/pred_types")(settings, run)
    samples = np.zeros((4, 8, 8, 1), np.uint8)
    pictured = Report(step=30, images=1920, metrics={"loss": 0.25}, samples=samples)
    feed(tracker, run, [report(10), report(20, learning_rate=2e-4), pictured])
    tracker.finish({"final_loss": 0.25, "best_level": -3.0, "absent": None})
    run.close()

    rows = history(run)
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == [10, 20, 30]
    assert [row["train/loss"] for row in rows] == [0.1, 0.05, 0.25]
    assert rows[1]["train/learning_rate"] == 2e-4 and rows[1]["time/seconds"] == 0.5
    assert all(row["memory/process_rss"] > 0 and row["images"] > 0 for row in rows)
    assert "samples._type" not in rows[0] and rows[2]["samples._type"] == "image-file"
    media = list((run.path / "wandb").glob("offline-run-*/files/media/images/*.png"))
    picture = (run.path / "inline_gen" / "step-00000030.png").read_bytes()
    assert [path.read_bytes() for path in media] == [picture]
    (sent,) = records(run, "run")
    assert sent["run_id"] == run.run_id and sent["project"] == "ddpm"
    assert sent["run_group"] == "sweeps/pred_types" and sent["tags"] == ["digits", "first"]
    assert "velocity" in sent["display_name"] and "seed 0" in sent["display_name"]
    sent["config"]["update"].pop("_wandb")
    assert sent["config"]["update"] == json.loads(json.dumps(config.to_dict(settings)))
    assert records(run, "exit")
    assert {"glob_name": "*", "step_metric": "step"}.items() <= records(run, "metric")[-1].items()
    summary = {}
    for record in records(run, "summary"):
        summary |= record.get("update", {})
    assert summary["best_level"] == -3.0 and "absent" not in summary


@pytest.mark.slow
def test_a_resumed_run_has_one_fragment_with_each_step_once(settings: config.Config) -> None:
    run = opened(settings)
    tracker = wandb_tracker(None)(settings, run)
    feed(tracker, run, [report(10), report(20, saved=True), report(30)])
    tracker.close()
    run.close()
    assert steps(run) == [10, 20, 30]

    again = opened(settings)  # from step 20: row 30 is dropped and comes again
    tracker = wandb_tracker(None)(settings, again)
    feed(tracker, again, [report(30), report(40, saved=True)])
    tracker.finish({})
    again.close()
    assert len(fragments(run)) == 1
    assert steps(run) == [10, 20, 30, 40]
    expected = run.metrics()
    for row, own in zip(history(run), expected, strict=True):
        assert {key: row[shown_name(key)] for key in own} == own
        assert row["memory/process_rss"] > 0


KILLED = """
import os, signal, sys
from tests.tracking.test_wandb_log import feed, opened, report, wandb_tracker, with_wandb
from pathlib import Path
settings = with_wandb(Path(sys.argv[1]).parent, TAGS=["digits", "first"])
run = opened(settings)
tracker = wandb_tracker(None)(settings, run)
feed(tracker, run, [report(step, saved=step == 300) for step in range(1, 301)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
def test_what_a_kill_took_from_the_tracker_is_there_after_the_next_start(
    settings: config.Config,
) -> None:
    # a wandb service of its own: that of this process would outlive the killed one
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", KILLED, settings.TRAINING.OUTPUT_DIR]
    assert subprocess.run(command, cwd=ROOT, env=own).returncode == -signal.SIGKILL
    run = opened(settings)
    tracker = wandb_tracker(None)(settings, run)
    tracker.close()
    run.close()
    assert steps(run) == list(range(1, 301)) == [row["step"] for row in run.metrics()]


@contextmanager
def refusing() -> Iterator[str]:
    """A port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serving(*codes: int) -> Iterator[str]:
    """A server that answers with these codes in turn, then with the last for ever."""
    left = list(codes)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


OUTAGES = {
    "refused": (refusing, "cannot be reached"),
    "silent": (silent, "did not answer|cannot be reached"),
    "500": (lambda: serving(500), "answers 500"),
    "answers once, then 500": (lambda: serving(200, 500), "Timed out|500|deadline"),
}


@pytest.mark.slow
@pytest.mark.parametrize("outage", OUTAGES)
def test_a_dead_server_costs_seconds_and_nothing_is_lost(
    outage: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make_server, reason = OUTAGES[outage]
    settings = with_wandb(tmp_path, MODE="online")
    run = opened(settings)
    with make_server() as url, caplog.at_level(logging.WARNING):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", CANARY)
        began = time.monotonic()
        tracker = wandb_tracker(None)(settings, run)
        delay = time.monotonic() - began
        print(f"start delayed by {delay:.1f} s")
        assert delay <= 15  # five by design; wandb's own patience is 90
        feed(tracker, run, [report(10), report(20)])
        tracker.finish({"final_loss": 1.0})
        run.close()
    assert steps(run) == [10, 20]
    record = json.loads((run.path / "wandb" / "mirror.json").read_text())
    assert record["mode"] == "offline"
    assert re.search(reason, record["reason"]), record
    assert "logging offline, upload later with `wandb sync" in caplog.text


@pytest.mark.slow
def test_without_a_key_it_is_offline_and_asks_no_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *to, **_: asked.append(to))
    settings = with_wandb(tmp_path, MODE="online")
    run = opened(settings)
    wandb_tracker(None)(settings, run).close()
    assert len(fragments(run)) == 1 and not asked
    assert "no API key (set WANDB_API_KEY or run `wandb login`)" in caplog.text
    run.close()


def test_disabled_is_nothing_at_all(tmp_path: Path) -> None:
    settings = with_wandb(tmp_path, MODE="disabled")
    run = opened(settings)
    assert wandb_tracker("group")(settings, run) is None
    run.close()
    assert not (run.path / "wandb").exists()


def test_the_environment_can_only_make_it_more_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, says, mode in (
        ("online", "offline", "offline"),
        ("online", "disabled", "disabled"),
        ("offline", "online", "offline"),
        ("disabled", "online", "disabled"),
        ("online", "", "online"),
        ("online", "dryrun", "offline"),
        ("online", "OFFLINE", "offline"),
        ("online", "Disabled", "disabled"),
        ("offline", "run", "offline"),
    ):
        monkeypatch.setenv("WANDB_MODE", says)
        assert mode_of(with_wandb(tmp_path, MODE=wanted)) == mode and not wandb_problems()
    monkeypatch.setenv("WANDB_MODE", "online")
    for says, mode in (("true", "disabled"), ("1", "disabled"), ("false", "online")):
        monkeypatch.setenv("WANDB_DISABLED", says)
        assert mode_of(with_wandb(tmp_path, MODE="online")) == mode


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_DISABLED"])
def test_a_word_that_is_none_is_refused_before_anything_is_written(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may have been meant to keep the run private."""
    monkeypatch.setenv(name, "offlin")
    monkeypatch.chdir(tmp_path)
    digits, sweep = ROOT / "configs" / "digits.yaml", ROOT / "sweeps" / "pred_types.yaml"
    for command, file in (("train", digits), ("sweep", sweep)):
        assert launch(command, [str(file), "WANDB.MODE=online"]) == 2
        assert f"error: {name} is 'offlin'; allowed: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_system_shows_what_the_machine_does(tmp_path: Path) -> None:
    for wanted in (False, True):
        settings = with_wandb(tmp_path / str(wanted), SYSTEM=wanted)
        run = opened(settings)
        tracker = wandb_tracker(None)(settings, run)
        assert tracker._run.settings.x_disable_stats is not wanted
        tracker.close()
        run.close()


@pytest.mark.slow
def test_artifacts_name_data_checkpoint_and_samples_and_upload_nothing(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}")
    for wanted in (False, True):
        settings = with_wandb(tmp_path / str(wanted), ARTIFACTS=wanted)
        run = RunDirectory.find_or_name(settings, DATA)
        run.start(settings, data_sha256=DATA, data_dir=tmp_path, threads=1, command=("train",))
        tracker = wandb_tracker(None)(settings, run)
        feed(tracker, run, [report(10, saved=True)])
        (run.path / "samples.npz").write_bytes(b"drawn")
        tracker.finish({})
        run.close()
        if not wanted:
            assert not records(run, "artifact")
    found = records(run, "artifact")
    data, checkpoint, samples = (json.loads(one["metadata"]) for one in found)
    assert [one["type"] for one in found] == ["dataset", "model", "samples"]
    assert data == {"path": str(tmp_path), "sha256": DATA}
    assert checkpoint["made_of"] == found[0]["name"] == f"data-{DATA[:16]}"
    assert samples["made_of"] == found[1]["name"] == f"checkpoint-{run.run_id}"
    assert samples["sha256/samples.npz"] == hashlib.sha256(b"drawn").hexdigest()
    folder = run.checkpoints / "step-00000010"
    assert checkpoint["path"] == str(folder)
    for name in ("model.safetensors", "state.json"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert checkpoint[f"sha256/{name}"] == digest
    for one in found:
        for entry in one["manifest"]["contents"]:
            assert entry["ref"].startswith("file:///") and "local_path" not in entry
            assert Path(urllib.parse.urlsplit(entry["ref"]).path).exists()
    copies = [p for p in (run.path / "wandb").rglob("*") if p.suffix in (".npz", ".safetensors")]
    assert not copies


@pytest.mark.slow
def test_a_run_whose_artifacts_fail_ends_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_wandb(tmp_path, ARTIFACTS=True)
    run = opened(settings)
    tracker = wandb_tracker(None)(settings, run)
    feed(tracker, run, [report(10, saved=True)])
    (run.checkpoints / "step-00000010" / MANIFEST).unlink()
    tracker.finish({"val_loss": 0.5})
    run.close()
    assert "the run ends without its artifacts" in caplog.text
    assert "no longer mirrored" not in caplog.text
    (end,) = records(run, "exit")
    assert not end.get("exit_code")


def test_a_tracker_that_cannot_start_does_not_stop_the_training(
    settings: config.Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = opened(settings)
    (run.path / "wandb").write_text("a file in the way")
    tracker = wandb_tracker(None)(settings, run)
    feed(tracker, run, [report(1)])
    tracker.finish({})
    run.close()
    assert "this attempt is no longer mirrored" in caplog.text and len(run.metrics()) == 1


@pytest.mark.slow
def test_a_tracker_that_breaks_on_the_way_says_so_once(
    settings: config.Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = opened(settings)
    tracker = wandb_tracker(None)(settings, run)
    assert isinstance(tracker, WandbTracker) and tracker._run is not None
    tracker._run.finish()  # as if its process were gone
    feed(tracker, run, [report(1), report(2), report(3)])
    tracker.close()
    run.close()
    assert caplog.text.count("no longer mirrored") == 1 and len(run.metrics()) == 3


BROKEN = """
import psutil, sys, time
from pathlib import Path
from tests.tracking.test_wandb_log import feed, opened, report, wandb_tracker, with_wandb
settings = with_wandb(Path(sys.argv[1]))
run = opened(settings)
tracker = wandb_tracker(None)(settings, run)
feed(tracker, run, [report(1)])
(service,) = psutil.Process().children(recursive=True)
service.kill()
began = time.monotonic()
feed(tracker, run, [report(step) for step in range(2, 40)])
tracker.finish({})
run.close()
print(len(run.metrics()), time.monotonic() - began < 10)
"""


@pytest.mark.long
def test_the_death_of_wandbs_own_process_does_not_stop_the_training(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", BROKEN, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "39 True\n"), result.stderr
    (log,) = (tmp_path / "out").glob("*/*/*/train.log")
    assert log.read_text().count("no longer mirrored") == 1


@pytest.mark.slow
def test_the_folder_is_private_and_holds_no_secret(
    settings: config.Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-aws-1234567890")
    monkeypatch.setattr("sys.argv", ["train.py", "--token", "canary-argv-1234567890"])
    run = opened(settings)
    tracker = wandb_tracker(None)(settings, run)
    feed(
        tracker, run, [report(1, saved=True), Report(step=2, images=2, metrics={}, state=state(2))]
    )
    tracker.finish({})
    run.close()
    assert stat.S_IMODE((run.path / "wandb").stat().st_mode) == 0o700
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert b"canary" not in content and CANARY.encode() not in content, path
    assert "wandb" not in "".join(capfd.readouterr())
