"""Keras 2 models (tf_keras objects and .h5 files): pruning wrappers removed, and configurations that Keras 3 can read.

The TensorFlow Model Optimization Toolkit (tfmot) need not be installed: its wrapper is recognised by the name of its
class. In each forward pass the wrapper multiplies its layer's weight by a mask (`pruning_wrapper.py` of tfmot 0.8).
Here that is done once: w' = w where the mask is not 0, else 0.0.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from keras_prune.files.archives import LARGEST_MODEL, LARGEST_RATIO, SMALL
from keras_prune.keras_seam import first_shape, layers_in
from tflite_export.errors import ExportError

__all__ = ["WRAPPER", "check_h5", "is_wrapper", "modernize", "modernize_h5", "strip_tf_keras"]

WRAPPER = "PruneLowMagnitude"
_OWN = {"mask", "threshold", "pruning_step"}
"""Names of the weights that a wrapper adds to those of its layer."""
_PREFIX = "prune_low_magnitude"
_GONE = {"time_major": False, "groups": 1}
"""Arguments that Keras 3 no longer has, with the values at which they change nothing: `time_major` of recurrent layers,
`groups` of depthwise, separable and transposed convolutions."""


def is_wrapper(layer: Any) -> bool:
    """Return whether a tf_keras layer is a pruning wrapper."""
    return any(each.__name__ == WRAPPER for each in type(layer).__mro__)


def strip_tf_keras(model: Any) -> Any:
    """Return a copy of a tf_keras model without wrappers, its masked weights exactly 0.0. The model is not changed.

    Args:
        model: a sequential or functional model, which may contain other such models. A model without wrappers is
            returned as it is.

    Raises:
        ExportError: a subclassed model contains wrappers; it cannot be rebuilt without them.
    """
    if not any(is_wrapper(layer) for layer in _layers(model)):
        return model
    tf_keras = importlib.import_module("tf_keras")  # already imported: the model comes from it
    copies: list[tuple[Any, Any]] = []

    def copy(layer: Any) -> Any:
        if isinstance(layer, tf_keras.Model):
            return tf_keras.models.clone_model(layer, clone_function=copy)
        wrapped = layer.layer if is_wrapper(layer) else layer
        config = wrapped.get_config()
        shape = first_shape(layer)
        if shape is not None:  # the first layer of a Sequential: only its wrapper knows the input shape
            config.setdefault("batch_input_shape", shape)
        made = type(wrapped).from_config(config)
        copies.append((layer, made))
        return made

    try:
        plain = tf_keras.models.clone_model(model, clone_function=copy)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ExportError(
            f"model '{model.name}'",
            "pruning wrappers can be removed from Sequential and functional models only",
            f"{type(model).__name__}: {error}",
            "Build the model without wrappers, copy the weights into it, and export that model.",
        ) from error
    if not plain.built:
        plain.build(model.input_shape)
    for layer, made in copies:
        made.set_weights(_masked_weights(layer))
    return plain


def check_h5(path: str | os.PathLike[str]) -> None:
    """Refuse an .h5 file that refers to other files of this machine, or declares far more data than it contains.

    Raises:
        ValueError: the file has a soft or external link, a data set that is stored elsewhere or assembled from others,
            or declares far more bytes than it has.
        OSError: it is not an HDF5 file.
    """
    with h5py.File(path, "r") as file:
        declared = 0

        # A result other than None ends the visit. An exception would not: h5py does not pass it on.
        def wrong_link(name: str, link: Any) -> str | None:
            return None if isinstance(link, h5py.HardLink) else f"'{name}' is a link ({type(link).__name__})"

        def wrong_data(name: str, part: Any) -> str | None:
            nonlocal declared
            if not isinstance(part, h5py.Dataset):
                return None
            if part.external or part.is_virtual:
                return f"'{name}' refers to data outside of itself"
            # A chunk is unpacked as a whole, and may be larger than the data set.
            declared += max(prod(part.shape or ()), prod(part.chunks or ())) * part.dtype.itemsize
            return None

        wrong = file.visititems_links(wrong_link) or file.visititems(wrong_data)
    if wrong:
        raise ValueError(f"{wrong}. Only data that the file itself contains are read")
    stored = os.path.getsize(path)
    if declared > LARGEST_MODEL or (declared > SMALL and declared > LARGEST_RATIO * stored):
        raise ValueError(f"it declares {declared} bytes of data, and has a size of {stored}")


def modernize_h5(path: str | os.PathLike[str], to: str | os.PathLike[str]) -> bool:
    """Write a copy of a Keras 2 .h5 model file without wrappers, in a form that Keras 3 can read.

    Args:
        path: the .h5 file.
        to: path of the copy.

    Returns:
        Whether the copy was written. It is not for a file without a model, or one that Keras 3 wrote.

    Raises:
        ExportError: it is not clear which weight a mask belongs to.
        OSError: it is not an HDF5 file.
    """
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None or _text(file.attrs.get("keras_version", "2")).startswith("3"):
            return False
    shutil.copyfile(path, to)
    with h5py.File(to, "r+") as file:
        file.attrs["model_config"] = json.dumps(modernize(json.loads(config)))
        weights = _group(file, "model_weights")
        for layer in weights:
            _strip_group(_group(weights, layer))
    return True


def modernize(config: Any) -> Any:
    """Return a Keras 2 model's configuration in a form that Keras 3 can read, each wrapper replaced by its layer.

    1. A layer takes its wrapper's place, under the layer's own name.
    2. Arguments that Keras 3 no longer has are removed if their values change nothing: see `_GONE`.
    3. A `/` in a layer's name becomes `_`.
    4. Calls of a model inside a model are numbered from 1 in Keras 2, and from 0 in Keras 3.

    Raises:
        ExportError: the model uses hard_sigmoid (ConvLSTM2D does by default), which Keras 3 computes differently:
            Keras 2 has clip(0.2 x + 0.5, 0, 1), Keras 3 relu6(x + 3) / 6.

    Example:
        >>> inner = {"class_name": "Dense", "config": {"name": "d", "units": 2}}
        >>> wrapper = {"class_name": "PruneLowMagnitude", "config": {"name": "pruned_d", "layer": inner}}
        >>> modernize({"layers": [wrapper | {"inbound_nodes": []}], "output_layers": [["pruned_d", 0, 0]]})
        {'layers': [{'class_name': 'Dense', 'config': {'name': 'd', 'units': 2}, 'inbound_nodes': []}],
         'output_layers': [['d', 0, 0]]}
    """
    renamed: dict[str, str] = {}
    return _renumber(_rename(_unwrap(config, renamed), renamed))


def _unwrap(node: Any, renamed: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_unwrap(each, renamed) for each in node]
    if not isinstance(node, Mapping):
        return node
    if str(node.get("class_name", "")).split(">")[-1] != WRAPPER:
        if "class_name" in node and "/" in str(node["config"].get("name", "")):
            renamed[node["config"]["name"]] = node["config"]["name"].replace("/", "_")
        changed = next((key for key, value in node.items() if "activation" in key and value == "hard_sigmoid"), None)
        if changed is not None:
            raise ExportError(
                f"layer '{node.get('name')}'",
                "must compute the same in Keras 3 as in Keras 2",
                f"{changed}='hard_sigmoid', which Keras 3 computes differently",
                "Load the file with tf_keras, and export the model object or a SavedModel of it.",
            )
        kept = {key: value for key, value in node.items() if _GONE.get(key, ...) != value}
        return {key: _unwrap(value, renamed) for key, value in kept.items()}
    wrapper = node["config"]
    inner = _unwrap(wrapper["layer"], renamed)
    settings = dict(inner["config"])
    if "batch_input_shape" in wrapper:
        settings.setdefault("batch_input_shape", wrapper["batch_input_shape"])
    renamed[wrapper["name"]] = settings["name"].replace("/", "_")
    rest = {
        key: value for key, value in node.items() if key not in ("class_name", "config", "module", "registered_name")
    }
    return {"class_name": inner["class_name"], "config": settings, **rest}


def _rename(node: Any, renamed: Mapping[str, str]) -> Any:
    """Return a configuration with the old names of layers replaced everywhere: in connections, and in outputs."""
    if isinstance(node, str):
        return renamed.get(node, node)
    if isinstance(node, list):
        return [_rename(each, renamed) for each in node]
    if isinstance(node, Mapping):
        return {key: _rename(value, renamed) for key, value in node.items()}
    return node


def _renumber(node: Any) -> Any:
    """Return a configuration in which the calls of models inside models are numbered from 0.

    One exception: where the outer model's outputs name a call of a functional model inside, Keras 3 expects the old
    number.
    """
    if isinstance(node, list):
        return [_renumber(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    done = {key: _renumber(value) for key, value in node.items()}
    layers = done.get("layers")
    if not isinstance(layers, list) or "output_layers" not in done:
        return done
    inside = {
        layer["name"]: layer["class_name"]
        for layer in layers
        if layer["class_name"] in ("Sequential", "Functional", "Model")
    }
    # A model with a call number 0 is numbered from 0 already.
    inside = {
        name: kind
        for name, kind in inside.items()
        if not any(_calls(layer.get("inbound_nodes"), name, 0) for layer in layers)
        and not _calls(done["output_layers"], name, 0)
    }
    for layer in layers:
        layer["inbound_nodes"] = _shift(layer.get("inbound_nodes", []), set(inside))
    done["output_layers"] = _shift(done["output_layers"], {name for name in inside if inside[name] == "Sequential"})
    return done


def _is_call(node: Any) -> bool:
    return isinstance(node, list) and len(node) in (3, 4) and isinstance(node[0], str) and isinstance(node[1], int)


def _calls(node: Any, name: str, number: int) -> bool:
    """Return whether a connection refers to this call of a layer."""
    if _is_call(node):
        return bool(node[0] == name and node[1] == number)
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return any(_calls(child, name, number) for child in children)


def _shift(node: Any, names: set[str]) -> Any:
    """Return connections with the numbers of the named layers' calls lowered by one."""
    if _is_call(node):
        return [node[0], node[1] - (node[0] in names), *node[2:]]
    if isinstance(node, list):
        return [_shift(child, names) for child in node]
    if isinstance(node, Mapping):
        return {key: _shift(child, names) for key, child in node.items()}
    return node


