"""A checkpoint is the saved state or it is nothing: damage, kills and power loss included."""

import hashlib
import json
import logging
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ddpm.errors import InputError, StorageError
from ddpm.runs import checkpoint, storage
from ddpm.runs.checkpoint import (
    DamagedCheckpoint,
    encode,
    folder_of,
    latest,
    load,
    prune,
    save,
    steps,
)
from tests.support import storage_faults as faults
from tests.support.shard_data import Trap

MANIFEST = {"config_sha256": "c" * 64, "data_sha256": "d" * 64, "torch": "2.13.0", "threads": 1}


def tensors_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
    }
    moments = {f"exp_avg.{name}": tensor / 3 for name, tensor in weights.items()}
    return {
        "model": weights,
        "ema-0.999": {name: tensor * 0.5 for name, tensor in weights.items()},
        "optimizer": moments | {"step.conv.bias": torch.tensor(float(step))},
    }


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "grad_scaler": None, "window": {"sums": [0.1 * step, 1 / 3, 5e-324]}}


def commit(checkpoints: Path, step: int) -> Path:
    folder = folder_of(checkpoints, step)
    save(folder, tensors=tensors_of(step), state=state_of(step), manifest=MANIFEST)
    return folder


def is_step(found: checkpoint.Checkpoint | None, step: int) -> bool:
    """Whether `found` is, bit for bit, what commit(step) saved."""
    if found is None or found.step != step or found.state != state_of(step):
        return False
    wanted = tensors_of(step)
    return found.tensors.keys() == wanted.keys() and all(
        found.tensors[part].keys() == wanted[part].keys()
        and all(torch.equal(found.tensors[part][name], wanted[part][name]) for name in wanted[part])
        for part in wanted
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder with the good steps 100 and 200."""
    folder = tmp_path / "checkpoints"
    storage.make_folder(folder)
    commit(folder, 100)
    commit(folder, 200)
    return folder


def test_what_is_loaded_is_what_was_saved_to_the_bit(checkpoints: Path) -> None:
    assert is_step(latest(checkpoints), 200)
    assert is_step(load(folder_of(checkpoints, 100)), 100)


def test_the_layout_is_safetensors_json_and_a_manifest(checkpoints: Path) -> None:
    folder = folder_of(checkpoints, 200)
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "MANIFEST.json",
        "ema-0.999.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["format"] == 1 and manifest["step"] == 200
    assert manifest["torch"] == "2.13.0" and manifest["threads"] == 1
    assert manifest["files"]["state.json"]["bytes"] == (folder / "state.json").stat().st_size
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert torch.equal(weights["conv.bias"], tensors_of(200)["model"]["conv.bias"])


def test_any_memory_layout_and_type_is_saved(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    odd = {
        "channels_last": image,
        "transposed": torch.arange(6).reshape(2, 3).T,
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
    }
    save(folder_of(tmp_path, 1), tensors={"model": odd, "none": {}}, state={"step": 1}, manifest={})
    found = load(folder_of(tmp_path, 1)).tensors
    assert found["none"] == {}
    for name, tensor in odd.items():
        assert torch.equal(found["model"][name], tensor) and found["model"][name].is_contiguous()
        assert found["model"][name].dtype == tensor.dtype


def test_only_the_parts_asked_for_are_kept_in_memory(checkpoints: Path) -> None:
    found = latest(checkpoints, parts=["ema-0.999"])
    assert found is not None and list(found.tensors) == ["ema-0.999"]


def test_no_checkpoint_yet_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "missing") is None


def damage(folder: Path, choice: random.Random, kind: str) -> str:
    """Damages one file of a checkpoint; says how."""
    file = choice.choice(sorted(folder.iterdir()))
    data = bytearray(file.read_bytes())
    if kind == "flip":
        bit = choice.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        return f"{file.name} bit {bit}"
    size = choice.randrange(len(data))
    os.truncate(file, size)
    return f"{file.name} cut to {size}"


def detect(folder: Path, original: Path, choice: random.Random, kind: str, count: int) -> None:
    for _ in range(count):
        what = damage(folder, choice, kind)
        with pytest.raises(DamagedCheckpoint):
            load(folder)
            pytest.fail(f"loaded although damaged: {what}")
        name = what.split()[0]
        shutil.copyfile(original / name, folder / name)
    load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("flip", 2000), ("cut", 500)])
def test_every_flipped_bit_and_every_cut_is_detected(
    kind: str, count: int, checkpoints: Path, tmp_path: Path
) -> None:
    folder = folder_of(checkpoints, 200)
    original = shutil.copytree(folder, tmp_path / "original")
    detect(folder, original, random.Random(count), kind, count)


def members() -> list[str]:
    return ["MANIFEST.json", "state.json", "model.safetensors", "optimizer.safetensors"]


def delete(folder: Path, name: str) -> None:
    (folder / name).unlink()


def swap_with_older(folder: Path, name: str) -> None:
    shutil.copyfile(folder_of(folder.parent, 100) / name, folder / name)


def swap_inside(folder: Path, name: str) -> None:
    shutil.copyfile(folder / "ema-0.999.safetensors", folder / name)


def flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("name", members())
@pytest.mark.parametrize("harm", [delete, swap_with_older, swap_inside, flip])
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_used(
    harm: Callable[[Path, str], None],
    name: str,
    checkpoints: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    harm(folder_of(checkpoints, 200), name)
    with caplog.at_level(logging.WARNING):
        assert is_step(latest(checkpoints), 100)
    assert name in caplog.text or "holds step 100 instead" in caplog.text
    assert "set aside as step-00000200.corrupt" in caplog.text
    assert (checkpoints / "step-00000200.corrupt").is_dir() and steps(checkpoints) == [100]
    assert is_step(load(commit(checkpoints, 200)), 200)


def test_a_whole_checkpoint_under_another_step_is_damage(checkpoints: Path) -> None:
    folder_of(checkpoints, 100).rename(folder_of(checkpoints, 300))
    with pytest.raises(DamagedCheckpoint, match="holds step 100 instead"):
        load(folder_of(checkpoints, 300))


def test_a_reader_skips_damage_without_touching_it(checkpoints: Path) -> None:
    delete(folder_of(checkpoints, 200), "state.json")
    assert is_step(latest(checkpoints, set_aside=False), 100)
    assert steps(checkpoints) == [100, 200]


def test_all_damaged_is_an_error_and_stays_one(checkpoints: Path) -> None:
    for step in (100, 200):
        delete(folder_of(checkpoints, step), "model.safetensors")
    for _ in range(2):  # the second start finds only what the first set aside
        with pytest.raises(StorageError, match="none is intact") as caught:
            latest(checkpoints)
        assert caught.value.exit_code == 5


def test_a_second_damage_of_a_step_is_set_aside_too(checkpoints: Path) -> None:
    for name in ("step-00000200.corrupt", "step-00000200.corrupt2"):
        delete(folder_of(checkpoints, 200), "state.json")
        latest(checkpoints)
        assert (checkpoints / name).is_dir()
        commit(checkpoints, 200)


def test_saving_a_step_again_keeps_the_good_and_replaces_the_damaged(checkpoints: Path) -> None:
    folder = folder_of(checkpoints, 200)
    inode = (folder / "MANIFEST.json").stat().st_ino
    commit(checkpoints, 200)
    assert (folder / "MANIFEST.json").stat().st_ino == inode
    flip(folder, "optimizer.safetensors")
    commit(checkpoints, 200)
    assert is_step(load(folder), 200)
    assert (checkpoints / "step-00000200.corrupt").is_dir()


def test_another_format_is_bad_input_and_never_set_aside(checkpoints: Path) -> None:
    folder = folder_of(checkpoints, 200)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_bytes(encode(manifest | {"format": 2}))
    with pytest.raises(InputError, match="checkpoint format 2, this version reads 1") as caught:
        latest(checkpoints)
    assert caught.value.exit_code == 2
    assert folder.is_dir()


NAMES = ["model.safetensors", "state.json", "MANIFEST.json", "optimizer.safetensors"]
NAMES += ["model.pt", "optimizer.pkl", ".metadata", "data.pickle", "__init__.py", "tuner.pkl"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_listed", [False, True])
def test_pickles_are_never_executed(
    name: str, is_listed: bool, checkpoints: Path, tmp_path: Path
) -> None:
    marker, folder = tmp_path / "executed", folder_of(checkpoints, 200)
    payload = pickle.dumps(Trap(marker))
    if is_listed:  # an attacker's manifest may vouch for it
        contents = {entry.name: entry.read_bytes() for entry in folder.iterdir()} | {name: payload}
        files = {
            file: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for file, data in contents.items()
            if file != "MANIFEST.json"
        }
        facts = {"format": checkpoint.FORMAT, "step": 200, "files": files}
        (folder / "MANIFEST.json").write_bytes(encode(facts))
    (folder / name).write_bytes(payload)
    try:
        found = latest(checkpoints)
    except (StorageError, InputError):
        found = None
    assert not marker.exists()
    if name in members():
        assert is_step(found, 100)
    pickle.loads(payload)
    assert marker.exists()  # the payload was live


def test_the_newest_are_kept(checkpoints: Path) -> None:
    for step in (300, 400):
        commit(checkpoints, step)
    prune(checkpoints, keep=3)
    assert steps(checkpoints) == [200, 300, 400]
    prune(checkpoints, keep=3)
    assert sorted(entry.name for entry in checkpoints.iterdir()) == [
        f"step-{step:08d}" for step in (200, 300, 400)
    ]


def test_nothing_is_removed_while_the_newest_is_damaged(checkpoints: Path) -> None:
    flip(folder_of(checkpoints, 200), "model.safetensors")
    with pytest.raises(DamagedCheckpoint):
        prune(checkpoints, keep=1)
    assert steps(checkpoints) == [100, 200]


def test_order_is_by_name_whatever_the_clock_says(checkpoints: Path) -> None:
    year_2099, year_1970 = 4070908800, 1
    os.utime(folder_of(checkpoints, 100), (year_2099, year_2099))
    os.utime(folder_of(checkpoints, 200), (year_1970, year_1970))
    assert is_step(latest(checkpoints), 200)
    prune(checkpoints, keep=1)
    assert steps(checkpoints) == [200]


def test_too_little_space_is_known_before_writing(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(storage.SystemCalls):
        @staticmethod
        def statvfs(path: Path) -> os.statvfs_result:
            return os.statvfs_result((4096, 4096, 10, 2, 2, 10, 5, 5, 0, 255))

    monkeypatch.setattr(storage, "system", Full())
    with pytest.raises(StorageError, match="not enough space .* 8192 bytes free"):
        commit(checkpoints, 300)
    assert sorted(steps(checkpoints)) == [100, 200] and len(list(checkpoints.iterdir())) == 2


def save_and_prune(checkpoints: Path) -> None:
    commit(checkpoints, 200)
    prune(checkpoints, keep=1)


def first_only(folder: Path) -> Path:
    storage.make_folder(folder)
    commit(folder, 100)
    return folder


@pytest.mark.slow
def test_every_call_of_save_and_prune_under_every_fault(tmp_path: Path) -> None:
    clean = first_only(tmp_path / "clean")
    strikes = faults.strikes(lambda: save_and_prune(clean))
    assert len(strikes) > 90 and steps(clean) == [200]
    template = first_only(tmp_path / "template")
    for target, fault in strikes:
        folder = shutil.copytree(template, tmp_path / "work")
        outcome = faults.strike(lambda at=folder: save_and_prune(at), target, fault)
        assert (outcome == "killed") == fault.startswith("kill"), (target, fault)
        storage.clean_temporaries(folder)
        found = latest(folder)
        assert is_step(found, 200) or (outcome != "done" and is_step(found, 100))
        # the same command again: complete, and nothing is left over
        save_and_prune(folder)
        assert [entry.name for entry in folder.iterdir()] == ["step-00000200"]
        shutil.rmtree(folder)


def survivals(tmp_path: Path, forgets: frozenset[str]) -> Iterator[bool]:
    """For each state after a power loss: does it load the old or the new (once committed)?"""
    work = first_only(tmp_path / "work")
    recorder = faults.record(work, lambda: save_and_prune(work), forgets)
    for moment, content in faults.crash_states(recorder, most=6):
        folder = tmp_path / "state"
        faults.lay_out(content, folder)
        try:
            storage.clean_temporaries(folder)
            found = latest(folder)
        except StorageError:
            found = None
        yield is_step(found, 200) or (is_step(found, 100) and moment < len(recorder.log))
        shutil.rmtree(folder)


@pytest.mark.slow
def test_power_loss_at_any_moment_of_save_and_prune_loads_old_or_new(tmp_path: Path) -> None:
    survived = list(survivals(tmp_path, frozenset()))
    assert len(survived) > 100 and all(survived)


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_without_its_syncs_power_loss_would_lose_commits(forgotten: str, tmp_path: Path) -> None:
    assert not all(survivals(tmp_path, frozenset({forgotten})))
