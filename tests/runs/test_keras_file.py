"""Weight files of Keras: both layouts read alike, and nothing read that is not numbers in it."""

import hashlib
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddpm.cli.main import launch
from ddpm.errors import InputError
from ddpm.runs import read_keras
from tests.support.keras_files import write_h5, write_weights_h5

LAYERS = {
    **{
        f"conv2d_{i}" if i else "conv2d": [np.full((1, 1, 1, 2), i, np.float32), np.ones(2)]
        for i in range(12)
    },
    "residual_block_2/dense": [np.zeros((2, 3), np.float16), np.arange(3.0)],
    "multi_head_attention/query": [np.zeros((2, 1, 2)), np.zeros((1, 2))],
    "multi_head_attention/key": [np.ones((2, 1, 2)), np.ones((1, 2))],
}


def test_both_layouts_hold_the_same_layers_in_order(tmp_path: Path) -> None:
    for path in (
        write_h5(tmp_path / "a.h5", LAYERS),
        write_h5(tmp_path / "b.h5", LAYERS, root="model_weights"),
        write_weights_h5(tmp_path / "c.weights.h5", LAYERS),
    ):
        found, sha256 = read_keras(path)
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert set(found) in ({*LAYERS}, {*LAYERS, "residual_block_2"} - {"residual_block_2/dense"})
        convolutions = [arrays for name, arrays in found.items() if name.startswith("conv2d")]
        assert [int(kernel[0, 0, 0, 0]) for kernel, _ in convolutions] == list(range(12))
        for name, arrays in found.items():
            expected = LAYERS.get(name) or LAYERS["residual_block_2/dense"]
            for array, own in zip(arrays, expected, strict=True):
                assert array.dtype == np.float32 and np.array_equal(array, own)


def test_names_that_keras_cut_into_pieces_are_put_together(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5", LAYERS)
    with h5py.File(path, "a") as file:
        names = list(file.attrs.pop("layer_names"))
        for index in range(11):
            piece = names[index : index + 1] if index < 10 else names[index:]
            file.attrs[f"layer_names{index}"] = piece
    assert list(read_keras(path)[0])[:12] == list(LAYERS)[:12]


def external_link(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = h5py.SoftLink("/elsewhere")


def external_numbers(file: h5py.File) -> None:
    file.create_dataset("layers/conv2d/vars/0", (2,), "f4", external=[("/etc/hostname", 0, 8)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (2,))
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def absent_numbers(file: h5py.File) -> None:
    file.create_dataset("layers/conv2d/vars/0", (10**6, 10**6), "f4", chunks=(1, 1000))


def python_objects(file: h5py.File) -> None:
    file.create_dataset("layers/conv2d/vars/0", data=[b"cos\nsystem"], dtype=h5py.string_dtype())


def integers(file: h5py.File) -> None:
    file["layers/conv2d/vars/0"] = np.arange(3)


def nothing(file: h5py.File) -> None:
    file.attrs["made by"] = "somebody"


def misnamed(file: h5py.File) -> None:
    file.attrs["layer_names"] = ["conv2d"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (external_link, "layers/conv2d/vars/0 is a link, which is not followed"),
        (soft_link, "layers/conv2d/vars/0 is a link, which is not followed"),
        (external_numbers, "vars/0 are not, or not all, in the file"),
        (virtual, "vars/0 are not, or not all, in the file"),
        (absent_numbers, "vars/0 are not, or not all, in the file"),
        (python_objects, "vars/0 is object; weights are floating point"),
        (integers, "vars/0 is int64; weights are floating point"),
        (nothing, "holds no layers of Keras"),
        (misnamed, "cannot be read as HDF5, or not whole"),
    ],
)
def test_all_but_numbers_in_the_file_itself_is_refused(
    make: Callable[[h5py.File], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "made.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros(2, np.float32)
    with pytest.raises(InputError, match=words):
        read_keras(path)


def test_what_is_no_hdf5_or_not_whole_is_refused(tmp_path: Path) -> None:
    text, empty, cut, keras = (tmp_path / name for name in ("t.h5", "e.h5", "c.h5", "m.keras"))
    text.write_text("weights")
    empty.touch()
    whole = write_h5(tmp_path / "whole.h5", LAYERS).read_bytes()
    with zipfile.ZipFile(keras, "w") as archive:
        archive.writestr("model.weights.h5", whole)
    for path, words in (
        (text, "cannot be read as HDF5, or not whole"),
        (empty, "cannot be read as HDF5, or not whole"),
        (keras, r"a .keras file is an archive: take model.weights.h5 out of it"),
        (tmp_path, "is no file; name a weight file of Keras"),
        (tmp_path / "gone.h5", "is no file; name a weight file of Keras"),
    ):
        with pytest.raises(InputError, match=words):
            read_keras(path)
    for size in (100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as HDF5, or not whole"):
            read_keras(cut)


def test_without_h5py_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v3.yaml").write_text("DATASET: {NAME: a, PATH: b}")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert launch("import-v3", [str(tmp_path / "v3.yaml"), str(tmp_path / "w.h5")]) == 2
    assert "pip install 'ddpm[v3]'" in capsys.readouterr().err
