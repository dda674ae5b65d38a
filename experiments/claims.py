"""A published finding beside our own, and whether the two agree: numbers, a verdict, a page.

A claim is a number of each training seed whose sign the paper foretells: positive as published. The
verdict is that of the interval over seeds (Student's t, 95 % for all claims of a result together by
Holm 1979): it agrees where the interval lies above zero, disagrees where it lies below, and is
undecided where it holds zero or there is one seed. A training that ends in non-finite numbers is an
infinite number, of its sign.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.metrics import mean_interval
from ddpm.report import listed, number_with_error
from ddpm.runs import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In words of one and of more.
VERDICTS = {
    "agrees": ("agrees", "agree"),
    "disagrees": ("disagrees", "disagree"),
    "undecided": ("is undecided", "are undecided"),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """paper: the published finding.  number: the meaning of `values`, one a seed."""

    paper: str
    number: str
    values: tuple[float, ...]

    def judged(self, confidence: float) -> "Finding":
        """With its interval and its verdict; where some values are infinite, all signs decide."""
        values = [value for value in self.values if isfinite(value)]
        mean, half = mean_interval(values, confidence) if values else (inf, 0.0)
        low, high = mean - half, mean + half
        if len(values) < len(self.values):
            low, high = min(self.values), max(self.values)
        elif len(values) < 2:
            low, high = -inf, inf
        verdict = "agrees" if low > 0 else "disagrees" if high < 0 else "undecided"
        return Finding(claim=self, mean=mean, half_width=half, verdict=verdict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with its mean over seeds and the half-width of its interval.

    verdict: one of VERDICTS.
    """

    claim: Claim
    mean: float
    half_width: float
    verdict: str

    @property
    def clearness(self) -> float:
        """Half-widths of its interval between the mean and zero."""
        if self.half_width and all(map(isfinite, self.claim.values)):
            return abs(self.mean) / self.half_width
        return 0.0 if self.verdict == "undecided" else inf

    @property
    def sentence(self) -> str:
        """The published finding, our own, and the verdict."""
        return f"Published: {self.claim.paper} Here: {self.claim.number} is {self._number()}."

    def _number(self) -> str:
        values = self.claim.values
        lost = sum(not isfinite(value) for value in values)
        if lost:
            return f"beyond any number in {lost} of {len(values)} seeds: {self.verdict}"
        if len(values) < 2:
            return f"{values[0]:.3g} with one seed, which decides nothing: {self.verdict}"
        mean, half = number_with_error(self.mean, self.half_width)
        return f"{mean} ± {half} over {len(values)} seeds: {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A table of words and numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a table of Markdown, its title above it."""
        ruler = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [self.headings, ruler, *self.rows]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One published result and our own.

    setting: what was done here, and how it differs from the paper.  pictures: file name -> PNG.
    failed: trainings that did not end, with their reasons.  changed: overrides of its sweep.
    unlearned: cells compared that learned no more than the data's mean and covariance.
    """

    name: str
    source: str
    setting: str
    claims: tuple[Claim, ...]
    tables: tuple[Numbers, ...]
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    unlearned: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """The claims, judged together: the clearest of m at 1 - 0.05 / m, the next at 1 - 0.05 /
        (m - 1), and so on to the first that is undecided and those after it (Holm 1979).
        """
        found: dict[Claim, Finding] = {}
        left = len(self.claims)
        for claim in sorted(self.claims, key=lambda one: one.judged(0.95).clearness, reverse=True):
            found[claim] = claim.judged(1 - 0.05 / left)
            if found[claim].verdict != "undecided":
                left -= 1
        return [found[claim] for claim in self.claims]

    @property
    def headline(self) -> str:
        """Numbers of claims that agree, disagree and are undecided."""
        verdicts = [finding.verdict for finding in self.findings]
        parts = [
            f"{count} {one if count == 1 else more}"
            for verdict, (one, more) in VERDICTS.items()
            if (count := verdicts.count(verdict))
        ]
        return f"{self.name}: of {len(self.claims)} published findings {listed(parts)}."

    def markdown(self) -> str:
        """The page: verdict, sentences, tables, pictures, setting."""
        count = max(len(claim.values) for claim in self.claims)
        seeds = f"{count} training seeds" if count > 1 else "seeds, of which there was one"
        parts = [
            f"**{self.headline}** ({self.source})",
            "".join(f"- {finding.sentence}\n" for finding in self.findings),
            *(table.markdown() for table in self.tables),
            *(f"![{name}]({name})\n" for name in self.pictures),
            *(f"Failed: {line}\n" for line in self.failed),
            *(
                [
                    "Cells that learned no more than the data's mean and covariance, and have only "
                    f"begun: {'; '.join(self.unlearned)}.\n"
                ]
                if self.unlearned
                else []
            ),
            *(f"Changed: {line}\n" for line in self.changed),
            f"{self.setting} ± are half-widths of 95 % intervals over {seeds}, in the "
            f"sentences corrected for {len(self.claims)} claims (Holm).\n",
        ]
        return "\n".join(part.rstrip("\n") + "\n" for part in parts)

    def save(self, folder: Path) -> Path:
        """result.md, result.json and the pictures in `folder`; the first of them."""
        storage.make_folder(folder)
        for name, picture in self.pictures.items():
            storage.write_bytes(folder / name, picture)
        facts = {
            "format": 1,
            "name": self.name,
            "source": self.source,
            "findings": [_facts(finding) for finding in self.findings],
            "tables": [asdict(table) for table in self.tables],
            "failed": list(self.failed),
            "unlearned": list(self.unlearned),
            "changed": list(self.changed),
        }
        storage.write_json(folder / "result.json", facts)
        path = folder / "result.md"
        storage.write_text(path, self.markdown())
        return path


def spread(values: Sequence[float]) -> str:
    """Mean ± half-width of the 95 % interval over seeds, as a cell of a table."""
    if not all(isfinite(value) for value in values):
        return "not finite"
    if len(values) < 2:
        return f"{values[0]:.3g}" if values else "–"
    mean, half = mean_interval(values)
    if half == 0:
        return f"{mean:.3g}"
    return " ± ".join(number_with_error(mean, half))


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _facts(finding: Finding) -> dict[str, object]:
    """As JSON, which has no infinity."""

    def finite(value: float) -> float | None:
        return value if isfinite(value) else None

    return {
        "paper": finding.claim.paper,
        "number": finding.claim.number,
        "values": [finite(value) for value in finding.claim.values],
        "mean": finite(finding.mean),
        "half_width": finite(finding.half_width),
        "verdict": finding.verdict,
    }
