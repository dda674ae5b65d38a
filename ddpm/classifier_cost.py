"""What the classifier of a data set takes: the first training that needs it makes it for all.

Its training and its features of the training images are measured on random ones of their shape.
"""

import time

import numpy as np

from ddpm import config as configuration
from ddpm import sample_quality, shards
from ddpm.classifier import STEPS, ClassifierFeatures, train
from ddpm.config import Config
from ddpm.real_data import as_real_data
from ddpm.reference_statistics import has_classifier
from ddpm.starting import open_data

PROBED_STEPS = 8
IMAGES = 256
CLASSES = 10  # of data whose labels the network does not see: they hardly cost


def seconds(config: Config, train_images: int) -> float:
    """Of one core, on this machine; 0 where no classifier is needed or one is there already.

    Packs and writes nothing.
    """
    if not is_needed(config) or _is_there(config):
        return 0.0
    channels, height, width = configuration.image_shape(config)
    classes = config.TRAINING.NETWORK.NUM_CLASSES or CLASSES
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, height, width, channels), dtype=np.uint8)
    ends: list[float] = []
    network = train(
        lambda places: pixels[places],
        np.arange(IMAGES) % classes,
        (channels, height, width),
        classes,
        on_step=lambda: ends.append(time.perf_counter()),
        steps=PROBED_STEPS,
    )
    started = time.perf_counter()
    ClassifierFeatures(network, "", None)(pixels)
    an_image = (time.perf_counter() - started) / IMAGES
    return STEPS * float(np.median(np.diff(ends))) + train_images * an_image


def is_needed(config: Config) -> bool:
    """By the samples of evaluations, or by those of the end."""
    options = config.EVALUATION
    on_the_way = options.EVERY is not None and options.FEATURES == "classifier"
    at_the_end = config.DATASET.LABEL_KEY is not None and bool(sample_quality.walks(config))
    return on_the_way or at_the_end


def _is_there(config: Config) -> bool:
    index = shards.found(config)
    return index is not None and has_classifier(
        as_real_data(config, open_data(config, index.folder))
    )
