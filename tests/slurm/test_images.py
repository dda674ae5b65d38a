"""Images in bulk as array jobs, from the controller: `launch/sample.py --num --cluster slurm`."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ddpm.cluster import submit as job_list
from ddpm.sampling import bulk
from ddpm.sampling.bulk import BulkFolder
from tests.slurm.hosts import REPOSITORY, patience, wait_until
from tests.slurm.lab import Lab
from tests.support.bulk_data import RUNNER, Bulk, files_of
from tests.support.small_run import make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NUM, UNIT, BATCH = 2000, 16, 4
# So many steps that six tasks draw at once before the first of them has ended.
KEYS = {"GEN_TASK": "class_cond", "SPACING": "logsnr", "NUM_STEPS": 36}
OPTIONS = ("--num", NUM, "--unit", UNIT, "--batch-size", BATCH)


class Images:
    """2,000 small images in a folder that all hosts share."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.bulk = lab, Bulk(make_run(folder / "runs"), folder / "out", KEYS)

    def start(self, *options: object) -> "subprocess.Popen[str]":
        """launch/sample.py on the controller; the jobs get its environment."""
        words = self.bulk.argv(*OPTIONS, *options)[1:]
        return subprocess.Popen(
            self.lab.ctl.command(sys.executable, *words),
            env=self.lab.ctl.environment() | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, *options: object) -> "subprocess.Popen[str]":
        return self.start("--cluster", "slurm", "--jobs", "6", *options)

    @property
    def series(self) -> BulkFolder:
        return self.bulk.series

    def there(self) -> int:
        """Images drawn so far."""
        if not self.bulk.out.exists() or not list(self.bulk.out.iterdir()):
            return 0
        return bulk.total(self.series.present())

    def array(self) -> str:
        """Number of the newest array job."""
        return job_list.read_jobs(self.series.folder)[-1].job.partition("_")[0]

    def states(self, array: str) -> dict[str, list[str]]:
        """Task -> the State of each of its starts, as sacct has them."""
        shown = self.lab.ctl.run(*"sacct -X -D -P -n -o JobID,State -j".split(), array)
        found: dict[str, list[str]] = {}
        for line in shown.stdout.splitlines():
            task, _, state = line.partition("|")
            found.setdefault(task, []).append(state.split()[0])
        return found

    def drawing(self) -> dict[str, tuple[str, psutil.Process]]:
        """Task -> the node and the process that draws for it."""
        found = {}
        for name, node in self.lab.nodes.items():
            for process in node.tree():
                try:
                    if RUNNER in process.cmdline():
                        env = process.environ()
                        task = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
                        found[task] = (name, process)
                except (psutil.Error, KeyError):
                    continue
        return found

    @contextmanager
    def held(self) -> Iterator[dict[str, tuple[str, psutil.Process]]]:
        """As drawing(), with the processes standing still, so that none ends meanwhile."""
        found = self.drawing()
        for _, process in found.values():
            process.suspend()
        try:
            yield found
        finally:
            for _, process in found.values():
                with suppress(psutil.NoSuchProcess):
                    process.resume()


@pytest.fixture
def images(lab: Lab, folder: Path) -> Images:
    return Images(lab, folder)


def ends(driver: "subprocess.Popen[str]", code: int, seconds: float = 400) -> str:
    """What a driver printed, when it has ended with this exit code."""
    output, _ = driver.communicate(timeout=patience(seconds))
    assert driver.returncode == code, output
    return output


