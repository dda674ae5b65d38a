"""The table of launch/status.py: columns on a terminal, plain lines elsewhere; a line of totals."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddpm.progress import duration
from ddpm.run_status import RunStatus
from ddpm.status import Row, Section, Status, Totals, totals

HEADER = ("state", "training", "step", "loss", "images/s", "left", "node", "job", "hours", "")
_LONGEST_NOTE = 160
_NUMBERS = ("step", "loss", "images/s", "left", "hours")
_INTEREST = ("failed", "running", "queued", "stopped", "planned", "done")
_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "queued": "yellow"}


def cells(row: Row) -> tuple[str, ...]:
    """The texts of a row, one for each word of HEADER."""
    status = row.status
    return (
        status.state,
        row.name,
        _steps(status),
        "" if status.loss is None else f"{status.loss:.4f}",
        "" if status.images_per_s is None else f"{status.images_per_s:,.0f}",
        "" if status.eta_s is None else duration(status.eta_s),
        status.node,
        status.job or "",
        _hours(status.gpu_hours, status.core_hours),
        _short(status.note),
    )


def summary(sections: Iterable[Section]) -> str:
    """The line of totals."""
    found: Totals = totals(sections)
    counts = [f"{count} {state}" for state, count in found.counts.items() if count]
    number = sum(found.counts.values())
    words = [f"{number} training{'s' * (number != 1)}: {', '.join(counts) or 'none'}"]
    if hours := _hours(found.gpu_hours, found.core_hours, digits=2):
        words.append(f"{hours} used")
    if found.eta_s is not None:
        words.append(f"all end in about {duration(found.eta_s)}")
    return "; ".join(words)


def plain(sections: Sequence[Section]) -> str:
    """Lines as wide as they need to be, fit for grep."""
    shown = _columns(sections)
    lines: list[str] = []
    for section in sections:
        rows = [HEADER, *map(cells, section.rows)]
        widths = {i: max(len(row[i]) for row in rows) for i in shown}
        lines += [_title(section)] if section.title else []
        for row in rows:
            padded = [
                row[i].rjust(widths[i]) if HEADER[i] in _NUMBERS else row[i].ljust(widths[i])
                for i in shown
            ]
            lines.append("  ".join(padded).rstrip())
        lines.append("")
    return "\n".join([*lines, summary(sections)])


def rendered(sections: Sequence[Section], height: int | None = None) -> RenderableType:
    """The same for a terminal, wrapped to its width.

    height: of the screen, which cuts what is below it: then the totals and what needs a look come
    first.
    """
    is_cut = height is not None and 3 * len(sections) + sum(len(s.rows) for s in sections) > height
    shown = _columns(sections)
    parts: list[RenderableType] = []
    for section in sections:
        title = Text(_title(section)) if section.title else None
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for word in (HEADER[i] for i in shown):
            justify: JustifyMethod = "right" if word in _NUMBERS else "left"
            table.add_column(word, justify=justify, overflow="fold")
        rows = section.rows if not is_cut else sorted(section.rows, key=_by_interest)
        for row in rows:
            colour, texts = _COLOURS.get(row.status.state, ""), cells(row)
            table.add_row(*(Text(texts[i], colour if i == 0 else "") for i in shown))
        parts += [table, Text()]
    line = Text(summary(sections))
    return Group(line, Text(), *parts) if is_cut else Group(*parts, line)


def show(sections: Sequence[Section], console: Console) -> None:
    """Prints the table."""
    if console.is_terminal:
        console.print(rendered(sections))
    else:
        console.file.write(plain(sections) + "\n")
        console.file.flush()


def watch(status: Status, console: Console, every_s: float) -> None:
    """Shows it again and again until all has ended or Ctrl-C."""
    with suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    sections = status.read()
                    live.update(rendered(sections, height=console.height), refresh=True)
                    if totals(sections).has_ended:
                        return
                    time.sleep(every_s)
        while True:
            sections = status.read()
            show(sections, console)
            if totals(sections).has_ended:
                return
            time.sleep(every_s)


def _by_interest(row: Row) -> int:
    return _INTEREST.index(row.status.state)


def _columns(sections: Iterable[Section]) -> list[int]:
    """The columns that say something of one training at least."""
    rows = [cells(row) for section in sections for row in section.rows]
    return [i for i in range(len(HEADER)) if any(row[i] for row in rows)]


def _title(section: Section) -> str:
    return f"{section.title}, its driver runs" if section.is_driven else section.title


def _steps(status: RunStatus) -> str:
    if status.total is None:
        return str(status.step) if status.step else ""
    return f"{status.step}/{status.total}"


def _short(note: str) -> str:
    """The note without its middle, where it is long: train.log has all of it."""
    if len(note) <= _LONGEST_NOTE:
        return note
    return f"{note[: _LONGEST_NOTE - 60]} ... {note[-55:]}"


def _hours(gpu: float, core: float, digits: int = 3) -> str:
    """`0.250 GPU-h` or `0.250 core-h`, or both."""
    kinds = (("GPU-h", gpu), ("core-h", core))
    return ", ".join(f"{hours:.{digits}f} {kind}" for kind, hours in kinds if hours > 0)
