"""ddpm.sweep.ledger: outcomes are whole or absent, whatever happens to their writers."""

import itertools
import json
import logging
import math
import time
from pathlib import Path

import pytest

from ddpm.sweep.ledger import Ledger, Outcome, cell_name
from tests.support.processes import forked, until

PLANNED = Outcome(
    trial="0123abcd", cell={"TRAINING.PRED_TYPE": "noise"}, seed=1, run_dir="runs/one"
)


def test_an_outcome_comes_back_as_it_was(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "sweep" / "ledger")
    assert ledger.outcomes() == {}
    done = PLANNED.done({"mse": 0.1 + 0.2, "levels": [1, 2], "best": None})
    ledger.record(done)
    assert ledger.outcomes() == {"0123abcd": done}
    assert Ledger(ledger.folder).outcomes() == {"0123abcd": done}


def test_what_failed_is_tried_again_and_what_is_done_is_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    other = Outcome(trial="ffffffff", cell={}, seed=0, run_dir="two")
    ledger.record(PLANNED.failed("no memory"))
    ledger.record(other.done({}))
    assert ledger.outcomes()["0123abcd"].reason == "no memory"
    assert ledger.todo([PLANNED, other]) == [PLANNED]
    ledger.record(PLANNED.done({"mse": 1.0}))
    assert ledger.todo([PLANNED, other]) == []
    assert ledger.outcomes()["0123abcd"].reason is None


def test_a_number_that_is_none_is_kept_as_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record(PLANNED.done({"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}}))
    summary = ledger.outcomes()["0123abcd"].summary
    assert summary == {"a": None, "b": [None, 1.0], "c": {"d": None}}


@pytest.mark.parametrize("trial", ["", "../0123ab", "0123ABCD", "0123abcde", "a/b"])
def test_a_trial_must_be_a_run_id(tmp_path: Path, trial: str) -> None:
    with pytest.raises(ValueError, match="8 lower-case hexadecimal digits"):
        Ledger(tmp_path).record(Outcome(trial=trial, cell={}, seed=0, run_dir="").done({}))
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_has_not_ended_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        Ledger(tmp_path).record(PLANNED)


def whole(**changes: object) -> str:
    record = {"trial": "00000001", "cell": {}, "seed": 0, "run_dir": "", "status": "done",
              "reason": None, "summary": {}}  # fmt: skip
    return json.dumps({**record, **changes})


FOREIGN = {
    "00000001.json": whole()[:-5],
    "00000002.json": whole(trial="00000001"),
    "00000003.json": "",
    "00000004.json": "[1, 2]",
    "00000005.json": whole(trial="00000005", status="planned"),
    "00000006.json": whole(trial="00000006", cell="x"),
    "00000007.json": whole(trial="00000007", extra=1),
    "00000008.json": whole(trial="00000008", seed=None),
    "notes.txt": "hello",
    "notes.json": whole(trial="notes"),
}


def test_foreign_and_half_files_are_left_out_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in FOREIGN.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "00000009.json").mkdir()
    ledger = Ledger(tmp_path)
    ledger.record(PLANNED.done({}))
    with caplog.at_level(logging.WARNING):
        assert list(ledger.outcomes()) == ["0123abcd"]
        assert list(ledger.outcomes()) == ["0123abcd"]
    assert len(caplog.records) == len(FOREIGN) + 1
    assert all("is no whole outcome of a trial; left out" in line for line in caplog.messages)


def record_for_ever(folder: Path) -> int:
    """Outcomes of four trials in turn, each larger than a block, and the number of each printed."""
    ledger = Ledger(folder)
    for count in itertools.count():
        summary = {f"metric {n}": count for n in range(2000)}
        outcome = Outcome(trial=f"{count % 4:08x}", cell={"A": count}, seed=count, run_dir="r")
        ledger.record(outcome.done(summary))
        print(count)
    raise AssertionError


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_whole_outcomes_and_all_that_was_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in range(8):
        folder, said = tmp_path / str(attempt), tmp_path / f"said-{attempt}"
        process = forked(record_for_ever, folder, said=said)
        until("a first outcome", lambda said=said: said.exists() and said.read_text()[:2] == "0\n")
        time.sleep(0.013 * attempt)
        process.kill()
        process.join()
        reported = [int(line) for line in said.read_text().split("\n")[:-1]]
        with caplog.at_level(logging.WARNING):
            outcomes = Ledger(folder).outcomes()
        assert not caplog.records
        for outcome in outcomes.values():
            assert set(outcome.summary.values()) == {outcome.seed} and len(outcome.summary) == 2000
        for trial in range(4):
            last = max((n for n in reported if n % 4 == trial), default=None)
            if last is not None:
                assert outcomes[f"{trial:08x}"].seed in (last, last + 4)


@pytest.mark.slow
def test_a_reader_meets_no_half_written_outcome(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "ledger"
    process = forked(record_for_ever, folder, said=tmp_path / "said")
    try:
        with caplog.at_level(logging.WARNING):
            seen: set[int] = set()
            while len(seen) < 60:
                outcomes = Ledger(folder).outcomes()
                seen |= {outcome.seed for outcome in outcomes.values()}
                assert process.is_alive()
        assert not caplog.records
    finally:
        process.kill()
        process.join()


def test_a_cell_is_named_in_a_few_words() -> None:
    cell = {
        "TRAINING.NETWORK.SCHEDULER": "cosine",
        "TRAINING.NETWORK.TIMESTEPS": 250,
        "TRAINING.CLIP_NORM": None,
        "TRAINING.NETWORK.CHANNEL_MULTIPLIER": [1, 2],
    }
    assert cell_name(cell) == "cosine · T=250 · CLIP_NORM=null · CHANNEL_MULTIPLIER=[1, 2]"
    assert cell_name({}) == "the base"
    assert PLANNED.name == "noise · seed 1"
