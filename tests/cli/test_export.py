"""A network exported: whole, with a card that says what is known, and images drawn as it says."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm.cli.main import launch
from ddpm.sampling import load_network
from tests.support.small_run import make_run


def test_an_export_holds_the_weights_and_a_card_whose_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(tmp_path), tmp_path / "to" / "out"
    model = load_network(run, 0.99, device=torch.device("cpu"))
    record = {
        "samples": {"weights_sha256": model.sha256},
        "protocol": "as it is done",
        "measures": {
            "kid": {"value": 0.5, "low": 0.25, "high": 1.0, "n": 64},
            "fid": {"value": None, "reason": "few"},
        },
    }
    other = {**record, "samples": {"weights_sha256": "0"}, "protocol": "of other weights"}
    (run / "evaluation_of_samples_pixels.json").write_text(json.dumps(record))
    (run / "evaluation_of_samples_raw.json").write_text(json.dumps(other))
    assert launch("export", [str(run), str(out), "--to", "safetensors", "--ema", "0.99"]) == 0
    weights = load_file(out / "model.safetensors")
    state = model.network.state_dict()
    assert weights.keys() == state.keys() and all(torch.equal(weights[k], state[k]) for k in state)
    card = (out / "README.md").read_text()
    assert "| kid | 0.5 | 0.25 to 1 | 64 |" in card and "Protocol: as it is done." in card
    assert "fid" not in card and "other weights" not in card
    assert "| data | made, 8x8x3, 3 classes, index 000" in card
    assert "| schedule | cosine, 12 timesteps |" in card and "ema-0.99 of step 7" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir(out)
    names: dict[str, torch.Tensor] = {}
    exec(code, names)
    assert names["images"].shape == (4, 3, 8, 8) and bool(names["images"].isfinite().all())


def test_an_edm_network_is_exported_with_the_deviation_of_its_data(tmp_path: Path) -> None:
    run, out = make_run(tmp_path, {"PRED_TYPE": "edm"}), tmp_path / "out"
    assert launch("export", [str(run), str(out), "--to", "safetensors"]) == 0
    card = (out / "README.md").read_text()
    assert "| sigma_data | 0.75, the standard deviation of the data's values |" in card
    assert "NoiseSchedule(**schedule_arguments(config), sigma_data=0.75)" in card


def test_an_export_never_replaces_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    words = [str(tmp_path / "run"), str(tmp_path / "out"), "--to", "safetensors"]
    assert launch("export", words) == 2
    assert "out is there already; give another OUT" in capsys.readouterr().err
    words[1] = str(tmp_path / "new")
    assert launch("export", words) == 2
    assert "is no folder; name a run directory" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
