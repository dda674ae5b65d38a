"""A campaign of kills: jobs of this machine lose random processes, a duplicate is launched, and
each image is there once, with the bytes of an undisturbed run.

`make test-kills` runs the long one: 10,000 images, 8 jobs, 50 kills.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from ddpm.sampling.bulk import BulkFolder, check_bulk, manifest_of
from tests.support.bulk_data import Bulk, files_of, words
from tests.support.processes import exit_codes
from tests.support.small_run import make_run

KEYS = {"GEN_TASK": "class_cond", "NUM_STEPS": 8}
MOST_LAUNCHES = 60


@dataclass
class Campaign:
    """So many kills while `num` images are drawn by `jobs` jobs at a time."""

    bulk: Bulk
    num: int
    jobs: int
    kills: int
    seed: int
    unit: int
    batch: int
    landed: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    duplicates: int = 0

    def run(self) -> BulkFolder:
        """Launch, kill, launch again until all is there; the series."""
        rng = random.Random(self.seed)
        while True:
            driver = self._launch()
            if self.launches == 1:
                self._wait_for_work(driver)
            twin = self._launch() if not self.duplicates else None
            self.duplicates += twin is not None
            self._kill_while(driver, rng)
            codes = exit_codes([process for process in (driver, twin) if process], 1500)
            assert set(codes) <= {0, 75}, codes
            if codes == [0] * len(codes) and self.landed.total() >= self.kills:
                return self.bulk.series
            if 0 in codes:  # all is there and kills are left: punch holes to draw again
                self._punch(rng)
            assert self.launches < MOST_LAUNCHES, dict(self.landed)

    def _launch(self) -> BaseProcess:
        self.launches += 1
        options = ("--num", self.num, "--unit", self.unit, "--batch-size", self.batch)
        said = self.bulk.out.parent / f"said-{self.launches}"
        return self.bulk.start(*options, "--cluster", "local", "--jobs", self.jobs, said=said)

    def _wait_for_work(self, driver: BaseProcess) -> None:
        while driver.exitcode is None and not self.bulk.runners():
            time.sleep(0.1)

    def _kill_while(self, driver: BaseProcess, rng: random.Random) -> None:
        """kill -9 of random processes of jobs, mostly of those that draw, until the driver ends."""
        while driver.exitcode is None:
            time.sleep(rng.uniform(0.2, 0.8))
            if self.landed.total() >= self.kills:
                return
            drawing = self.bulk.runners()
            victims = drawing if rng.random() < 0.7 else self.bulk.jobs()
            if drawing and victims:
                self._kill(rng.choice(victims))

    def _kill(self, victim: psutil.Process) -> None:
        what = next((w for w in words(victim) if w.startswith(("ddpm.", "submitit."))), "gone")
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            self.landed[what] += 1

    def _punch(self, rng: random.Random) -> None:
        there = self.bulk.series.present()
        for span in rng.sample(there, len(there) // 3):
            manifest_of(self.bulk.series.shards, span).unlink()


def fight(
    run: Path, place: Path, *, num: int, jobs: int, kills: int, unit: int, batch: int, seed: int
) -> str:
    """A campaign and what it must come to; the figures."""
    undisturbed = Bulk(run, place / "undisturbed", KEYS).draw(num, unit=unit, batch_size=batch)
    campaign = Campaign(Bulk(run, place / "out", KEYS), num, jobs, kills, seed, unit, batch)
    began = time.monotonic()
    try:
        series = campaign.run()
    finally:
        for process in campaign.bulk.jobs():
            process.kill()
    verdict = check_bulk(series, num, progress=False)
    assert verdict.is_whole and verdict.there == num, verdict.lines()
    assert files_of(series) == files_of(undisturbed)
    assert campaign.landed.total() >= kills and campaign.duplicates == 1
    return (
        f"{num} images, {jobs} jobs: {campaign.landed.total()} kill -9 landed "
        f"({dict(campaign.landed)}), {campaign.duplicates} duplicate launch, {campaign.launches} "
        f"launches in all, {time.monotonic() - began:.0f} s; each image once, bytes equal"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_run(tmp_path_factory.mktemp("runs"))


@pytest.mark.timeout(1800)
@pytest.mark.long
def test_each_image_once_through_kills_and_a_duplicate(run: Path, tmp_path: Path) -> None:
    print(fight(run, tmp_path, num=200, jobs=2, kills=3, unit=8, batch=4, seed=0))


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_images_through_fifty_kills(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = fight(run, tmp_path, num=10_000, jobs=8, kills=50, unit=16, batch=16, seed=1)
    with capsys.disabled():
        print(f"\n{told}")
