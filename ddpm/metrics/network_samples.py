"""Samples of a network measured while it trains, and over numbers of steps and eta at its end.

In training, EVALUATION.SAMPLES images as those of the sample grids: every worker draws its share
and extracts their features. At the end, for every EVALUATION.SAMPLING_STEPS and SAMPLING_ETAS the
same SAMPLING_NUM images: all workers draw, rank 0 measures. SAMPLING_METHOD, x0 clipped,
EVALUATION.SEED, classes in turn, batches of one size, averaged weights, against the training
images.

With SAMPLING_LOGSNR the walks visit the same log SNRs whatever noise schedule the network was
trained with, as in Hang et al. 2024, section 4: the network is compared, not the spacing that its
schedule happens to have. `data` is the window that the data fix (window.py). Schedules that
do not reach them are left out, with the reason.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddpm import config as configuration
from ddpm.config import FID_SAMPLES, MEASURES, Config, plain
from ddpm.data import Dataset
from ddpm.diffusion import NoiseSchedule
from ddpm.distributed import Group, device_of
from ddpm.errors import InputError, Interrupted, NonFiniteError
from ddpm.metrics.evaluation import LEAST, Images, evaluate, real_images
from ddpm.metrics.features import Extractor, Ints, Pixels
from ddpm.metrics.intervals import Interval
from ddpm.metrics.pretrained import KEY
from ddpm.metrics.quality import (
    QUALITY_MEASURES,
    LeftOut,
    Quality,
    QualityPoint,
    SamplePictures,
    read_pictures,
    read_quality,
    store_quality,
)
from ddpm.metrics.reference import RealData, Reference, as_real_data, open_extractor, reference_of
from ddpm.metrics.window import LogSnrWindow
from ddpm.runs import digest, gpu_share, storage
from ddpm.sampling import (
    SAMPLERS,
    LoadedModel,
    PowerEma,
    SamplerOptions,
    draw_batch,
    grid_sampler,
    load_network,
    num_calls,
    spacing,
)

# Images are drawn in the batches in which features are extracted: both keep their bits.
BATCH = Extractor.batch_size
PICTURED = 100  # images of each point that are kept to be looked at
# In sample_quality.json and in the table of metrics.
_NAMES = {one.key: name for name, one in MEASURES.items() if one.of == "samples"}
# Of EVALUATION: all that the samples depend on besides the network.
_KEYS = (
    *("SEED", "SAMPLING_STEPS", "SAMPLING_METHOD", "SAMPLING_ETAS"),
    *("SAMPLING_NUM", "SAMPLING_LOGSNR"),
)

log = logging.getLogger("ddpm.run")


def labels_in_turn(config: Config, count: int) -> Ints | None:
    """The class of each of `count` images, classes in turn; None without any."""
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    return None if classes is None else np.arange(count) % classes


def _draw_batch(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    sampler: SamplerOptions,
    ids: Tensor,
    labels: Ints | None,
) -> Pixels:
    """A whole batch of images; the last one of all goes on with the first labels."""
    wanted = None
    if labels is not None:
        wanted = torch.from_numpy(labels[ids.cpu() % len(labels)]).to(ids.device)
    shape = configuration.image_shape(config)
    return draw_batch(network, schedule, ids, shape, sampler, labels=wanted)


def sample_metrics(
    config: Config, schedule: NoiseSchedule, data: Dataset, group: Group
) -> Callable[[nn.Module], dict[str, float]]:
    """A function from a network to val_fid_infinity, val_kid and val_class_accuracy.

    All workers call it together. Numbers of too few images are left out. The extractor and the
    training images' statistics are made at the first call. Raises InputError where
    EVALUATION.BEST could never be measured.
    """
    options, real = config.EVALUATION, as_real_data(config, data)
    features = options.FEATURES or "pixels"
    least = {"fid_infinity": FID_SAMPLES[features], "kid": LEAST}.get(options.BEST or "", 0)
    if len(real.train_ids) < least:
        raise InputError(
            f"EVALUATION.BEST is {options.BEST}, which needs {least} training images with FEATURES "
            f"{options.FEATURES}, and {real.name} has {len(real.train_ids)}; give BEST "
            "mean_log10_mse"
        )
    count = options.SAMPLES
    labels, sampler = labels_in_turn(config, count), grid_sampler(config, schedule)
    reference: Reference | None = None

    def measure(network: nn.Module) -> dict[str, float]:
        nonlocal reference
        reference = reference or _training_reference(config, real, group)

        def batches(places: range) -> Iterator[Pixels]:
            for first in range(places.start, places.stop, BATCH):
                ids = torch.arange(first, first + BATCH, device=group.device)
                pixels = _draw_batch(network, schedule, config, sampler, ids, labels)
                yield pixels[: count - first]

        images = Images(count=count, batches=batches, labels=labels, in_turn=True)
        found, _ = evaluate(images, reference, _NAMES.values())
        return {f"val_{name}": number.value for name, number in found.items()}

    return measure


def _training_reference(config: Config, real: RealData, group: Group) -> Reference:
    """Statistics of the training images. Rank 0 trains a missing classifier; the others read it."""
    options = config.EVALUATION
    weights = None if options.WEIGHTS is None else Path(options.WEIGHTS)
    if not group.is_main:
        group.wait()
    extractor = open_extractor(options.FEATURES or "pixels", real, weights, KEY)
    if group.is_main:
        group.wait()
    return reference_of(real, "train", extractor, group)


def passes_in_training(config: Config, schedule: NoiseSchedule) -> int:
    """Images through the network at one evaluation; none where no FEATURES are given."""
    if config.EVALUATION.FEATURES is None:
        return 0
    batches = -(-config.EVALUATION.SAMPLES // BATCH)
    return batches * BATCH * num_calls(grid_sampler(config, schedule), schedule)


@dataclass(frozen=True, kw_only=True)
class SampleWalk:
    """A number of steps, an eta and a guidance.  ema_length: of the averaged weights; None is the
    first of EMA_DECAYS.
    """

    num_steps: int
    eta: float
    guidance: float = 1.0
    ema_length: float | None = None


def sampling_walks(config: Config) -> list[SampleWalk]:
    """Every number of steps with every eta, at the first guidance: fewest steps first, within them
    the etas as given; then the most steps at the other guidances. All of them by one average after
    another.
    """
    options = config.EVALUATION
    steps, (first, *others) = sorted(options.SAMPLING_STEPS), options.SAMPLING_GUIDANCES
    wanted = [*product([first], steps), *product(others, steps[-1:])]
    return [
        SampleWalk(num_steps=num_steps, eta=eta, guidance=guidance, ema_length=length)
        for length, (guidance, num_steps), eta in product(
            options.EMA_LENGTHS or (None,), wanted, options.SAMPLING_ETAS
        )
    ]


def ends_of(config: Config, window: LogSnrWindow | None) -> tuple[float, float] | None:
    """The first and the last log SNR of the walks; None: the schedule's own timesteps."""
    given = config.EVALUATION.SAMPLING_LOGSNR
    if given != "data":
        return given
    return None if window is None else (float(window[0]), float(window[1]))