def _layers(model: Any) -> Iterator[Any]:
    """Yield the layers of a tf_keras model, including those of models inside it."""
    yield from layers_in(model, include_self=False)


def _masked_weights(layer: Any) -> list[NDArray[Any]]:
    """Return the weights of a layer; for a wrapper, those of its layer with the masks applied."""
    if not is_wrapper(layer):
        return list(layer.get_weights())
    masks = {id(weight): mask.numpy() for weight, mask, _ in layer.pruning_vars}
    return [
        _apply(weight.numpy(), masks[id(weight)]) if id(weight) in masks else weight.numpy()
        for weight in layer.layer.weights
    ]


def _apply(weight: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    return np.where(mask != 0, weight, np.zeros((), dtype=weight.dtype))


def _strip_group(group: Any) -> None:
    """Apply the masks in a layer's group of an .h5 file, then remove the wrappers' weights from its list of names."""
    keys = [key for key in group.attrs if re.fullmatch(r"weight_names\d*", key)]  # Keras splits long lists
    names = [_text(name) for key in keys for name in group.attrs[key]]
    own = {name for name in names if _is_own(name)}
    for name in own:
        if _base(name) == "mask":
            _apply_in_file(group, name, [other for other in names if other not in own])
    for key in keys:
        kept = [name for name in map(_text, group.attrs[key]) if name not in own]
        group.attrs[key] = np.array([name.encode() for name in kept], dtype="S" if kept else "S1")


def _apply_in_file(group: Any, mask_name: str, names: list[str]) -> None:
    mask = _dataset(group, mask_name)[()]
    wrapper = mask_name.split("/")[-2]
    layer = wrapper.removeprefix(f"{_PREFIX}_")
    # The weight is stored under its layer's name, or under its wrapper's if the wrapper built the layer.
    fitting = [
        name
        for name in names
        if name.split("/")[-2:-1] in ([layer], [wrapper]) and _dataset(group, name).shape == mask.shape
    ]
    if len(fitting) != 1:
        raise ExportError(
            f"mask '{mask_name}'",
            "must have the shape of exactly one weight of its layer",
            f"{fitting} in layer '{layer}'",
            "Load the file with tf_keras and tfmot, and export the model object.",
        )
    weight = _dataset(group, fitting[0])
    weight[...] = _apply(weight[()], mask)


def _is_own(name: str) -> bool:
    parts = name.split("/")
    return len(parts) > 1 and parts[-2].startswith(_PREFIX) and _base(name) in _OWN


def _base(name: str) -> str:
    return name.split("/")[-1].split(":")[0]


def _group(parent: Any, name: str) -> Any:
    return _own_part(parent, name, h5py.Group)


def _dataset(parent: Any, name: str) -> Any:
    *groups, last = name.split("/")
    for each in groups:
        parent = _group(parent, each)
    return _own_part(parent, last, h5py.Dataset)


def _own_part(parent: Any, name: str, kind: type) -> Any:
    """Return a part of an .h5 file. Refuse a link or a data set that refers to another place, or to another file."""
    link = parent.get(name, getlink=True)
    part = parent[name] if isinstance(link, h5py.HardLink) else None
    outside = kind is h5py.Dataset and part is not None and (part.is_virtual or part.external)
    if not isinstance(part, kind) or outside:
        raise ExportError(
            f"'{name}' of the .h5 file",
            f"must be a {'group' if kind is h5py.Group else 'data set'} that the file itself contains",
            "nothing" if link is None else type(part if isinstance(link, h5py.HardLink) else link).__name__,
            "Save the model again.",
        )
    return part


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
