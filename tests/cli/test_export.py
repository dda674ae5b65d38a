"""A network exported: whole, with a card that says what is known, and images drawn as it says."""

import io
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ddpm.cli.main import launch
from ddpm.diffusion import Stream, network_input, normal
from ddpm.sampling import load_network
from tests.support.small_run import make_run


@pytest.mark.slow
def test_an_export_holds_the_weights_and_a_card_whose_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(tmp_path), tmp_path / "to" / "out"
    model = load_network(run, 0.99, device=torch.device("cpu"))
    record = {
        "samples": {"weights_sha256": model.sha256},
        "protocol": "as it is done",
        "measures": {
            "kid": {"value": 0.5, "low": 0.25, "high": 1.0, "n": 64},
            "fid": {"value": None, "reason": "few"},
        },
    }
    other = {**record, "samples": {"weights_sha256": "0"}, "protocol": "of other weights"}
    (run / "evaluation_of_samples_pixels.json").write_text(json.dumps(record))
    (run / "evaluation_of_samples_raw.json").write_text(json.dumps(other))
    assert launch("export", [str(run), str(out), "--to", "safetensors", "--ema", "0.99"]) == 0
    weights = load_file(out / "model.safetensors")
    state = model.network.state_dict()
    assert weights.keys() == state.keys() and all(torch.equal(weights[k], state[k]) for k in state)
    card = (out / "README.md").read_text()
    assert "| kid | 0.5 | 0.25 to 1 | 64 |" in card and "Protocol: as it is done." in card
    assert "fid" not in card and "other weights" not in card
    assert "| data | made, 8x8x3, 3 classes, index 000" in card
    assert "| schedule | cosine, 12 timesteps |" in card and "ema-0.99 of step 7" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["images"].shape == (4, 3, 8, 8) and bool(names["images"].isfinite().all())


@pytest.mark.slow
def test_an_edm_network_is_exported_with_the_deviation_of_its_data(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, {"PRED_TYPE": "edm"}), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "safetensors"]) == 0
    card = (out / "README.md").read_text()
    assert "| sigma_data | 0.75, the standard deviation of the data's values |" in card
    assert "NoiseSchedule(**schedule_arguments(config), sigma_data=0.75)" in card


def test_an_export_never_replaces_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    words = [str(tmp_path / "run"), str(tmp_path / "out"), "--to", "safetensors"]
    assert launch("export", words) == 2
    assert "out is there already; give another OUT" in capsys.readouterr().err
    words[1] = str(tmp_path / "new")
    assert launch("export", words) == 2
    assert "is no folder; name a run directory" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


LAYOUT = {
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_folder_for_diffusers_without_it_says_that_it_was_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    run, out = make_run(tmp_path), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "diffusers"]) == 0
    assert "not verified: diffusers is not installed here" in capsys.readouterr().out
    assert files_of(out) == LAYOUT
    assert json.loads((out / "unet" / "config.json").read_text())["num_class_embeds"] == 4
    card = (out / "README.md").read_text()
    assert "library_name: diffusers" in card and "| tried | not verified" in card
    assert "unet(images, t, labels)" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "network", "told"),
    [
        (["--label", "3"], {}, "--label is 3; give a class from 0 to 2, or none"),
        (["--label", "x"], {}, "--label is x; give a class from 0 to 2, or none"),
        (["--label", "1"], {"NUM_CLASSES": None}, "--label: the network has no classes"),
        ([], {"BLOCK_SIZE": 2, "KERNEL_SIZE": 5}, "KERNEL_SIZE is 5; that of UNet2DModel is 3"),
    ],
)
def test_what_diffusers_cannot_do_is_refused_and_nothing_is_written(
    words: list[str],
    network: dict[str, object],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = make_run(tmp_path, **network), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "diffusers", *words]) == 2
    assert told in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_an_untrained_null_class_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(tmp_path, {"LABEL_DROP": 0.0}), tmp_path / "out"
    words = [str(run), str(out), "--to", "diffusers", "--label", "none"]
    assert launch("export", words) == 2
    assert "none: LABEL_DROP was 0" in capsys.readouterr().err
    words[3] = "safetensors"
    assert launch("export", words) == 2
    assert "--label is for --to diffusers" in capsys.readouterr().err


