"""Published results: verdicts that claim no more than their intervals, and what they rest on."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ddpm.data.dataset import Dataset
from ddpm.diffusion.process import convert_prediction, diffuse, elementwise_loss
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.errors import InputError, Interrupted, run_main
from ddpm.metrics.intervals import Interval
from ddpm.report.reading import Lines, SweepResults, read_results
from ddpm.sweep.ledger import Ledger
from experiments import __main__ as results
from experiments import (
    few_steps,
    loss_space,
    moved_density,
    schedule_shift,
    terminal_snr,
    truncated_snr,
)
from experiments.claims import Claim, Numbers, Result, spread
from experiments.gaussian_walk import GaussianFit, ideal_network
from experiments.hidden_plane import (
    DIMENSIONS,
    Perceptron,
    Plane,
    VelocityLoss,
    claims,
    energy_distance,
    ratio,
    trained,
)
from experiments.skip_prefix import Point
from experiments.trials import StudyOptions, each, planned
from tests.support.known_sweeps import PRED_TYPE, quality_of
from tests.support.synthetic_sweep import make_sweep
from tests.support.tiny_training import overrides
from tests.support.tree import ROOT

WEIGHTING, SPACE = "TRAINING.LOSS_WEIGHTING", "TRAINING.LOSS_SPACE"
KINDS = ["noise", "image", "velocity"]


def claim(*values: float) -> Claim:
    return Claim(paper="a is above b.", number="a - b", values=values)


@pytest.mark.parametrize(
    "values, verdict",
    [
        ((1.0, 1.1, 0.9), "agrees"),
        ((-1.0, -1.1, -0.9), "disagrees"),
        ((1.0, -1.1, 0.9), "undecided"),
        ((1.0,), "undecided"),
        ((math.inf, math.inf, 2.0), "agrees"),
        ((-math.inf, -1.0), "disagrees"),
        ((math.inf, -1.0), "undecided"),
    ],
)
def test_the_interval_over_seeds_decides(values: tuple[float, ...], verdict: str) -> None:
    found = claim(*values).judged(0.95)
    assert found.verdict == verdict and found.sentence.endswith(f"{verdict}.")


def test_one_result_of_many_claims_is_harder_to_agree_with() -> None:
    """Two seeds: t is 12.7 at 95 %, 51 at 98.75 %; a mean of 1 and an error of 0.05 lie between."""
    one = claim(0.95, 1.05)
    alone, among = (
        Result(name="r", source="", setting="", claims=(one,) * count, tables=())
        for count in (1, 4)
    )
    assert [f.verdict for f in alone.findings] == ["agrees"]
    assert {f.verdict for f in among.findings} == {"undecided"}
    assert "of 4 published findings 4 are undecided" in among.headline


@pytest.mark.parametrize(
    "ratios, verdicts",
    [
        ((17, 70, 35), ["agrees", "agrees", "agrees"]),  # p = .037, .009, .018
        ((15, 70, 20), ["undecided", "agrees", "undecided"]),  # p = .042, .009, .032
    ],
)
def test_claims_are_judged_together_one_after_the_other(
    ratios: tuple[float, ...], verdicts: list[str]
) -> None:
    """p times 3, 2, 1, to the first above 5 % (Holm); of two seeds p = 2 atan(1 / t) / pi."""
    claims = tuple(claim(1 - 1 / t, 1 + 1 / t) for t in ratios)
    made = Result(name="r", source="", setting="", claims=claims, tables=())
    assert [finding.verdict for finding in made.findings] == verdicts


def test_a_result_is_kept_as_a_page_and_as_numbers(tmp_path: Path) -> None:
    table = Numbers(title="T", headings=("a", "b"), rows=(("x", spread([1.0, 1.2])),))
    made = Result(
        name="r",
        source="Paper",
        setting="Digits.",
        claims=(claim(1.0, 1.1), claim(math.inf, math.inf)),
        tables=(table,),
        pictures={"p.png": b"png"},
        failed=("noise, seed 0: step 3: non-finite loss",),
    )
    page = made.save(tmp_path / "r").read_text()
    assert "| a | b |\n| --- | ---: |\n| x | 1.1 ± 1.3 |" in page
    assert "Failed: noise, seed 0: step 3: non-finite loss" in page and "![p.png](p.png)" in page
    facts = json.loads((tmp_path / "r" / "result.json").read_text())
    assert facts["findings"][1]["values"] == [None, None]
    assert (tmp_path / "r" / "p.png").read_bytes() == b"png"


def test_the_hidden_plane_keeps_distances() -> None:
    for dimension in (2, 16):
        plane = Plane(dimension=dimension, seed=1)
        assert_close(plane.frame.T @ plane.frame, torch.eye(2).double())
        assert_close(plane.fresh() @ plane.frame, plane.fresh_points())
    assert float(plane.fresh_points().norm(dim=1).max()) < 1.05
    assert not torch.equal(plane.fresh_points(), Plane(dimension=16, seed=2).fresh_points())


@pytest.mark.slow
def test_the_energy_distance_is_zero_for_one_distribution_and_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2000, 3, generator=generator, dtype=torch.float64)
    same, near, far = (energy_distance(x, y + shift) for shift in (0.0, 0.5, 1.0))
    assert abs(same) < 0.005 < near < far
    # for points: 2 |a - b|
    assert energy_distance(torch.zeros(2, 1), torch.full((2, 1), 3.0)) == pytest.approx(6.0)


def test_the_yardstick_has_the_moments_of_the_data_and_is_no_spiral() -> None:
    plane = Plane(dimension=8, seed=0)
    normal, data = plane.yardstick() @ plane.frame, plane.fresh_points()
    assert_close(torch.cov(normal.T), torch.cov(data.T), atol=0.03, rtol=0)
    assert ratio(plane, plane.yardstick()) == 0
    assert ratio(plane, plane.vectors(torch.arange(1024))) < -0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_is_judged_by_the_velocity_it_implies(kind: str) -> None:
    schedule = NoiseSchedule("cosine", 50)
    generator = torch.Generator().manual_seed(0)
    x0, noise, pred = torch.randn(3, 7, 4, 1, 1, generator=generator, dtype=torch.float64)
    t = torch.arange(1, 50, 7)
    alpha, sigma = schedule.alpha_sigma_at(t)
    x_t = diffuse(x0, noise, alpha, sigma)
    target = {"noise": noise, "image": x0}.get(kind)
    velocity = convert_prediction(noise, x_t, alpha, sigma, "noise", "velocity")
    target = velocity if target is None else target
    model = VelocityLoss(Perceptron(4, 0), schedule, kind)
    implied = convert_prediction(pred, x_t, alpha, sigma, kind, "velocity")
    expected = elementwise_loss(implied, velocity, "MSE")
    assert_close(model.loss(pred, target, schedule.logsnr_at(t)), expected, rtol=1e-8, atol=0)


@pytest.mark.slow
def test_a_seed_is_a_training_of_the_perceptron() -> None:
    plane = Plane(dimension=2, seed=0)
    model = trained(plane, "velocity", 1)  # rounded up to one pass
    assert model.state is not None and model.state.step == 32
    again = trained(plane, "velocity", 32)
    first, second = (next(one.ema_network.parameters()) for one in (model, again))
    assert torch.equal(first, second), "one seed, one network"


def test_what_the_figure_shows_is_what_is_claimed() -> None:
    survives = {(d, kind): [-0.5, -0.6, -0.5] for d in DIMENSIONS for kind in KINDS}
    as_published = survives | {(512, kind): [2.0, 2.1, 2.2] for kind in ("noise", "velocity")}
    verdicts = [
        [one.judged(0.9875).verdict for one in claims(ratios)]
        for ratios in (as_published, survives)
    ]
    assert verdicts == [["agrees"] * 4, ["agrees", "disagrees", "disagrees", "agrees"]]


def swept(tmp_path: Path, grid: dict[str, list], seeds: tuple[int, ...]) -> Path:
    return make_sweep(tmp_path, grid, seeds, rows=2, inline=0, has_quality=False)


@pytest.mark.slow
def test_a_training_that_diverged_counts_as_infinitely_bad(tmp_path: Path) -> None:
    weightings = list(truncated_snr.WEIGHTINGS)
    folder = swept(tmp_path, {PRED_TYPE: KINDS, WEIGHTING: weightings}, (0, 1))
    ledger = Ledger(folder / "ledger")
    for outcome in ledger.outcomes().values():
        if outcome.cell == {PRED_TYPE: "noise", WEIGHTING: "truncated_snr"}:
            run = tmp_path / outcome.run_dir
            (run / "evaluation.npz").unlink()
            ledger.record(outcome.failed("step 7: non-finite loss at timestep 999 of sample 3"))
    made = truncated_snr.compare(read_results(folder))
    assert [finding.verdict for finding in made.findings[2:]] == ["agrees", "agrees"]
    assert "beyond any number in 2 of 2 seeds" in made.findings[2].sentence
    assert len(made.failed) == 2 and "non-finite loss at timestep 999" in made.failed[0]
    assert "| noise |" in made.markdown() and "not finite" in made.markdown()


@pytest.mark.slow
def test_the_effect_of_the_loss_space_is_told_from_that_of_the_output(tmp_path: Path) -> None:
    """Rows differ by 0.5, columns by 0.2, at twice the length; half of both before."""
    folder = swept(tmp_path, {SPACE: KINDS, PRED_TYPE: KINDS}, (0, 1))
    with pytest.raises(InputError, match="no FID was measured at a step that all trainings share"):
        loss_space.compare(read_results(folder))
    for outcome in Ledger(folder / "ledger").outcomes().values():
        row, column = KINDS.index(outcome.cell[SPACE]), KINDS.index(outcome.cell[PRED_TYPE])
        log_fid = 0.5 * (row == 1) + 0.1 * column
        with (tmp_path / outcome.run_dir / "metrics.jsonl").open("a") as file:
            for step, share in (98, 0.5), (99, 1.0):
                fid = 10.0 ** (share * log_fid + 0.01 * outcome.seed)
                file.write(json.dumps({"step": step, "val_fid_infinity": fid}) + "\n")
    found = read_results(folder)
    batch = found.trials[0].config["TRAINING.HYPER_PARAMETERS.BATCH_SIZE"]
    made = loss_space.compare(found)
    assert made.claims[0].values == pytest.approx((0.5 - 0.2,) * 2)
    assert made.claims[1].values == pytest.approx((0.5,) * 2)
    assert f"| log10 FID after {99 * batch:,} images | 0.5" in made.markdown()
    assert f"| log10 FID after {98 * batch:,} images | 0.25" in made.markdown()
    assert made.pictures["loss_space.png"].startswith(b"\x89PNG")


def test_effects_are_fitted_without_the_cells_that_did_not_learn() -> None:
    rows, columns = np.array([0.0, 0.5, 0.1]), np.array([0.0, 2.0, 0.3])
    grid = rows[:, None] + columns
    assert [loss_space._effect(grid, axis) for axis in (0, 1)] == pytest.approx([0.5, 2.0])
    grid[[0, 2], [0, 2]] = np.nan  # two cells: the others still tell all
    assert [loss_space._effect(grid, axis) for axis in (0, 1)] == pytest.approx([0.5, 2.0])
    grid[:, 1] = np.nan  # an output that learned in no loss space
    assert [loss_space._effect(grid, axis) for axis in (0, 1)] == pytest.approx([0.5, 0.3])
    assert loss_space._worse(grid, "image") == pytest.approx(0.5)


def with_fids(found: SweepResults, fid_of: Callable[[dict], float]) -> SweepResults:
    """The sweep as though its samples had these FIDs by the cell, a little by the seed."""

    trials = (
        replace(one, quality=quality_of(1.0, fid_of(dict(one.cell)) * 1.01**one.seed))
        for one in found.trials
    )
    return replace(found, trials=tuple(trials))


@pytest.mark.slow
def test_the_shift_is_judged_at_each_size(tmp_path: Path) -> None:
    """FID by the distance from the size's own shift, as the paper has it."""
    shifts, key = schedule_shift.SHIFTS, schedule_shift.SHIFT
    found = read_results(swept(tmp_path, {key: list(shifts.values())}, (0, 1)))
    sizes = {
        side: with_fids(
            found, lambda cell, own=own: math.exp(abs(cell[schedule_shift.SHIFT] - own))
        )
        for side, own in shifts.items()
    }
    levels = found.trials[0].error.levels
    line = Lines(
        levels=levels,
        gaussian=(1e-9,) * len(levels),
        memorisation=None,
        num_train=9,
        samples=None,
    )
    sizes[32] = replace(sizes[32], references=line)  # below which no network is
    made = schedule_shift.compare(sizes)
    assert made.unlearned == tuple(
        f"32x32, LOGSNR_SHIFT={shift}" for shift in sorted(shifts.values(), reverse=True)
    )
    assert f"have only begun: {'; '.join(made.unlearned)}." in made.markdown()
    expected = [2 * log(2), 2 * log(4), 2 * log(4)]
    for one, value in zip(made.claims, expected, strict=True):
        assert one.values == pytest.approx((value,) * 2, abs=1e-4)
    assert [finding.verdict for finding in made.findings] == ["agrees"] * 3
    assert "FID of 4,096 samples" in made.setting and "| 32x32 |" in made.markdown()


