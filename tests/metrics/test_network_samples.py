"""Samples of a network measured in training and at its end: the same ones, once."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from ddpm.config.rules import FID_SAMPLES
from ddpm.config.schema import Config
from ddpm.data import open_data, open_source, packing
from ddpm.data.dataset import Dataset
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.distributed import Group
from ddpm.errors import InputError, Interrupted
from ddpm.metrics import quality as quality_file
from ddpm.metrics.classifier import FEATURES
from ddpm.metrics.distances import IMAGES_PER_DIMENSION
from ddpm.metrics.features import PIXEL_DIMENSIONS
from ddpm.metrics.network_samples import (
    BATCH,
    measure_samples,
    measure_walk,
    passes_at_end,
    sample_metrics,
    sampler_of,
    sampling_walks,
)
from ddpm.metrics.pretrained import DIMENSION
from ddpm.metrics.quality import Quality, SamplePictures
from ddpm.metrics.reference import as_real_data, classifier_features, reference_of
from ddpm.runs import checkpoint
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.loading import build_network
from ddpm.sampling.samplers import SamplerOptions
from ddpm.training.worker import work
from tests.support.digits_runs import digit_images, digits_run
from tests.support.processes import exit_codes
from tests.support.tiny_training import rows, run, tiny
from tests.training.test_resume import fingerprint, make_job, start, stop

ASKED = {"SAMPLING_STEPS": (1, 3), "SAMPLING_ETAS": (0.0, 1.0), "SAMPLING_NUM": 200}
WINDOW = (-4, 1)
POINTS = [(1, 0.0), (1, 1.0), (3, 0.0), (3, 1.0)]


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what is computed of the real images, once for all tests."""
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture
def folder(tmp_path: Path, digits: Path, statistics: Path) -> Path:
    """The directory of a run without classes, of an untrained network and four timesteps."""
    (tmp_path / "metrics").symlink_to(statistics)
    return digits_run(digits, tmp_path, None)


def asked(folder: Path, **changed: object) -> tuple[Config, Dataset]:
    """The run's configuration, asking for ASKED, and its data, which are compared by pixels."""
    run = RunDirectory(folder)
    config = run.config()
    evaluation = replace(config.EVALUATION, **(ASKED | changed))  # type: ignore[arg-type]
    dataset = replace(config.DATASET, LABEL_KEY=None)
    config = replace(config, EVALUATION=evaluation, DATASET=dataset)
    return config, open_data(config, Path(run.provenance["data_dir"]))


def measured(
    folder: Path, should_stop: Callable[[], bool] = lambda: False, **changed: object
) -> Quality:
    config, data = asked(folder, **changed)
    quality = measure_samples(folder, config, data, WINDOW, Group(), should_stop=should_stop)
    assert quality is not None and quality_file.read_quality(folder) == quality
    return quality


def pictures(folder: Path) -> SamplePictures:
    found = quality_file.read_pictures(folder)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def every(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, statistics: Path
) -> tuple[Quality, SamplePictures]:
    """All points of ASKED, measured undisturbed."""
    root = tmp_path_factory.mktemp("every")
    (root / "metrics").symlink_to(statistics)
    run = digits_run(digits, root, None)
    return measured(run), pictures(run)


def numbers(quality: Quality) -> list[tuple]:
    """All that does not depend on the machine's speed."""
    return [(p.num_steps, p.eta, p.evaluations, p.fid, p.kid, p.accuracy) for p in quality.points]


def test_a_run_that_asks_for_nothing_measures_nothing(folder: Path) -> None:
    config, data = asked(folder, SAMPLING_STEPS=())
    assert measure_samples(folder, config, data, WINDOW, Group()) is None
    assert not (folder / quality_file.FACTS).exists()


