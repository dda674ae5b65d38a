"""Images in bulk by jobs, through real submitit: processes of this machine, signals, duplicates."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddpm.cluster import submit, submit_images
from ddpm.cluster.submit import JobOptions
from ddpm.cluster.submit_images import check
from ddpm.errors import StorageError
from ddpm.sampling.bulk import BulkFolder, parse_name, total
from tests.support.bulk_data import Bulk, files_of
from tests.support.processes import exit_codes, until
from tests.support.small_run import make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KEYS = {"GEN_TASK": "class_cond", "NUM_STEPS": 6}
NUM = 200
IN_UNITS = ("--num", NUM, "--unit", 8, "--batch-size", 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> BulkFolder:
    return Bulk(run, tmp_path_factory.mktemp("undisturbed") / "out", KEYS).draw(NUM)


@pytest.fixture
def bulk(run: Path, tmp_path: Path) -> Iterator[Bulk]:
    made = Bulk(run, tmp_path / "out", KEYS)
    yield made
    for process in made.jobs():
        process.kill()


def drawn(bulk: Bulk) -> int:
    """Images there so far."""
    return total(bulk.series.present()) if bulk.out.exists() else 0


def begun(bulk: Bulk) -> list[range]:
    """The units that jobs have begun, once for each time."""
    folder = bulk.series.folder / "jobs"
    lines = "".join(path.read_text() for path in folder.glob("*.journal")).splitlines()
    texts = [line.split('"')[3] for line in lines if '"begin"' in line]
    return [span for text in texts if (span := parse_name(text))]


@pytest.mark.long
def test_ctrl_c_detaches_a_duplicate_watches_and_a_process_that_dies_has_another_go_on(
    bulk: Bulk, undisturbed: BulkFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "first"
    first = bulk.start(*IN_UNITS, "--cluster", "local", "--jobs", 2, said=said)
    until("two jobs draw", lambda: len(bulk.runners()) == 2 and drawn(bulk) > 8)
    for runner in bulk.runners():
        runner.suspend()  # there is something left to draw, however quick they are
    os.kill(first.pid or 0, signal.SIGINT)
    assert exit_codes([first]) == [75] and "detached; 2 job(s) go on" in said.read_text()
    killed, other = bulk.runners()
    said = tmp_path / "second"
    second = bulk.start(*IN_UNITS, "--cluster", "local", "--jobs", 2, said=said)
    until("it watches them", lambda: said.exists() and "look: " in said.read_text())
    assert bulk.main("--status") == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown and ": running, at images " in shown
    killed.kill()
    other.resume()
    output = exit_codes([second]) and said.read_text()
    assert second.exitcode == 0, output
    assert " 0 to draw, " in output and "submitted" not in output
    assert len(begun(bulk)) - len(set(begun(bulk))) <= 1, "drawn twice but where a process died"
    assert files_of(bulk.series) == files_of(undisturbed)


@pytest.mark.long
def test_term_ends_a_task_for_good_and_the_next_command_draws_the_rest(
    bulk: Bulk, undisturbed: BulkFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tmp_path / "said"
    driver = bulk.start(*IN_UNITS, "--cluster", "local", "--jobs", 1, said=said)
    until("a job draws", lambda: bulk.runners() and drawn(bulk) > 8)
    (runner,) = bulk.runners()
    runner.parents()[0].terminate()
    assert exit_codes([driver]) == [75] and "the same command draws them" in said.read_text()
    (job,) = submit.read_jobs(bulk.series.folder)
    assert job.journal.exit_code == 75 and not bulk.runners()
    there = drawn(bulk)
    assert 8 < there < NUM
    assert bulk.main(*IN_UNITS) == 0
    assert f"{there} are there, {NUM - there} to draw" in capsys.readouterr().out
    assert files_of(bulk.series) == files_of(undisturbed)


def test_debug_draws_one_part_after_the_other(
    bulk: Bulk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bulk.main("--num", 30, "--unit", 8, "--cluster", "debug") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("done: 30 images in ")


def test_debug_ends_with_the_error_of_its_part(bulk: Bulk) -> None:
    mine = Bulk(make_run(bulk.out.parent), bulk.out, KEYS)
    plan, request = check(mine.request(8), JobOptions(cluster="debug"))
    for path in mine.run.glob("checkpoints/*/*"):
        path.unlink()
    with pytest.raises(StorageError, match="failed for the reason above"):
        submit_images.run(plan, request, should_stop=lambda: False)


@pytest.mark.long
def test_a_task_that_fails_by_itself_is_named_with_its_reason(bulk: Bulk, tmp_path: Path) -> None:
    """Here the checkpoint, pruned by a training that goes on."""
    mine, said = Bulk(make_run(bulk.out.parent), bulk.out, KEYS), tmp_path / "said"
    driver = mine.start(*IN_UNITS, "--cluster", "local", "--jobs", 1, said=said)
    until("a job is there", lambda: mine.jobs())
    for path in mine.run.glob("checkpoints/*/*"):
        path.unlink()
    output = exit_codes([driver]) and said.read_text()
    assert driver.exitcode == 5, output
    assert "exit code 5: error: " in output and "200 of 200 images are missing" in output