def sampler_of(walk: SampleWalk, config: Config, window: LogSnrWindow | None) -> SamplerOptions:
    """The sampler of a walk's images.  window: of the data, for SAMPLING_LOGSNR data."""
    between = ends_of(config, window)
    return SamplerOptions(
        pred_type=config.TRAINING.PRED_TYPE,
        num_steps=walk.num_steps,
        sampler=config.EVALUATION.SAMPLING_METHOD,
        ddim_eta=walk.eta,
        guidance=walk.guidance,
        spacing="trailing" if between is None else "logsnr",
        between=between,
        clip_denoise=True,
        seed=config.EVALUATION.SEED,
    )


def why_not(
    walk: SampleWalk, config: Config, schedule: NoiseSchedule, window: LogSnrWindow | None
) -> str | None:
    """The reason why a schedule cannot be walked so; None where it can."""
    last = schedule.num_timesteps
    if walk.num_steps > last:
        return f"{walk.num_steps} steps are more than the {last} timesteps it was trained with"
    sampler = sampler_of(walk, config, window)
    try:
        spacing.walk_levels(
            schedule, spacing=sampler.spacing, between=sampler.between, num_steps=walk.num_steps
        )
    except ValueError as reason:
        return str(reason)
    return None


def _calls(sampler: SamplerOptions, schedule: NoiseSchedule) -> int:
    """Network calls of an image: guidance asks for the null class too."""
    return num_calls(sampler, schedule) * (1 if sampler.guidance == 1 else 2)


