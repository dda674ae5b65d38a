"""Measures the images of one walk after the other, and keeps what was measured in the run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm import quality_file
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.distributed import device_of
from ddpm.estimates import Estimate
from ddpm.features import Extractor
from ddpm.loaded import LoadedModel
from ddpm.quality_file import Interval, LeftOut, Pictures, Point, Quality
from ddpm.real_data import RealData, as_real_data
from ddpm.reference_statistics import Reference, classifier_features, pixel_features, reference
from ddpm.sample_measures import Unmeasured, View
from ddpm.sample_statistics import collect, deal
from ddpm.values import plain

PICTURED = 100  # images of each point that are kept to be looked at
SAMPLER = "ddim"
# What the samples depend on besides the network.
_KEYS = ("SEED", "SAMPLING_STEPS", "SAMPLING_ETAS", "SAMPLING_NUM", "SAMPLING_LOGSNR")

Pixels = NDArray[np.uint8]

log = logging.getLogger("ddpm.run")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A number of steps and an eta."""

    num_steps: int
    eta: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Images uint8 (N, H, W, C) and the core- or GPU-seconds that drawing them took."""

    images: Pixels
    seconds: float


class Keeper:
    """Measures what is drawn, and keeps it beside what had been measured before."""

    def __init__(
        self,
        run: Path,
        labels: NDArray[np.int64] | None,
        extractor: Extractor,
        known: Reference,
        quality: Quality,
        images: list[Pixels],
    ) -> None:
        self.quality = quality
        self._run, self._labels, self._extractor, self._known = run, labels, extractor, known
        self._images = images

    @classmethod
    def open(
        cls,
        run: Path,
        model: LoadedModel,
        config: Config,
        data: Dataset,
        labels: NDArray[np.int64] | None,
    ) -> "Keeper":
        """With the points that are there, if they are of this network and these samples."""
        real, options = as_real_data(config, data), config.EVALUATION
        has_classes = data.num_classes is not None and data.num_classes > 1
        extractor = classifier_features(real) if has_classes else pixel_features(real)
        quality = Quality(
            features=extractor.name,
            num=options.SAMPLING_NUM,
            protocol=_protocol(model, config, real, extractor),
            unit="GPU-seconds" if device_of(model.network).type == "cuda" else "core-seconds",
            is_beta_defined=model.schedule.is_beta_defined,
            identity={
                "step": model.step,
                "weights": model.name,
                "weights_sha256": model.sha256,
                "data_sha256": data.sha256,
                "features_sha256": extractor.sha256,
                **{name: plain(getattr(options, name)) for name in _KEYS},
            },
        )
        before, pictures = quality_file.read(run), quality_file.read_pictures(run)
        images: list[Pixels] = []
        if before and pictures and before.identity == quality.identity:
            quality = replace(quality, points=before.points, left_out=before.left_out)
            images = list(pictures.images)
        known = reference(real, "train", extractor)
        return cls(run, labels, extractor, known, quality, images)

    @property
    def done(self) -> int:
        """Walks that need not be taken again."""
        return len(self.quality.points) + len(self.quality.left_out)

    def leave_out(self, walk: Walk, reason: str | None) -> None:
        """Says why there is nothing to measure."""
        left = LeftOut(num_steps=walk.num_steps, eta=walk.eta, reason=reason or "")
        self.quality = replace(self.quality, left_out=(*self.quality.left_out, left))
        self._write()

    def add(self, walk: Walk, drawn: Drawn) -> None:
        """Measures the images of a walk and writes what there is."""
        labels = self._labels if self._extractor.knows_labels else None
        statistics = collect(
            self._extractor,
            [drawn.images],
            deal(len(drawn.images), self._labels),
            labels=labels,
        )
        view = View(statistics=statistics, reference=self._known, extractor=self._extractor)
        reasons: dict[str, str] = {}
        found = {
            name: _interval(name, of, reasons)
            for name, of in (
                ("fid", lambda: view.fids[1]),
                ("kid", view.kid),
                ("accuracy", view.accuracy),
            )
        }
        point = Point(
            sampler=SAMPLER,
            num_steps=walk.num_steps,
            eta=walk.eta,
            evaluations=walk.num_steps,
            seconds=drawn.seconds,
            reasons=reasons,
            **found,
        )
        self.quality = replace(self.quality, points=(*self.quality.points, point))
        self._images.append(drawn.images[:PICTURED])
        log.info("%d steps, eta %g: %s", walk.num_steps, walk.eta, _glance(point))
        self._write()

    def _write(self) -> None:
        shape = self._images[0].shape if self._images else (0, 0, 0, 0)
        numbers = np.full(self.quality.num, -1) if self._labels is None else self._labels
        pictures = Pictures(
            images=quality_file.stacked(self._images, shape), labels=numbers[:PICTURED]
        )
        quality_file.write(self._run, self.quality, pictures)


def _protocol(model: LoadedModel, config: Config, real: RealData, extractor: Extractor) -> str:
    """All that the numbers depend on but steps and eta, in a line."""
    options = config.EVALUATION
    levels = "evenly spaced timesteps"
    if options.SAMPLING_LOGSNR is not None:
        levels = "log SNRs evenly from {:g} to {:g}".format(*options.SAMPLING_LOGSNR)
    return (
        f"{options.SAMPLING_NUM:,} samples of seed {options.SEED} ({model.name}, DDIM, x0 clipped, "
        f"{levels}) against {len(real.train_ids):,} train images of {real.name} "
        f"({real.data.sha256[:8]}); {extractor.description} ({extractor.sha256[:8]}); FID "
        "extrapolated to infinitely many samples, KID unbiased; 95 % intervals over samples"
    )


def _glance(point: Point) -> str:
    """The numbers of a point, short."""
    found = ((name, point.interval(name)) for name in quality_file.MEASURES)
    return "  ".join(f"{name} {one.value:.4g}" for name, one in found if one is not None)


def _interval(
    name: str, measure: Callable[[], Estimate], reasons: dict[str, str]
) -> Interval | None:
    """A measure's number; None, and the reason noted, where it would mean nothing."""
    try:
        found = measure()
    except Unmeasured as reason:
        reasons[name] = str(reason)
        return None
    return Interval(value=found.value, low=found.low, high=found.high)
