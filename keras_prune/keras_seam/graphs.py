"""What Keras keeps of the calls on symbolic tensors: functional models, calls, and where a tensor comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.nn import AdaptiveAveragePool, AveragePool
from keras.src.ops.numpy import Flip, Mean, Sum

from keras_prune.keras_seam.layers import layers_in

__all__ = [
    "AdaptiveAveragePool",
    "AveragePool",
    "Flip",
    "Functional",
    "Mean",
    "Sum",
    "calls_in",
    "calls_of",
    "functional_in",
    "input_structure",
    "mask_of",
    "origin_of",
    "output_structure",
    "place_among_calls",
    "producer_of",
    "run_graph",
    "set_mask",
    "takes_graph",
    "unrecorded",
]


# -- models -----------------------------------------------------------------------------------------------------------


def functional_in(operation: Any) -> Any:
    """Return the functional model that a model is, or that a sequential one holds.

    None for anything else: a model that is not built, one whose `call` is its own, a layer.
    """
    call = getattr(type(operation), "call", None)
    if isinstance(operation, keras.Sequential):
        return operation._functional if call is keras.Sequential.call else None
    return operation if isinstance(operation, Functional) and call is Functional.call else None


def calls_in(function: Any) -> list[Any]:
    """Return the calls of a functional model, each after those that it reads from; inputs are left out.

    Of a call are read: `operation`, `arguments`, `input_tensors`, `outputs`, `parent_nodes`, `is_input`.
    """
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def input_structure(model: Any) -> Any:
    """Return the inputs of a functional model in the structure that they were given in; None for another model."""
    return getattr(model, "_inputs_struct", None)


def output_structure(model: Any) -> Any:
    """Return the outputs of a functional model in the structure that they were given in; None for another model."""
    return getattr(model, "_outputs_struct", None)


def run_graph(
    function: Any,
    inputs: Any,
    *,
    instead: Callable[[Any], Any] | None = None,
    call: Callable[..., Any] | None = None,
) -> Any:
    """Return the outputs of a functional model on other inputs.

    Args:
        function: a functional model.
        inputs: in its structure.
        instead: operation -> what is called in its place.
        call: (operation, arguments of the call) -> what it returns, for who makes the calls himself.
    """
    given = {"operation_fn": instead, "call_fn": call}
    return function._run_through_graph(inputs, **{name: value for name, value in given.items() if value is not None})


def takes_graph(kind: type) -> bool:
    """Return whether a class of functional models is made from inputs and outputs alone, as `keras.Model`."""
    own = getattr(kind, "get_config", None)
    return vars(Functional)["get_config"] is own and bool(functional_like_constructor(kind))


# -- calls and tensors ------------------------------------------------------------------------------------------------


def calls_of(operation: Any) -> list[Any]:
    """Return the calls of a layer or operation on symbolic tensors that are on record, in their order."""
    return list(operation._inbound_nodes)


def origin_of(tensor: Any) -> Any:
    """Return the layer or operation that gave a symbolic tensor; None where it comes from none."""
    history = getattr(tensor, "_keras_history", None)
    return None if history is None else history.operation


def place_among_calls(tensor: Any) -> int:
    """Return which of its operation's calls gave a symbolic tensor."""
    return int(tensor._keras_history.node_index)


def producer_of(tensor: Any) -> Any:
    """Return the call that gave a symbolic tensor; None where it comes from none."""
    operation = origin_of(tensor)
    return None if operation is None else operation._inbound_nodes[place_among_calls(tensor)]


def mask_of(tensor: Any) -> Any:
    """Return the mask that comes with a tensor; None if it has none."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: Any, mask: Any) -> None:
    """Let a mask come with a tensor."""
    tensor._keras_mask = mask


@contextlib.contextmanager
def unrecorded(layer: Any) -> Iterator[None]:
    """The scope in which layers record calls and losses; behind it, the record is as it was before."""
    layers = layers_in(layer)
    record = [(one, len(one._inbound_nodes), len(one._outbound_nodes), len(one._losses)) for one in layers]
    try:
        yield
    finally:
        for one, inbound, outbound, losses in record:
            del one._inbound_nodes[inbound:]
            del one._outbound_nodes[outbound:]
            del one._losses[losses:]
