"""`classifier`: features of a small convolutional network trained on the data's own labels.

For data that Inception never saw (digits, cells, spectra) its features mean little; those of a
network that had to tell the data's own classes apart say what matters in them. The training is a
pure function of the training images: weights, order and input noise are keyed by seed and position,
the number of steps is fixed, one CPU thread. Another kind of processor may round differently, so
the weights are kept, and their SHA-256 names the features.
"""

from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor, nn

from ddpm.diffusion import Stream, init_weights, philox
from ddpm.metrics.features import Extractor, Features, Ints, Moments, Pixels, exact_arithmetic
from ddpm.runs import digest

FEATURES, CLASSIFIER_STEPS, BATCH, SEED = 32, 800, 128, 0
LEARNING_RATE, WEIGHT_DECAY, INPUT_NOISE = 2e-3, 0.05, 0.1
WIDTHS = (32, 64, 64)
# All that the weights depend on beside the data; raise the version when the code below changes.
VERSION = 1
RECIPE = {
    "version": VERSION,
    "sizes": [FEATURES, CLASSIFIER_STEPS, BATCH, SEED, *WIDTHS],
    "rates": [LEARNING_RATE, WEIGHT_DECAY, INPUT_NOISE],
}
_SMALLEST_SIDE = 4
_ORDER_ID = 1 << 43  # of the draw that orders the images; those of training lie below

Read = Callable[[Ints], Pixels]


class ClassifierNetwork(nn.Module):
    """Convolutions that halve the image to 4 to 7 pixels, then `hidden` features and classes."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for level, wide in enumerate(_widths(height, width)):
            stride = 1 if level == 0 else 2
            layers += [nn.Conv2d(channels, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.SiLU()]
            channels = wide
            if stride == 2:
                height, width = -(-height // 2), -(-width // 2)
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(channels * height * width, FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)
        # of the features over the training images, once trained
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: float32 (n, C, H, W) in [-1, 1].  Returns features (n, 32) and logits (n, K)."""
        features = self.hidden(self.body(images))
        return features, self.head(nn.functional.silu(features))


class ClassifierFeatures(Extractor):
    """The hidden features before their activation, each of mean 0 and variance 1 on the training
    images, and the class probabilities.
    """

    name = "classifier"
    knows_labels = True

    def __init__(self, network: ClassifierNetwork, sha256: str, accuracy: float | None) -> None:
        self._network = network.eval()
        self.dimension = FEATURES
        self.sha256 = digest({"extractor": self.name, "version": VERSION, "weights": sha256})
        self.accuracy = accuracy
        judged = "" if accuracy is None else f" with {100 * accuracy:.1f} % held-out accuracy"
        self.description = f"{FEATURES} features of a classifier of its labels{judged}"

    def batch(self, images: Tensor) -> Features:
        features, logits = self._network(_scaled(images))
        vectors = (features - self._network.mean) / self._network.deviation
        return Features(vectors=vectors, probabilities=logits.softmax(dim=1))


def train_classifier(
    read: Read,
    labels: Ints,
    image_shape: tuple[int, int, int],
    num_classes: int,
    on_step: Callable[[], None] = lambda: None,
    steps: int | None = None,
) -> ClassifierNetwork:
    """The trained network, its features not yet scaled.

    read(places): images by place in 0 .. n - 1.  labels: (n,).  steps: only the first of all.
    """
    network = init_weights(ClassifierNetwork(image_shape, num_classes), SEED).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False
    )
    targets = torch.from_numpy(labels)
    with exact_arithmetic(threads=1), torch.enable_grad():
        for step in range(CLASSIFIER_STEPS if steps is None else steps):
            positions = torch.arange(step * BATCH, (step + 1) * BATCH)
            places = _places(positions, len(labels))
            images = _scaled(torch.tensor(read(places.numpy())))
            images += INPUT_NOISE * philox.normal(SEED, Stream.NOISE, positions, images.shape[1:])
            loss = nn.functional.cross_entropy(network(images)[1], targets[places])
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (0.5 + 0.5 * cos(pi * step / CLASSIFIER_STEPS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            on_step()
    return network.eval()


def scale_features(network: ClassifierNetwork, moments: Moments) -> None:
    """Takes mean and deviation of the features, whose moments these are; dead ones stay at 0."""
    deviation = moments.scatter.diagonal().div(moments.count - 1).sqrt()
    network.mean.copy_(moments.mean)
    network.deviation.copy_(deviation.where(deviation > 0, torch.ones_like(deviation)))


def _places(positions: Tensor, count: int) -> Tensor:
    """The image at each position of an endless order; every image is there once a pass."""
    places = torch.empty_like(positions)
    passes = positions // count
    for number in passes.unique().tolist():
        order = philox.permutation(SEED, Stream.ORDER, count, step=number, id=_ORDER_ID)
        chosen = passes == number
        places[chosen] = order[positions[chosen] % count]
    return places


def _widths(height: int, width: int) -> tuple[int, ...]:
    """A width for each level: enough levels to bring the shorter side below 8 pixels."""
    levels, side = 1, min(height, width)
    while side >= 2 * _SMALLEST_SIDE:
        levels, side = levels + 1, side // 2
    return tuple(WIDTHS[min(level, len(WIDTHS) - 1)] for level in range(levels))


def _scaled(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)
