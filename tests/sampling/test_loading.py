"""Networks read back from runs and checkpoints: which weights, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from ddpm import config as configuration
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError
from ddpm.runs import checkpoint
from ddpm.runs.checkpoint import folder_of
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.loading import load_network
from ddpm.training.step import TrainState
from ddpm.training.trainer import StepReport
from tests.support.small_run import STEP, make_config, make_run, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("ema", "name", "seed"), [(None, "ema-0.9", 1), (0.99, "ema-0.99", 2), (0, "model", 0)]
)
def test_the_weights_asked_for_are_loaded(
    run: Path, ema: float | None, name: str, seed: int
) -> None:
    for source in (run, folder_of(run / "checkpoints", STEP)):
        model = load_network(source, ema)
        expected = weights(model.config, seed)
        assert (model.name, model.step, model.network.training) == (name, STEP, False)
        for key, tensor in model.network.state_dict().items():
            assert torch.equal(tensor.cpu(), expected[key]), key


def test_a_network_is_loaded_in_the_order_that_is_fastest_to_draw_with(run: Path) -> None:
    """The channels of a pixel side by side; what it predicts is the same up to rounding."""
    model = load_network(run)
    plain = UNet(**configuration.network_arguments(model.config)).eval()
    plain.load_state_dict(model.network.state_dict())
    x_t, time, labels = torch.randn(4, 3, 8, 8), torch.rand(4), torch.arange(4) % 3
    with torch.no_grad():
        found, expected = model.network(x_t, time, labels), plain(x_t, time, labels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    run = RunDirectory(path)
    config = run.config()
    run.start(config, data_sha256="0" * 64, data_dir=path, threads=1, command=())
    state = TrainState(step=9, tensors={"model": weights(config, 0), "ema-0.9": weights(config, 1)})
    run.record(StepReport(step=9, images=9, metrics={}, state=state))
    run.close()
    assert load_network(path).step == 9
    newest = folder_of(path / "checkpoints", 9)
    data = bytearray((newest / "ema-0.9.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "ema-0.9.safetensors").write_bytes(data)
    assert load_network(path).step == STEP
    assert newest.is_dir()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = folder_of(run / "checkpoints", STEP)
    made = checkpoint.read_manifest(folder)
    shutil.rmtree(folder)
    wider = weights(make_config(tmp_path, FIRST_CHANNEL=16), 0)
    checkpoint.save(
        folder,
        tensors={"model": wider, "ema-0.9": wider},
        state={"step": STEP},
        manifest={"config_sha256": made["config_sha256"]},
    )
    with pytest.raises(InputError, match="another architecture than .*parameters differ, "):
        load_network(run)


def test_what_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    keras, empty, untrained = (tmp_path / name for name in ("model.h5", "empty", "untrained"))
    keras.touch()
    empty.mkdir()
    untrained.mkdir()
    (untrained / "training_config.yaml").write_text(configuration.to_yaml(make_config(tmp_path)))
    for source, words in (
        (tmp_path / "nowhere", "is no folder; name a run directory or a checkpoint"),
        (keras, "a Keras file, weights without their configuration; make a run of both"),
        (empty, "is no run directory, which has a training_config.yaml"),
        (untrained, "has no checkpoint yet; train it first"),
    ):
        with pytest.raises(InputError, match=words):
            load_network(source)
    with pytest.raises(InputError, match=r"has no ema-0\.5; it has the EMA decays 0\.9, 0\.99"):
        load_network(run, 0.5)
