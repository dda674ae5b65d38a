"""Pretrained features. `inception`: the TF-2015 Inception-v3 of published FIDs, as torch-fidelity
ports it; `clip`: the image half of CLIP.

Optional: `pip install ddpm[inception]`, and a file of weights that you made, which is never
downloaded. torch-fidelity publishes them as a pickle, which is never loaded here: docs/metrics.md
says how they are converted to safetensors once. Images are enlarged to 299 x 299 inside,
bilinear as TensorFlow 1 did, to 224 x 224 or what its weights are of for CLIP; one channel is shown
as three equal ones.
"""

import hashlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ddpm.config import Config
from ddpm.distributed import best_device
from ddpm.errors import InputError, NonFiniteError
from ddpm.metrics.features import Extractor, Features
from ddpm.runs import digest

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
DIMENSION, CLASSES = 2048, 1008
KNOWN = ("known.images", "known.features")  # which the file may hold beside the weights
TOLERANCE = 1e-3  # of the largest feature: other processors round otherwise, TF32 is off by more
OPTION, KEY = "--weights", "EVALUATION.WEIGHTS"  # which name the file


class InceptionFeatures(Extractor):
    """The 2048 pooled features, and the probabilities of the 1008 unbiased logits."""

    name = "inception"
    threads = None

    def __init__(self, network: Any, sha256: str, device: torch.device) -> None:
        self._network, self._device = network.to(device), device
        self.sha256 = digest({"extractor": self.name, "version": 1, "weights": sha256})
        self.dimension = DIMENSION
        self.description = f"{DIMENSION} features of Inception-v3 (TF 2015, torch-fidelity)"

    def batch(self, images: Tensor) -> Features:
        features, logits = self._network(_colour(images, self.name).to(self._device))
        return Features(vectors=features.cpu(), probabilities=logits.softmax(dim=1).cpu())


class ClipFeatures(Extractor):
    """The embeddings of images, before they are made of length 1."""

    name = "clip"
    threads = None

    def __init__(self, network: Any, sha256: str, device: torch.device) -> None:
        self._network, self._device = network.to(device), device
        self.sha256 = digest({"extractor": self.name, "version": 1, "weights": sha256})
        (blank,) = self._network(torch.zeros((1, 3, 32, 32), dtype=torch.uint8, device=device))
        self.dimension = blank.shape[1]
        self.description = f"{self.dimension} features of CLIP's image encoder (torch-fidelity)"

    def batch(self, images: Tensor) -> Features:
        (features,) = self._network(_colour(images, self.name).to(self._device))
        return Features(vectors=features.cpu())


def _colour(images: Tensor, name: str) -> Tensor:
    """(N, H, W, 1 or 3) -> (N, 3, H, W)."""
    if images.shape[3] not in (1, 3):
        raise InputError(f"{name} takes 1 or 3 channels, the images have {images.shape[3]}")
    return images.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def load_inception(weights: Path | None, named_by: str = OPTION) -> Extractor:
    """Inception-v3 with the weights in a safetensors file.  named_by: for messages.

    Raises InputError for a missing package, a missing file, or one that holds something else: other
    tensors, features that Inception cannot have, or others than the known ones it brings along.
    """
    return _loaded(
        InceptionFeatures, "feature_extractor_inceptionv3", _inception, weights, named_by
    )


def load_clip(weights: Path | None, named_by: str = OPTION) -> Extractor:
    """The image encoder of CLIP, likewise."""
    return _loaded(ClipFeatures, "feature_extractor_clip", _clip, weights, named_by)


# Extractors with a file of weights.
PRETRAINED: dict[str, Callable[[Path | None, str], Extractor]] = {
    "inception": load_inception,
    "clip": load_clip,
}


def _loaded(
    kind: type[InceptionFeatures] | type[ClipFeatures],
    package: str,
    network_of: Callable[[Any, dict[str, Tensor]], Any],
    weights: Path | None,
    named_by: str,
) -> Extractor:
    module, problems = _package(package, kind.name)
    content = _content(weights, kind.name, named_by, problems)
    if problems or content is None:
        raise InputError(problems)
    tensors = safetensors.torch.load(content)
    known = [tensors.pop(name, None) for name in KNOWN]
    try:
        network = network_of(module, tensors)
    except (RuntimeError, KeyError) as error:  # which names what is missing or too much
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"{named_by} {weights} are another network's: {first}") from error
    extractor = kind(network, hashlib.sha256(content).hexdigest(), best_device())
    require_sound(extractor)
    images, expected = known
    if images is not None and expected is not None:
        self_check(extractor, images, expected, tolerance=TOLERANCE)
    return extractor