@pytest.mark.slow
def test_every_sampling_key_changes_what_is_measured(
    folder: Path, every: tuple[Quality, SamplePictures]
) -> None:
    quality, images = every[0], every[1].images
    assert [(p.num_steps, p.eta) for p in quality.points] == POINTS
    assert images.shape == (4, 100, 8, 8, 1) and quality.features == "pixels"
    assert all(p.fid and p.kid and p.seconds > 0 for p in quality.points)
    assert all(p.reasons == {"accuracy": "pixels features tell no classes"} for p in quality.points)
    # one step to the image draws no noise; three do
    assert (images[0] == images[1]).all() and not (images[2] == images[3]).all()
    other = measured(folder, SAMPLING_STEPS=(3, 2), SAMPLING_ETAS=(0.5,))
    assert [(p.num_steps, p.eta) for p in other.points] == [(2, 0.5), (3, 0.5)]
    assert not (pictures(folder).images[1] == images[2]).all()
    few = measured(folder, SAMPLING_NUM=72)
    assert pictures(folder).images.shape == (4, 72, 8, 8, 1)
    assert all(p.fid is None and "needs 160 images" in p.reasons["fid"] for p in few.points)
    between = measured(folder, SAMPLING_LOGSNR=(-4.0, 1.0))
    assert not (pictures(folder).images[0] == images[0]).all()
    of_the_data = measured(folder, SAMPLING_LOGSNR="data")
    assert numbers(of_the_data) == numbers(between)
    assert of_the_data.protocol == between.protocol


@pytest.mark.slow
def test_the_method_is_that_of_the_images_and_of_their_cost(folder: Path) -> None:
    found = {
        method: measured(folder, SAMPLING_METHOD=method, SAMPLING_ETAS=(0.0,), SAMPLING_STEPS=(3,))
        for method in ("ddim", "heun", "dpmpp_2m")
    }
    (ddim,), (heun,), (solver,) = (one.points for one in found.values())
    assert [p.sampler for p in (ddim, heun, solver)] == list(found)
    assert (ddim.evaluations, heun.evaluations, solver.evaluations) == (3, 5, 3)
    assert len({p.fid.value for p in (ddim, heun, solver) if p.fid}) == 3
    assert "DPM-Solver++(2M), x0 clipped" in found["dpmpp_2m"].protocol
    config, _ = asked(folder, SAMPLING_METHOD="heun", SAMPLING_ETAS=(0.0,))
    assert passes_at_end(config, NoiseSchedule("cosine", 4)) == (1 + 5) * 4 * BATCH


@pytest.mark.slow
def test_a_point_does_not_depend_on_which_others_are_asked_for(
    folder: Path, every: tuple[Quality, SamplePictures]
) -> None:
    assert numbers(measured(folder, SAMPLING_STEPS=(3,))) == numbers(every[0])[2:]
    assert (pictures(folder).images == every[1].images[2:]).all()


@pytest.mark.slow
def test_what_a_schedule_cannot_walk_is_left_out_with_the_reason(folder: Path) -> None:
    quality = measured(folder, SAMPLING_STEPS=(2, 5), SAMPLING_ETAS=(0.0,))
    assert [p.num_steps for p in quality.points] == [2]
    (left,) = quality.left_out
    assert (left.num_steps, left.eta) == (5, 0.0)
    assert left.reason == "5 steps are more than the 4 timesteps it was trained with"
    config, _ = asked(folder, SAMPLING_STEPS=(2, 5), SAMPLING_ETAS=(0.0,))
    assert (
        passes_at_end(config, NoiseSchedule("cosine", 4)) == 2 * 4 * BATCH
    )  # of 200 in whole batches
    beyond = measured(folder, SAMPLING_STEPS=(2,), SAMPLING_LOGSNR=(-8.0, 5.0))
    assert beyond.points == () and pictures(folder).images.shape[0] == 0
    assert "logsnr is 5.0, but cosine with 4 timesteps goes from" in beyond.left_out[0].reason


@pytest.mark.slow
def test_stopped_at_any_instant_it_goes_on_and_measures_nothing_twice(
    folder: Path, every: tuple[Quality, SamplePictures]
) -> None:
    seconds: dict[int, float] = {}
    for attempt in range(100):
        calls = count()
        try:
            # a walk takes four batches: the second attempt stops within the third walk
            quality = measured(folder, lambda: next(calls) == (6, 5, 9)[min(attempt, 2)])  # noqa: B023
        except Interrupted as error:
            assert "run the same command again" in str(error)
        else:
            break
        kept = quality_file.read_quality(folder)
        assert kept is not None
        for place, point in enumerate(kept.points):
            assert seconds.setdefault(place, point.seconds) == point.seconds
    assert attempt == 2 and len(seconds) == 2
    assert numbers(quality) == numbers(every[0])
    assert (pictures(folder).images == every[1].images).all()
    again = measured(folder, lambda: True)  # nothing is left to be stopped
    assert again == quality


