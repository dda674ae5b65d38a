"""Progress: bars on a terminal, for a log file a line now and then.

`watch_runs` reads the metrics that runs append to their directories, so it shows any number of
trainings in any processes; ImageBar is for work that goes image by image.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

POLL_S = 0.5
LINE_EVERY_S = 30.0


class NewRows:
    """The rows of metrics that another process adds to a run directory, as they come."""

    def __init__(self, run_dir: Path) -> None:
        self._path, self._offset = run_dir / "metrics.jsonl", 0

    def read(self) -> list[dict[str, Any]]:
        """Rows since the last call; from the first one when a resume has cut the file back."""
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += new.rfind(b"\n") + 1
        return [json.loads(line) for line in new.rpartition(b"\n")[0].splitlines()]


@dataclass
class Tail:
    """The last row of a run's metrics."""

    run_dir: Path
    name: str
    total_steps: int
    row: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._new = NewRows(self.run_dir)

    def poll(self) -> None:
        """Read what came since."""
        if rows := self._new.read():
            self.row = rows[-1]

    @property
    def step(self) -> int:
        return int(self.row.get("step", 0))

    def text(self) -> str:
        """Loss and speed, short."""
        if not self.row:
            return "waiting"
        return f"loss {self.row['loss']:.4f}  {self.row['time/images_per_s']:,.0f} images/s"


@contextmanager
def watch_runs(
    tails: Sequence[Tail],
    console: Console,
    *,
    should_stop: Callable[[], bool] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Show the runs, and what `ddpm` warns of, until the `with` ends; call `on_stop` at every look
    while `should_stop()` is true.
    """
    ended, shown = threading.Event(), _Shown(console)
    thread = threading.Thread(
        target=_watch, args=(tails, console, ended, should_stop, on_stop), daemon=True
    )
    thread.start()
    logging.getLogger("ddpm").addHandler(shown)
    try:
        yield
    finally:
        logging.getLogger("ddpm").removeHandler(shown)
        ended.set()
        thread.join()


class _Shown(logging.Handler):
    """Warnings as lines above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _watch(
    tails: Sequence[Tail],
    console: Console,
    ended: threading.Event,
    should_stop: Callable[[], bool] | None,
    on_stop: Callable[[], None] | None,
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    next_line = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: list[TaskID] = []
        running = True
        while running:
            running = not ended.wait(POLL_S)
            for tail in tails[len(tasks) :]:  # a search adds some as it goes on
                tasks.append(bars.add_task(tail.name, total=tail.total_steps, text=""))
            for task, tail in zip(tasks, tails, strict=False):
                tail.poll()
                bars.update(task, completed=tail.step, text=tail.text())
            if should_stop and on_stop and should_stop():
                on_stop()  # again and again: a training that starts late forgets earlier requests
            if not console.is_terminal and (time.monotonic() >= next_line or not running):
                next_line = time.monotonic() + LINE_EVERY_S
                _print_lines(tails, console)


def _print_lines(tails: Sequence[Tail], console: Console) -> None:
    """One line for what runs, one for how much is done."""
    done = sum(tail.step >= tail.total_steps for tail in tails)
    for tail in tails:
        if 0 < tail.step < tail.total_steps:
            console.print(f"{tail.name}: step {tail.step}/{tail.total_steps}  {tail.text()}")
    if len(tails) > 1:
        console.print(f"{done} of {len(tails)} trainings at their last step")


def duration(seconds: float) -> str:
    """`50 s`, `12 min`, `3.4 h`, `2.1 days`."""
    for limit, size, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            number = seconds / size
            return f"{number:.1f} {name}" if number < 10 else f"{number:.0f} {name}"
    return f"{seconds / 86_400:.1f} days"


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


class ImageBar:
    """`with ImageBar("packing", total, is_shown=True) as bar: bar.advance(n)`, on a terminal."""

    def __init__(self, what: str, total: int | None, *, is_shown: bool) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
            disable=not (is_shown and console.is_terminal),
        )
        self._task = self._bars.add_task(what, total=total)

    def advance(self, images: int = 1) -> None:
        self._bars.advance(self._task, images)

    def __enter__(self) -> "ImageBar":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()


def with_bar(what: str, total: int, batches: Iterable[NDArray]) -> Iterator[NDArray]:
    """Batches of images as they come, with a bar."""
    with ImageBar(what, total, is_shown=True) as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch))
