"""Training speed: our optimizer step beside the bare network, and beside a loop of `diffusers`.

    python benchmarks/training.py [--precision fp32 bf16] [--compile] [--batch 128] [--rounds 10]

The bare network is forward and backward on inputs that lie on the device: the limit of any step.
Ours has the batch's way to the device, noise, timesteps, losses in three spaces, clipping, AdamW
and the averaged weights on top. The loop of diffusers has its own UNet2DModel, as wide as makes its
FLOPs ours, and the same kinds of work; without diffusers it is left out. Rounds are interleaved,
and their order turns, so that a drift of the machine hits all.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from sampling import SIZE, describe, flops, has_diffusers, median, nearest_network
from torch import Tensor, nn

from ddpm import config
from ddpm.data.dataset import Batch
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.distributed import Group, best_device
from ddpm.training.step import Stepper

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def our_network(width: int) -> UNet:
    """Levels of 32, 16 and 8 pixels, attention at 16."""
    levels = ((1, 2, 2), (False, True, False))
    return UNet(SIZE, 3, width, *levels)


def settings(precision: str, batch: int, compiled: bool) -> config.Training:
    """A training as a configuration says it."""
    return config.from_dict(
        {
            "DATASET": {"NAME": "noise", "PATH": "digits"},
            "TRAINING": {
                "INPUT_IMAGE_SIZE": SIZE,
                "INPUT_IMAGE_CHANNEL": 3,
                "PRED_TYPE": "noise",
                "PRECISION": precision,
                "COMPILE": compiled,
                "HYPER_PARAMETERS": {"BATCH_SIZE": batch, "LR_TYPE": "constant"},
            },
        }
    ).TRAINING


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=TYPES[precision])


def ours(network: UNet, training: config.Training, device: torch.device) -> Callable[[], None]:
    """Our optimizer step on a batch in the memory of the machine."""
    stepper = Stepper(
        training, network, NoiseSchedule("cosine", 1000), None, None, Group(device=device), 10**6
    )
    size = training.HYPER_PARAMETERS.BATCH_SIZE
    held, ids = images(size), torch.arange(size)

    def step() -> None:
        positions = ids + stepper.step * size
        stepper.train_step(Batch(held, None, positions, positions), False)

    return step


def bare(
    network: UNet, precision: str, batch: int, compiled: bool, device: torch.device
) -> Callable[[], None]:
    """Forward and backward of the same network, nothing else."""
    network = network.to(device).train()
    call = torch.compile(network) if compiled else network
    held, time_ = images(batch).to(device), torch.rand(batch, device=device)

    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        with autocast(device, precision):
            predicted = call(held, time_, None)
        predicted.float().square().mean().backward()

    return step


def theirs(
    network: nn.Module, precision: str, batch: int, device: torch.device
) -> Callable[[], None]:
    """The step of a training loop of diffusers: DDPMScheduler, EMAModel, AdamW, clipping."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = network.to(device).train()
    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average, held = EMAModel(network.parameters(), decay=0.999), images(batch)

    def step() -> None:
        x0 = held.to(device)
        noise = torch.randn(x0.shape, device=device)
        t = torch.randint(0, 1000, (batch,), device=device)
        with autocast(device, precision):
            predicted = network(scheduler.add_noise(x0, noise, t), t).sample
        nn.functional.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())

    return step


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Of so many steps, the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product in this arithmetic, the peak that this machine shows.

    fp32 on a GPU in TF32, as cuDNN's convolutions are.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=TYPES[precision]) for _ in range(2))
    times = [seconds(partial(torch.matmul, a, b), 5, device) / 5 for _ in range(5)]
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * size**3 / min(times)


def loops(
    args: argparse.Namespace, precision: str, device: torch.device
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The loops to compare, by name."""
    batch, compiled = args.batch, args.compile
    training = settings(precision, batch, compiled)
    yield "ours", ours(our_network(args.width), training, device)
    yield "bare", bare(our_network(args.width), precision, batch, compiled, device)
    if has_diffusers() and not compiled:
        count = flops(lambda x: our_network(args.width)(x, torch.zeros(1), None))
        try:
            yield "diffusers", theirs(nearest_network(count)[0], precision, batch, device)
        except (ImportError, RuntimeError) as error:  # it asks for other versions of its own
            print(f"diffusers is left out: {str(error).splitlines()[-1]}")


def measure(args: argparse.Namespace, precision: str, device: torch.device, count: int) -> None:
    """The rounds of one arithmetic, and what they say."""
    torch.cuda.reset_peak_memory_stats() if device.type == "cuda" else None
    steps = dict(loops(args, precision, device))
    for step in steps.values():
        seconds(step, 3, device)  # allocates, chooses kernels, compiles
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds):
        names = list(steps)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(seconds(steps[name], args.steps, device) / args.steps)
    best = sorted(found["ours"])[args.rounds // 2]
    what = f"{precision}{' compiled' if args.compile else ''}"
    share = 3 * count * args.batch / best / matmul_rate(device, precision)
    print(f"{what}: {args.batch / best:,.0f} images/s, {share:.1%} of a matrix product's FLOP/s")
    for other in list(steps)[1:]:
        ratios = [b / a for a, b in zip(found["ours"], found[other], strict=True)]
        print(f"{what}: images/s over {other}: {median(ratios)}")


def main() -> int:
    """Print the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", nargs="+", choices=list(TYPES), default=["fp32"])
    parser.add_argument("--compile", action="store_true", help="ours and the bare network")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=128, help="of our network's first level")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a round")
    args = parser.parse_args()
    device = best_device()

    network = our_network(args.width)
    count = flops(lambda x: network(x, torch.zeros(1), None))
    print(f"{device}: {describe(network, count)}, batches of {args.batch}")
    for precision in args.precision:
        measure(args, precision, device, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
