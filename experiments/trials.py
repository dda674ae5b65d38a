"""The trainings that a published result rests on: a sweep of ours, run as far as it is not done."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import TypeVar

from rich.progress import track

from ddpm.errors import InputError, Interrupted
from ddpm.report import SweepResults, TrialResult, rank, read_results
from ddpm.sweep import Sweep, load_sweep

T = TypeVar("T")
Cell = tuple[object, ...]
# With --short, of studies of configs/digits.yaml that are judged by samples.
SHORT_OF_SAMPLES = (
    "TRAINING.HYPER_PARAMETERS.EPOCHS=15",
    "TRAINING.INLINE_GEN.PERIOD=15",
    "EVALUATION.SAMPLING_NUM=1024",
    "SEEDS=[0,1]",
)
LEAST_FID = 1e-6  # an estimate at infinity may be negative
PREDICTIONS = ("noise", "image", "velocity")  # those that the papers compare
SWEEPS = Path(__file__).resolve().parent.parent / "sweeps"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of a result.

    output: OUTPUT_DIR of the trainings; None: as the sweep says.  is_short: less of everything.
    overrides: of a sweep, over all else.
    """

    output: Path | None = None
    is_short: bool = False
    overrides: tuple[str, ...] = ()
    should_stop: Callable[[], bool] = lambda: False


def planned(name: str, options: StudyOptions, short: Sequence[str]) -> Sweep:
    """sweeps/{name}.yaml, the overrides of its shorter form where that is asked for."""
    given = {word.partition("=")[0].upper() for word in options.overrides}
    words = [word for word in short if word.partition("=")[0] not in given]
    overrides = [*(words if options.is_short else ()), *options.overrides]
    if options.output is not None:
        overrides.append(f"TRAINING.OUTPUT_DIR={options.output}")
    return load_sweep(SWEEPS / f"{name}.yaml", overrides)


def trained(wanted: Sweep, options: StudyOptions) -> SweepResults:
    """The sweep run to its end, with its own report; trials that failed are among its trials."""
    from ddpm.cluster import folder_of, run_sweep

    run_sweep.run(wanted, should_stop=options.should_stop)
    return read_results(folder_of(wanted))


def each(items: Sequence[T], words: str, options: StudyOptions) -> Iterator[T]:
    """The items with a progress bar; Interrupted between two of them when that is asked for."""
    for item in track(items, words):
        if options.should_stop():
            raise Interrupted("stopped; finished trainings are kept: run the same command again")
        yield item


@dataclass(frozen=True, kw_only=True)
class Cells:
    """trials: values of the keys -> seed -> trial.  seeds: those that every cell has."""

    trials: Mapping[Cell, Mapping[int, TrialResult]]
    seeds: tuple[int, ...]


def by_cell(
    trials: Sequence[TrialResult], keys: Sequence[str], wanted: Iterable[Cell] = ()
) -> Cells:
    """The trials by their values of these keys of GRID.

    Raises InputError unless all `wanted` cells are there, and one seed of them all.
    """
    cells: dict[Cell, dict[int, TrialResult]] = {}
    for trial in trials:
        cells.setdefault(tuple(trial.cell[key] for key in keys), {})[trial.seed] = trial
    missing = [" · ".join(map(str, cell)) for cell in wanted if cell not in cells]
    seeds = set.intersection(*(set(cell) for cell in cells.values())) if cells else set()
    if missing or not seeds:
        what = f"no training of {', '.join(missing)}" if missing else "no seed of all cells"
        raise InputError(f"{what} has ended well; nothing can be compared. Run it again")
    return Cells(trials=cells, seeds=tuple(sorted(seeds)))


def run_of(trial: TrialResult) -> Path:
    """The run directory of a trial that is done."""
    assert trial.run_dir is not None
    return trial.run_dir


def log_fid(trial: TrialResult) -> float:
    """ln FID of the samples that the training drew at its end, of infinitely many.

    InputError where they were not measured.
    """
    fid = trial.quality.points[0].fid if trial.quality and trial.quality.points else None
    if fid is None:
        raise InputError(f"{trial.run_dir}: its samples have no FID; give EVALUATION.SAMPLING_NUM")
    return log(max(fid.value, LEAST_FID))


def num_samples(trials: Iterable[TrialResult]) -> str:
    """Number of samples of a FID, in words; those of the sweep are alike."""
    counts = sorted({one.quality.num for one in trials if one.quality is not None})
    return " or ".join(f"{count:,}" for count in counts) + " samples"


def unlearned(found: SweepResults) -> tuple[str, ...]:
    """A line for each cell that learned no more than the data's mean and covariance."""
    return tuple(standing.label for standing, _ in rank(found).failed)


def failures(found: SweepResults) -> tuple[str, ...]:
    """A line for each training that failed."""
    return tuple(
        f"{', '.join(map(str, trial.cell.values()))}, seed {trial.seed}: {trial.reason}"
        for trial in found.with_status("failed")
    )
