"""Imported weights predict what DDPM v3's network predicts in Keras itself (make test-v3)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm import config as configuration
from ddpm.diffusion import NoiseSchedule, UNet, weights_from_keras
from ddpm.runs import read_keras

pytestmark = pytest.mark.oracle

PLAIN: dict[str, Any] = {
    "TIMESTEPS": 1000,
    "NUM_RES_BLOCKS": 1,
    "FIRST_CHANNEL": 8,
    "NORM_GROUPS": 4,
    "CHANNEL_MULTIPLIER": [1, 2],
    "HAS_ATTENTION": [False, True],
    "TIME_EMB_DIM": 16,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain as blocks": {"as_layers": True},
    "heads, classes": {"NUM_HEADS": 2, "NUM_CLASSES": 5, "CLASS_EMB_DIM": 6, "as_layers": True},
    "pixels, three levels": {
        "BLOCK_SIZE": 2,
        "CHANNEL_MULTIPLIER": [1, 1, 2],
        "HAS_ATTENTION": [True, False, False],
    },
    "wide kernels, few timesteps": {"KERNEL_SIZE": 5, "TIMESTEPS": 250, "as_layers": True},
    "classes, many timesteps": {"NUM_CLASSES": 5, "NUM_RES_BLOCKS": 2, "TIMESTEPS": 4000},
}


@pytest.mark.parametrize("case", CASES)
def test_imported_weights_predict_as_keras_does(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    from tests.support import keras_v3

    words = {**PLAIN, **CASES[case]}
    as_layers = words.pop("as_layers", False)
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model = keras_v3.build(
        (16, 8),
        3,
        words["FIRST_CHANNEL"],
        words["CHANNEL_MULTIPLIER"],
        words["HAS_ATTENTION"],
        num_res_blocks=words["NUM_RES_BLOCKS"],
        block_size=words.get("BLOCK_SIZE", 1),
        groups=words["NORM_GROUPS"],
        heads=words.get("NUM_HEADS", 1),
        emb_dim=words["TIME_EMB_DIM"],
        kernel=words.get("KERNEL_SIZE", 3),
        num_classes=words.get("NUM_CLASSES"),
        class_dim=words.get("CLASS_EMB_DIM"),
        as_layers=as_layers,
    )
    random = np.random.default_rng(1)
    for weight in model.weights:
        scale = 0.3 if len(weight.shape) == 1 else 0.5 / np.sqrt(np.prod(weight.shape[:-1]))
        weight.assign(weight.numpy() + scale * random.standard_normal(weight.shape))
    x = random.standard_normal((6, 3, 16, 8)).astype(np.float32)
    t = np.array([1, 2, 100, 233, 249, words["TIMESTEPS"]], dtype=np.int32)
    labels = np.array([0, 1, 2, 3, 4, 0], dtype=np.int32) if "NUM_CLASSES" in words else None
    inputs = [x.transpose(0, 2, 3, 1), t] + ([] if labels is None else [labels])
    with torch.no_grad():
        expected = keras.ops.convert_to_numpy(model(inputs, training=False)).transpose(0, 3, 1, 2)
    assert expected.std() > 0.1

    config = configuration.from_dict(
        {
            "DATASET": {"NAME": "made", "PATH": "nowhere"},
            "TRAINING": {
                "INPUT_IMAGE_SIZE": [16, 8],
                "NETWORK": {**words, "KERAS_LAYERS": True},
            },
        }
    )
    network = UNet(**configuration.network_arguments(config)).eval()
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    for name in ("model.h5", "model.weights.h5"):
        file = tmp_path / name
        model.save(file) if name == "model.h5" else model.save_weights(file)
        network.load_state_dict(weights_from_keras(network, read_keras(file)[0]))
        time = torch.from_numpy(t).double() / schedule.num_timesteps
        time = schedule.network_time(time, schedule.logsnr(time))
        with torch.no_grad():
            found = network(
                torch.from_numpy(x),
                time,
                None if labels is None else torch.from_numpy(labels).long(),
            )
        print(f"{case}, {name}: {np.abs(found.numpy() - expected).max():.1e}")
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=0, err_msg=name)