@pytest.mark.slow
def test_what_does_not_fit_is_measured_again(folder: Path) -> None:
    changed: dict[str, object] = {"SAMPLING_STEPS": (1,), "SAMPLING_ETAS": (0.0,)}
    right = measured(folder, **changed)
    facts, arrays = folder / quality_file.FACTS, folder / quality_file.QUALITY_FILE
    whole = facts.read_text()

    def falsified(**change: object) -> str:
        content = json.loads(whole)
        content["points"][0]["fid"]["value"] = -7.0
        return json.dumps(content | change)

    damaged = {
        "arrays": (arrays, arrays.read_bytes()[:-9]),
        "facts": (facts, whole.replace('"seconds"', '"minutes"').encode()),
        "format": (facts, falsified(format=2).encode()),
        "weights": (
            facts,
            falsified(identity=right.identity | {"weights_sha256": "0" * 64}).encode(),
        ),
    }
    for damage, (path, content) in damaged.items():
        path.write_bytes(content)
        assert damage == "weights" or None in (
            quality_file.read_quality(folder),
            quality_file.read_pictures(folder),
        )
        assert numbers(measured(folder, **changed)) == numbers(right), damage
        assert len(pictures(folder).images) == 1


@pytest.mark.slow
def test_a_network_that_draws_no_images_is_left_out(folder: Path) -> None:
    """Weights that overflow are a number of the trial, not its end."""
    place = checkpoint.folder_of(folder / "checkpoints", 3)
    found = checkpoint.load(place)
    tensors = {
        part: {name: tensor * 1e30 for name, tensor in group.items()}
        for part, group in found.tensors.items()
    }
    manifest = {k: v for k, v in found.manifest.items() if k not in ("files", "format", "step")}
    target = checkpoint.folder_of(folder / "checkpoints", 4)
    checkpoint.save(target, tensors=tensors, state={**found.state, "step": 4}, manifest=manifest)
    quality = measured(folder)
    assert quality.points == () and len(quality.left_out) == 4
    assert {left.reason for left in quality.left_out} == {
        "the images that the network draws are not finite"
    }


@pytest.mark.slow
def test_real_digits_are_worth_more_than_noisy_ones(
    tmp_path: Path, digits: Path, digits_output: Path
) -> None:
    """With labels, by the classifier: images of their class, of another one, and noise."""
    folder = digits_run(digits, tmp_path)
    run = RunDirectory(folder)
    config = run.config()
    data = open_data(config, Path(run.provenance["data_dir"]))
    images, labels = digit_images(600)
    noisy, _ = digit_images(600, noise=120)
    real = as_real_data(config, data, digits_output / "metrics")
    reference = reference_of(real, "train", classifier_features(real))
    sampler = SamplerOptions(pred_type="velocity", num_steps=1)
    own, shifted, worse = (
        measure_walk(sampler, 1, drawn, 1.0, labels, reference)
        for drawn in (images, np.roll(images, 1, axis=0), noisy)
    )
    assert own.fid and own.kid and own.accuracy and shifted.accuracy
    assert worse.fid and worse.kid and worse.accuracy
    assert abs(own.fid.value) < 0.05 and worse.fid.low > own.fid.high
    assert own.kid.low <= 0.002 and worse.kid.low > own.kid.high
    assert own.accuracy.value > 0.97 > worse.accuracy.high
    assert shifted.accuracy.high < 0.2
    assert shifted.fid and shifted.fid.low < own.fid.value < shifted.fid.high


