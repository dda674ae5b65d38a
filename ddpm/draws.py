"""What one job of a series draws, as plain data: written once before the job is submitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm import durable, spans
from ddpm.groups import Journal
from ddpm.spans import Span


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The images that one job draws, a unit after the other.

    path: its file, in `jobs` of the series.  folder: of the series.
    """

    path: Path
    folder: Path
    wanted: tuple[Span, ...]

    def write(self) -> None:
        """Keeps it at its path, for its owner's eyes."""
        durable.make_folder(self.path.parent)
        durable.write_json(
            self.path,
            {"folder": str(self.folder), "images": [[s.start, s.stop] for s in self.wanted]},
        )

    @classmethod
    def read(cls, path: Path) -> "Draws":
        """The draws that were written at `path`."""
        facts = durable.read_json(path)
        return cls(
            path=path,
            folder=Path(facts["folder"]),
            wanted=tuple(Span(start, stop) for start, stop in facts["images"]),
        )

    @property
    def journal(self) -> Journal:
        return Journal(self.path)

    @property
    def holds(self) -> tuple[str, ...]:
        """The images by their spans, for the list of jobs."""
        return tuple(map(str, self.wanted))


def shared_out(missing: Sequence[Span], unit: int, tasks: int) -> list[list[Span]]:
    """The missing images in so many parts at most, whole units each, as even as units go."""
    pieces = spans.cut(missing, unit)
    tasks = min(tasks, len(pieces))
    bounds = [len(pieces) * task // tasks for task in range(tasks + 1)] if tasks else [0]
    return [spans.union(pieces[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
