"""Content of a server that speaks W&B's own protocol after a run: online, and synced afterwards.

    make test-wandb         needs openwandb (for non-commercial use), in a folder of its own

The server listens on loopback; what arrived is read from its database. It knows no reports (views)
and not all fields of the public API: those are tests/tracking/test_wandb_report.py's.
"""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.runs.directory import RunDirectory
from ddpm.runs.pictures import png
from ddpm.tracking.wandb_log import wandb_tracker
from tests.runs.test_directory import Report, report
from tests.tracking.test_wandb_labels import CELL, EVALUATION, write_quality
from tests.tracking.test_wandb_log import feed, opened, with_wandb

PIXELS = np.zeros((4, 8, 8, 1), np.uint8)
KEY = "local" + "0" * 40  # of its first user
OPENWANDB = os.environ.get("OPENWANDB", "")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not OPENWANDB, reason="OPENWANDB does not name its command"),
]


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server's address and its database."""
    folder = tmp_path_factory.mktemp("openwandb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [OPENWANDB, *options],
            env=os.environ | {"OPENWANDB_BASE_URL": url},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url, folder / "openwandb.db"
    finally:
        process.terminate()
        process.wait(30)


def held(database: Path, run: RunDirectory) -> tuple[dict[str, Any], list[tuple[str, int, float]]]:
    """The run's summary with its tags and name, and every number: (name, step, value)."""
    with sqlite3.connect(database) as rows:
        query = "select summary_json, tags_json, display_name, state from runs where run_id = ?"
        summary, tags, name, state = rows.execute(query, (run.run_id,)).fetchone()
        query = "select key, step, value from metrics where run_id = ? order by step"
        numbers = rows.execute(query, (run.run_id,)).fetchall()
    facts = {"tags": json.loads(tags), "name": name, "state": state}
    return {**json.loads(summary), **facts}, numbers


def train(tmp_path: Path, mode: str) -> RunDirectory:
    """A run of three reports, judged, in its tracker."""
    settings = with_wandb(tmp_path, MODE=mode)
    run = opened(settings)
    tracker = wandb_tracker("full_grid", CELL)(settings, run)
    pictured = Report(step=30, images=1920, metrics={"loss": 0.25}, samples=PIXELS)
    feed(tracker, run, [report(10), report(20), pictured])
    (run.path / "evaluation.json").write_text(json.dumps(EVALUATION))
    write_quality(run.path)
    (run.path / "samples.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    tracker.finish({"val_mean_log10_mse": -1.5})
    run.close()
    return run


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_all_of_a_run_arrives_each_step_once(
    mode: str, tmp_path: Path, database: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, file = database
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = train(tmp_path, mode)
    facts = json.loads((run.path / "wandb" / "tracker.json").read_text())
    assert facts["mode"] == mode, facts
    if mode == "offline":
        (fragment,) = run.path.glob("wandb/offline-run-*")
        command = [str(Path(sys.executable).with_name("wandb")), "sync", str(fragment)]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    summary, numbers = held(file, run)
    assert summary["tags"] == ["cosine", "velocity", "T=250"]
    assert summary["name"] == "cosine · velocity · T=250 seed 0"
    assert summary["state"] == "finished"
    assert [(step, value) for key, step, value in numbers if key == "train/loss"] == [
        (10, 0.1),
        (20, 0.05),
        (30, 0.25),
    ]
    assert [value for key, _, value in numbers if key == "x0_error"] == [0.8, 0.5, 0.1]
    assert [value for key, _, value in numbers if key == "quality/fid ddim eta=0"] == [9.0, 3.0]
    assert (summary["val/mean_log10_mse"], summary["bits_per_dim"]) == (-1.5, 3.25)
    assert summary["quality/fid"] == 3.0
