"""Event files have every number and picture of the run directories, and are made anew."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddpm.cli.report import main
from ddpm.tracking.wandb_log import SAMPLES, shown_name
from tests.support.known_sweeps import PRED_TYPE
from tests.support.synthetic_sweep import make_sweep

pytestmark = pytest.mark.slow


def values(path: Path) -> Iterator[tuple[str, int, Any]]:
    """(name, step, value) in an event file: records of length, checksum, content, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            yield value.tag, event.step, value
        data = data[16 + length :]


def test_a_sweep_becomes_a_folder_of_events_a_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sweep(tmp_path, {PRED_TYPE: ["noise", "velocity"]}, (0,), rows=8, has_quality=False)
    folder = tmp_path / "sweeps" / "tiny"
    for _ in range(2):
        assert main([str(folder), "--tensorboard"]) == 0
    assert f"curves: tensorboard --logdir {folder / 'tensorboard'}" in capsys.readouterr().out
    found = {path.parent.name: path for path in folder.glob("tensorboard/*/events.*")}
    assert len(found) == 2 and len(list(folder.glob("tensorboard/*/*"))) == 2
    for outcome in map(json.loads, (p.read_text() for p in folder.glob("ledger/*.json"))):
        (name,) = (name for name in found if name.endswith(outcome["trial"]))
        assert name == f"{outcome['cell'][PRED_TYPE]}_seed_0_{outcome['trial']}"
        events = list(values(found[name]))
        run = tmp_path / outcome["run_dir"]
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scalars = {(tag, step): v.simple_value for tag, step, v in events if tag != SAMPLES}
        expected = {
            (shown_name(key), row["step"]): value
            for row in rows
            for key, value in row.items()
            if key != "step" and value is not None
        }
        assert len(rows) > 1 and scalars == pytest.approx(expected, rel=1e-6)
        pictures = [step for tag, step, _ in events if tag == SAMPLES]
        assert pictures == [int(p.stem[-8:]) for p in sorted((run / "inline_gen").glob("*.png"))]
