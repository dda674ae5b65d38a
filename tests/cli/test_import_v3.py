"""Weights of v3 as a run: what it records, that it is drawn from, and v3's own command."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ddpm import config as configuration
from ddpm.cli import main
from ddpm.cli.import_v3 import import_run
from ddpm.diffusion import UNet
from ddpm.errors import InputError
from ddpm.runs import RunDirectory, checkpoint, read_keras
from ddpm.sampling import build_network, load_network
from tests.support.keras_files import keras_layers, spoken, write_h5, write_weights_h5
from tests.support.tree import ROOT


def v3(folder: Path, weights: Path | None = None, **network: object) -> Path:
    """A YAML of v3: a network of its keys alone, images of `weights`."""
    path = folder / "v3.yaml"
    content = {
        "DATASET": {"NAME": "made", "PATH": "nowhere"},
        "TRAINING": {
            "INPUT_IMAGE_SIZE": 8,
            "OUTPUT_DIR": str(folder / "runs"),
            "NETWORK": {
                "TIMESTEPS": 20,
                "NUM_RES_BLOCKS": 1,
                "FIRST_CHANNEL": 8,
                "CHANNEL_MULTIPLIER": [1],
                "HAS_ATTENTION": [True],
                "TIME_EMB_DIM": 8,
                "NUM_CLASSES": 3,
                **network,
            },
        },
        "IMAGE_GENERATION": {
            "MODEL_PATH": str(weights or ""),
            "GEN_TASK": "class_cond",
            "NUM_GEN_IMAGES": 3,
            "REVERSE_STRIDE": 10,
            "GEN_SAVE_DIR": str(folder / "images"),
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


def model() -> UNet:
    shape = {"num_res_blocks": 1, "norm_groups": 8, "time_emb_dim": 8, "num_classes": 3}
    return spoken(UNet(8, 3, 8, [1], [True], **shape, keras_layers=True)).eval()


@pytest.mark.slow
def test_a_run_is_made_of_the_weights_and_found_again(tmp_path: Path) -> None:
    trained = model()
    weights = write_weights_h5(tmp_path / "model.weights.h5", keras_layers(trained))
    config = v3(tmp_path)
    assert not import_run(config, weights, dry=True).exists()
    assert not (tmp_path / "runs").exists()
    path = import_run(config, weights)
    assert import_run(config, weights) == path
    run = RunDirectory(path)
    facts = run.provenance
    assert facts["imported"] == {"file": str(weights), "sha256": read_keras(weights)[1]}
    assert facts["run_id"] == run.run_id == path.name[-8:] and "data_sha256" not in facts
    found = checkpoint.latest(run.checkpoints)
    assert found is not None and found.step == 0
    own = configuration.config_sha256(run.config())
    assert found.manifest["config_sha256"] == facts["config_sha256"] == own
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.02, 0.01]), torch.tensor([0, 2])
    for ema in (None, 0):
        loaded = load_network(path, ema, device=torch.device("cpu"))
        assert loaded.schedule.time_input == "timestep"
        with torch.no_grad():
            close = loaded.network(x, time, labels), trained(x, time, labels)
        torch.testing.assert_close(*close, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_trained_h5_takes_the_file_as_v3_did(tmp_path: Path) -> None:
    trained = model()
    weights = write_h5(tmp_path / "model.h5", keras_layers(trained))
    start = ["TRAINING.IS_NEW_TRAIN=false", f"TRAINING.TRAINED_H5={weights}"]
    network, schedule = build_network(configuration.load(v3(tmp_path), start))
    assert schedule.time_input == "timestep" and network.keras_layers
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.state_dict().items())
    with pytest.raises(InputError, match=r"TRAINED_H5: the file's layers(.*\n)*.*kind conv"):
        build_network(configuration.load(v3(tmp_path, NUM_RES_BLOCKS=2), start))
    run = import_run(v3(tmp_path), weights)
    with pytest.raises(InputError, match="whose network sees timestep, but here it is time"):
        build_network(configuration.load(v3(tmp_path), [start[0], f"TRAINING.TRAINED_H5={run}"]))
    other = [start[0], f"TRAINING.TRAINED_H5={run}", "TRAINING.NETWORK.TIME_INPUT=timestep"]
    with pytest.raises(InputError, match="whose TRAINING.NETWORK.KERAS_LAYERS is true; give the"):
        build_network(configuration.load(v3(tmp_path), other))


@pytest.mark.slow
def test_the_command_refuses_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = write_h5(tmp_path / "model.h5", keras_layers(model()))
    words = [str(v3(tmp_path, FIRST_CHANNEL=16)), str(weights)]
    assert main.launch("import-v3", words) == 2
    error = capsys.readouterr().err
    assert "give the keys of its training:" in error
    assert "error: layer dense_2 has the shape ((8, 8), (8,)), encoder.0.stages.0" in error
    assert not (tmp_path / "runs").exists()
    words += ["TRAINING.PRED_TYPE=edm"]
    assert main.launch("import-v3", words) == 2
    assert "PRED_TYPE is edm, which v3 did not train; give noise" in capsys.readouterr().err
    assert main.launch("sample", [str(weights)]) == 2
    assert f"ddpm import-v3 CONFIG {weights}" in capsys.readouterr().err


@pytest.mark.slow
def test_run_py_draws_as_v3_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = write_h5(tmp_path / "model.h5", keras_layers(model()))
    words = ["run.py", "--config", str(v3(tmp_path, weights)), "--imgen"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    (images,) = (tmp_path / "images").glob("*.npz")
    with np.load(images) as arrays:
        assert arrays["images"].shape == (3, 8, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("look", ["--status", "--verify", "--dry-run"])
def test_a_look_at_images_of_v3_imports_nothing(
    look: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_h5(tmp_path / "model.h5", keras_layers(model()))
    config = v3(tmp_path, weights)
    before = sorted(tmp_path.rglob("*"))
    assert main.launch("sample", [str(config), look]) == 2
    assert "is imported where images are drawn; leave --dry-run, " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_run_py_trains_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", str(tmp_path / "no"), "--training"])
    with pytest.raises(SystemExit, match="^2$"):
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert f"{tmp_path / 'no'}" in capsys.readouterr().err
