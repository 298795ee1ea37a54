"""A `.keras` archive as the records of a container, and back.

The container holds what the archive holds: the architecture, every array that a layer saves, and the files that layers
write (vocabularies). So whatever survives Keras's own file survives this one, too.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import numpy.typing as npt

from keras_prune.container.errors import ContainerError, Fault, located
from keras_prune.container.records import Member, Record, pack_member, read_records, unpack_member
from keras_prune.container.tensors import Packed, Tensor, pack, unpack
from keras_prune.files.archives import LARGEST_MODEL, read_member

__all__ = ["CONFIG", "Unpacked", "pack_archive", "unpack_archive"]

CONFIG, METADATA, WEIGHTS, ASSETS = "config.json", "metadata.json", "model.weights.h5", "assets/"
TRAINING = ("optimizer", "_pruning_state")
"""Groups of the weights' file that only a training goes on from."""


# -- into a container -------------------------------------------------------------------------------------------------


def pack_archive(path: str | os.PathLike[str], seen: Callable[[Packed, str], None]) -> Iterator[Record]:
    """Yield the records of a `.keras` file that was just written.

    Args:
        path: of the file.
        seen: is told each packed tensor, and the name of its layer.

    Raises:
        ValueError: it holds an array that is none of numbers, or a member that no `.keras` file has.
    """
    with zipfile.ZipFile(path) as archive:
        version = json.loads(archive.read(METADATA)).get("keras_version", "")
        yield pack_member(METADATA, _json({"keras_version": version}))
        yield pack_member(CONFIG, _json(_renumbered(json.loads(archive.read(CONFIG)), {})))
        for name in sorted(archive.namelist()):
            if name.startswith(ASSETS) and not name.endswith("/"):
                yield pack_member(name, read_member(archive, name))
            elif name not in (CONFIG, METADATA, WEIGHTS):
                raise ValueError(f"A .keras file holds no member {name!r}; this one was not written by Keras alone.")
        content = io.BytesIO(archive.read(WEIGHTS))
    with h5py.File(content, "r") as file:
        for name in _datasets(file):
            packed = pack(name, _array(file[name]))
            seen(packed, str(file[name].parent.attrs.get("name", "")))
            yield Record(packed.tensor, packed.payload)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _renumbered(value: Any, numbers: dict[Any, int]) -> Any:
    """Return a configuration with its shared objects numbered from 0: Keras numbers them by their place in memory."""
    if isinstance(value, list):
        return [_renumbered(entry, numbers) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: numbers.setdefault(entry, len(numbers))
        if key == "shared_object_id" and isinstance(entry, int)
        else _renumbered(entry, numbers)
        for key, entry in value.items()
    }


def _datasets(file: Any) -> list[str]:
    """Return the paths of all arrays, without those of a training."""
    names: list[str] = []
    file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
    return [name for name in names if name.split("/")[0] not in TRAINING]


def _array(dataset: Any) -> npt.NDArray[Any]:
    # As Keras does: HDF5 has no type for bfloat16.
    if dataset.attrs.get("dtype") == "bfloat16":
        return np.array(dataset, ml_dtypes.bfloat16)
    return np.array(dataset)


# -- out of a container -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """What a container holds, once it has been written as a `.keras` archive.

    Attributes:
        config: the architecture.
        values: how many numbers the tensors have.
    """

    config: Mapping[str, Any]
    values: int


def unpack_archive(path: str | os.PathLike[str], folder: Path, out: Path, largest: int = LARGEST_MODEL) -> Unpacked:
    """Write a container as a `.keras` archive, tensor by tensor.

    Args:
        path: of the container.
        folder: for a temporary file.
        out: of the archive; what is written until an error is of no use.
        largest: bytes that all content may take, unpacked.

    Raises:
        ContainerError: the container is damaged.
    """
    names: set[str] = set()
    config: Mapping[str, Any] | None = None
    values = 0
    weights = folder / WEIGHTS
    with zipfile.ZipFile(out, "w") as archive:
        with h5py.File(weights, "w") as file:
            for record in read_records(path, largest):
                with located(path, record.place):
                    _claim(names, record)
                    if isinstance(record.what, Tensor):
                        values += record.what.size
                        _write_tensor(file, record.what, record.payload)
                        continue
                    content = unpack_member(record.what, record.payload)
                    if record.what.name == CONFIG:
                        config = _architecture(content)
                    archive.writestr(record.what.name, content)
        missing = [name for name in (CONFIG, METADATA) if name not in names]
        if config is None or missing:
            raise ContainerError(path, "the whole file", f"there is no {' and no '.join(missing)} in it")
        archive.write(weights, WEIGHTS)
    weights.unlink()
    return Unpacked(config, values)


def _claim(names: set[str], record: Record) -> None:
    """Refuse a name that is there already, and one that no writer gives."""
    name = record.what.name
    if isinstance(record.what, Member):
        if name not in (CONFIG, METADATA) and not name.startswith(ASSETS):
            raise Fault(f"a file {name!r}, where {CONFIG}, {METADATA} and {ASSETS} may be")
    elif "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise Fault("a name that is no path")
    # Tensors are leaves of a tree, so none is a folder of another.
    prefix = "" if isinstance(record.what, Member) else "tensor:"
    parts = name.split("/")
    folders = {prefix + "/".join(parts[:i]) + "/" for i in range(1, len(parts))}
    if prefix + name in names or prefix + name + "/" in names or any(folder[:-1] in names for folder in folders):
        raise Fault("a name that is there already, or is a folder of another")
    names.update({prefix + name}, folders)


def _write_tensor(file: Any, tensor: Tensor, payload: bytes) -> None:
    array = unpack(tensor, payload)
    dataset = file.create_dataset(tensor.name, data=array)
    if array.dtype == ml_dtypes.bfloat16:
        dataset.attrs["dtype"] = "bfloat16"


def _architecture(content: bytes) -> Mapping[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault(f"no JSON that can be read ({type(error).__name__}: {error})") from error
    if not isinstance(config, Mapping) or "class_name" not in config or not isinstance(config.get("config"), Mapping):
        raise Fault("JSON that describes no model")
    return config
