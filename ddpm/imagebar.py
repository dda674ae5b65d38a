"""A bar on the terminal for work that goes image by image; no terminal, no bar."""

from collections.abc import Iterable, Iterator
from types import TracebackType

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s")


class ImageBar:
    """`with ImageBar("packing", total) as bar: bar.advance(n)`."""

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()


def shown(what: str, total: int, batches: Iterable[NDArray]) -> Iterator[NDArray]:
    """Batches of images as they come, with a bar."""
    with ImageBar(what, total, is_shown=True) as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch))