@pytest.mark.long
def test_killed_and_on_two_workers_a_training_ends_with_the_numbers_of_one(
    tmp_path: Path, digits: Path
) -> None:
    keys = {
        "TRAINING.NUMERICS": "exact",
        "TRAINING.HYPER_PARAMETERS.EPOCHS": 1,
        "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 0,
        "DATASET.LABEL_KEY": "null",
        "TRAINING.NETWORK.NUM_CLASSES": "null",
        "IMAGE_GENERATION.GEN_TASK": "random_uncond",
        "EVALUATION.SAMPLING_STEPS": [2, 4, 12],
        "EVALUATION.SAMPLING_NUM": 200,
        "EVALUATION.SAMPLING_LOGSNR": [-8, 5],
    }
    jobs = {}
    for workers in (1, 2):
        root = tmp_path / str(workers)
        root.mkdir()
        jobs[workers] = make_job(root, digits, keys)
    work(jobs[1], Group())
    folder = Path(jobs[2].run_dir)
    started = start(jobs[2], tmp_path / "2", 2)
    while not (folder / quality_file.FACTS).exists() and started[0].is_alive():
        time.sleep(0.01)
    stop(started)
    kept = quality_file.read_quality(folder)
    assert kept is not None and not (folder / "DONE.json").exists()
    assert exit_codes(start(jobs[2], tmp_path / "2", 2)) == [0, 0]
    one, two = (quality_file.read_quality(Path(jobs[workers].run_dir)) for workers in (1, 2))
    assert one and two and two.points[: len(kept.points)] == kept.points
    assert len(numbers(one)) == 3 and numbers(one) == numbers(two)
    assert (pictures(Path(jobs[1].run_dir)).images == pictures(folder).images).all()
    assert fingerprint(Path(jobs[1].run_dir)) == fingerprint(folder)


FID, KID, ACCURACY = "val_fid_infinity", "val_kid", "val_class_accuracy"
SAMPLED = {
    "EVALUATION.EVERY": 2,
    "EVALUATION.FEATURES": "pixels",
    "EVALUATION.SAMPLES": 200,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 2,
}


@pytest.mark.long
def test_one_and_five_workers_measure_the_same(tmp_path: Path, digits: Path) -> None:
    """200 samples are four batches, so one worker of five has nothing to draw."""
    exact = SAMPLED | {"TRAINING.NUMERICS": "exact", "TRAINING.MICRO_BATCH": 5}
    found = []
    for workers in (1, 5):
        root = tmp_path / str(workers)
        root.mkdir()
        job = make_job(root, digits, exact)
        assert exit_codes(start(job, root, workers)) == [0] * workers
        text = (Path(job.run_dir) / "metrics.jsonl").read_text()
        first, last = (json.loads(line) for line in text.splitlines())
        assert not {FID, KID} & first.keys()
        found.append((last[FID], last[KID]))
    one, five = found
    assert min(one) > 0 and five == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
def test_features_and_samples_say_what_is_measured_of_samples(
    tmp_path: Path, digits: Path, digits_output: Path
) -> None:
    """The classifier's features tell classes, too; fewer samples are other ones."""
    output = f"TRAINING.OUTPUT_DIR={digits_output}"
    more, fewer = (
        rows(
            run(
                tmp_path / str(samples),
                digits,
                "EVALUATION.EVERY=2",
                output,
                "EVALUATION.FEATURES=classifier",
                f"EVALUATION.SAMPLES={samples}",
                f"EVALUATION.BEST={best}",
            )
        )
        for samples, best in ((256, "fid_infinity"), (128, "kid"))
    )
    assert [row["step"] for row in more if FID in row] == [4, 8]
    assert all(0 <= row[ACCURACY] <= 1 for row in more if FID in row)
    assert more[-1][KID] != fewer[-1][KID]
    assert not any(FID in row for row in fewer)  # it would mean nothing
    best = RunDirectory(tmp_path / "128" / "run").best_step
    assert best == min((row[KID], row["step"]) for row in fewer if KID in row)[1]
    plain = rows(run(tmp_path / "plain", digits, "EVALUATION.EVERY=2", output))
    assert not any(FID in row for row in plain)


def test_inception_is_opened_from_the_file_that_weights_names(tmp_path: Path, digits: Path) -> None:
    config = tiny(
        "EVALUATION.EVERY=4",
        "EVALUATION.FEATURES=inception",
        "EVALUATION.WEIGHTS=its/file.safetensors",
        f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}",
    )
    network, schedule = build_network(config)
    measure = sample_metrics(config, schedule, open_data(config, digits), Group())
    with pytest.raises(InputError, match="EVALUATION.WEIGHTS its/file.safetensors: No such file"):
        measure(network)