@pytest.mark.slow
def test_a_moved_density_is_compared_with_a_moved_weight(tmp_path: Path) -> None:
    density, weight = moved_density.DENSITY, moved_density.WEIGHT
    folder = swept(tmp_path, {density: ["schedule", "laplace"], weight: [None, "laplace"]}, (0, 1))
    fids = {moved_density.PLAIN: 4.0, moved_density.WEIGHED: 3.0}
    found = with_fids(
        read_results(folder), lambda cell: fids.get((cell[density], cell[weight]), 1.0)
    )
    made = moved_density.compare(found)
    assert made.claims[0].values == pytest.approx((log(4),) * 2)
    assert made.claims[1].values == pytest.approx((log(3),) * 2)


def test_fid_over_steps_and_share_skipped_becomes_three_signs() -> None:
    """Linear twice as far in 50 steps, four times in 10; it loses nothing by a skipped fifth."""
    steps = {(50, 0): (2.0, 1.0), (10, 0): (8.0, 2.0), (50, 10): (2.0, 3.0)}

    def points(cell: int, scale: float) -> dict[tuple[int, int], Point]:
        return {
            key: Point(
                skipped=key[1],
                num_steps=key[0],
                fid=(estimate := Interval(value=scale * values[cell], low=0, high=9, n=512)),
                fid_infinity=estimate,
            )
            for key, values in steps.items()
        }

    measured = {
        cell: {0: points(place, 1.0), 1: points(place, 1.5)}
        for place, cell in enumerate((few_steps.LINEAR, few_steps.COSINE))
    }
    values = [one.values for one in few_steps.claims(measured)]
    expected = [(log(2),) * 2, (log(2),) * 2, (log(3),) * 2]
    assert values == [pytest.approx(pair) for pair in expected]


