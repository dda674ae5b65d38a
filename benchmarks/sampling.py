"""Sampling speed: what the loop costs beside the network, and images/s against `diffusers`.

    python benchmarks/sampling.py [--rounds 10] [--steps 4] [--batch 64] [--threads 1]

The overhead is the time of sample() outside the network's calls, over the time inside them, in one
and the same run, on the GPU where there is one. The ratio is to the DDIM scheduler loop of
diffusers with its own UNet2DModel, as wide as makes its FLOPs ours; without diffusers it is left
out. Rounds are interleaved, and their order alternates, so that a drift of the machine hits both.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.cluster.workers import available_cpus
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.distributed import best_device
from ddpm.sampling.loading import for_drawing
from ddpm.sampling.samplers import sample

SIZE, CHANNELS = 32, 3
SAMPLERS = ("ddim", "ddpm")  # without noise, and with
GOAL_OVERHEAD, GOAL_RATIO = 0.03, 1.15
WIDTHS = range(16, 161, 8)


class Clocked:
    """A network, and the seconds spent in it."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.seconds = network, 0.0
        self.device = next(network.parameters()).device

    def __call__(self, x_t: Tensor, time_: Tensor, labels: Tensor | None) -> Tensor:
        began = now(self.device)
        pred = self.network(x_t, time_, labels)
        self.seconds += now(self.device) - began
        return pred


def now(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def our_network(width: int) -> UNet:
    """9 M parameters at the default width of 80."""
    torch.manual_seed(0)
    network = UNet(
        image_size=SIZE,
        in_channels=CHANNELS,
        model_channels=width,
        channel_mult=(1, 2, 2),
        has_attention=(False, True, False),
    )
    return for_drawing(network)


def their_network(width: int) -> nn.Module:
    """The same levels in diffusers' words."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=2,
        block_out_channels=(width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=None,
    ).eval()


@torch.no_grad()
def flops(call: Callable[[Tensor], object]) -> int:
    """Of one image through a network."""
    with FlopCounterMode(display=False) as counter:
        call(torch.zeros(1, CHANNELS, SIZE, SIZE))
    return counter.get_total_flops()


def nearest_network(wanted: int) -> tuple[nn.Module, int]:
    """The network of diffusers whose FLOPs are nearest to `wanted`, and its FLOPs."""
    counts = {}
    for width in WIDTHS:
        network = their_network(width)
        counts[width] = flops(lambda x, network=network: network(x, 0))
    width = min(counts, key=lambda width: abs(counts[width] - wanted))
    return their_network(width), counts[width]


def draw(network: Clocked, schedule: NoiseSchedule, steps: int, batch: int, sampler: str) -> None:
    """A batch by our loop."""
    sample(
        network,
        schedule,
        torch.arange(batch, device=network.device),
        (CHANNELS, SIZE, SIZE),
        pred_type="velocity",
        num_steps=steps,
        sampler=sampler,
    )


@torch.no_grad()
def draw_theirs(network: nn.Module, steps: int, batch: int) -> None:
    """A batch by the loop of diffusers."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    x_t = torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    x_t = x_t.to(next(network.parameters()).device)
    for index in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, index).sample, index, x_t).prev_sample


def has_diffusers() -> bool:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return False
    return True


def median(values: list[float]) -> str:
    """Median with the 95 % bootstrap interval of it."""
    found = np.array(values)
    draws = np.random.default_rng(0).choice(found, (10_000, len(found)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return (
        f"{np.median(found):.4f}  (95 % bootstrap interval of the median {low:.4f} to {high:.4f})"
    )


def seconds(call: Callable[[], None], device: torch.device) -> float:
    began = now(device)
    call()
    return now(device) - began


def one_round(
    network: Clocked, theirs: nn.Module | None, steps: int, batch: int, ours_first: bool
) -> dict[str, float]:
    """Seconds of each loop, and the overhead of each sampler of ours, as "ddim overhead"."""
    schedule, found = NoiseSchedule("cosine", 1000), {}

    def run_ours() -> None:
        for sampler in SAMPLERS:
            network.seconds = 0.0
            found[sampler] = seconds(
                partial(draw, network, schedule, steps, batch, sampler), network.device
            )
            found[f"{sampler} overhead"] = found[sampler] / network.seconds - 1

    def run_theirs() -> None:
        if theirs is not None:
            found["diffusers"] = seconds(partial(draw_theirs, theirs, steps, batch), network.device)

    for run in (run_ours, run_theirs) if ours_first else (run_theirs, run_ours):
        run()
    return found


def networks(width: int) -> tuple[Clocked, nn.Module | None]:
    """Both, told of on the way; None where diffusers is not installed."""
    network, device = our_network(width), best_device()
    wanted = flops(lambda x: network(x, torch.zeros(1), None))
    print(f"ours         {describe(network, wanted)}")
    if not has_diffusers():
        print("diffusers    is not installed, so there is no ratio; pip install diffusers")
        return Clocked(network.to(device)), None
    theirs, count = nearest_network(wanted)
    print(f"diffusers    {describe(theirs, count)}")
    return Clocked(network.to(device)), theirs.to(device)


def describe(network: nn.Module, count: int) -> str:
    size = sum(parameter.numel() for parameter in network.parameters())
    return f"{size / 1e6:.1f} M parameters, {count / 1e9:.2f} GFLOP an image and call"


def main() -> int:
    """Print the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="reverse steps of a round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=80, help="of our network's first level")
    parser.add_argument("--threads", type=int, default=available_cpus())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    network, theirs = networks(args.width)
    one_round(network, theirs, 1, args.batch, True)  # to warm up
    rounds = []
    for number in range(args.rounds):
        rounds.append(one_round(network, theirs, args.steps, args.batch, number % 2 == 0))
        speed = args.batch / rounds[-1]["ddim"]
        print(f"round {number + 1}/{args.rounds}: {speed:.2f} images/s of {args.steps} steps")
    for sampler in SAMPLERS:
        overheads = [found[f"{sampler} overhead"] for found in rounds]
        print(f"{sampler} overhead {median(overheads)}; goal: at most {GOAL_OVERHEAD}")
    if theirs is not None:
        ratios = [found["diffusers"] / found["ddim"] for found in rounds]
        print(f"ratio         {median(ratios)}; goal: at least {GOAL_RATIO}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
