"""Arrays in a weight file of Keras, `.h5` or `.weights.h5`, by layer: read with h5py alone.

    [model_weights/]LAYER/WEIGHT     `.h5`: order by the attributes layer_names and weight_names
    layers/LAYER[/...]/vars/INDEX    `.weights.h5`: numbered by class, in the order of the model

Both are HDF5, and all that is read of it are arrays of floating point numbers that lie in the file
itself: links, virtual and external arrays and Python objects are refused.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import InputError

_VARIABLE = re.compile(r"(?:_layer_checkpoint_dependencies|layers)/(.+)/vars/(\d+)")
_OPTIMIZER = ("optimizer/", "optimizer_weights/")


def read_keras(path: Path) -> tuple[dict[str, list[NDArray[np.float32]]], str]:
    """({layer: its arrays}, SHA-256 of the file). Layers of one class are in order.

    Raises InputError for what is no such file, ModuleNotFoundError without h5py.
    """
    import h5py

    if not path.is_file():
        raise InputError(f"{path} is no file; name a weight file of Keras, .h5 or .weights.h5")
    data = _bytes(path)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            _refuse_links(path, file)
            layers: dict[str, list[NDArray[np.float32]]] = {}
            for layer, dataset in _datasets(file):
                layers.setdefault(layer, []).append(_numbers(path, dataset))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        hint = ""
        if data[:2] == b"PK":
            hint = "; a .keras file is an archive: take model.weights.h5 out of it (unzip)"
        raise InputError(f"{path} cannot be read as HDF5, or not whole: {error}{hint}") from error
    if not layers:
        raise InputError(
            f"{path} holds no layers of Keras, neither under layer_names nor under layers/"
        )
    return layers, hashlib.sha256(data).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; make it readable") from error


def _refuse_links(path: Path, file: Any) -> None:
    import h5py

    def look(name: str, link: object) -> str | None:
        return None if isinstance(link, h5py.HardLink) else name

    if found := file.visititems_links(look):
        raise InputError(f"{path}: {found} is a link, which is not followed; save the weights anew")


def _datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """(layer, dataset) of every weight, the layers of a class in order."""
    root = file.get("model_weights", file)
    if any(name.startswith("layer_names") for name in root.attrs):
        for layer in _names(root, "layer_names"):
            weights = _names(root[layer], "weight_names")
            folders = {name.rpartition("/")[0] for name in weights}
            for name in weights:
                inner = name.rpartition("/")[0].removeprefix(f"{layer}/")
                yield layer if len(folders) == 1 else f"{layer}/{inner}", root[layer][name]
        return
    found: list[tuple[list[str | int], str, Any]] = []

    def look(name: str, item: Any) -> None:
        match = _VARIABLE.fullmatch(name)
        if hasattr(item, "dtype") and not name.startswith(_OPTIMIZER):
            if "seed_generator" not in name:  # of dropout: no weight
                layer = match[1] if match else name
                found.append((_by_number(name), layer, item))

    file.visititems(look)
    yield from ((layer, item) for _, layer, item in sorted(found, key=lambda one: one[0]))


def _names(group: Any, key: str) -> list[str]:
    """Names in an attribute, which Keras cuts into KEY0, KEY1, ... where it is long."""
    cut = sorted((k for k in group.attrs if re.fullmatch(rf"{key}\d*", k)), key=_by_number)
    names = [name for each in cut for name in group.attrs[each]]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _by_number(name: str) -> list[str | int]:
    """conv2d_9 before conv2d_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _numbers(path: Path, dataset: Any) -> NDArray[np.float32]:
    if dataset.dtype.kind != "f":
        raise InputError(f"{path}: {dataset.name} is {dataset.dtype}; weights are floating point")
    is_inside = dataset.external is None and not dataset.is_virtual
    if not is_inside or dataset.id.get_storage_size() < dataset.nbytes:
        raise InputError(f"{path}: the numbers of {dataset.name} are not, or not all, in the file")
    return np.asarray(dataset[()], dtype=np.float32)