OPTIONS: dict[str, tuple[dict[str, object], dict[str, object], list[str]]] = {
    "every class": ({}, {}, []),
    "one class": ({}, {"CLASS_EMB_DIM": 5}, ["--label", "2"]),
    "no class": ({}, {}, ["--label", "none"]),
    "timesteps by their digits": ({}, {"NUM_CLASSES": None, "TIME_EMB_DIM": 32}, []),
    "a thousand of them": (
        {},
        {"NUM_CLASSES": None, "FIRST_CHANNEL": 16, "TIME_EMB_DIM": 64, "TIMESTEPS": 1000},
        [],
    ),
    "images, one channel, oblong": (
        {"PRED_TYPE": "image", "INPUT_IMAGE_SIZE": [8, 16], "INPUT_IMAGE_CHANNEL": 1},
        {"NUM_CLASSES": None, "TIME_INPUT": "logsnr"},
        [],
    ),
    "noise, three levels, heads": (
        {"PRED_TYPE": "noise"},
        {
            "NUM_CLASSES": None,
            "CHANNEL_MULTIPLIER": [1, 2, 3],
            "HAS_ATTENTION": [False, True, False],
            "NUM_HEADS": 2,
            "NUM_RES_BLOCKS": 2,
        },
        [],
    ),
    "layers of Keras": (
        {},
        {"NUM_CLASSES": None, "KERAS_LAYERS": True, "HAS_ATTENTION": [True, True]},
        [],
    ),
    "zero terminal SNR": ({}, {"NUM_CLASSES": None, "ZERO_TERMINAL_SNR": True}, []),
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", OPTIONS)
def test_pipelines_of_diffusers_draw_the_images_of_the_run(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    training, network, words = OPTIONS[case]
    run, out = make_run(tmp_path, training, **network), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "diffusers", *words]) == 0
    assert "verified with diffusers" in capsys.readouterr().out
    assert files_of(out) == LAYOUT
    if words or "NUM_CLASSES" in network:
        for kind in (diffusers.DDIMPipeline, diffusers.DDPMPipeline):
            pipeline = kind.from_pretrained(out)
            pipeline.set_progress_bar_config(disable=True)
            images = pipeline(batch_size=2, num_inference_steps=4, output_type="np").images
            assert images.shape[0] == 2 and images.min() >= 0 and images.std() > 0


@pytest.mark.oracle
def test_an_export_that_draws_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    run, out = make_run(tmp_path, NUM_CLASSES=None), tmp_path / "out"
    # As another version of diffusers might: its attention is left out.
    monkeypatch.setattr(
        diffusers.models.attention_processor.Attention, "forward", lambda self, x, **_: x
    )
    assert launch("export", [str(run), str(out), "--to", "diffusers"]) == 2
    assert "draws other images from the exported network" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "network"),
    [
        ({}, {"CHANNEL_MULTIPLIER": [1], "HAS_ATTENTION": [True]}),
        pytest.param(
            {"PRED_TYPE": "edm"},
            {"NUM_CLASSES": None, "BLOCK_SIZE": 2, "USE_CROSS_ATTENTION": True, "TIMESTEPS": 1000},
            marks=pytest.mark.long,
        ),
    ],
    ids=["velocity, classes", "edm"],
)
def test_a_program_of_torch_predicts_as_the_network_for_any_number_of_images(
    training: dict[str, object],
    network: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, out = make_run(tmp_path, training, **network), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "torch"]) == 0
    assert "verified with torch" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["prediction"].shape == (4, 3, 8, 8)

    with zipfile.ZipFile(out / "model.pt2") as archive:
        pickled = [name for name in archive.namelist() if name.endswith(".pt")]
        for name in pickled:  # tensors, which torch reads without running anything
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    assert pickled  # one; three before torch 2.7

    model = load_network(run, device=torch.device("cpu"))
    total, ids = model.schedule.num_timesteps, torch.arange(7)
    x_t, t = normal(1, Stream.X_T, ids, (3, 8, 8)), total - ids
    labels = None if training else ids % 4
    time = model.schedule.network_time(t.double() / total, model.schedule.logsnr_at(t)).float()
    alpha, sigma = model.schedule.alpha_sigma_at(t)
    assert torch.equal(names["alpha"][t], alpha) and torch.equal(names["sigma"][t], sigma)
    with torch.no_grad():
        given = network_input(x_t, alpha, sigma, model.pred_type, model.schedule.sigma_data)
        expected = model.network(given, time, labels)
        found = names["network"](x_t, t, *(() if labels is None else (labels,)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