def passes_at_end(config: Config, schedule: NoiseSchedule) -> int:
    """Images through the network for all walks that the schedule can take; one over the window of
    the data, which is not known before they are read, counts as possible.
    """
    possible = [
        walk for walk in sampling_walks(config) if why_not(walk, config, schedule, None) is None
    ]
    calls = (_calls(sampler_of(walk, config, None), schedule) for walk in possible)
    return -(-config.EVALUATION.SAMPLING_NUM // BATCH) * BATCH * sum(calls)


def measure_samples(
    run: Path,
    config: Config,
    data: Dataset,
    window: LogSnrWindow,
    group: Group,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Quality | None:
    """The quality of a run's samples, written into its directory; None where no steps are given.

    window: data_window(), for SAMPLING_LOGSNR data.
    Called by all workers together, once the last checkpoint is there; those but rank 0 get None.
    Every point is kept as soon as it is measured; a run that is continued goes on with the next.
    Raises Interrupted when `should_stop()` says so on rank 0.
    """
    wanted = sampling_walks(config)
    if not wanted:
        return None
    group.wait()  # for rank 0 to have written the checkpoint that all read
    model, length = load_network(run, device=group.device), None
    labels = labels_in_turn(config, config.EVALUATION.SAMPLING_NUM)
    quality, reference = None, None
    pictures: list[Pixels] = []
    if group.is_main:
        real = as_real_data(config, data)
        has_classes = data.num_classes is not None and data.num_classes > 1
        extractor = open_extractor("classifier" if has_classes else "pixels", real, None)
        reference = reference_of(real, "train", extractor)
        quality = _nothing_yet(model, config, real, window, extractor)
        quality = replace(quality, real=real_floor(real, reference, quality.num))
        quality, pictures = _before(run, quality)
    done = len(quality.points) + len(quality.left_out) if quality else 0
    for walk in wanted[group.agree(done) :]:
        reason = why_not(walk, config, model.schedule, window)
        if reason is None and walk.ema_length not in (None, length):
            try:
                model = load_network(run, PowerEma(walk.ema_length), device=group.device)
                length = walk.ema_length
            except InputError as error:
                reason = str(error)
        sampler = sampler_of(walk, config, window)
        drawn = None if reason else _draw(sampler, model, config, group, labels, should_stop)
        if quality is None or reference is None:
            continue
        if drawn is None:
            reason = reason or "the images that the network draws are not finite"
            left = LeftOut(**vars(walk), reason=reason)
            quality = replace(quality, left_out=(*quality.left_out, left))
        else:
            calls = _calls(sampler, model.schedule)
            point = measure_walk(sampler, calls, *drawn, labels, reference)
            point = replace(point, ema_length=walk.ema_length)
            quality = replace(quality, points=(*quality.points, point))
            pictures.append(drawn[0][:PICTURED])
        _store(run, quality, pictures, labels)
    return quality


def real_floor(real: RealData, reference: Reference, num: int) -> dict[str, Interval]:
    """FID, KID and accuracy of at most `num` held-out images, as samples are measured: the numbers
    of samples that are as good as real images. Computed once and kept beside the statistics.
    """
    extractor = reference.extractor
    facts = {**real.facts, "num": num, "extractor_sha256": extractor.sha256, "version": 1}
    path = real.folder / f"floor-{extractor.name}-{digest(facts)[:8]}.json"
    if path.exists():
        return {name: Interval(**one) for name, one in storage.read_json(path).items()}
    found, _ = real_images(_NAMES.values(), num, real, "train", reference)
    floor = {key: found[name] for key, name in _NAMES.items() if name in found}
    storage.write_json(path, {name: vars(one) for name, one in floor.items()})
    return floor


def _before(run: Path, quality: Quality) -> tuple[Quality, list[Pixels]]:
    """The quality and pictures there, if they are of this network and these samples."""
    before, pictures = read_quality(run), read_pictures(run)
    if before and pictures and before.identity == quality.identity:
        found = replace(quality, points=before.points, left_out=before.left_out)
        return found, list(pictures.images)
    return quality, []


def _nothing_yet(
    model: LoadedModel, config: Config, real: RealData, window: LogSnrWindow, extractor: Extractor
) -> Quality:
    """The quality of a network before any walk: its protocol, all that numbers depend on but steps
    and eta, and its identity.
    """
    options, ends = config.EVALUATION, ends_of(config, window)
    # absent where they say nothing, as in samples of versions without them
    more: dict[str, object] = {}
    if options.SAMPLING_GUIDANCES != (1.0,):
        more["SAMPLING_GUIDANCES"] = plain(options.SAMPLING_GUIDANCES)
    if options.EMA_LENGTHS:
        more["EMA_LENGTHS"] = plain(options.EMA_LENGTHS)
    name = "averages of EMA_LENGTHS" if options.EMA_LENGTHS else model.name
    levels = "evenly spaced timesteps"
    if ends is not None:
        levels = "log SNRs evenly from {:g} to {:g}".format(*ends)
    return Quality(
        features=extractor.name,
        num=options.SAMPLING_NUM,
        protocol=(
            f"{options.SAMPLING_NUM:,} samples of seed {options.SEED} ({name}, "
            f"{SAMPLERS[options.SAMPLING_METHOD].title}, x0 clipped, {levels}) against "
            f"{len(real.train_ids):,} train images of {real.name} "
            f"({real.data.sha256[:8]}); {extractor.description} ({extractor.sha256[:8]}); FID "
            "extrapolated to infinitely many samples, KID unbiased; 95 % intervals over samples"
        ),
        unit="GPU-seconds" if device_of(model.network).type == "cuda" else "core-seconds",
        is_beta_defined=model.schedule.is_beta_defined,
        identity={
            "step": model.step,
            "weights": model.name,
            "weights_sha256": model.sha256,
            "data_sha256": real.data.sha256,
            "features_sha256": extractor.sha256,
            **{name: plain(getattr(options, name)) for name in _KEYS},
            **more,
        },
    )


def measure_walk(
    sampler: SamplerOptions,
    calls: int,
    images: Pixels,
    seconds: float,
    labels: Ints | None,
    reference: Reference,
) -> QualityPoint:
    """The point of images drawn by a sampler.

    calls: of the network, an image.  seconds: core- or GPU-seconds that drawing `images` took.
    """
    assert sampler.num_steps is not None  # sampling_walks() give it
    found, reasons = evaluate(
        Images(
            count=len(images),
            batches=lambda places: [images[places.start : places.stop]],
            labels=labels,
            in_turn=True,
        ),
        reference,
        _NAMES.values(),
    )
    point = QualityPoint(
        sampler=sampler.sampler,
        num_steps=sampler.num_steps,
        eta=sampler.ddim_eta,
        guidance=sampler.guidance,
        evaluations=calls,
        seconds=seconds,
        fid=found.get(_NAMES["fid"]),
        kid=found.get(_NAMES["kid"]),
        accuracy=found.get(_NAMES["accuracy"]),
        reasons={key: reasons[name] for key, name in _NAMES.items() if name in reasons},
    )
    numbers = ((key, point.interval(key)) for key in QUALITY_MEASURES)
    glance = "  ".join(f"{key} {one.value:.4g}" for key, one in numbers if one is not None)
    log.info("%s, %d steps, eta %g: %s", point.sampler, point.num_steps, point.eta, glance)
    return point


def _store(run: Path, quality: Quality, images: list[Pixels], labels: Ints | None) -> None:
    stacked = np.stack(images) if images else np.zeros((0, 0, 0, 0, 0), np.uint8)
    numbers = np.full(quality.num, -1) if labels is None else labels
    store_quality(run, quality, SamplePictures(images=stacked, labels=numbers[:PICTURED]))


def _draw(
    sampler: SamplerOptions,
    model: LoadedModel,
    config: Config,
    group: Group,
    labels: Ints | None,
    should_stop: Callable[[], bool],
) -> tuple[Pixels, float] | None:
    """Images uint8 (N, H, W, C) drawn by all workers, and the core- or GPU-seconds it took.

    None where an image is not finite.
    """
    count = config.EVALUATION.SAMPLING_NUM
    channels, height, width = configuration.image_shape(config)
    batches = -(-count // BATCH)
    images = torch.zeros(batches * BATCH, height, width, channels, dtype=torch.uint8)
    wall, cpu, is_finite = time.perf_counter(), time.process_time(), True
    for batch in range(group.rank, -(-batches // group.size) * group.size, group.size):
        if group.any(group.is_main and should_stop()):
            raise Interrupted(
                f"stopped at {sampler.num_steps} steps with eta {sampler.ddim_eta:g} of the "
                "samples that are measured at the end; run the same command again to continue"
            )
        if batch < batches and is_finite:
            ids = torch.arange(batch * BATCH, (batch + 1) * BATCH, device=group.device)
            try:
                pixels = _draw_batch(model.network, model.schedule, config, sampler, ids, labels)
                images[batch * BATCH : (batch + 1) * BATCH] = torch.from_numpy(pixels)
            except NonFiniteError:
                is_finite = False
    if group.any(not is_finite):
        return None
    found = group.sum_(images.to(group.device)).cpu()  # each is drawn by one of them
    if group.device.type == "cuda":
        seconds = (time.perf_counter() - wall) * gpu_share(config)
    else:
        seconds = time.process_time() - cpu
    total = group.sum_(torch.tensor(seconds, dtype=torch.float64, device=group.device))
    return found[:count].numpy(), float(total)
