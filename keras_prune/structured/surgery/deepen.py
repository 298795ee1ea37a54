r"""Deeper models of the same function: an identity is put behind a layer whose activation can be applied twice.

$$\phi(I \phi(v)) = \phi(v)$$

Source: Chen et al. 2016, "Net2Net: accelerating learning via knowledge transfer", section 2.3.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as kl
from keras import ops

from keras_prune.graph.calls import find_call, graph_of
from keras_prune.graph.graph import Inside, Shape
from keras_prune.models.agreement import check_agreement
from keras_prune.models.variables import assign, read
from keras_prune.structured.analysis.groups import analyse
from keras_prune.structured.surgery.rewrite import rebuild
from keras_prune.structured.surgery.shrink import refuse_masks

__all__ = ["deepen"]

CONVOLUTIONS = {3: kl.Conv1D, 4: kl.Conv2D, 5: kl.Conv3D}


def deepen(
    model: keras.Model, after: str, *, kernel_size: int = 3, name: str | None = None, input_shape: Any = None
) -> keras.Model:
    """Return a model with one more layer and the same outputs.

    Behind a dense layer, or on vectors, the new layer is dense; on sequences, images and volumes it is a convolution
    that keeps their size. It has the activation of the layer before it. The result is run beside the model before it
    is returned. Settings of `compile` are kept; the optimizer starts anew.

    Args:
        model: built; it stays as it is.
        after: the layer, by name or path; one with an activation, or an activation layer.
        kernel_size: of a convolution, odd.
        name: of the new layer; None for that of `after` with "_deeper".
        input_shape: for a subclassed model, see `trace`.

    Raises:
        ValueError: no layer has that name (near ones are listed); its activation changes what it has made already (as
            a sigmoid does), or is none; its results are no single tensor with channels.

    Example:
        >>> a, b = keras.layers.Dense(3, activation="relu", name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> deeper = deepen(model, "a")
        >>> x = np.random.default_rng(0).normal(size=(8, 4))
        >>> [layer.name for layer in deeper.layers], np.allclose(model(x), deeper(x), atol=1e-6)
        (['a', 'a_deeper', 'b'], True)
    """
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"deepen: kernel_size must be odd, for there is one number in its middle. Received: {kernel_size}"
        )
    refuse_masks(model, set())
    analysis = analyse(model, input_shape=input_shape)
    node = find_call("deepen", analysis.graph, after)
    around = graph_of(analysis.graph, node)
    if isinstance(around, Inside):
        raise ValueError(
            f"deepen: {after!r} is called by {around.model.name!r} in its own call(), so no layer can be put "
            "behind it. Name a layer of a functional or sequential model."
        )
    layer = node.operation
    activation = _activation(after, layer)
    name = name or f"{layer.name}_deeper"
    if any(name == one.operation.name for one in analysis.graph.walk()):
        raise ValueError(f"deepen: {model.name!r} has a layer {name!r} already. Give the new one another name=.")
    shape = around.shapes[node.outputs[0]]
    new = _identity_like(after, layer, shape, activation, kernel_size, name)
    deeper = rebuild(analysis, np.ones(analysis.size, bool), then={id(layer): new}, owner="deepen")
    kernel = np.zeros(tuple(new.kernel.shape), read(new.kernel).dtype)
    kernel[(*(size // 2 for size in kernel.shape[:-2]), ...)] = np.eye(kernel.shape[-1])
    assign(new.kernel, kernel)
    check_agreement("deepen", model, deeper)
    return deeper


def _activation(after: str, layer: Any) -> Any:
    """The function that the layer ends with, if it can be applied twice."""
    function = getattr(layer, "activation", None)
    if isinstance(layer, kl.ReLU):
        given = {"max_value": layer.max_value, "negative_slope": layer.negative_slope, "threshold": layer.threshold}
        names = {None: "relu", 6.0: "relu6"}
        if given["max_value"] in names and not given["negative_slope"] and not given["threshold"]:
            function = keras.activations.get(names[given["max_value"]])
    if function in (None, keras.activations.linear):
        raise ValueError(
            f"deepen: {after!r} ({type(layer).__name__}) must end with an activation, or another layer behind it would "
            "be one with the next. Name a layer that does, or its activation layer."
        )
    once = np.asarray(ops.convert_to_numpy(function(ops.reshape(ops.linspace(-10.0, 10.0, 41), (1, 41)))))
    twice = np.asarray(ops.convert_to_numpy(function(ops.convert_to_tensor(once))))
    if not np.allclose(once, twice, atol=1e-6):
        raise ValueError(
            f"deepen: the activation of {after!r} must be one that changes nothing when it is applied again, as relu. "
            f"Received: {getattr(function, '__name__', type(function).__name__)}"
        )
    return function


def _identity_like(after: str, layer: Any, shape: Shape, activation: Any, kernel_size: int, name: str) -> Any:
    """The layer that is to become the identity, not built yet."""
    dense = isinstance(layer, kl.Dense) or len(shape) == 2
    if len(shape) < 2 or not (dense or len(shape) in CONVOLUTIONS):
        raise ValueError(f"deepen: the result of {after!r} must be one tensor of rank 2 to 5. Received: shape {shape}")
    settings = {"activation": activation, "name": name, "dtype": layer.dtype_policy}
    format_ = getattr(layer, "data_format", None) or keras.config.image_data_format()
    units = shape[1] if not dense and format_ == "channels_first" else shape[-1]
    if units is None:
        raise ValueError(f"deepen: the channels of {after!r} must be known. Received: shape {shape}")
    if dense:
        return kl.Dense(units, **settings)
    return CONVOLUTIONS[len(shape)](units, kernel_size, padding="same", data_format=format_, **settings)
