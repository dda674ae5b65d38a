"""Images of a run: what they depend on, where they go, sample grids, films, and the command."""

import io
import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm import config as configuration
from ddpm.cli.main import launch
from ddpm.config.schema import Config
from ddpm.data.index import open_index
from ddpm.errors import InputError, NonFiniteError
from ddpm.runs.checkpoint import folder_of
from ddpm.sampling import batches, grids
from ddpm.sampling.film import Film, to_uint8
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.loading import load_network
from ddpm.sampling.request import read_request
from ddpm.sampling.samplers import SamplerOptions, SampleState, WalkStart, sample
from tests.sampling.conftest import Draw
from tests.support.shard_data import stored
from tests.support.small_run import STEP, images_of, make_config, make_run, overrides, save

CLASSES = {"GEN_TASK": "class_cond"}
GUIDED = {**CLASSES, "GUIDANCE": 2.0}
CLIPPED = {**CLASSES, "CLIP_DENOISE": "true"}
ANCESTRAL = {**CLASSES, "DDIM_ETA": 1.0}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_bytes_survive_the_round_trip_rounded_channels_last_and_clamped() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    x = every_byte.permute(0, 3, 1, 2).float() / 127.5 - 1
    for near in (x, x + 0.49 / 127.5, x - 0.49 / 127.5, x.double()):
        assert torch.equal(to_uint8(near), every_byte)
    images = to_uint8(torch.tensor([-1.7, 0.2, math.inf]).view(1, 3, 1, 1).expand(1, 3, 2, 4))
    assert images.shape == (1, 2, 4, 3) and images[0, 0, 0].tolist() == [0, 153, 255]
    with pytest.raises(ValueError, match="images contain NaN"):
        to_uint8(torch.full((1, 1, 1, 1), math.nan))


# Which images


@pytest.mark.slow
def test_an_image_depends_on_its_number_and_not_on_how_many_are_drawn(draw: Draw) -> None:
    """Bitwise, over full and part-filled batches."""
    few, many = (images_of(draw(NUM_GEN_IMAGES=count)) for count in (3, 11))
    assert (few == many[:3]).all()
    assert len(np.unique(many.reshape(11, -1), axis=0)) == 11


def test_batches_call_the_network_at_one_size_only(run: Path) -> None:
    model, sizes = load_network(run), []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        sizes.append(len(x_t))
        return model.network(x_t, time, labels)

    sampler = SamplerOptions(pred_type="velocity", num_steps=3)
    batches.draw_images(network, model.schedule, 7, model.image_shape, sampler, batch_size=3)
    assert set(sizes) == {3} and len(sizes) == 9


@pytest.mark.slow
def test_images_are_those_of_sample(run: Path, draw: Draw) -> None:
    model = load_network(run)
    x0 = sample(
        model.network,
        model.schedule,
        torch.tensor([4]),
        model.image_shape,
        pred_type="velocity",
        num_steps=4,
        labels=torch.tensor([1]),
    )
    drawn = images_of(draw(**CLASSES))[4].astype(int)
    assert np.abs(drawn - to_uint8(x0)[0].numpy().astype(int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "labels"),
    [("null", [0, 1, 2, 0, 1]), ("2", [2, 2, 2, 2, 2]), ("[2,0]", [2, 0, 2, 0, 2])],
)
def test_class_label_chooses_the_class_of_each_image(
    draw: Draw, wanted: str, labels: list[int]
) -> None:
    generated = draw(**CLASSES, CLASS_LABEL=wanted)
    with np.load(generated.images) as arrays:
        assert arrays["labels"].tolist() == labels
    alone = images_of(draw(**CLASSES, CLASS_LABEL=labels[0]))
    where = np.array(labels) == labels[0]
    assert (images_of(generated)[where] == alone[where]).all()


@pytest.mark.slow
def test_random_uncond_is_the_null_class(run: Path, draw: Draw) -> None:
    model = load_network(run)
    null = torch.full((5,), model.network.null_label)
    sampler = SamplerOptions(pred_type="velocity", num_steps=4)
    args = (model.network, model.schedule, 5, model.image_shape, sampler)
    generated = draw()
    assert (images_of(generated) == batches.draw_images(*args, labels=null, batch_size=4)).all()
    with np.load(generated.images) as arrays:
        assert arrays.files == ["images"]