def test_two_thousand_images_through_two_kills_and_a_crash(
    images: Images, lab: Lab, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Two tasks are killed with all their processes, a node loses power; the same command again,
    and all is there once, with the bytes of an undisturbed run.
    """
    first = images.submit()
    wait_until("six tasks draw", lambda: len(images.drawing()) == 6, 120)
    wait_until("images are there", lambda: images.there() >= 100, 120)
    with images.held() as drawing:
        array, crashed = images.array(), drawing[max(drawing)][0]
        killed = [task for task, (node, _) in sorted(drawing.items()) if node != crashed][:2]
        lost = [task for task, (node, _) in drawing.items() if node == crashed]
        assert len(killed) == 2 and lost, drawing
        for task in killed:
            lab.ctl.run("scancel", "--signal=KILL", task)
        lab.crash(crashed)
    wait_until(
        "the crash is noticed",
        lambda: "DOWN" in lab.node_field(crashed, "State"),
        60,
    )
    lab.boot(crashed)
    shown = images.start("--status")
    assert "images/s" in ends(shown, 0)
    output, _ = first.communicate(timeout=patience(400))
    states = images.states(array)
    assert all(states[task][0] in ("FAILED", "CANCELLED") for task in killed), (states, output)
    assert all(states[task][0] in ("NODE_FAIL", "REQUEUED") for task in lost), (states, output)
    assert first.returncode in (1, 75), output
    assert "the same command draws them" in output
    holes = images.series.missing(NUM)
    assert 0 < bulk.total(holes) < NUM

    ends(images.submit(), 0)
    second = images.array()
    assert second != array
    verdict = bulk.check_bulk(images.series, NUM, progress=False)
    assert verdict.is_whole and verdict.there == NUM, verdict.lines()
    assert "whole: 2,000 of 2,000 images" in ends(images.start("--verify"), 0)
    undisturbed = Bulk(images.bulk.run, tmp_path / "undisturbed", KEYS)
    undisturbed.draw(NUM, unit=UNIT, batch_size=BATCH)
    assert files_of(images.series) == files_of(undisturbed.series)
    figure(
        f"2,000 images: {killed} killed ({[states[task] for task in killed]}), {crashed} crashed "
        f"under {lost} ({[states[task] for task in lost]}), {bulk.total(holes)} images left for "
        f"the second command; each image once, bytes equal"
    )


def test_a_requeued_task_goes_on_and_a_duplicate_submits_nothing(images: Images, lab: Lab) -> None:
    """USR2 as before the time limit; meanwhile the same command from another shell."""
    driver = images.submit("--jobs", "2")
    wait_until("two tasks draw", lambda: len(images.drawing()) == 2, 120)
    wait_until("images are there", lambda: images.there() >= 50, 60)
    with images.held() as drawing:
        array, task = images.array(), min(drawing)
        duplicate = images.submit("--jobs", "2")
        assert duplicate.stdout
        looked = next(line for line in duplicate.stdout if " to draw, " in line)
        lab.ctl.run("scancel", "--signal=USR2", task)
    output = ends(driver, 0)
    assert images.states(array)[task] == ["REQUEUED", "COMPLETED"], output
    assert ", 0 to draw, " in looked and "submitted" not in ends(duplicate, 0)
    assert images.array() == array
    drawn = [
        bulk.parse_name(json.loads(line)["end"])
        for path in (images.series.folder / "jobs").glob("*.journal")
        for line in path.read_text().splitlines()
        if "end" in line
    ]
    assert None not in drawn and len(set(drawn)) == len(drawn), "something was drawn twice"
    assert bulk.check_bulk(images.series, NUM, progress=False).is_whole


def test_ctrl_c_leaves_the_jobs_alone(images: Images, lab: Lab) -> None:
    driver = images.submit()
    wait_until("images are there", lambda: images.there() >= 50, 120)
    with images.held():
        for process in psutil.Process(driver.pid).children(recursive=True):  # behind nsenter
            process.send_signal(signal.SIGINT)
        assert "detached" in ends(driver, 75)
        assert lab.ctl.run("squeue", "-h").stdout, "the jobs go on without the driver"
        assert ": running" in ends(images.start("--status"), 0)
    ends(images.submit(), 0)
    assert bulk.check_bulk(images.series, NUM, progress=False).is_whole
