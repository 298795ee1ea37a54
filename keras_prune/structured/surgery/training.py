"""What training knows of a model, carried over to a smaller one: compile settings, and the optimizer's moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.keras_seam import moved_by, slots_by_weight, variables_of
from keras_prune.models.variables import assign, read
from keras_prune.optimizers.averages import all_optimizers
from keras_prune.optimizers.compiling import compile_like

__all__ = ["copy_training_state"]

Indices = Callable[[keras.Variable], tuple[Any, ...]]


def copy_training_state(
    owner: str,
    source: keras.Model,
    model: keras.Model,
    pairs: Sequence[tuple[keras.Variable, keras.Variable]],
    indices: Indices,
) -> None:
    """Compile `model` as `source` is compiled, and give its optimizer the state of the other, sliced.

    Warns where settings cannot be written down, and where an optimizer's state has not its weight's shape, so that it
    starts anew.

    Args:
        owner: the function that made the model, for messages.
        source: the model that was.
        model: the smaller one.
        pairs: variables of `source`, each with the one of `model` that it became.
        indices: for each axis of a variable of `source`, which indices stay; None for all.
    """
    compile_like(owner, source, model, pairs, stacklevel=6)
    if model.compiled and source.optimizer is not None and source.optimizer.built:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        partners = {id(new): old for old, new in pairs}
        for old, new in zip(all_optimizers(source.optimizer), all_optimizers(model.optimizer), strict=True):
            _copy_state(old, new, partners, indices)


def _copy_state(old: Any, new: Any, partners: dict[int, keras.Variable], indices: Indices) -> None:
    """Copy an optimizer's own variables; one that follows a weight is sliced as the weight is."""
    places = {id(weight): i for i, weight in enumerate(moved_by(old))}
    before, now = slots_by_weight(old, averages=True), slots_by_weight(new, averages=True)
    following: set[int] = set()
    for name, targets in now.items():
        following |= {id(slot) for slot in (*before.get(name, ()), *targets)}
        for weight, target in zip(moved_by(new), targets, strict=True):
            source = partners[id(weight)]
            place = places.get(id(source))  # a weight that was frozen when the optimizer was built has none
            origin = before[name][place] if name in before and place is not None else None
            if target is not None:
                _copy_slot(name, source, origin, target, indices(source))
    rest = [[v for v in variables_of(optimizer) if id(v) not in following] for optimizer in (old, new)]
    for origin, target in zip(*rest, strict=True):
        assign(target, np.array(read(origin)))
    for name, origin in vars(old).items():  # a product of Nadam's is not always listed
        target = vars(new).get(name)
        if isinstance(origin, keras.Variable) and isinstance(target, keras.Variable):
            assign(target, np.array(read(origin)))


def _copy_slot(name: str, source: keras.Variable, origin: Any, target: keras.Variable, stays: tuple[Any, ...]) -> None:
    """Copy what an optimizer keeps for one weight."""
    if origin is not None:
        value = np.array(read(origin))
        axes = _axes_of(value.shape, tuple(source.shape))
        for axis, of in enumerate(axes or ()):
            value = value if stays[of] is None else np.take(value, stays[of], axis)
        if value.shape == tuple(target.shape):
            assign(target, value)
            return
    shape = None if origin is None else tuple(origin.shape)
    warnings.warn(
        f"The optimizer's {name} of {source.path!r} has shape {shape} where the weight has "
        f"{tuple(source.shape)}, so it cannot be sliced with it, and starts anew.",
        stacklevel=7,
    )


def _axes_of(shape: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which axes of a weight a state of it runs along: all, or all but one of the last two (Adafactor's sums)."""
    last = len(weight) - 1
    whole = tuple(range(last + 1))
    for axes in (whole, whole[:last], (*whole[: last - 1], last)) if last > 0 else (whole,):
        if shape == tuple(weight[axis] for axis in axes):
            return axes
    return None