# Options beside which each of the changes makes other images.
CHANGES: list[tuple[dict[str, object], list[dict[str, object]]]] = [
    (
        CLASSES,
        [
            *({"SPACING": spacing} for spacing in ("linspace", "logsnr", "karras")),
            *({"SAMPLER": sampler} for sampler in ("heun", "dpmpp_2m")),
            {"RANDOM_SEED": 1},
            {"CLASS_LABEL": 1},
            {"NUM_STEPS": 5},
            {"DDIM_ETA": 0.5},
            {"CLIP_DENOISE": "true"},
            {"GUIDANCE": 2.0},
            {"NUM_STEPS": "null", "REVERSE_STRIDE": 5},
            {"SAMPLER": "ddpm", "DDIM_ETA": 1.0},
        ],
    ),
    (ANCESTRAL, [{"SAMPLER": "dpmpp_2m_sde"}]),
    (CLIPPED, [{"RECOMPUTE_NOISE": "false"}]),
    (GUIDED, [{"GUIDE": 0.99}, {"GUIDANCE_INTERVAL": [-3, 1]}, {"GUIDANCE_RESCALE": 0.7}]),
    ({}, [{"GUIDANCE": 2.0, "GUIDE": "model"}]),
]


@pytest.mark.slow
def test_every_option_changes_the_images(draw: Draw) -> None:
    for beside, changes in CHANGES:
        before = draw(**beside)
        for change in changes:
            after = draw(**{**beside, **change})
            assert images_of(before).shape == images_of(after).shape
            assert (images_of(before) != images_of(after)).any(), change
            assert before.recipe.read_text() != after.recipe.read_text(), change


@pytest.mark.slow
def test_other_averages_draw_other_images_and_null_is_seed_0(draw: Draw) -> None:
    drawn = [images_of(draw(ema=ema)) for ema in (None, 0.99, 0)]
    assert (drawn[0] != drawn[1]).any() and (drawn[0] != drawn[2]).any()
    assert draw(RANDOM_SEED="null").images == draw(RANDOM_SEED=0).images


@pytest.mark.slow
def test_ddpm_is_ddim_with_eta_one_and_an_eta_not_used_is_no_part_of_the_recipe(draw: Draw) -> None:
    ddpm, ddim = draw(SAMPLER="ddpm", **ANCESTRAL), draw(SAMPLER="ddim", **ANCESTRAL)
    assert (images_of(ddpm) == images_of(ddim)).all()
    assert draw(SAMPLER="heun", DDIM_ETA=0.0).images == draw(SAMPLER="heun", DDIM_ETA=1.0).images


def test_a_new_image_size_is_drawn_by_the_same_network(draw: Draw) -> None:
    generated = draw(NEW_IMAGE_SIZE=16, NUM_GEN_IMAGES=2)
    assert images_of(generated).shape == (2, 16, 16, 3)
    assert generated.images.stem.endswith("gen_2x16x16x3")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_inpainting_keeps_the_known_channel_to_the_last_bit(
    draw: Draw, tmp_path: Path, kind: str
) -> None:
    """And it reaches the other channels."""
    drawn, known = [], np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    for name, images in (("a", known), ("b", 255 - known)):
        stored = images if kind == "uint8" else (images / 255).astype(kind)
        path = save(tmp_path / f"{name}.npz", images=stored)
        keys = {"GEN_TASK": "channel_inpaint", "EXTERNAL_NPZ_INPUT": path, "FREEZE_CHANNEL": 1}
        drawn.append(images_of(draw(**keys, RESAMPLES=1)))
        turn = images[np.arange(5) % 3]
        assert (drawn[-1][..., 1] == turn[..., 1]).all()
        assert (drawn[-1][..., 0] != turn[..., 0]).mean() > 0.5
    assert (drawn[0][..., [0, 2]] != drawn[1][..., [0, 2]]).any()


# Guides and starts


