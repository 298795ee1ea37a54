"""A `call` run on symbolic inputs: what it calls records itself, and Keras's record is put back as it was."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from keras_prune.graph.held import Place, lent
from keras_prune.keras_seam import INPUT_CHECK, from_keras, layers_in, producer_of

__all__ = [
    "Called",
    "call_symbolically",
    "flat_tensors",
    "reaching",
    "specified_by_call",
    "stand_in",
]


@dataclasses.dataclass(frozen=True, eq=False)
class Called:
    """What a layer's `call` gave on symbolic inputs.

    Attributes:
        outputs: as it returned them.
        results: of each call of an inner layer, as that returned them.
        read: variables of which it took the values.
    """

    outputs: Any
    results: tuple[Any, ...]
    read: tuple[keras.Variable, ...]


def stand_in(shape: Any, like: Any) -> Any:
    """A symbolic tensor of that shape, with the type of another tensor or of a variable; dense.

    Keras calls a symbolic product with an array sparse, which is not so.
    """
    return keras.KerasTensor(tuple(shape), dtype=like.dtype)


class _Reads(keras.StatelessScope):
    """Lets no variable change, and remembers whose values were taken by code that is not an inner layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, keras.Variable] = {}

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.read[id(variable)] = variable
        return super().get_current_value(variable)


def call_symbolically(
    layer: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    lend: Mapping[Place, Any],
    answer: Callable[[Any], Any] | None = None,
) -> Called:
    """Run `layer.call`. To be used in `unrecorded(layer)`.

    Args:
        layer: a built layer.
        args: of `call`.
        kwargs: of `call`.
        lend: what the layer holds meanwhile: symbolic tensors in its variables' places.
        answer: inner layer -> what it returns at its next call, instead of being run.
    """
    results: list[Any] = []

    def specification(inner: Any) -> Callable[..., Any]:
        own = inner.compute_output_spec

        def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
            made = _specified(inner, own, args, kwargs) if answer is None else answer(inner)
            results.append(made)
            return made

        return compute_output_spec

    with contextlib.ExitStack() as stack:
        stack.enter_context(lent(layer, {**lend, ("add_loss",): lambda loss: None}))
        for inner in layers_in(layer, include_self=False):
            instead: dict[Place, Any] = {("compute_output_spec",): specification(inner)}
            if answer is not None:
                instead[INPUT_CHECK,] = lambda argument: None
            stack.enter_context(lent(inner, instead))
            stack.enter_context(_recorded_without_none(inner))
        scope = stack.enter_context(_Reads())
        outputs = layer.call(*args, **kwargs)
    return Called(outputs, tuple(results), tuple(scope.read.values()))


@contextlib.contextmanager
def specified_by_call(layer: Any) -> Iterator[None]:
    """The scope in which a layer can be called on symbolic inputs though its output's shape takes other arguments."""
    own = layer.compute_output_spec
    instead = {("compute_output_spec",): lambda *args, **kwargs: _specified(layer, own, args, kwargs)}
    with lent(layer, instead), _recorded_without_none(layer):
        yield


@contextlib.contextmanager
def _recorded_without_none(layer: Any) -> Iterator[None]:
    """The scope in which a layer may return None among its results: Keras records the tensors, the caller gets all.

    What a layer without a cache gives in place of one, say. Keras makes its record when the call is over, so the
    layer has a class with a `__call__` around Keras's meanwhile.
    """
    kind = type(layer)
    if from_keras(kind.call):
        yield
        return
    specified, whole = layer.compute_output_spec, []

    def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
        made = specified(*args, **kwargs)
        if not any(leaf is None for leaf in tree.flatten(made)) or not flat_tensors(made):
            return made
        whole.append(made)
        return flat_tensors(made)

    def call_and_pack(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind.__call__(self, *args, **kwargs)
        return whole.pop() if whole else made

    layer.__class__ = type(kind.__name__, (kind,), {"__call__": call_and_pack, "__module__": kind.__module__})
    try:
        with lent(layer, {("compute_output_spec",): compute_output_spec}):
            yield
    finally:
        layer.__class__ = kind


def _specified(inner: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What an inner layer will return; by a trace where its own answer takes other arguments than its `call`."""
    try:
        return own(*args, **kwargs)
    except TypeError:
        return keras.Operation.compute_output_spec(inner, *args, **kwargs)


def reaching(outputs: Sequence[Any]) -> list[Any]:
    """Keras's nodes on the way to `outputs`, each after its parents; with a stack, since models are deep."""
    done: set[int] = set()
    order: list[Any] = []
    stack = [(node, False) for tensor in outputs if (node := producer_of(tensor)) is not None]
    while stack:
        node, parents_done = stack.pop()
        if id(node) in done or node.is_input:
            continue
        if parents_done:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.parent_nodes))
    return order


def flat_tensors(outputs: Any) -> list[Any]:
    """The tensors among what a call returned, None left out."""
    return [leaf for leaf in tree.flatten(outputs) if leaf is not None]
