r"""Synaptic flow: the gradient of $R = \mathbb{1}^T \prod_l |\theta_l| \, \mathbb{1}$ by each |w|.

The network is made linear in its input: weights and biases by their absolute values (as the paper's code has
them), each layer's own activation the identity (which ReLU is on positive values; a tanh would saturate, a
softmax at the end would make R constant), BatchNormalization in inference mode and without its moving mean,
other normalisation the identity, an Embedding the mean of its rows. Gates of recurrent cells stay, and so does the
softmax within attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras import ops, tree

from keras_prune.keras_seam import DTYPE_POLICY, float64_policy, input_structure, layers_in
from keras_prune.models.attributes import replaced
from keras_prune.scope import Target
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.differentiation import gradient
from keras_prune.statistics.evaluation import forward, raw_values, to_float64

__all__ = ["synaptic_flow"]

IDENTITIES = (
    *(kl.ReLU, kl.LeakyReLU, kl.PReLU, kl.ELU, kl.Softmax),
    *(kl.LayerNormalization, kl.RMSNormalization, kl.GroupNormalization, kl.UnitNormalization),
)
"""Layers that let the flow pass as it is: activations, and normalisation by the input's own mean or scale."""

UNKNOWN = 32
"""Length of an input's dimension that the model leaves open, where no data says better."""


def synaptic_flow(model: keras.Layer, targets: Sequence[Target], data: Any = None) -> list[npt.NDArray[np.float64]]:
    r"""Return $\frac{1}{R} \, \partial R / \partial |w|$ for each target.

    The factor 1 / R is the same for all weights, so it changes no order, and it keeps deep networks within
    the range of floats. Where R itself leaves float32, the pass is taken again in float64.

    Args:
        model: stays as it is.
        targets: the tensors.
        data: only its shapes are used, and only for inputs whose shape the model does not say.

    Raises:
        ValueError: no flow reaches a target, with its path, or R is beyond the range of floats.
    """
    _check_attention(model, targets)
    inputs = _ones(model, data)
    with _linear(model):
        level, found = _flow(model, targets, inputs)
        if not _usable(level, found) and _has_float64():
            with _in_float64(model):
                level, found = _flow(model, targets, inputs)
    if not _usable(level, found):
        raise ValueError(
            f"SynFlow: the flow R through {model.name!r} must be positive and finite. "
            f"Received: log R = {level}. It is too deep for the floats of this backend (with JAX, set "
            "JAX_ENABLE_X64=1), or nothing reaches its output: take another criterion."
        )
    for target, flow in zip(targets, found, strict=True):
        if not flow.any():
            raise ValueError(
                f"SynFlow: no flow reaches {target.path!r}. Received: dR/d|w| = 0 for all {flow.size} weights. "
                "Leave the tensor out of the scope (Scope(exclude=...)), or take another criterion."
            )
    return found


def _check_attention(model: keras.Layer, targets: Sequence[Target]) -> None:
    """Refuse projections that only turn attention from one place to another: of equal inputs it is the same."""
    turning = {
        id(part): part.name
        for layer in layers_in(model)
        if isinstance(layer, kl.MultiHeadAttention | kl.GroupQueryAttention)
        for part in layers_in(layer, include_self=False)
        if part.name in ("query", "key")
    }
    refused = [target.path for target in targets if id(target.layer) in turning]
    if refused:
        raise ValueError(
            "SynFlow cannot score the query and key projections of attention: on an input of ones all positions "
            f"are alike, whatever these weights are. Received: {refused}. Leave them out of the scope, "
            "Scope(exclude=('.*/query/kernel', '.*/key/kernel')), or take another criterion."
        )


def _usable(level: float, found: Sequence[npt.NDArray[np.float64]]) -> bool:
    return bool(np.isfinite(level)) and all(np.isfinite(flow).all() for flow in found)


def _flow(model: keras.Layer, targets: Sequence[Target], inputs: Any) -> tuple[float, list[npt.NDArray[np.float64]]]:
    """The logarithm of R and its gradient, which is that of R divided by R."""
    variables = [t.variable for t in targets]
    chosen = {id(v) for v in variables}
    others = [(v, ops.abs(v.value)) for v in model.trainable_variables if id(v) not in chosen]
    means = [layer.moving_mean for layer in layers_in(model) if isinstance(layer, kl.BatchNormalization)]
    others += [(v, ops.zeros_like(v.value)) for v in means]

    def log_flow(values: Sequence[Any]) -> Any:
        outputs = tree.flatten(forward(model, inputs, others + list(zip(variables, values, strict=True))))
        flows = [ops.sum(output) for output in outputs]
        return ops.log(sum(flows[1:], start=flows[0]))

    level, found = gradient(log_flow, [ops.abs(v) for v in raw_values(variables)])
    return float(level), [to_float64(g) for g in found]


def _ones(model: keras.Layer, data: Any) -> Any:
    """An input of ones, of the shapes that the data has, or the model declares, or was built with."""
    declared = input_structure(model)
    declared = getattr(model, "inputs", None) if declared is None else declared
    if data is not None:
        return tree.map_structure(_one, next(iter(Batches(data, model, labels=False, size=1))).x)
    if declared is not None:
        return tree.map_structure(_one, declared[0] if isinstance(declared, list) and len(declared) == 1 else declared)
    shapes = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shapes, tuple | list) or not all(n is None or isinstance(n, int) for n in shapes):
        raise ValueError(
            f"SynFlow needs the shape of the input of {type(model).__name__} {model.name!r}. Received: "
            f"{shapes!r}. "
            "Call the model on a batch first, or give it a keras.Input."
        )
    return ops.ones([n or (UNKNOWN if i else 1) for i, n in enumerate(shapes)], dtype=keras.config.floatx())


def _one(tensor: Any) -> Any:
    """One sample of ones like a tensor, real or symbolic; a fixed batch size is kept."""
    shape = [int(n) if n is not None else (UNKNOWN if i else 1) for i, n in enumerate(tensor.shape)]
    return ops.ones(shape, dtype=keras.backend.standardize_dtype(tensor.dtype))


@contextlib.contextmanager
def _linear(model: keras.Layer) -> Iterator[None]:
    """Put the identity in the place of activations, and the mean row in that of an embedding's rows."""
    with contextlib.ExitStack() as undo:
        for layer in layers_in(model):
            if callable(layer.__dict__.get("activation")):
                undo.enter_context(replaced(layer, "activation", keras.activations.linear))
            if isinstance(layer, IDENTITIES):
                undo.enter_context(replaced(layer, "call", lambda inputs, *args, **kwargs: inputs))
            if isinstance(layer, kl.Embedding):
                undo.enter_context(replaced(layer, "call", _mean_row(layer)))
        yield


def _mean_row(layer: Any) -> Any:
    call = layer.call

    def mean_row(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs.get("reverse"):
            return call(inputs, *args, **kwargs)
        row = ops.mean(ops.convert_to_tensor(layer.embeddings), axis=0)
        return ops.cast(ops.broadcast_to(row, (*inputs.shape, row.shape[0])), layer.compute_dtype)

    return mean_row


def _has_float64() -> bool:
    return keras.backend.standardize_dtype(ops.ones((), dtype="float64").dtype) == "float64"


@contextlib.contextmanager
def _in_float64(model: keras.Layer) -> Iterator[None]:
    """Let every layer compute in float64, its variables staying as they are."""
    policy = float64_policy()
    with contextlib.ExitStack() as undo:
        for layer in layers_in(model):
            undo.enter_context(replaced(layer, DTYPE_POLICY, policy))
        yield
