"""Whether a series is whole: each image exactly once, every byte as it was written."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm import spans, units
from ddpm.imagebar import ImageBar
from ddpm.series import Series
from ddpm.spans import Span


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a look at every file has found.

    missing: images that no good unit holds.  damaged: a line each.  twice: units with images that
    others hold too.  devices: what drew them.
    """

    num: int
    there: int
    units: int
    missing: Sequence[Span]
    damaged: Sequence[str]
    twice: Sequence[Span]
    devices: Sequence[str]

    @property
    def is_whole(self) -> bool:
        return not (self.missing or self.damaged or self.twice)

    def lines(self) -> list[str]:
        """The summary, a line each."""
        found = [f"damaged: {line}" for line in self.damaged]
        found += [f"twice: images {span.start}-{span.stop - 1} ({span})" for span in self.twice]
        if self.missing:
            images = spans.total(self.missing)
            found.append(f"missing: {images:,} images: {spans.describe(self.missing)}")
        if len(self.devices) > 1:
            drawn = ", ".join(self.devices)
            found.append(f"note: drawn on {drawn}: images of the two differ in their last bits")
        state = "whole" if self.is_whole else "not whole"
        once = "at least once" if self.twice else "exactly once"
        found.append(
            f"{state}: {self.there:,} of {self.num:,} images in {self.units:,} units, each of them "
            f"{once}, every file checked by SHA-256"
        )
        return found


def verify(series: Series, num: int, *, progress: bool) -> Verdict:
    """Reads every manifest and every shard of a series against what they promise."""
    there, good, damaged, devices = series.present(), [], [], set[str]()
    with ImageBar("verifying", spans.total(there), is_shown=progress) as bar:
        for span in there:
            try:
                manifest = units.check_samples(series.shards, span, series.digest)
            except units.DamagedUnit as error:
                damaged.append(f"images {span.start}-{span.stop - 1}: {error}")
            else:
                good.append(span)
                devices.add(str(manifest.get("device")))
            bar.advance(len(span))
    missing = spans.difference([Span(0, num)], good)
    return Verdict(
        num=num,
        there=num - spans.total(missing),
        units=len(good),
        missing=missing,
        damaged=damaged,
        twice=spans.overlapping(good),
        devices=sorted(devices),
    )