@pytest.mark.slow
def test_a_guide_is_asked_in_place_of_the_null_class(run: Path, draw: Draw) -> None:
    model, guide = load_network(run), load_network(run, 0.99)
    x0 = sample(
        model.network,
        model.schedule,
        torch.arange(5),
        model.image_shape,
        pred_type="velocity",
        num_steps=4,
        labels=torch.tensor([0, 1, 2, 0, 1]),
        guidance=2.0,
        guide=guide.network,
    )
    generated = draw(**GUIDED, GUIDE=0.99, batch_size=5)
    assert (images_of(generated) == to_uint8(x0).numpy()).all()
    assert json.loads(generated.recipe.read_text())["sampler"]["guide_sha256"] == guide.sha256


@pytest.mark.slow
def test_a_guide_may_be_another_run_or_a_checkpoint(draw: Draw, tmp_path: Path) -> None:
    # time is what `run` sees as well, by a null
    other = make_run(tmp_path / "other", DROPOUT_RATE=0.5, TIME_INPUT="time")
    of_run = draw(**GUIDED, GUIDE=other)
    of_checkpoint = draw(**GUIDED, GUIDE=folder_of(other / "checkpoints", STEP))
    # Its weights are those of `run`, so this guide is the network itself: nothing to exaggerate.
    for generated in (of_run, of_checkpoint):
        assert (images_of(generated) == images_of(draw(**CLASSES))).all()
    assert of_run.images == of_checkpoint.images