def inception_problems(config: Config) -> list[str]:
    """Reasons why a training cannot measure by inception; loads the file and tries it."""
    options = config.EVALUATION
    if options.FEATURES != "inception" or options.WEIGHTS is None:
        return []
    try:
        load_inception(Path(options.WEIGHTS), KEY)
    except (InputError, NonFiniteError) as error:
        return str(error).splitlines()
    return []


def require_sound(extractor: Extractor) -> None:
    """Refuses weights that cannot be right; pooled features of Inception are not negative.

    Raises InputError for features that are negative or alike for images that are not, and
    NonFiniteError for those that are not finite.
    """
    grey = np.arange(4 * 32 * 32, dtype=np.uint8).reshape(4, 32, 32, 1)
    vectors = extractor(np.concatenate([grey, grey[:, ::-1] // 2])).vectors
    is_negative = not isinstance(extractor, ClipFeatures) and bool((vectors < 0).any())
    if is_negative or bool((vectors == vectors[0]).all()):
        fault = "negative" if is_negative else "the same for every image"
        raise InputError(
            f"{extractor.name} gives features that are {fault}: these are not its weights"
        )


def _clip(module: Any, tensors: dict[str, Tensor]) -> Any:
    """torch-fidelity's network with these weights, of whichever CLIP: their shapes tell.

    Its class reads them from a TorchScript program: where it would, it is given ours.
    """
    load = torch.jit.load
    torch.jit.load = lambda *_, **__: SimpleNamespace(state_dict=lambda: dict(tensors))
    try:
        return module.FeatureExtractorCLIP("clip-vit-b-32", ["clip"], "given here").eval()
    finally:
        torch.jit.load = load


def _inception(module: Any, tensors: dict[str, Tensor]) -> Any:
    """torch-fidelity's network with these weights.

    Its class downloads or unpickles them as it is made: where it would download, it is given ours.
    """
    download = module.load_state_dict_from_url
    module.load_state_dict_from_url = lambda *_, **__: tensors
    try:
        return module.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    finally:
        module.load_state_dict_from_url = download


def self_check(extractor: Extractor, images: Tensor, expected: Tensor, *, tolerance: float) -> None:
    """Refuses an extractor whose features of `images` are not those known for them.

    images: uint8 (n, H, W, C).  expected: (n, D).  tolerance: relative to the largest of them.
    Raises InputError with the deviation.
    """
    found = extractor(images.numpy()).vectors
    apart = float((found - expected).abs().max() / expected.abs().max())
    if not apart <= tolerance:
        raise InputError(
            f"{extractor.name} gives features {apart:.2g} off the known ones, more than "
            f"{tolerance:.2g}: its numbers would not be comparable with any others"
        )


def _package(module: str, name: str) -> tuple[Any, list[str]]:
    try:
        return import_module(f"torch_fidelity.{module}"), []
    except ImportError as error:
        return None, [
            f"{name} needs the package torch-fidelity ({error}); "
            'pip install "ddpm[inception]", or use --features classifier'
        ]


def _content(weights: Path | None, name: str, named_by: str, problems: list[str]) -> bytes | None:
    """The bytes of the file, which are those of a safetensors file."""
    published = f"torch-fidelity's {FILE_NAME}" if name == "inception" else "OpenAI's file"
    advice = (
        f"convert {published} to safetensors as docs/metrics.md says, and name that file with "
        f"{named_by}"
    )
    if weights is None:
        problems.append(f"{name} needs its file of weights; {advice}")
        return None
    try:
        content = weights.read_bytes()
    except OSError as error:
        problems.append(f"{named_by} {weights}: {error.strerror}; {advice}")
        return None
    try:
        safetensors.torch.load(content)
    except (ValueError, safetensors.SafetensorError) as error:
        problems.append(f"{named_by} {weights} is no safetensors file ({error}); {advice}")
        return None
    return content
