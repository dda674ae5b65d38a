"""Images in bulk, small: a run to draw from, the command in this process and as a process, and what
is there afterwards.
"""

import os
import sys
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from ddpm.cli.main import launch
from ddpm.cluster import submit_images
from ddpm.cluster.submit import JobOptions
from ddpm.cluster.submit_images import check
from ddpm.sampling.bulk import BulkFolder
from ddpm.sampling.request import BulkOptions, SampleRequest, read_request
from tests.support.processes import forked
from tests.support.tree import ROOT

RUNNER = "ddpm.cluster"


@dataclass(frozen=True)
class Bulk:
    """Images of a run in a folder of the test's own; keys: of IMAGE_GENERATION."""

    run: Path
    out: Path
    keys: dict[str, object] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        return [
            f"IMAGE_GENERATION.{k}={v}" for k, v in {"GEN_SAVE_DIR": self.out, **self.keys}.items()
        ]

    def request(
        self,
        num: int | None,
        *,
        ema: float | None = None,
        batch_size: int | None = None,
        **options: object,
    ) -> SampleRequest:
        bulk = BulkOptions(num=num, **options)  # type: ignore[arg-type]
        return read_request(self.run, self.overrides, ema=ema, batch_size=batch_size, bulk=bulk)

    def draw(self, num: int | None, *, cluster: str | None = None, **given: object) -> BulkFolder:
        """As `launch/sample.py --num` in this process; the series."""
        options = JobOptions(cluster=cluster) if cluster else None  # type: ignore[arg-type]
        given = {"unit": 8, "batch_size": 4, **given}
        asked = check(self.request(num, **given), options)  # type: ignore[arg-type]
        assert submit_images.run(*asked, should_stop=lambda: False) == 0
        return self.series

    @property
    def series(self) -> BulkFolder:
        """The one there is."""
        (folder,) = (path for path in self.out.iterdir() if path.is_dir())
        return BulkFolder.open(folder)

    def argv(self, *options: object) -> list[str]:
        words = [str(ROOT / "launch" / "sample.py"), str(self.run), *self.overrides]
        return [sys.executable, *words, *map(str, options)]

    def main(self, *options: object) -> int:
        """The exit code of the command in this process."""
        return launch("sample", self.argv(*options)[2:])

    def start(self, *options: object, said: Path) -> BaseProcess:
        """The command as a process; said: the file of what it prints."""
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return forked(launch, "sample", self.argv(*options)[2:], env=env, said=said)

    def runners(self) -> list[psutil.Process]:
        """The processes of jobs that draw."""
        return [p for p in _processes() if RUNNER in (w := words(p)) and str(self.out) in w[-1]]

    def jobs(self) -> list[psutil.Process]:
        """Every process of the jobs: submitit's two of each, and those that draw."""
        mine = str(self.out)
        return [p for p in _processes() if any(mine in w for w in words(p)) and _is_of_a_job(p)]


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def _processes() -> list[psutil.Process]:
    return list(psutil.process_iter())


def _is_of_a_job(process: psutil.Process) -> bool:
    return not {RUNNER, "submitit.local._local", "submitit.core._submit"}.isdisjoint(words(process))


def files_of(series: BulkFolder) -> dict[int, tuple[bytes, int | None]]:
    """Index -> the bytes of its file and its label; every index must be there once."""
    there = series.present()
    found = [entry for unit in there for entry in series.images(unit)]
    assert len({index for index, _, _ in found}) == len(found)
    return {index: (data, label) for index, data, label in found}
