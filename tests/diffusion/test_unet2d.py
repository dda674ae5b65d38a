"""Networks as diffusers' UNet2DModel: what of it can be computed without diffusers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.diffusion.unet2d import scheduler_config, unet2d_config, unet2d_problems, unet2d_weights

PLAIN: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "has_attention": (False, True),
    "time_emb_dim": 8,
}


def network(**changed: Any) -> UNet:
    return UNet(**{**PLAIN, **changed})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "steps", "time_input"),
    [
        (8, 300, "time"),
        (8, 3, "timestep"),
        (64, 200, "logsnr"),
        (64, 12, "flow"),
        (10, 2, "time"),
        (10, 1, "time"),
    ],
)
def test_the_table_of_timesteps_gives_the_time_embedding(
    dim: int, steps: int, time_input: str
) -> None:
    ours, schedule = network(time_emb_dim=dim), NoiseSchedule("cos6", steps, time_input=time_input)
    t = torch.arange(1, steps + 1)
    seen = schedule.network_time(t.double() / steps, schedule.logsnr_at(t))
    with torch.no_grad():
        expected = ours.time_embedding(seen.float())
    weights = unet2d_weights(ours, schedule)
    hidden, out = (
        (weights[f"time_embedding.linear_{i}.weight"], weights[f"time_embedding.linear_{i}.bias"])
        for i in (1, 2)
    )
    found = F.linear(F.silu(F.linear(weights["time_proj.weight"], *hidden)), *out)
    assert weights["time_proj.weight"].shape == (steps, 8)
    assert_close(found[:, :dim], expected, rtol=1e-5, atol=1e-6)
    assert not found[:, dim:].any()
    assert found.shape[1] == unet2d_config(ours, schedule, None)["time_embedding_dim"]


def test_a_label_is_in_the_bias_and_every_weight_has_a_place() -> None:
    schedule = NoiseSchedule("cosine", 100)
    ours = network(num_classes=3, class_emb_dim=5)
    every, one = unet2d_weights(ours, schedule), unet2d_weights(ours, schedule, label=3)
    assert every["class_embedding.weight"].shape == (4, 8)
    assert one.keys() == every.keys() - {"class_embedding.weight"}
    bias = "time_embedding.linear_2.bias"
    assert_close(one[bias], every[bias] + every["class_embedding.weight"][3])
    of_others = (sum(each.numel() for each in ours.class_embedding.parameters()), 100 * 8 + 4 * 8)
    ours_in_all = sum(each.numel() for each in ours.parameters())
    assert sum(map(torch.numel, every.values())) == ours_in_all - of_others[0] + of_others[1]


def test_the_betas_give_the_schedule() -> None:
    schedule = NoiseSchedule("cosine", 40, zero_terminal_snr=True)
    config = scheduler_config(schedule, "velocity", clips=True)
    betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    assert_close((1 - betas).cumprod(0), schedule.alphas_cumprod[1:], rtol=1e-12, atol=1e-15)
    assert config["prediction_type"] == "v_prediction" and config["clip_sample"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "steps", "pred_type", "told"),
    [
        ({"block_size": 2}, 10, "noise", "BLOCK_SIZE is 2; UNet2DModel takes single pixels"),
        ({"kernel_size": 5}, 10, "noise", "KERNEL_SIZE is 5; that of UNet2DModel is 3"),
        ({"use_cross_attention": True}, 10, "noise", "USE_CROSS_ATTENTION is true"),
        ({"channel_mult": (2, 2)}, 10, "noise", "CHANNEL_MULTIPLIER begins with 2"),
        (
            {"num_heads": 4, "has_attention": (True, True)},
            10,
            "noise",
            "NUM_HEADS is 4, so heads are 2 and 4 wide",
        ),
        ({"num_heads": 2, "keras_layers": True}, 10, "noise", "NUM_HEADS is 2 with KERAS_LAYERS"),
        ({"image_size": (8, 9)}, 10, "noise", "INPUT_IMAGE_SIZE is 8x9"),
        ({"time_emb_dim": 16}, 257, "noise", "TIMESTEPS is 257 and TIME_EMB_DIM 16 is over"),
        ({"time_emb_dim": 32, "model_channels": 16}, 4097, "noise", "up to 4,096 timesteps"),
        ({}, 10, "edm", "PRED_TYPE is edm, whose network is given a scaled state"),
        ({}, 10, "flow", "PRED_TYPE is flow"),
    ],
)
def test_what_has_no_counterpart_is_refused(
    changed: dict[str, Any], steps: int, pred_type: str, told: str
) -> None:
    (line,) = unet2d_problems(network(**changed), NoiseSchedule("cosine", steps), pred_type)
    assert line.startswith("TRAINING.") and told in line


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_heads": 2, "has_attention": (False, True)},
        {"keras_layers": True, "has_attention": (True, True)},
        {"time_emb_dim": 64, "image_size": (8, 16)},
        {"has_attention": (False, False), "num_classes": 2},
    ],
)
def test_what_has_one_is_not(changed: dict[str, Any]) -> None:
    assert not unet2d_problems(network(**changed), NoiseSchedule("cosine", 256), "velocity")
