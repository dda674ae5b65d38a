"""Pictures of a report as data: URLs: sample grids, and strips of them over training or steps.

Every grid has the same classes in the same columns. A strip is one trial at several moments.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ddpm.metrics import QUALITY_FILE, read_pictures
from ddpm.report.best_samples import method
from ddpm.report.labels import Axes
from ddpm.report.ranking import Ranking
from ddpm.report.reading import Samples, SweepResults, TrialResult
from ddpm.runs import pictures

_COLUMNS = 10
_CLASSES = 20  # shown of more
_WIDEST = 360  # pixels of a picture over training; wider ones are reduced to it
_ROWS, _FRAMES = 12, 8  # of a film: trials and moments
T = TypeVar("T")


def classes_of(samples: Samples) -> list[str]:
    """The classes of the columns of its grid; none where it has no classes."""
    found = np.unique(samples.labels)
    return [str(int(one)) for one in found[:_CLASSES]] if len(found) > 1 else []


def grid_url(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    rows: int = 4,
    largest: int = 64,
    is_exact: bool = True,
) -> str:
    """One column a class, `rows` images of each; without classes, ten columns.

    images: uint8 (N, H, W, C); those whose longer side is beyond `largest` pixels are reduced.
    is_exact: a PNG; else colours may become a JPEG, a third of its size.
    """
    order, width = _by_class(labels, rows)
    picture = pictures.grid(_reduced(images[order], largest), width)
    if is_exact or picture.shape[2] == 1:
        return png_url(pictures.png(picture))
    return _jpeg_url(Image.fromarray(picture))


def png_url(data: bytes) -> str:
    """The bytes of a PNG file as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def picture_url(path: Path) -> str:
    """A PNG file as a data: URL, reduced where it is wide; "" where it cannot be read."""
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.width <= _WIDEST:
                return png_url(path.read_bytes())
            size = (_WIDEST, max(1, round(picture.height * _WIDEST / picture.width)))
            small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
    except (OSError, ValueError):
        return ""
    return _jpeg_url(small)


def _jpeg_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _by_class(labels: np.ndarray, rows: int) -> tuple[list[int], int]:
    """The images shown, row by row, and the number of columns. Every column is equally long."""
    classes = [np.flatnonzero(labels == one) for one in np.unique(labels)][:_CLASSES]
    if len(classes) < 2:
        columns = min(_COLUMNS, len(labels))
        return list(range(min(len(labels), columns * rows))), columns
    rows = min(rows, min(map(len, classes)))
    return [int(column[row]) for row in range(rows) for column in classes], len(classes)


def _reduced(images: np.ndarray, largest: int) -> np.ndarray:
    height, width = images.shape[1:3]
    share = largest / max(height, width)
    if share >= 1:
        return images
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return np.stack([_resized(image, size) for image in images])


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0))
    return np.stack([np.asarray(p.resize(size, Image.Resampling.BOX)) for p in planes], axis=-1)


def over_training(sweep: SweepResults, ranking: Ranking, axes: Axes) -> dict[str, dict[str, str]]:
    """The grids drawn while the best cells trained: cell -> step -> URL."""
    trials = shown_trials(ranking, axes, [t for t in sweep.trials if len(t.inline) > 1])
    stems = _spread(sorted({path.stem for trial in trials for path in trial.inline}), _FRAMES)
    rows = {
        axes.label(trial.cell): {
            _step(path.stem): url
            for path in trial.inline
            if path.stem in stems and (url := picture_url(path))
        }
        for trial in trials
    }
    return {name: row for name, row in rows.items() if row}


def over_steps(sweep: SweepResults, ranking: Ranking, axes: Axes) -> dict[str, dict[str, str]]:
    """The samples of the best cells by sampler and number of steps: cell -> steps -> URL."""
    having = [
        t for t in sweep.trials if t.quality and t.run_dir and (t.run_dir / QUALITY_FILE).exists()
    ]
    rows = {axes.label(t.cell): _by_steps(t) for t in shown_trials(ranking, axes, having)}
    return {name: row for name, row in rows.items() if row}


def moments(rows: dict[str, dict[str, str]]) -> list[str]:
    """The columns of a film: every moment of any row, in order."""
    return sorted({moment for row in rows.values() for moment in row}, key=_natural)


def _by_steps(trial: TrialResult) -> dict[str, str]:
    """A trial's pictures by sampler and steps; none where they are not those of its points."""
    found = None if trial.run_dir is None else read_pictures(trial.run_dir)
    points = () if trial.quality is None else trial.quality.points
    if found is None or len(found.images) != len(points):
        return {}
    several = len({method(point) for point in points}) > 1
    places = sorted(range(len(points)), key=lambda k: (method(points[k]), points[k].num_steps))
    return {
        f"{method(points[k])} " * several + str(points[k].num_steps): grid_url(
            found.images[k], found.labels, rows=2, largest=48, is_exact=False
        )
        for k in _spread(places, _FRAMES)
    }


def shown_trials(ranking: Ranking, axes: Axes, having: Sequence[TrialResult]) -> list[TrialResult]:
    """One trial a cell among those that have something: its first seed, in the grid's order; where
    there are more than fit, the best cells, the best first.
    """
    rank = {id(t): k for k, s in enumerate(ranking.standings) for t in s.trials.values()}
    ordered = sorted(having, key=lambda trial: (rank.get(id(trial), len(rank)), trial.seed))
    first = list({trial.key: trial for trial in reversed(ordered)}.values())[::-1]
    if len(first) > _ROWS:
        return first[:_ROWS]
    keys = (*axes.panels, *((axes.rows,) if axes.rows else ()), *filter(None, (axes.series,)))
    return sorted(first, key=lambda t: [axes.place(key, t.cell) for key in keys])


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def _step(stem: str) -> str:
    """`step-00001000` as `1,000`."""
    number = stem.rpartition("-")[2]
    return f"{int(number):,}" if number.isdigit() else stem


def _natural(moment: str) -> tuple[str, int]:
    words, _, number = moment.rpartition(" ")
    digits = number.replace(",", "")
    return (words, int(digits)) if digits.isdigit() else (moment, 0)
