"""`inception` without its weights, never downloaded: every way it cannot be had is told."""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ddpm.cli.main import launch
from ddpm.cluster import run_training
from ddpm.errors import InputError, NonFiniteError
from ddpm.metrics.features import Features
from ddpm.metrics.pretrained import (
    FILE_NAME,
    inception_problems,
    load_clip,
    load_inception,
    require_sound,
    self_check,
)
from tests.support.moments_process import Known, images_of
from tests.support.shard_data import Trap
from tests.support.tiny_training import tiny


def refused(weights: Path | None) -> str:
    with pytest.raises(InputError) as caught:
        load_inception(weights)
    return "\n".join(caught.value.problems)


@pytest.fixture(autouse=True)
def without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch-fidelity were not installed, whether or not it is."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)


def test_a_missing_package_and_a_missing_file_are_told_at_once() -> None:
    told = refused(None)
    assert 'pip install "ddpm[inception]"' in told
    assert FILE_NAME in told and "--weights" in told


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"--weights {tmp_path / 'none.pth'}: No such file" in refused(tmp_path / "none.pth")


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    for save in (torch.save, lambda value, at: at.write_bytes(pickle.dumps(value))):
        save({"a": Trap(mark)}, path)
        assert "is no safetensors file" in refused(path)
    torch.save({"a": torch.ones(3)}, path)
    assert "is no safetensors file" in refused(path) and "docs/metrics.md" in refused(path)
    assert not mark.exists()


def test_tensors_alone_are_accepted_and_the_package_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3)}, path)
    told = refused(path)
    assert "--weights" not in told and "torch-fidelity" in told


def test_the_self_check_refuses_features_that_are_not_the_known_ones() -> None:
    extractor, images = Known(12), torch.from_numpy(images_of(10, 12))
    expected = extractor(images.numpy()).vectors
    self_check(extractor, images, expected, tolerance=1e-6)
    with pytest.raises(InputError, match="off the known ones, more than 0.001"):
        self_check(extractor, images, expected * 1.01, tolerance=1e-3)


def test_a_training_is_refused_before_it_starts(tmp_path: Path) -> None:
    nothing = tmp_path / "none.safetensors"
    words = ["EVALUATION.FEATURES=inception", f"EVALUATION.WEIGHTS={nothing}"]
    config = tiny("EVALUATION.EVERY=1", *words, "DATASET.PATH=nowhere")
    with pytest.raises(InputError) as caught:
        run_training.check(config)
    told = "\n".join(caught.value.problems)
    assert "nowhere" in told and "torch-fidelity" in told
    assert f"EVALUATION.WEIGHTS {nothing}: No such file" in told and "--weights" not in told
    assert inception_problems(tiny()) == []


class Odd(Known):
    """Features moved or flattened, as no pooled features of Inception are."""

    def __init__(self, shift: float, scale: float) -> None:
        super().__init__(1024)
        self.shift, self.scale = shift, scale

    def batch(self, images: torch.Tensor) -> Features:
        found = super().batch(images)
        return Features(vectors=found.vectors * self.scale + self.shift)


def test_weights_that_cannot_be_inceptions_are_refused() -> None:
    require_sound(Known(1024))
    for odd in (Odd(-1.0, 1.0), Odd(1.0, 0.0)):
        with pytest.raises(InputError, match="these are not its weights"):
            require_sound(odd)
    with pytest.raises(NonFiniteError):
        require_sound(Odd(torch.nan, 1.0))


class PublishedClip(nn.Module):
    """Stands for torch-fidelity's class, which is not installed here: it reads a program."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert name == "clip-vit-b-32" and features == ["clip"]
        program = torch.jit.load(feature_extractor_weights_path, map_location="cpu")
        self.register_buffer("proj", program.state_dict()["visual.proj"])

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1) @ self.proj,)


@pytest.mark.slow
def test_clip_takes_tensors_in_the_place_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.safetensors"
    safetensors.torch.save_file({"visual.proj": torch.randn(48, 12)}, path)
    with pytest.raises(InputError, match="clip needs the package torch-fidelity"):
        load_clip(path)
    package = ModuleType("torch_fidelity.feature_extractor_clip")
    monkeypatch.setattr(package, "FeatureExtractorCLIP", PublishedClip, raising=False)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    before = torch.jit.load
    extractor = load_clip(path)
    assert torch.jit.load is before and extractor.dimension == 12
    assert extractor.description == "12 features of CLIP's image encoder (torch-fidelity)"
    with pytest.raises(InputError, match="takes 1 or 3 channels, the images have 2"):
        extractor(np.zeros((1, 4, 4, 2), np.uint8))
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"visual.head": torch.randn(48, 12)}, other)
    with pytest.raises(InputError, match="another network's: 'visual.proj'"):
        load_clip(other)

    monkeypatch.chdir(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    np.savez("samples.npz", images=grey)
    words = ["samples.npz", "--against", "digits", "--features", "clip", "--weights"]
    assert launch("evaluate", [*words, str(path)]) == 0
    (record,) = Path().glob("*evaluation_of_samples*.json")
    found = json.loads(record.read_text())
    assert found["measures"]["fid"]["value"] > 0 and "12 features of CLIP" in found["protocol"]
