"""What an online report shows, as plain data: sections of text and of panels that draw runs.

A renderer turns a Specification into the blocks of a service; `as_json` into what is kept beside
the offline report. Runs are named by where they are (Place) and how they are found there; numbers
by their names in `ddpm.mirrored`, factors of the grid by their dotted configuration keys.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines of numbers that runs have logged, over another one."""

    title: str
    x: str
    y: tuple[str, ...]
    has_log_y: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One number of each run's summary."""

    title: str
    number: str


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Two numbers of each run's summary against each other."""

    title: str
    x: str
    y: str


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """Parallel coordinates: a line a run, through its factors and then its numbers."""

    title: str
    factors: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Logged pictures side by side; with their steps beside the runs where `has_steps`."""

    title: str
    key: str
    has_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The configuration keys in which runs differ."""

    title: str


Panel = Curves | Bars | Scatter | Parallel | Pictures | Differences


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, Markdown below it, then panels.

    is_grouped: runs that differ in their seed alone are drawn as one.  has_table: the table of runs
    stands below the panels.
    """

    title: str
    text: str = ""
    panels: tuple[Panel, ...] = ()
    is_grouped: bool = False
    has_table: bool = False


@dataclass(frozen=True, kw_only=True)
class Place:
    """A project and whose it is; entity None is the default of who is logged in."""

    entity: str | None
    project: str


@dataclass(frozen=True, kw_only=True)
class Specification:
    """A whole report.

    places: where the runs are; the report belongs to the first.  group: the sweep that the runs
    belong to, None for a single run.  runs: their ids.  columns: the table's numbers, and it is
    ordered by the first of them, lowest first.  summaries: run id -> numbers of the comparison,
    which only the whole sweep knows, for the run's own summary.
    """

    title: str
    description: str
    places: tuple[Place, ...]
    group: str | None
    runs: tuple[str, ...]
    factors: tuple[str, ...]
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    summaries: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def as_json(specification: Specification) -> dict[str, object]:
    """The same as JSON values; each panel with its kind, each with its format's number."""
    plain = {f.name: getattr(specification, f.name) for f in fields(specification)}
    return {
        "format": 1,
        **plain,
        "places": [asdict(place) for place in specification.places],
        "sections": [_section(section) for section in specification.sections],
    }


def _section(section: Section) -> dict[str, object]:
    panels = [{"kind": type(panel).__name__, **asdict(panel)} for panel in section.panels]
    return {**asdict(section), "panels": panels}
