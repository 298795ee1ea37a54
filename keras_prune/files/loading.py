"""Model files: read as Keras reads them, with the state of pruning in them, and their zeros held."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt

from keras_prune.files.archives import CONTAINER_MAGIC, check_keras_archive, read_member
from keras_prune.masks.hold import hold
from keras_prune.masks.state import TrainingState
from keras_prune.models.keras2 import WAY_OUT

__all__ = ["load_model"]

SMALL = 1 << 16
"""So many elements may an array of the state have, whatever the model: curves and counters are small."""

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
    EOFError,
    OSError,
    UnicodeDecodeError,
    json.JSONDecodeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
"""What Keras, zipfile and h5py raise at files that are damaged."""


def load_model(filepath: str | os.PathLike[str], **kwargs: Any) -> keras.Model:
    """Load a model file, with the pruning state in it, and hold its zeros: for going on with a training.

    Like `keras.saving.load_model`, which gives the model and the optimizer. What a pruned training needs besides
    (masks, sums of gradients, weights that learn while pruned, snapshots) is in a `.keras` file too, and this function
    brings it along, so that training goes on bit for bit as if it had never stopped. What is zero stays zero in
    whatever `fit` follows, see `hold`.

    Nothing but the file itself is read: what Keras refuses in its own variables (data in other files, links, virtual
    data sets, sizes that the file does not hold) is refused in the pruning state too.

    Args:
        filepath: a `.keras` file, or an HDF5 file (`.h5`, `.hdf5`) with a whole model in it. The latter has no
            pruning state: masks come from the zeros.
        **kwargs: for `keras.saving.load_model`.

    Raises:
        ValueError: the file is missing, damaged, of another format, of a Keras 2 that Keras 3 cannot read, or wants
            to read other files.

    Example:
        >>> import tempfile
        >>> import keras_prune as kp
        >>> model = kp.prune(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), 0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/model.keras")
        ...     kp.report(load_model(f"{folder}/model.keras")).sparsity
        0.5
    """
    path = Path(filepath)
    if path.suffix in (".h5", ".hdf5") and path.is_file() and h5py.is_hdf5(path):
        with _reasons(path, _version_of_h5):
            return hold(_load_h5(path, kwargs))
    if path.is_file() and _begins_with(path, CONTAINER_MAGIC):
        raise ValueError(
            f"{str(filepath)!r} is not a .keras file, but a container. Read it with keras_prune.load_kpz, or write it "
            "as a Keras file first: keras-prune unpack MODEL.kpz OUT.keras"
        )
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(
            f"{str(filepath)!r} is not a whole .keras file{_other_format(path)}: it is missing, truncated or of "
            "another format. Take another copy, or the last checkpoint before it."
        )
    with _reasons(path, _version_of_zip):
        _check_config(path)
        model = keras.saving.load_model(path, **kwargs)
    with _reasons(path, _version_of_zip):
        state = _state_of(path, model)
    if state:
        TrainingState.of(model).load_own_variables(state)
    return hold(model)


def _load_h5(path: Path, options: Mapping[str, Any]) -> keras.Model:
    """Load an HDF5 file; not compiled, where Keras cannot read the settings of `compile` that it has written itself."""
    try:
        return keras.saving.load_model(path, **options)
    except ValueError as error:
        if not options.get("compile", True):
            raise
        model = keras.saving.load_model(path, **{**options, "compile": False})
        warnings.warn(
            f"{str(path)!r} is loaded, but not compiled: Keras cannot read the settings of compile in this HDF5 file "
            f"({' '.join(str(error).split())[:200]}). Call compile(...) before fit; a .keras file keeps them.",
            stacklevel=4,
        )
        return model


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


def _other_format(path: Path) -> str:
    if path.is_file() and h5py.is_hdf5(path):
        return ", but HDF5 (which is read by the ending .h5)"
    return ""


# -- what a damaged file ends in --------------------------------------------------------------------------------------


@contextmanager
def _reasons(path: Path, version: Any) -> Iterator[None]:
    """Turn what libraries raise at a file that they cannot read into one error that says so."""
    try:
        yield
    except (*DAMAGE, ValueError, TypeError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if version(path).startswith("2."):
            raise ValueError(
                f"{str(path)!r} was written by Keras 2 (tf_keras {version(path)}), and Keras 3 cannot read it: {words} "
                f"Load it with tf_keras. {WAY_OUT}"
            ) from error
        if not isinstance(error, DAMAGE):
            raise  # a layer that is not known, code that is not allowed: Keras says what to do
        raise ValueError(
            f"{str(path)!r} is damaged, or no Keras model: {type(error).__name__}: {words[:300]}. "
            "Take another copy, or the last checkpoint before it."
        ) from error


def _version_of_h5(path: Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version", "")
            return version.decode() if isinstance(version, bytes) else str(version)
    except DAMAGE:
        return ""


def _version_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(read_member(archive, "metadata.json")).get("keras_version", ""))
    except (*DAMAGE, ValueError):
        return ""


def _check_config(path: Path) -> None:
    """Refuse an archive that is too large, or whose configuration is none, before Keras takes it for one."""
    check_keras_archive(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(read_member(archive, "config.json"))
    if not isinstance(config, Mapping) or "class_name" not in config or not isinstance(config.get("config"), Mapping):
        raise KeyError("config.json describes no model")


# -- the pruning state ------------------------------------------------------------------------------------------------


def _state_of(path: Path, model: keras.Model) -> dict[str, npt.NDArray[Any]]:
    """What a `.keras` file says under `_pruning_state`: arrays that are in the file itself."""
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            return {}
        content = read_member(archive, "model.weights.h5")
    sizes = [math.prod(variable.shape) for variable in model.weights]
    most, in_all = max([SMALL, *sizes]), SMALL + 32 * sum(sizes)
    with h5py.File(io.BytesIO(content), "r") as file:
        group: Any = file
        for name in ("_pruning_state", "vars"):
            if name not in group:
                return {}
            group = _own(group, name, h5py.Group)
        sets = {name: _own(group, name, h5py.Dataset) for name in group}
        for name, data in sets.items():
            in_all -= _elements(name, data, most)
            if in_all < 0:
                raise _refusal(name, "is more than a training of this model writes")
        return {name: np.asarray(data[()]) for name, data in sets.items()}


def _own(group: Any, name: str, kind: type) -> Any:
    """A member that is part of the file: no link, and nothing else than it should be."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise _refusal(name, f"is a link ({type(link).__name__})")
    member = group[name]
    if not isinstance(member, kind):
        raise _refusal(name, f"is a {type(member).__name__} where a {kind.__name__} belongs")
    return member


def _elements(name: str, data: Any, most: int) -> int:
    """How many elements a data set declares, once it is known that they are in the file and no more than allowed."""
    if data.external:
        raise _refusal(name, "reads another file (external data)")
    if data.is_virtual:
        raise _refusal(name, "reads other data sets (virtual data)")
    if data.shape is None or data.dtype.kind not in "biuf":
        raise _refusal(name, f"holds no numbers, but {data.dtype}")
    # A chunk is read whole, and may be larger than the data.
    size, chunk = math.prod(data.shape), math.prod(data.chunks or (1,))
    if max(size, chunk) > most:
        raise _refusal(name, f"declares {max(size, chunk):,} elements, and the model's largest weight has {most:,}")
    return size


def _refusal(name: str, why: str) -> ValueError:
    return ValueError(
        f"The pruning state in the file is refused: {name!r} {why}. Nothing that this library has written does so. "
        "Where the file comes from a source that you trust, keras.saving.load_model reads it without that state."
    )
