"""How far a series is, from its files: for the process that waits for it and for anybody else."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddpm import job_list, spans, units
from ddpm.job_states import JobStates
from ddpm.progress import duration
from ddpm.series import Series
from ddpm.spans import Span

WINDOW_S = 600.0  # images/s are those of the last minutes


@dataclass(frozen=True, kw_only=True)
class JobLine:
    """A living job: what it is called, its state, what it is at."""

    job: str
    state: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A series as it is now.  rate: images/s over all jobs; None while that cannot be told.

    jobs: those that live; None while SLURM does not answer.
    """

    num: int
    there: int
    units: int
    missing: Sequence[Span]
    rate: float | None
    jobs: Sequence[JobLine] | None = field(default_factory=tuple)

    @property
    def eta(self) -> str:
        """How long what is left takes at this rate; empty where nobody draws or nobody knows."""
        if not self.rate or not self.missing:
            return ""
        return duration(spans.total(self.missing) / self.rate)

    def short(self) -> str:
        """For a line that is printed again and again."""
        parts = [f"{self.there:,} of {self.num:,} images"]
        parts += [f"{self.rate:,.1f} images/s"] if self.rate else []
        parts += [f"{self.eta} left"] if self.eta else []
        states = [job.state for job in self.jobs or ()]
        counts = [f"{states.count(state)} {state}" for state in sorted(set(states))]
        parts += [f"jobs: {', '.join(counts)}"] if counts else []
        return "  ".join(parts)

    def lines(self) -> list[str]:
        """Everything, a line each."""
        found = [f"{self.there:,} of {self.num:,} images are there, in {self.units:,} units"]
        if self.missing:
            images = spans.total(self.missing)
            found.append(f"missing: {images:,} images: {spans.describe(self.missing)}")
        if self.rate:
            left = f", {self.eta} left" if self.eta else ""
            found.append(f"{self.rate:,.1f} images/s{left}")
        found += [f"job {line.job}: {line.state}{line.at}" for line in self.jobs or ()]
        if self.jobs is None:
            found.append("SLURM does not answer, so that nobody knows which jobs run")
        elif not self.jobs:
            found.append("no job waits or runs")
        return found


class Watch:
    """Looks at a series again and again."""

    def __init__(self, series: Series, num: int) -> None:
        self.series, self.num = series, num
        self._states = JobStates()
        self._written: dict[Span, float] = {}

    def look(self, living: Sequence[job_list.Submitted] | None = None) -> Progress:
        """The series now.  living: its jobs, where the caller knows them."""
        there = self.series.present()
        if living is None:
            living = job_list.living(job_list.read(self.series.folder))
        missing = spans.difference([Span(0, self.num)], there)
        return Progress(
            num=self.num,
            there=self.num - spans.total(missing),
            units=len(there),
            missing=missing,
            rate=self._rate(there) if missing else None,
            jobs=None if living is None else [self._line(job) for job in living],
        )

    def _rate(self, there: Sequence[Span]) -> float | None:
        """Images of the units written lately, by the time since the first of them."""
        for span in there:
            if span not in self._written:
                try:
                    path = units.manifest_of(self.series.shards, span)
                    self._written[span] = os.stat(path).st_mtime
                except OSError:  # set aside meanwhile
                    continue
        now = time.time()
        lately = sorted(
            (at, len(span)) for span, at in self._written.items() if at > now - WINDOW_S
        )
        if len(lately) < 2 or now <= lately[0][0]:
            return None
        # the first one was drawn before the time that counts
        return sum(images for _, images in lately[1:]) / (now - lately[0][0])

    def _line(self, job: job_list.Submitted) -> JobLine:
        state = "running"
        if job.cluster == "slurm":
            self._states.refresh()
            queued = self._states.living(job.job)
            state = queued.state.lower() if queued else "in the queue"
            if queued and queued.is_waiting and queued.reason not in ("", "None"):
                state += f" ({queued.reason})"
        span = Span.parse(job.journal.last_begun or "")
        at = "" if span is None else f", at images {span.start}-{span.stop - 1}"
        return JobLine(job=job.job, state=state, at=at)