def test_a_best_that_too_few_training_images_could_never_give_is_refused(
    digits: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    np.savez(tmp_path / "x.npz", images=digit_images(60)[0], labels=np.arange(60) % 10)
    packing.pack(open_source(tmp_path / "x.npz"), few)
    config = tiny("EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels", "EVALUATION.BEST=kid")
    network, schedule = build_network(config)
    data = open_data(config, few)
    with pytest.raises(InputError, match="BEST is kid, which needs 64 training images"):
        sample_metrics(config, schedule, data, Group())
    fine = tiny("EVALUATION.EVERY=1", "EVALUATION.FEATURES=pixels")
    sample_metrics(fine, schedule, data, Group())


def test_samples_that_an_fid_needs_are_five_a_dimension() -> None:
    dimensions = {"classifier": FEATURES, "pixels": PIXEL_DIMENSIONS, "inception": DIMENSION}
    assert {name: IMAGES_PER_DIMENSION * d for name, d in dimensions.items()} == FID_SAMPLES


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("EVALUATION.FEATURES=pixels",), "FEATURES is pixels but EVERY is null"),
        (
            ("EVALUATION.EVERY=1", "EVALUATION.BEST=fid_infinity"),
            "BEST is fid_infinity but FEATURES is null",
        ),
        (
            (
                "EVALUATION.EVERY=1",
                "EVALUATION.FEATURES=classifier",
                "DATASET.LABEL_KEY=null",
                "TRAINING.NETWORK.NUM_CLASSES=null",
            ),
            "FEATURES is classifier but DATASET.LABEL_KEY is null",
        ),
        (("EVALUATION.SAMPLES=10",), "SAMPLES is 10"),
    ],
)
def test_what_cannot_be_measured_is_refused(keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny(*keys)


@pytest.mark.slow
def test_real_images_are_measured_once_as_the_samples_are(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics").unlink()  # their numbers are changed here
    quality = measured(folder, SAMPLING_STEPS=(1,), SAMPLING_ETAS=(0.0,))
    config, data = asked(folder)
    real = as_real_data(config, data)
    (kept,) = real.folder.glob("floor-pixels-*.json")
    kid, fid = quality.real["kid"], quality.real["fid"]
    assert kid.n == len(real.validation_ids) < 200
    # untrained networks draw noise
    (point,) = quality.points
    assert point.kid and point.fid and point.kid.low > kid.high and point.fid.low > fid.high
    kept.write_text(json.dumps({"kid": {"value": 1.0, "low": 0.5, "high": 2.0}}))
    again = measured(folder, SAMPLING_STEPS=(2,), SAMPLING_ETAS=(0.0,))
    assert set(again.real) == {"kid"} and again.real["kid"].high == 2.0


def test_guidance_and_averages_are_walked_one_after_another() -> None:
    evaluation = {
        "SAMPLING_STEPS": (4, 2), "SAMPLING_GUIDANCES": (1.0, 2.0), "SAMPLING_NUM": BATCH
    }  # fmt: skip
    config = tiny()
    config = replace(config, EVALUATION=replace(config.EVALUATION, **evaluation))  # type: ignore[arg-type]
    assert [(w.num_steps, w.guidance) for w in sampling_walks(config)] == [
        (2, 1.0),
        (4, 1.0),
        (4, 2.0),
    ]
    assert sampler_of(sampling_walks(config)[2], config, None).guidance == 2.0
    # guided steps ask the network twice
    assert passes_at_end(config, NoiseSchedule("cosine", 50)) == (2 + 4 + 8) * BATCH
    lengths = replace(config.EVALUATION, EMA_LENGTHS=(0.05, 0.1))
    found = sampling_walks(replace(config, EVALUATION=lengths))
    assert [w.ema_length for w in found] == 3 * [0.05] + 3 * [0.1]


@pytest.mark.slow
def test_a_guided_walk_is_measured_and_kept_as_such(tmp_path: Path, digits: Path) -> None:
    folder = digits_run(digits, tmp_path, 10)
    quality = measured(
        folder, SAMPLING_STEPS=(2,), SAMPLING_ETAS=(0.0,), SAMPLING_GUIDANCES=(1.0, 4.0)
    )
    plain, guided = quality.points
    assert (plain.guidance, plain.evaluations) == (1.0, 2)
    assert (guided.guidance, guided.evaluations) == (4.0, 4)
    assert quality.identity["SAMPLING_GUIDANCES"] == [1.0, 4.0]
