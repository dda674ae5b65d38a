"""`inception`: the TF-2015 Inception-v3 features of published FIDs, as torch-fidelity ports them.

Optional: `pip install ddpm[inception]`, and a file of weights that you fetched, which is never
downloaded here. torch-fidelity loads weights by unpickling, so the file is first read as tensors
only, and its bytes must be those of the file that torch-fidelity publishes. Images are enlarged to
299 x 299 inside, bilinear as TensorFlow 1 did; one channel is shown as three equal ones.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.distributed import best_device
from ddpm.errors import InputError
from ddpm.features import Extractor, Features
from ddpm.tensor_files import digest

# The first digits of the SHA-256 of the published file are part of its name.
FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"
PUBLISHED = "6726825d"
DIMENSION, CLASSES = 2048, 1008
ADVICE = (
    f"fetch {FILE_NAME} from torch-fidelity's releases (v0.2.0) on a machine with a network, "
    "and name it with --weights"
)


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
        shown = images.permute(0, 3, 1, 2)
        if shown.shape[1] not in (1, 3):
            raise InputError(f"inception takes 1 or 3 channels, the images have {shown.shape[1]}")
        features, logits = self._network(shown.expand(-1, 3, -1, -1).to(self._device))
        return Features(vectors=features.cpu(), probabilities=logits.softmax(dim=1).cpu())


def load_inception(weights: Path | None, *, published: str = PUBLISHED) -> InceptionFeatures:
    """The extractor with the weights in a file.

    published: the first digits of the SHA-256 that the file must have. Raises InputError for a
    missing package, a missing file, or one that is something else.
    """
    network_class, problems = _network_class()
    content = _content(weights, published, problems)
    if problems or content is None:
        raise InputError(problems)
    network = network_class("inception", ["2048", "logits_unbiased"], io.BytesIO(content))
    return InceptionFeatures(network, hashlib.sha256(content).hexdigest(), best_device())


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


def _network_class() -> tuple[Any, list[str]]:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        return None, [
            f"inception needs the package torch-fidelity ({error}); "
            'pip install "ddpm[inception]", or use --features classifier'
        ]
    return FeatureExtractorInceptionV3, []


def _content(weights: Path | None, published: str, problems: list[str]) -> bytes | None:
    """The bytes of the file: those that are published, and tensors by name, nothing that runs."""
    if weights is None:
        problems.append(f"inception needs its file of weights; {ADVICE}")
        return None
    try:
        content = weights.read_bytes()
    except OSError as error:
        problems.append(f"--weights {weights}: {error.strerror}; {ADVICE}")
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(published):
        problems.append(
            f"--weights {weights} has the SHA-256 {sha256[:8]}..., not {published}...: other "
            f"weights give other numbers; {ADVICE}"
        )
        return None
    try:
        tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        tensors = None
    if not isinstance(tensors, dict):
        problems.append(f"--weights {weights} is no file of named tensors; {ADVICE}")
        return None
    return content