@pytest.mark.slow
def test_a_guide_that_sees_log_snr_guides_none_that_sees_time(draw: Draw, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", {"LOGSNR_DENSITY": "edm"})
    with pytest.raises(InputError, match="sees logsnr and the one it guides sees time"):
        draw(**GUIDED, GUIDE=other)


@pytest.mark.slow
def test_a_guide_may_have_been_trained_by_a_loss_on_edm(draw: Draw, tmp_path: Path) -> None:
    """Its sigma_data belongs to the loss: what either network predicts does not depend on it."""
    other = make_run(tmp_path / "other", {"LOSS_SPACE": "edm"})
    assert (images_of(draw(**GUIDED, GUIDE=other)) == images_of(draw(**CLASSES))).all()


@pytest.mark.slow
def test_draw_begins_where_each_batch_is_told_to(run: Path) -> None:
    model = load_network(run)
    x0 = torch.linspace(-1, 1, 5 * 3 * 8 * 8).view(5, 3, 8, 8)
    options = SamplerOptions(pred_type="velocity", num_steps=12, resamples=1)
    drawn = batches.draw_images(
        model.network,
        model.schedule,
        3,
        model.image_shape,
        options,
        start=lambda ids: WalkStart(time=0.5, x0=x0[ids % 5]),
        batch_size=2,
    )
    alone = sample(
        model.network,
        model.schedule,
        torch.arange(2, 4),
        model.image_shape,
        start=WalkStart(time=0.5, x0=x0[2:4]),
        labels=torch.full((2,), model.network.null_label),
        **vars(options),
    )
    assert (drawn[2] == to_uint8(alone)[0].numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [{"num_steps": 5}, {"reverse_stride": 5}])
def test_num_calls_counts_the_steps_taken_again(run: Path, steps: dict[str, int]) -> None:
    model, states = load_network(run), list[SampleState]()
    options = SamplerOptions(pred_type="velocity", resamples=2, **steps)
    batches.draw_batch(
        model.network,
        model.schedule,
        torch.arange(2),
        model.image_shape,
        options,
        on_state=lambda ids, state: states.append(state),
    )
    assert len(states) == batches.num_calls(options, model.schedule)


def test_num_calls_counts_both_calls_of_heun(run: Path) -> None:
    model, calls = load_network(run), list[int]()
    options = SamplerOptions(
        pred_type="velocity", num_steps=5, sampler="heun", spacing="logsnr", between=(-4.0, 2.0)
    )
    model.network.register_forward_hook(lambda *_: calls.append(1))
    batches.draw_batch(model.network, model.schedule, torch.arange(2), model.image_shape, options)
    assert len(calls) == batches.num_calls(options, model.schedule) == 9


def test_the_default_options_are_those_of_the_library(run: Path) -> None:
    """Options that IMAGE_GENERATION leaves out are those that SamplerOptions leaves out."""
    generator = ImageGenerator(read_request(run, overrides(NUM_STEPS=4)))
    assert generator.sampler == SamplerOptions(pred_type="velocity", num_steps=4)
    assert make_config(run).IMAGE_GENERATION.RECOMPUTE_NOISE


# Where they go


@pytest.mark.parametrize(
    ("keys", "stem"),
    [
        ({}, "ddim_eta0.0_steps4"),
        ({"NUM_STEPS": "null"}, "ddim_eta0.0_steps12"),
        ({"NUM_STEPS": "null", "REVERSE_STRIDE": 5, "DDIM_ETA": 1.0}, "ddim_eta1.0_rev5"),
        ({"SAMPLER": "heun"}, "heun_steps4"),
        ({"SAMPLER": "ddpm", "DDIM_ETA": 1.0}, "ddim_eta1.0_steps4"),
    ],
)
def test_files_are_named_as_v3_names_them(run: Path, keys: dict[str, object], stem: str) -> None:
    assert read_request(run, overrides(**keys)).stem == f"{stem}_gen_5x8x8x3"


@pytest.mark.slow
def test_images_go_into_the_run_by_default(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    generated = ImageGenerator(read_request(run)).run()
    stem = run / "generated" / "ddim_eta0.0_steps4_gen_5x8x8x3"
    assert generated.images == stem.with_name(f"{stem.name}.npz")
    assert generated.picture == stem.with_name(f"{stem.name}.png")
    assert generated.picture.is_file() and generated.recipe.is_file()


@pytest.mark.slow
def test_the_same_recipe_is_drawn_once_and_another_overwrites_nothing(draw: Draw) -> None:
    first = draw(RANDOM_SEED=1)
    data, written = first.images.read_bytes(), first.images.stat().st_mtime_ns
    other = draw(RANDOM_SEED=2)
    assert other.images != first.images and other.images.name.startswith(first.images.stem)
    again = draw(RANDOM_SEED=1)
    assert again.was_there and not first.was_there and again.images == first.images
    assert first.images.stat().st_mtime_ns == written
    first.images.unlink()
    assert not draw(RANDOM_SEED=1).was_there
    assert first.images.read_bytes() == data
    assert json.loads(other.recipe.read_text())["sampler"]["seed"] == 2


# Films


def filmed(num_steps: int, every: int | None) -> Film:
    """A film of one grey image: after step k of n, x_t is k / n of white."""
    film = Film(num_steps, every)
    for step in range(1, num_steps + 1):
        image = torch.full((2, 1, 32, 32), 2 * step / num_steps - 1)
        state = SampleState(x_t=image, x0_hat=-image, t=num_steps - step + 1, s=num_steps - step)
        film.add(torch.arange(2), state)
        film.add(torch.arange(2, 4), state)  # of another batch
    return film


@pytest.mark.parametrize(
    ("num_steps", "every", "steps"),
    [
        (20, None, range(2, 21, 2)),
        (4, None, range(1, 5)),
        (20, 6, (6, 12, 18, 20)),
        (20, 5, (5, 10, 15, 20)),
        (3, 7, (3,)),
    ],
)
def test_every_kth_state_is_shown_and_always_the_last(
    num_steps: int, every: int | None, steps: range
) -> None:
    strip = filmed(num_steps, every).strip(1)[..., 0]
    greys = [round(255 * step / num_steps) for step in steps]
    assert strip.shape == (2 + 2 * 34, 2 + 34 * len(greys))
    np.testing.assert_allclose(strip[18, 18::34], greys, atol=1)
    np.testing.assert_allclose(strip[18 + 34, 18::34], [255 - grey for grey in greys], atol=1)


@pytest.mark.slow
def test_export_interm_shows_the_way_from_noise_to_image(draw: Draw) -> None:
    plain = draw(NUM_STEPS=12, batch_size=5)
    generated = draw(EXPORT_INTERM="true", NUM_STEPS=12, batch_size=5)
    assert plain.film is None and generated.film is not None
    assert (images_of(plain) == images_of(generated)).all()
    film = pixels(generated.film)
    # 5 images in two rows each, ten frames; every 8x8 image is shown as 32x32
    assert film.shape == (2 + 10 * 34, 2 + 10 * 34, 3)
    for index, image in enumerate(images_of(generated)):
        top, left = 2 + 2 * index * 34, 2 + 9 * 34
        assert (film[top : top + 32 : 4, left : left + 32 : 4] == image).all()
        assert (film[top + 34 : top + 66 : 4, left : left + 32 : 4] == image).all()
        assert (film[top : top + 32 : 4, 2:34:4] != image).any()


@pytest.mark.slow
def test_films_are_exported_as_asked(draw: Draw) -> None:
    keys = {"EXPORT_INTERM": "true", "NUM_STEPS": 12, "EXPORT_EVERY": 5}
    strip, film = draw(**keys).film, draw(**keys, EXPORT_FORMAT="gif").film
    assert strip and pixels(strip).shape[1] == 2 + 3 * 34
    assert film and film.suffix == ".gif"
    with Image.open(io.BytesIO(film.read_bytes())) as shown:
        assert shown.n_frames == 3


# Grids and the library's own face


@pytest.mark.slow
def test_sample_images_draws_what_it_is_asked_and_leaves_the_network_as_it_was(run: Path) -> None:
    model = load_network(run)
    model.network.train()
    images = grids.sample_images(model, 5, labels=[0, 1, 2, 0, 1], seed=3)
    assert model.network.training
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    again = grids.sample_images(model, 3, labels=torch.tensor([0, 1, 2]), seed=3)
    assert (again == images[:3]).all()
    assert (grids.sample_images(model, 3, labels=[0, 1, 2], seed=4) != again).any()
    assert (grids.sample_images(model, 3, seed=3) != again).any()
    for count, labels, words in (
        (0, None, "num_images is 0; give at least 1"),
        (3, [0], "1 labels for 3 images"),
    ):
        with pytest.raises(ValueError, match=words):
            grids.sample_images(model, count, labels)


def with_keys(run: Path, *overrides: str) -> Config:
    return configuration.load(run / "training_config.yaml", overrides)


@pytest.mark.slow
def test_the_sample_grid_is_the_same_for_every_training_seed(run: Path) -> None:
    model = load_network(run)
    grid = grids.sample_grid(model.network, model.schedule, model.config)
    assert grid.shape == (6, 8, 8, 3)
    for key, is_same in (("TRAINING.SEED=5", True), ("EVALUATION.SEED=5", False)):
        other = grids.sample_grid(model.network, model.schedule, with_keys(run, key))
        assert (other == grid).all() == is_same


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nums", "labels"), [(7, [0, 0, 1, 1, 2, 2]), (6, [0, 0, 1, 1, 2, 2]), (2, [0, 1])]
)
def test_the_sample_grid_has_its_classes_in_rows(run: Path, nums: int, labels: list[int]) -> None:
    found = grids.grid_labels(with_keys(run, f"TRAINING.INLINE_GEN.NUMS={nums}"))
    assert found is not None and found.tolist() == labels
    assert grids.grid_labels(with_keys(run, "TRAINING.NETWORK.NUM_CLASSES=null")) is None


@pytest.mark.slow
def test_images_that_are_not_finite_are_refused(run: Path) -> None:
    model = load_network(run)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        pred = model.network(x_t, time, labels)
        pred[1:] = torch.nan
        return pred

    with pytest.raises(NonFiniteError, match="5 of 6 images are not finite, first image 1"):
        grids.sample_grid(network, model.schedule, model.config)


@pytest.mark.slow
def test_save_samples_leaves_the_grid_of_the_averaged_network(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    model = load_network(run)
    path = grids.save_samples(run, model.config)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        expected = grids.sample_grid(model.network, model.schedule, model.config)
        assert (arrays["images"] == expected).all()
    assert pixels(run / "samples.png").shape == (2 + 3 * 34, 2 + 2 * 34, 3)


# The command line


@pytest.mark.slow
def test_the_command_draws_and_says_where(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"IMAGE_GENERATION.GEN_SAVE_DIR={tmp_path / 'out'}"

    def command(*words: str) -> tuple[int, str, list[str]]:
        code = launch("sample", [str(run), target, *words])
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    code, shown, _ = command("--dry-run")
    assert code == 0 and "would draw 5 images" in shown
    bad = ("IMAGE_GENERATION.DDIM_ETA=2", "IMAGE_GENERATION.CLASS_LABEL=9", "DATASET.NAME=x")
    code, _, lines = command(*bad)
    assert code == 2 and len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "out").exists()
    code, shown, lines = command("--batch-size", "4")
    assert code == 0, lines
    stem = "ddim_eta0.0_steps4_gen_5x8x8x3"
    assert shown.splitlines()[-1].startswith(f"done: 5 images in {tmp_path}/out/{stem}.npz")
    names = [f"{stem}.json", f"{stem}.npz", f"{stem}.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert command("--batch-size", "4")[1].startswith("already drawn: 5 images")


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "end"), [(3, "h5"), (5, "npy")])
def test_floats_come_out_in_the_units_of_the_data(
    tmp_path: Path,
    channels: int,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    low, high = np.linspace(-300, 5, channels), np.linspace(0.25, 9000, channels)
    fields = low + (high - low) * random.random((120, 8, 8, channels))
    fields[0, 0, 0], fields[1, 1, 1] = low, high
    if end == "npy":
        np.save("fields.npy", fields)
    else:
        with h5py.File("fields.h5", "w") as file:
            file.create_dataset("images", data=fields, chunks=(7, 8, 8, channels))
    words = [f"fields.{end}", "fields", "--scale", "channels", "--label-key", "null"]
    assert launch("pack", words) == 0
    ranges = tuple(zip(*np.float32([low, high]).tolist(), strict=True))
    index = open_index("fields")
    assert index.ranges == ranges and index.dtype == "float32"
    assert np.min(stored(index)) == 0 and np.max(stored(index)) == 1

    training = {
        "INPUT_IMAGE_CHANNEL": channels,
        "HYPER_PARAMETERS": {
            "EPOCHS": 1,
            "STEPS_PER_EPOCH": 2,
            "BATCH_SIZE": 8,
            "LR_TYPE": "constant",
        },
        "INLINE_GEN": {"ENABLE": False},
    }
    made = make_config(Path("training_outputs"), training, NUM_CLASSES=None)
    Path("fields.yaml").write_text(configuration.to_yaml(made))
    words = ["DATASET.PATH=fields", "DATASET.LABEL_KEY=null", "WANDB.MODE=disabled"]
    assert launch("train", ["fields.yaml", *words]) == 0
    drawn = {}
    for kind in ("null", "uint8"):
        keys = {"NUM_STEPS": 3, "GEN_TASK": "random_uncond", "PIXELS": kind}
        words = ["latest", *overrides(**keys, GEN_SAVE_DIR=f"as_{kind}"), "--batch-size", "4"]
        assert launch("sample", words) == 0
        assert ("floats in the units of the data" in capsys.readouterr().out.splitlines()[-1]) == (
            kind == "null"
        )
        assert launch("sample", [*words, "--num", "5", "--format", "npz"]) == 0
        assert launch("sample", [*words, "--num", "5", "--verify"]) == 0
        (few,), (many,) = Path(f"as_{kind}").glob("*.npz"), Path(f"as_{kind}").glob("*/*.npz")
        drawn[kind] = np.load(few)["images"]
        assert np.array_equal(np.load(many)["images"], drawn[kind])
        pictures = [few.with_suffix(".png"), many.parent / "grid.png"]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
    floats, least, most = drawn["null"], *np.float32([low, high])
    assert floats.dtype == np.float32 and drawn["uint8"].dtype == np.uint8
    assert (floats >= least).all() and (floats <= most).all()
    levels = np.rint(255 * ((floats - low) / (high - low)))
    assert np.abs(levels - drawn["uint8"]).max() <= 1 and (levels == drawn["uint8"]).mean() > 0.99

    # what was drawn is a base image in the same units
    keys |= {
        "GEN_TASK": "sdedit",
        "STRENGTH": 0.1,
        "NUM_STEPS": 12,
        "PIXELS": "float",
        "GEN_SAVE_DIR": "again",
    }
    (base,) = Path("as_null").glob("*.npz")
    assert launch("sample", ["latest", *overrides(**keys, EXTERNAL_NPZ_INPUT=base)]) == 0
    (again,) = Path("again").glob("*.npz")
    assert (np.abs(np.load(again)["images"] - floats) <= 0.5 * (most - least)).mean() > 0.9
    assert launch("sample", ["latest", "--num", "5", "--format", "adm"]) == 2
    assert launch("evaluate", ["latest", "--num", "64", "--features", "pixels"]) == 0
