"""What a GPU must do as a CPU does: the draws, the losses, the images, resuming; and what it tells.

Command: python -m pytest -m gpu -n 0 --no-skips
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import open_data
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.distributed import Group
from ddpm.errors import Interrupted
from ddpm.runs.checkpoint import folder_of, load, steps
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.loading import build_network
from ddpm.sampling.samplers import sample
from ddpm.training import worker
from ddpm.training.step import Stepper, kernels
from experiments import terminal_snr
from experiments.hidden_plane import SAMPLES, Plane, drawn, trained
from tests.support.tiny_training import job_of, rows, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GPU = Group(device=torch.device("cuda", 0))
EXACT = ("TRAINING.NUMERICS=exact", "TRAINING.MICRO_BATCH=8", "TRAINING.NETWORK.DROPOUT_RATE=0.2")
LEVELS = (
    "TRAINING.NETWORK.CHANNEL_MULTIPLIER=[1,2]",
    "TRAINING.NETWORK.HAS_ATTENTION=[false,true]",
)
LONGER = "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH=20"


def train(folder: Path, digits: Path, *overrides: str, group: Group = GPU) -> Path:
    """The directory of a finished training."""
    worker.work(job_of(folder, digits, *LEVELS, *overrides), group)
    return folder / "run"


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    folder = RunDirectory(run).checkpoints
    return load(folder_of(folder, max(steps(folder)))).tensors


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run) if "loss" in row]


def test_trainings_interrupted_or_not_have_the_same_bits(tmp_path: Path, digits: Path) -> None:
    whole = weights(train(tmp_path / "whole", digits, *EXACT))
    asked = iter([False] * 3 + [True] * 9)
    with pytest.raises(Interrupted):
        worker.work(job_of(tmp_path, digits, *LEVELS, *EXACT), GPU, should_stop=lambda: next(asked))
    found = weights(train(tmp_path, digits, *EXACT))
    assert found.keys() == whole.keys()
    for part, tensors in whole.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[part][name]), f"{part}.{name}"


def test_the_losses_are_those_of_a_cpu(tmp_path: Path, digits: Path) -> None:
    """The same draws; float32 convolutions add in another order."""
    on_gpu = losses(train(tmp_path / "gpu", digits, *EXACT, LONGER))
    on_cpu = losses(train(tmp_path / "cpu", digits, *EXACT, LONGER, group=Group()))
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_the_loss(tmp_path: Path, digits: Path, precision: str) -> None:
    """Weights, averages and conversions are float32, whatever the network's arithmetic is."""
    full = losses(train(tmp_path / "fp32", digits, LONGER))
    half = losses(train(tmp_path / precision, digits, LONGER, f"TRAINING.PRECISION={precision}"))
    assert half == pytest.approx(full, rel=0.05)
    kinds = {t.dtype for t in weights(tmp_path / precision / "run")["model"].values()}
    assert kinds == {torch.float32}


def test_compiled_trainings_follow_the_loss(tmp_path: Path, digits: Path) -> None:
    plain = losses(train(tmp_path / "plain", digits, LONGER))
    compiled = losses(train(tmp_path / "compiled", digits, LONGER, "TRAINING.COMPILE=true"))
    assert compiled == pytest.approx(plain, rel=1e-2)


def test_what_it_cost_is_told(tmp_path: Path, digits: Path) -> None:
    run = train(tmp_path, digits, "EVALUATION.SAMPLING_STEPS=[5]", "EVALUATION.SAMPLING_NUM=64")
    summary = RunDirectory(run).summary
    assert 0 < summary["gpu_seconds"] <= summary["seconds"] * 1.001
    assert 1e6 < summary["peak_memory_bytes"] < torch.cuda.get_device_properties(0).total_memory
    assert summary["energy_joules"] is None or summary["energy_joules"] > 0
    quality = json.loads((run / "sample_quality.json").read_text())
    assert "GPU-seconds" in json.dumps(quality)


def test_an_optimizer_step_waits_for_the_device_once(tmp_path: Path, digits: Path) -> None:
    config = tiny()
    data = open_data(config, digits)
    network, schedule = build_network(config)
    stepper = Stepper(config.TRAINING, network, schedule, None, None, GPU, 8)
    batches = data.batches(stepper.share_of(step) for step in range(4))
    stepper.train_step(next(batches), False)  # allocates
    batch = next(batches).to(GPU.device)  # from ordinary memory, which waits
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stepper.train_step(batch, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    where = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert len(where) == 1, where


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_images_depend_neither_on_the_batch_nor_on_the_device(sampler: str) -> None:
    """To 1e-4 of the whole range over ten steps of random weights in full float32."""
    network = UNet(16, 3, 16, (1, 2), (False, True)).eval()
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)

    def draw(device: str, ids: list[int]) -> np.ndarray:
        with kernels("exact"):
            found = sample(
                network.to(device),
                NoiseSchedule("cosine", 1000),
                torch.tensor(ids, device=device),
                (3, 16, 16),
                pred_type="velocity",
                num_steps=10,
                sampler=sampler,
            )
        return found.cpu().numpy()

    several = draw("cuda", [0, 1, 2, 3, 4])
    assert np.abs(draw("cuda", [3]) - several[3:4]).max() < 1e-4
    assert np.abs(draw("cpu", [3]) - several[3:4]).max() < 1e-4


def test_published_results_are_made_there() -> None:
    """Their networks stand on the GPU, what is known in closed form on the CPU."""
    plane = Plane(dimension=4, seed=0)
    samples = drawn(trained(plane, "image", 20), plane)
    assert samples.shape == (SAMPLES, 4)
    assert samples.device.type == "cpu"
    assert terminal_snr.of_plain_images(0, 16).signal == pytest.approx(0.128, abs=1e-3)
