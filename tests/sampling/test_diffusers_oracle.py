"""Our samplers against the schedulers of `diffusers`: same network, same noise, same images.

    make test-oracle        needs diffusers, which nothing else does

Their tables are replaced by ours, so that what is compared is the sampler; their arithmetic is
float32 throughout. Index i there is timestep i + 1 here.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm.diffusion.philox import Stream, normal
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.sampling.samplers import sample
from ddpm.sampling.spacing import walk_levels
from tests.support.diffusion_cases import SHAPE, every_plain_type
from tests.support.tree import ROOT

pytestmark = pytest.mark.oracle

T, STEPS, SEED, IDS = 1000, 20, 3, torch.arange(4)
THEIR_TYPES = {"noise": "epsilon", "image": "sample", "velocity": "v_prediction"}
every_name = pytest.mark.parametrize("name", ["iddpm_linear", "linear", "cosine", "cos6"])


def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    """No denoiser of anything, but smooth, bounded and not linear."""
    return torch.tanh(0.7 * x_t + torch.sin(3 * time).view(-1, 1, 1, 1))


def theirs(kind: str, schedule: NoiseSchedule, pred_type: str, **options: object):
    """A scheduler of diffusers on our table."""
    # Not above: this file is collected, and deselected, where diffusers is not installed.
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, kind)(
        num_train_timesteps=T,
        trained_betas=[0.01] * T,
        prediction_type=THEIR_TYPES[pred_type],
        timestep_spacing="trailing",
        **options,
    )
    made.alphas_cumprod = schedule.alphas_cumprod[1:].float()
    made.set_timesteps(STEPS)
    return made


def ours(schedule: NoiseSchedule, pred_type: str, sampler: str, eta: float = 0.0) -> Tensor:
    return sample(
        network,
        schedule,
        IDS,
        SHAPE,
        pred_type=pred_type,
        num_steps=STEPS,
        ddim_eta=eta,
        seed=SEED,
        sampler=sampler,
    )


def noise_to(t: int) -> Tensor:
    return normal(SEED, Stream.STEP_NOISE, IDS, SHAPE, step=t)


def walk(scheduler, x_t: Tensor, step: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Tensor:
    """Their loop; step(pred, index, x_t, s) makes one step of the scheduler."""
    for index in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x_t, index)
        time = (index.float() + 1) / T
        s = max(0, int(index) + 1 - T // STEPS)
        x_t = step(network(scaled, time.expand(len(x_t)), None), index, x_t, s)
    return x_t


def start() -> Tensor:
    return normal(SEED, Stream.X_T, IDS, SHAPE)


def agree(drawn: Tensor, expected: Tensor, schedule: NoiseSchedule) -> None:
    """Their float32 coefficients are magnified by 1 / alpha_T, at most."""
    scale = max(1.0, float(expected.abs().max()))
    print(f"largest difference {float((drawn - expected).abs().max()):.1e} of {scale:.3g}")
    gain = float(1 / schedule.alpha_sigma_at(torch.tensor(T))[0])
    assert_close(drawn, expected, rtol=0, atol=scale * (2e-5 + 64 * 2.0**-24 * gain))


@every_name
@every_plain_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(name: str, pred_type: str, eta: float) -> None:
    schedule = NoiseSchedule(name, T)
    scheduler = theirs("DDIMScheduler", schedule, pred_type, clip_sample=False)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)

    def step(pred: Tensor, index: Tensor, x_t: Tensor, s: int) -> Tensor:
        noise = noise_to(s) if eta > 0 else None
        return scheduler.step(pred, index, x_t, eta=eta, variance_noise=noise).prev_sample

    agree(ours(schedule, pred_type, "ddim", eta), walk(scheduler, start(), step), schedule)


@every_name
@every_plain_type
def test_ddpm(name: str, pred_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, now = NoiseSchedule(name, T), [0]
    scheduler = theirs("DDPMScheduler", schedule, pred_type, clip_sample=False)
    # Its step takes no noise, so its source of noise is given ours.
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: noise_to(now[0]))

    def step(pred: Tensor, index: Tensor, x_t: Tensor, s: int) -> Tensor:
        now[0] = s
        return scheduler.step(pred, index, x_t).prev_sample

    agree(ours(schedule, pred_type, "ddpm"), walk(scheduler, start(), step), schedule)


@every_name
@every_plain_type
def test_heun(name: str, pred_type: str) -> None:
    schedule = NoiseSchedule(name, T)
    scheduler = theirs("HeunDiscreteScheduler", schedule, pred_type)

    def step(pred: Tensor, index: Tensor, x_t: Tensor, s: int) -> Tensor:
        return scheduler.step(pred, index, x_t).prev_sample

    # Their state is x / alpha.
    alpha = schedule.alpha_sigma_at(torch.tensor(T))[0].float()
    agree(ours(schedule, pred_type, "heun"), walk(scheduler, start() / alpha, step), schedule)


@every_name
@every_plain_type
@pytest.mark.parametrize(
    "sampler, algorithm", [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")]
)
def test_dpm_solver(name: str, pred_type: str, sampler: str, algorithm: str) -> None:
    schedule = NoiseSchedule(name, T)
    scheduler = theirs(
        "DPMSolverMultistepScheduler",
        schedule,
        pred_type,
        algorithm_type=algorithm,
        solver_order=2,
        final_sigmas_type="zero",
    )

    def step(pred: Tensor, index: Tensor, x_t: Tensor, s: int) -> Tensor:
        noise = noise_to(s) if sampler == "dpmpp_2m_sde" else None
        return scheduler.step(pred, index, x_t, variance_noise=noise).prev_sample

    agree(ours(schedule, pred_type, sampler), walk(scheduler, start(), step), schedule)


@every_name
def test_the_levels_of_karras(name: str) -> None:
    schedule = NoiseSchedule(name, T)
    scheduler = theirs("DPMSolverMultistepScheduler", schedule, "noise", use_karras_sigmas=True)
    path = walk_levels(schedule, spacing="karras", num_steps=STEPS)[:-1]
    ratios = torch.stack([level.sigma / level.alpha for level in path]).float()
    # Their smallest comes from 1 - abar in float32.
    lost = 2.0**-24 / float(path[-1].sigma) ** 2
    assert_close(ratios, scheduler.sigmas[:-1], rtol=1e-5 + lost, atol=0)


def test_a_network_of_diffusers_is_drawn_from_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out as google/ddpm-cifar10-32, with random weights, in a folder of that name."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
    ).eval()
    unet.save_pretrained(tmp_path / "google" / "ddpm-cifar10-32")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sampling.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)

    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=True)
    scheduler.set_timesteps(50)
    x_t = normal(0, Stream.X_T, torch.arange(4), (3, 32, 32))
    with torch.no_grad():
        for index in scheduler.timesteps:
            pred = unet(x_t, index).sample
            x_t = scheduler.step(pred, index, x_t, use_clipped_model_output=True).prev_sample
    expected = (127.5 * (x_t + 1)).permute(0, 2, 3, 1)
    drawn = torch.from_numpy(names["images"][:4]).float()
    assert_close(drawn, expected, rtol=0, atol=0.51 + 1e-2)
