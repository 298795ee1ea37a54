"""The optimizers of a model: where they are held, which of them moves a variable, and what acts around their steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import keras
from keras import ops

from keras_prune.keras_seam import calls_counted, layers_in, moved_by
from keras_prune.models.variables import dense

__all__ = [
    "StepPart",
    "has_own_step",
    "hook",
    "hooked",
    "in_fit",
    "innermost",
    "leaves",
    "optimizers_of",
    "owns",
    "rates_of",
    "unhook",
]


class StepPart(Protocol):
    """Something that acts inside the optimizer's step; it runs traced, so it sees tensors and no values."""

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        """Return the gradients that the optimizer is to use; it may note what they are."""
        ...

    def after(self, variables: list[keras.Variable]) -> None:
        """Act on the weights that the optimizer has just updated."""
        ...


P = TypeVar("P")


# -- where they are ---------------------------------------------------------------------------------------------------


def innermost(optimizer: Any) -> Any:
    """Return the optimizer under any LossScaleOptimizer: the one that sees true, finite gradients."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def leaves(optimizer: Any) -> list[Any]:
    """Return the optimizers that move variables themselves: those of a MultiOptimizer, or the optimizer alone."""
    inner = getattr(innermost(optimizer), "optimizers", None)
    return [innermost(optimizer)] if inner is None else [leaf for one in inner for leaf in leaves(one)]


def has_own_step(model: keras.Model) -> bool:
    """Say whether a model's `train_step` is its own, and may use other optimizers than the one of `compile`."""
    return "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step


def optimizers_of(model: keras.Model) -> list[Any]:
    """Return every optimizer that a model holds, without its LossScaleOptimizer; that of `compile` comes first.

    Looked at are the attributes of the model and of all layers and models in it, and lists, tuples, sets and
    dictionaries there.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd")
        >>> model.others = {"critic": [keras.optimizers.Adam()]}
        >>> [type(optimizer).__name__ for optimizer in optimizers_of(model)]
        ['SGD', 'Adam']
    """
    held = [getattr(model, "optimizer", None)]
    for layer in layers_in(model):
        held += _optimizers_in(vars(layer).values())
    found: list[Any] = []
    for optimizer in map(innermost, held):
        # One that is part of another one found is stepped by it.
        if optimizer is not None and not any(optimizer is other for other in found):
            found.append(optimizer)
    inner = {id(leaf) for optimizer in found for leaf in leaves(optimizer) if leaf is not optimizer}
    return [optimizer for optimizer in found if id(optimizer) not in inner]


def _optimizers_in(values: Iterable[Any], depth: int = 4) -> Iterator[Any]:
    for value in values:
        if isinstance(value, keras.optimizers.Optimizer):
            yield value
        elif depth and isinstance(value, Mapping):
            yield from _optimizers_in(value.values(), depth - 1)
        elif depth and isinstance(value, list | tuple | set | frozenset):
            yield from _optimizers_in(value, depth - 1)


# -- what they did ----------------------------------------------------------------------------------------------------


def rates_of(optimizer: Any, variables: Sequence[keras.Variable]) -> list[Any]:
    """Return the learning rate with which each variable has just been moved; 0 in calls that only add up gradients.

    Args:
        optimizer: a MultiOptimizer gives the rates of those that the variables belong to.
        variables: that the optimizer was built with.
    """
    rates: dict[int, Any] = {}
    for leaf in leaves(optimizer):
        rate = ops.cast(leaf.learning_rate, "float32")
        every = leaf.gradient_accumulation_steps
        rates[id(leaf)] = rate * ops.cast(ops.equal(calls_counted(leaf) % every, 0), "float32") if every else rate
    found = [next((leaf for leaf in leaves(optimizer) if owns(leaf, v)), leaves(optimizer)[0]) for v in variables]
    return [rates[id(leaf)] for leaf in found]


def owns(leaf: Any, variable: keras.Variable) -> bool:
    """Say whether an optimizer was built with a variable."""
    return leaf.built and any(variable is own for own in moved_by(leaf))


# -- what acts around a step ------------------------------------------------------------------------------------------


class _Hooked:
    """An optimizer's `apply` with parts around it.

    Args:
        optimizer: its own `apply` becomes `plain`.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.plain = optimizer.apply
        self.parts: list[tuple[StepPart, Callable[[], bool], bool]] = []

    def __call__(self, grads: Any, trainable_variables: Any = None) -> Any:
        parts = [part for part, is_over, _ in self.parts if not is_over()]
        if not parts:
            return self.plain(grads, trainable_variables)
        known = trainable_variables if trainable_variables is not None else moved_by(self.optimizer)
        variables = list(known)
        gradients = _in_one_graph(list(grads))
        scale = self.optimizer.loss_scale_factor
        if scale is not None:
            gradients = [g if g is None else dense(g) / scale for g in gradients]
        for part in parts:
            gradients = part.before(gradients, variables)
        if scale is not None:
            gradients = [g if g is None else g * scale for g in gradients]
        result = self.plain(gradients, None if trainable_variables is None else variables)
        for part in parts:
            part.after(variables)
        return result


def _never() -> bool:
    return False


def hook(optimizer: Any, part: StepPart, is_over: Callable[[], bool] = _never, *, last: bool = False) -> None:
    """Let a part act in every following step of an optimizer, whoever runs it.

    Args:
        optimizer: a leaf, or a MultiOptimizer, whose steps are then seen as one.
        part: acts after those that are there already.
        is_over: asked when a step is traced; once it returns True, the part does nothing.
        last: let the part act after those that come later, too.
    """
    apply = vars(optimizer).get("apply")
    if not isinstance(apply, _Hooked):
        apply = _Hooked(optimizer)
        optimizer.apply = apply
    apply.parts.append((part, is_over, last))
    apply.parts.sort(key=lambda entry: entry[2])  # keeps the order of equals


def unhook(optimizer: Any, part: StepPart) -> None:
    """Take a part out of the step; with the last one the optimizer is as it was."""
    apply = vars(optimizer).get("apply")
    if isinstance(apply, _Hooked):
        apply.parts = [entry for entry in apply.parts if entry[0] is not part]
        if not apply.parts:
            del optimizer.apply


def hooked(optimizer: Any, kind: type[P]) -> list[P]:
    """Return the parts of a kind that act in an optimizer's steps."""
    apply = vars(optimizer).get("apply")
    return [part for part, _, _ in apply.parts if isinstance(part, kind)] if isinstance(apply, _Hooked) else []


def _in_one_graph(gradients: list[Any]) -> list[Any]:
    """Return the gradients as values of the graph that is being traced.

    In a branch of `tf.cond`, those that a part changes are values of the branch and the others are not, and
    TensorFlow reduces over replicas only what is of one graph.
    """
    if keras.backend.backend() != "tensorflow":
        return gradients
    import tensorflow as tf

    if tf.executing_eagerly():
        return gradients
    graph = tf.compat.v1.get_default_graph()

    def moved(g: Any) -> Any:
        values = g.values if isinstance(g, tf.IndexedSlices) else g
        return g if g is None or getattr(values, "graph", graph) is graph else tf.identity(g)

    return [moved(g) for g in gradients]


# -- whose training it is ---------------------------------------------------------------------------------------------


def in_fit(model: keras.Model) -> bool:
    """Say whether a `fit` of this model is running, in whichever thread.

    An exception, a keyboard interrupt say, ends `fit` without a word to its callbacks.
    """
    for top in sys._current_frames().values():
        frame = top
        while frame is not None:
            code = frame.f_code
            if code.co_name == "fit" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is model:
                return True
            frame = frame.f_back  # type: ignore[assignment]
    return False
