"""Where the time up to the first step goes."""

import logging

import pytest

from ddpm.training import worker


def test_parts_add_up_to_the_time_since_the_job_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker.JOB_START, "1000.0")
    monkeypatch.setenv(worker.JOB_READY, "1001.5")
    monkeypatch.setattr(worker.time, "time", iter([1003.0, 1007.0, 1007.5]).__next__)
    marks = worker.marked(worker.marked(worker.begun(), "data"), "Ray")
    assert worker.table(marks) == {
        "job script": 1.5,
        "imports": 1.5,
        "data": 4.0,
        "Ray": 0.5,
        "total": 7.5,
    }


def test_the_first_step_tells_and_the_others_do_not(caplog: pytest.LogCaptureFixture) -> None:
    called = []
    on_step = worker.told_after_first_step(worker.begun(), lambda: called.append(1))
    assert on_step is not None
    with caplog.at_level(logging.INFO, "ddpm.run"):
        for _ in range(3):
            on_step()
    (line,) = caplog.messages
    assert line.startswith("seconds to the first step: job script ") and len(called) == 3


def test_without_marks_nothing_is_added() -> None:
    assert worker.told_after_first_step((), None) is None
