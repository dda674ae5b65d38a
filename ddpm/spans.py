"""Runs of consecutive image numbers, and the arithmetic that decides what is left to draw."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"(\d{10})-(\d{10})")
_SHOWN = 12


@dataclass(frozen=True, order=True)
class Span:
    """Images start .. stop - 1. Its text, `0000000000-0000000512`, sorts as its numbers do."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start:010d}-{self.stop:010d}"

    @classmethod
    def parse(cls, text: str) -> "Span | None":
        """The span of that text; None where it is no such text."""
        found = _NAME.fullmatch(text)
        if found is None or int(found[1]) >= int(found[2]):
            return None
        return cls(int(found[1]), int(found[2]))


def total(spans: Iterable[Span]) -> int:
    """How many images the spans hold, each as often as it is held."""
    return sum(len(span) for span in spans)


def union(spans: Iterable[Span]) -> list[Span]:
    """The same images in as few spans as possible, ascending."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return merged


def difference(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The images of `spans` that are in none of the others."""
    left, taken = [], union(others)
    for span in union(spans):
        start = span.start
        for other in taken:
            if other.stop <= start or other.start >= span.stop:
                continue
            if other.start > start:
                left.append(Span(start, other.start))
            start = max(start, other.stop)
        if start < span.stop:
            left.append(Span(start, span.stop))
    return left


def overlapping(spans: Iterable[Span]) -> list[Span]:
    """Those that hold an image which one before them, in their order, holds too."""
    found, end = [], 0
    for span in sorted(spans, key=lambda span: (span.start, -span.stop)):
        if span.start < end:
            found.append(span)
        else:
            end = span.stop
    return found


def cut(spans: Iterable[Span], size: int) -> list[Span]:
    """The same images in spans that cross no multiple of `size`."""
    pieces = []
    for span in spans:
        start = span.start
        while start < span.stop:
            stop = min(span.stop, (start // size + 1) * size)
            pieces.append(Span(start, stop))
            start = stop
    return pieces


def describe(spans: Iterable[Span]) -> str:
    """For people: `0-49, 64-99`, the last number included; the first dozen of many."""
    ranges = union(spans)
    shown = [f"{span.start}-{span.stop - 1}" for span in ranges[:_SHOWN]]
    more = len(ranges) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])
