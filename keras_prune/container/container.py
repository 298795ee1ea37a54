"""Models to containers (`.kpz`) and back: `save_kpz`, `load_kpz`."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_prune.container.archives import CONFIG, Unpacked, pack_archive, unpack_archive
from keras_prune.container.errors import ContainerError
from keras_prune.container.huffman import require_bitarray
from keras_prune.container.records import RECORD, write_records
from keras_prune.container.report import ContainerReport, PackedTensor
from keras_prune.container.tensors import Packed
from keras_prune.files.atomic import check_writable, replaced
from keras_prune.keras_seam import ObjectSharingScope, from_keras, layers_in, own_variables
from keras_prune.masks.hold import hold
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.scope import paths_of

__all__ = ["load_kpz", "save_kpz"]

UNSAVED = 2**18
"""Weights that a model may have besides those in its file: layers may save less than they hold."""


def save_kpz(model: keras.Model, path: str | os.PathLike[str]) -> ContainerReport:
    """Write a model as a container, small where its weights are zeros or few values; nothing is lost.

    Each tensor takes the smallest of these forms: all values, or those that are not 0 with the gaps between them (as
    Huffman codes); each value as it is, or as the Huffman code of its place in a codebook. So pruned weights take few
    bytes, pruned and shared ones very few, and others as many as they have. This is the last stage of Deep Compression
    (Han et al. 2016, sections 2 to 4), lossless: what is zero and which values are equal is found in the weights.

    The container holds what a `.keras` file holds, down to vocabularies and adapted statistics, but for what only a
    training goes on from: the state of the optimizer and of pruning. Take masks off first, by `kp.strip`: they are
    stored as any other weight. The format is in docs/design/container.md. It needs `pip install
    "keras-prune[compression]"`.

    Args:
        model: a built model; it stays as it is.
        path: of the file to write, by custom with the ending `.kpz`: whole, or not at all.

    Returns:
        What each tensor takes: indices, codebook and values, beside float32.

    Raises:
        TypeError: it is no Keras 3 model.
        ValueError: it is not built, an array that it saves is none of numbers, or the path cannot be written.
        ImportError: bitarray is not installed; the message has the command.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, use_bias=False)])
        >>> model.set_weights([np.eye(64)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = save_kpz(model, f"{folder}/model.kpz")
        ...     weights = load_kpz(f"{folder}/model.kpz").get_weights()
        >>> np.array_equal(weights[0], np.eye(64)), report.float32, report.tensors[0].form
        (True, 16384, 'sparse, coded')
    """
    refuse_keras2("save_kpz", model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"save_kpz takes a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise ValueError(f"save_kpz takes a built model: call {model.name!r} once on data. Received: no weights yet")
    require_bitarray()
    check_writable(path)
    rows: list[PackedTensor] = []
    names = _paths(model)

    def seen(packed: Packed, layer: str) -> None:
        rows.append(_row(packed, names.get((layer, packed.tensor.name.rsplit("/", 1)[-1]), packed.tensor.name)))

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "model.keras")
        keras.saving.save_model(model, archive)
        with replaced(path) as temporary, open(temporary, "xb") as stream:
            total = write_records(stream, pack_archive(archive, seen))
    return ContainerReport(tuple(rows), total)


def load_kpz(
    path: str | os.PathLike[str], *, custom_objects: Mapping[str, Any] | None = None, compile: bool = True
) -> keras.Model:
    """Return the model of a container, its weights bit for bit, its zeros held (see `hold`).

    A container may be of any origin. Sizes that it declares are checked before anything is allocated: those of each
    record against the file, those of all content against the file's and 16 GiB, and the weights that its architecture
    asks for against those that it holds. The architecture is read in Keras's safe mode: code in the file is not run.

    Args:
        path: of the file.
        custom_objects: layers and functions of one's own by their names, as in `keras.saving.load_model`.
        compile: compile the model as it was. The optimizer begins anew.

    Raises:
        ContainerError: a ValueError that names the file, the place in it and what is wrong: it is truncated, damaged,
            of a later version, or its architecture makes no model.
        OSError: there is no such file, or it may not be read.
        ImportError: bitarray is not installed; the message has the command.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "model.kpz").write_bytes(b"PK")
        ...     load_kpz(f"{folder}/model.kpz")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        keras_prune.container.errors.ContainerError: ...: byte 0, the file's header: a container begins with ...
    """
    require_bitarray()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "model.keras")
        unpacked = unpack_archive(path, Path(folder), archive)
        try:
            _check_weights(unpacked, custom_objects)
            with warnings.catch_warnings():
                # Keras leaves some layers as they are made, where their arrays are missing.
                warnings.filterwarnings("error", message="Skipping nested container")
                model = keras.saving.load_model(archive, custom_objects=custom_objects, compile=False, safe_mode=True)
        except Exception as error:
            raise _refusal(path, error) from error
    settings = unpacked.config.get("compile_config")
    if compile and settings:
        try:
            with keras.saving.custom_object_scope(dict(custom_objects or {})):
                model.compile_from_config(settings)
        except Exception as error:
            raise _refusal(path, error, "With compile=False the model is loaded without these settings.") from error
    return hold(model)


def _check_weights(unpacked: Unpacked, custom_objects: Mapping[str, Any] | None) -> None:
    """Refuse an architecture that asks for more weights than the container holds, before they are allocated."""
    config = {**unpacked.config, "compile_config": None}
    # Variables that are made in this scope have a shape, and no value.
    with keras.StatelessScope(initialize_variables=False), ObjectSharingScope():
        model = keras.saving.deserialize_keras_object(config, custom_objects, safe_mode=True)
    if not isinstance(model, keras.Model):
        raise ValueError(f"it describes no model, but {type(model).__name__}")
    asked = sum(math.prod(variable.shape) for variable in model.weights)
    if asked > unpacked.values + UNSAVED:
        raise ValueError(f"it asks for {asked:,} weights, and the file holds {unpacked.values:,}")


def _refusal(path: str | os.PathLike[str], error: Exception, way_out: str = "") -> ContainerError:
    words = " ".join(str(error).split()) or type(error).__name__
    return ContainerError(
        path,
        f"the architecture, {CONFIG!r}",
        f"no model can be made from it ({type(error).__name__}: {words})",
        way_out or "Layers of one's own are given as custom_objects; otherwise take another copy.",
    )


# -- the report -------------------------------------------------------------------------------------------------------


def _paths(model: keras.Model) -> dict[tuple[str, str], str]:
    """Return the paths of variables by their layer's name and their key in a file, where these are Keras's and tell."""
    layers, paths = layers_in(model), paths_of(model)
    names = [layer.name for layer in layers]
    return {
        (layer.name, str(index)): paths.get(id(variable), variable.path)
        for layer in layers
        if names.count(layer.name) == 1 and from_keras(type(layer).save_own_variables)
        for index, variable in enumerate(own_variables(layer))
    }


def _row(packed: Packed, path: str) -> PackedTensor:
    tensor = packed.tensor
    forms = ("sparse" if tensor.sparse else "", "coded" if tensor.coded else "")
    return PackedTensor(
        path=path,
        shape=tensor.shape,
        form=", ".join(filter(None, forms)) or "dense",
        distinct=packed.distinct,
        stored=tensor.stored,
        indices=packed.indices,
        codebook=packed.codebook,
        values=packed.values,
        header=RECORD.size + len(tensor.header()),
        float32=4 * tensor.size,
    )
