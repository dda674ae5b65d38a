"""Tensors kept with their facts: read back whole, refused where facts or bytes are others."""

import json
from pathlib import Path

import pytest
import torch

from ddpm.errors import InputError, StorageError
from ddpm.runs import tensors as files

FACTS = {"data": "1a2b", "count": 12, "shape": [1, 8, 8]}


@pytest.fixture
def stem(tmp_path: Path) -> Path:
    tensors = {"mean": torch.arange(5.0).double(), "kept": torch.eye(3)[:, :2]}
    files.write(tmp_path / "new" / "stats", tensors, FACTS, {"accuracy": 0.1 + 0.2})
    return tmp_path / "new" / "stats"


def test_what_is_kept_is_read_back_to_the_bit(stem: Path) -> None:
    kept = files.read(stem, FACTS)
    assert kept is not None
    assert torch.equal(kept.tensors["mean"], torch.arange(5.0).double())
    assert torch.equal(kept.tensors["kept"], torch.eye(3)[:, :2])
    assert kept.results == {"accuracy": 0.1 + 0.2}


def test_nothing_kept_is_none(tmp_path: Path) -> None:
    assert files.read(tmp_path / "stats", FACTS) is None


@pytest.mark.parametrize("key", FACTS)
def test_other_facts_are_refused_and_named(stem: Path, key: str) -> None:
    with pytest.raises(InputError) as caught:
        files.read(stem, FACTS | {key: "other"})
    assert "was computed from something else" in caught.value.problems[0]
    assert [line.split(":")[0].strip() for line in caught.value.problems[1:]] == [key]


def test_a_fact_more_or_less_is_refused(stem: Path) -> None:
    with pytest.raises(InputError, match='split: null is kept, "train" is wanted'):
        files.read(stem, FACTS | {"split": "train"})
    with pytest.raises(InputError, match="count: 12 is kept, null is wanted"):
        files.read(stem, {key: value for key, value in FACTS.items() if key != "count"})


def test_every_flipped_byte_is_found(stem: Path) -> None:
    path = stem.with_name("stats.safetensors")
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StorageError, match="is damaged"):
            files.read(stem, FACTS)


def test_tensors_that_are_gone_and_a_broken_record_are_told(stem: Path) -> None:
    stem.with_name("stats.safetensors").unlink()
    with pytest.raises(StorageError, match="No such file"):
        files.read(stem, FACTS)
    record = stem.with_name("stats.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 9}))
    with pytest.raises(InputError, match="has format 9; this reads 1"):
        files.read(stem, FACTS)
    record.write_text("{")
    with pytest.raises(StorageError, match=r"stats\.json is damaged"):
        files.read(stem, FACTS)