@pytest.mark.slow
def test_the_ideal_denoiser_has_the_terminal_bias_of_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.3, 0.1, (2000, 1, 1)).clip(0, 1).repeat(4, 1).repeat(4, 2)
    data = Dataset.from_arrays(values, validation_fraction=0.0)
    schedule = NoiseSchedule("cosine", 200, logsnr_shift=3.0)
    fit = GaussianFit.of(data.read(torch.arange(2000)).images.flatten(1))
    found = terminal_snr.measured(ideal_network(fit, schedule), schedule, "image", data, 512)
    assert found.trained == found.sampled == pytest.approx(found.predicted, rel=0.1)
    # one direction of 16 pixels: c = 16 * 0.2^2, mean -4 * 0.4, a pixel a quarter of it
    limit = 127.5 * 0.8 * found.signal * 1.6 / 4 / math.sqrt(1 - 0.36 * found.signal**2)
    assert found.predicted == pytest.approx(limit, rel=0.08)


@pytest.mark.slow
def test_cells_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = swept(tmp_path, {SPACE: KINDS[:2], PRED_TYPE: KINDS}, (0,))
    with pytest.raises(InputError, match="no training of velocity · noise, .* has ended well"):
        loss_space.compare(read_results(folder))


@pytest.mark.parametrize(
    "name", [name for name, study in results.STUDIES.items() if study.has_sweep]
)
def test_every_result_has_a_sweep_that_can_be_planned(name: str, tmp_path: Path) -> None:
    whole = planned(name, StudyOptions(output=tmp_path), ())
    assert len(whole.seeds) in (3, 5) and whole.question.endswith("?")
    assert Path(whole.base.TRAINING.OUTPUT_DIR) == tmp_path
    assert (
        (ROOT / "sweeps" / f"{name}.yaml")
        .read_text()
        .startswith("# Command:  python -m experiments")
    )


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert results.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in results.STUDIES)
    assert results.main(["few_steps", "--dry-run", "--output", str(tmp_path)]) == 0
    assert not list(tmp_path.iterdir())
    assert run_main(lambda: results.main(["fewsteps"])) == 2
    assert "'fewsteps' is no result; give one of hidden_plane" in capsys.readouterr().err
    assert run_main(lambda: results.main(["hidden_plane", "SEEDS=[0]"])) == 2
    assert run_main(lambda: results.main(["few_steps", "TRAINING.OUTPUT_DIR=x"])) == 2


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_result_is_made_by_one_command_and_made_again_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncated_snr, "WEIGHTINGS", ("snr", "truncated_snr"))
    small = [
        "SEEDS=[0]",
        "GRID.TRAINING.LOSS_WEIGHTING=[snr, truncated_snr]",
        "TUNE.MAX_CONCURRENT=1",
        "CLUSTER.CPUS_PER_WORKER=1",
        *overrides(),
    ]
    words = ["truncated_snr", "--output", str(tmp_path), *small]
    assert results.main(words) == 0
    page = (tmp_path / "results" / "truncated_snr" / "result.md").read_text()
    assert f"Changed: {small[0]}\n" in page and "clipped to norm 1." in page
    assert "with one seed, which decides nothing" in page and "Salimans & Ho 2022" in page
    runs = list(tmp_path.glob("digits_8x8x1/*/*/DONE.json"))
    assert len(runs) == 6
    before = {run: run.stat().st_mtime_ns for run in runs}
    assert results.main(words) == 0
    assert {run: run.stat().st_mtime_ns for run in runs} == before
    assert (tmp_path / "results" / "truncated_snr" / "result.md").read_text() == page


def test_measuring_stops_when_asked_between_two_items() -> None:
    asked = iter([False, True])
    options = StudyOptions(should_stop=lambda: next(asked))
    seen: list[int] = []
    with pytest.raises(Interrupted, match="run the same command again"):
        seen.extend(each([1, 2, 3], "numbers", options))
    assert seen == [1]
