"""Tasks of IMAGE_GENERATION in the reverse process, and what they refuse."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion import philox
from ddpm.diffusion.philox import Stream
from ddpm.errors import InputError
from ddpm.sampling import batches, tasks
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.loading import LoadedModel, load_network
from ddpm.sampling.request import read_request, task_problems
from ddpm.sampling.samplers import Constrain, SamplerOptions, SampleState, WalkStart
from ddpm.sampling.tasks import keep_known
from tests.sampling.conftest import Draw
from tests.sampling.test_request import problems
from tests.support.small_run import images_of, make_config, make_run, save

SHAPE = (3, 8, 8)
SEED = 5


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedModel:
    return load_network(run)


@pytest.fixture(scope="module")
def base() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def in_model_space(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2) * 2 - 1


def states(
    model: LoadedModel,
    constrain: Constrain | None = None,
    start: WalkStart | None = None,
    **options: object,
) -> list[SampleState]:
    """Every state of a walk of four steps."""
    seen: list[SampleState] = []
    batches.draw_batch(
        model.network,
        model.schedule,
        torch.arange(3),
        SHAPE,
        SamplerOptions(pred_type="velocity", num_steps=4, seed=SEED, **options),  # type: ignore[arg-type]
        constrain=constrain,
        start=start,
        on_state=lambda ids, state: seen.append(state),
    )
    return seen


# Inpainting


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kind"), [((8, 8), bool), ((2, 8, 8), np.uint8)])
def test_a_mask_keeps_its_pixels_to_the_last_bit(
    draw: Draw, base: np.ndarray, tmp_path: Path, shape: tuple[int, ...], kind: type
) -> None:
    mask = np.random.default_rng(1).random(shape) < 0.5
    path = save(tmp_path / "base.npz", images=base, mask=mask.astype(kind))
    drawn = images_of(draw(GEN_TASK="inpaint", EXTERNAL_NPZ_INPUT=path))
    turn = np.arange(5)
    masks = mask.reshape(-1, 8, 8)[turn % (2 if len(shape) == 3 else 1)]
    assert (drawn[masks] == base[turn % 3][masks]).all()
    assert (drawn[~masks] != base[turn % 3][~masks]).mean() > 0.5


@pytest.mark.parametrize("kind", ["fixed", "fresh", "none"])
def test_what_is_known_is_in_every_state_at_its_level(
    model: LoadedModel, base: np.ndarray, kind: str
) -> None:
    """x_s = alpha_s known + sigma_s noise: one noise for all s, another at each, or none."""
    clean, known = in_model_space(base), torch.zeros(1, 3, 1, 1, dtype=torch.bool)
    known[:, 2] = True
    seen = states(model, keep_known(clean, known, SEED, kind))
    ids, noises = torch.arange(3), []
    assert [state.s for state in seen][-1] == 0 and len(seen) == 4
    for state in seen:
        alpha, sigma = model.schedule.alpha_sigma_at(torch.tensor(int(state.s)))
        channel = state.x_t[:, 2].double()
        if kind == "none" or state.s == 0:
            assert torch.equal(state.x_t[:, 2], clean[:, 2])
            continue
        noises.append((channel - alpha * clean[:, 2]) / sigma)
        assert abs(float(noises[-1].std()) - 1) < 0.2
    start = philox.normal(SEED, Stream.X_T, ids, SHAPE)[:, 2].double()
    if kind == "fixed":
        for drawn in noises:
            torch.testing.assert_close(drawn, start, atol=1e-5, rtol=0)
    for a, b in zip(noises, noises[1:], strict=False):
        assert kind == "fixed" or float((a - b).std()) > 1


@pytest.mark.slow
def test_how_the_known_part_is_treated_changes_the_rest(
    draw: Draw, base: np.ndarray, tmp_path: Path
) -> None:
    path = save(tmp_path / "base.npz", images=base)
    keys = {"GEN_TASK": "channel_inpaint", "EXTERNAL_NPZ_INPUT": path, "FREEZE_CHANNEL": 0}
    keys["RESAMPLES"] = 1
    plain = images_of(draw(**keys))
    for change in ({"KNOWN_NOISE": "fresh"}, {"KNOWN_NOISE": "none"}, {"RESAMPLES": 2}):
        changed = images_of(draw(**(keys | change)))
        assert (plain[..., 0] == changed[..., 0]).all(), change
        assert (plain[..., 1:] != changed[..., 1:]).any(), change


# SDEdit


def test_sdedit_begins_in_the_noised_image_at_its_strength(
    model: LoadedModel, base: np.ndarray
) -> None:
    clean = in_model_space(base)
    seen = states(model, start=WalkStart(time=0.5, x0=clean))
    assert [(state.t, state.s) for state in seen] == [(6, 3), (3, 0)]
    alpha, sigma = model.schedule.alpha_sigma_at(torch.tensor(6))
    drawn = philox.normal(SEED, Stream.X_T, torch.arange(3), SHAPE)
    x_t = (alpha * clean.double() + sigma * drawn.double()).float()
    with torch.no_grad():
        pred = model.network(x_t, torch.full((3,), 0.5), None).double()
    torch.testing.assert_close(
        seen[0].x0_hat.double(), alpha * x_t.double() - sigma * pred, atol=1e-5, rtol=0
    )


@pytest.mark.slow
def test_the_less_strength_the_nearer_to_the_input(
    draw: Draw, base: np.ndarray, tmp_path: Path
) -> None:
    path = save(tmp_path / "base.npz", images=base)
    keys = {"GEN_TASK": "sdedit", "EXTERNAL_NPZ_INPUT": path, "NUM_STEPS": 12}
    apart = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        drawn = images_of(draw(**keys, STRENGTH=strength)).astype(float)
        apart.append(np.abs(drawn - base[np.arange(5) % 3]).mean())
    assert apart == sorted(apart) and apart[0] < 0.5 * apart[-1]
    with pytest.raises(InputError, match=r"STRENGTH is 0.01: the start is at time 0.01; give one"):
        draw(**keys, STRENGTH=0.01)


def test_classes_are_taken_in_turn_by_image_number(run: Path) -> None:
    request = read_request(run, ["IMAGE_GENERATION.GEN_TASK=class_cond"])
    labels = tasks.labels_of(request, torch.tensor([7, 0, 100_000]))
    assert labels is not None and labels.tolist() == [1, 0, 1]


# What images depend on


RECIPES = {
    "KNOWN_NOISE": ("channel_inpaint", "fresh"),
    "RESAMPLES": ("channel_inpaint", 1),
    "FREEZE_CHANNEL": ("channel_inpaint", 1),
    "STRENGTH": ("sdedit", 0.25),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", RECIPES)
def test_what_changes_the_images_changes_the_recipe(
    run: Path, base: np.ndarray, tmp_path: Path, key: str
) -> None:
    path = save(tmp_path / "base.npz", images=base)
    task, value = RECIPES[key]
    keys = {"GEN_TASK": task, "EXTERNAL_NPZ_INPUT": path}
    if task == "channel_inpaint":
        keys["FREEZE_CHANNEL"] = 0

    def recipe(**changed: object) -> dict[str, Any]:
        words = [f"IMAGE_GENERATION.{name}={value}" for name, value in (keys | changed).items()]
        return ImageGenerator(read_request(run, words)).recipe()

    before = recipe()
    assert before == recipe() and before != recipe(**{key: value})
    assert before["sampler"]["resamples"] == (8 if task == "channel_inpaint" else 0)
    save(path, images=base[::-1])
    assert before != recipe()


def test_a_key_of_another_task_in_the_file_of_a_run_is_let_be(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    other = replace(config, IMAGE_GENERATION=replace(config.IMAGE_GENERATION, RESAMPLES=8))
    assert task_problems(other) == task_problems(config) == []


# Bad input


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "holds images; it needs `mask`"),
        ({"mask": np.ones((8, 8), bool)}, "`mask` says that all is known"),
        ({"mask": np.zeros((8, 8), bool)}, "`mask` says that nothing is known"),
        ({"mask": np.ones((4, 4), bool)}, r"`mask` has shape \(4, 4\); give \(N, 8, 8\)"),
        ({"mask": np.ones((1, 8, 8, 3), bool)}, r"`mask` has shape \(1, 8, 8, 3\)"),
        ({"mask": np.ones((8, 8), np.float32)}, "`mask` is float32; give true and false, or bytes"),
    ],
)
def test_masks_must_fit(
    run: Path, base: np.ndarray, tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    path = save(tmp_path / "base.npz", images=base, **arrays)
    keys = ("GEN_TASK=inpaint", f"EXTERNAL_NPZ_INPUT={path}")
    (problem,) = problems(run, *(f"IMAGE_GENERATION.{key}" for key in keys)).splitlines()
    assert re.search(words, problem), problem


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("GEN_TASK=inpaint",), "GEN_TASK is inpaint but EXTERNAL_NPZ_INPUT is null"),
        (("GEN_TASK=sdedit",), "GEN_TASK is sdedit but EXTERNAL_NPZ_INPUT is null"),
        (
            ("RESAMPLES=3",),
            "RESAMPLES has no effect: GEN_TASK is random_uncond; give GEN_TASK channel",
        ),
        (("GEN_TASK=sdedit", "STRENGTH=0"), "STRENGTH is 0"),
    ],
)
def test_what_a_task_lacks_is_named(run: Path, keys: tuple[str, ...], words: str) -> None:
    assert words in problems(run, *(f"IMAGE_GENERATION.{key}" for key in keys))


@pytest.mark.slow
def test_a_network_never_trained_without_classes_is_given_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"LABEL_DROP": 0.0})
    found = problems(run, "IMAGE_GENERATION.GEN_TASK=random_uncond")
    assert "random_uncond draws without classes" in found
    read_request(run, ["IMAGE_GENERATION.GEN_TASK=class_cond"])
