"""What training knows of a model, carried over to a smaller one: compile settings, and the optimizer's moments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.variables import assign, read

__all__ = ["copy_training_state"]

Indices = Callable[[keras.Variable], tuple[Any, ...]]


def copy_training_state(
    source: keras.Model, model: keras.Model, pairs: Sequence[tuple[keras.Variable, keras.Variable]], indices: Indices
) -> None:
    """Compile `model` as `source` is compiled, and give its optimizer the state of the other, sliced.

    Warns where settings cannot be written down, and where an optimizer's state has not its weight's shape, so that it
    starts anew.

    Args:
        source: the model that was.
        model: the smaller one.
        pairs: variables of `source`, each with the one of `model` that it became.
        indices: for each axis of a variable of `source`, which indices stay; None for all.
    """
    if not source.compiled:
        return
    try:
        model.compile_from_config(source.get_compile_config())
    except Exception as error:
        warnings.warn(
            f"The smaller model is not compiled, since the settings of {source.name!r} cannot be written down "
            f"({error}). Call compile(...) on it if you mean to train or evaluate it.",
            stacklevel=4,
        )
        return
    if source.optimizer is not None and source.optimizer.built:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        partners = {id(new): old for old, new in pairs}
        for old, new in zip(_chain(source.optimizer), _chain(model.optimizer), strict=True):
            _copy_state(old, new, partners, indices)


def _chain(optimizer: Any) -> list[Any]:
    """An optimizer, and those that it hands the work to: the one it scales the loss for, or one for each weight."""
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", ())]
    return [optimizer, *(found for one in inner if one is not None for found in _chain(one))]


def _copy_state(old: Any, new: Any, partners: dict[int, keras.Variable], indices: Indices) -> None:
    """Copy an optimizer's own variables; one that follows a weight is sliced as the weight is."""
    places = {id(weight): i for i, weight in enumerate(old._trainable_variables)}
    before, now = _slots(old), _slots(new)
    following: set[int] = set()
    for name, targets in now.items():
        following |= {id(slot) for slot in (*before[name], *targets)}
        for weight, target in zip(new._trainable_variables, targets, strict=True):
            source = partners[id(weight)]
            origin = before[name][places[id(source)]]
            value = np.array(read(origin))
            if value.shape == tuple(source.shape):
                for axis, stays in enumerate(indices(source)):
                    value = value if stays is None else np.take(value, stays, axis)
            if value.shape == tuple(target.shape):
                assign(target, value)
            else:
                warnings.warn(
                    f"The optimizer's {name} of {source.path!r} has shape {tuple(origin.shape)} where the weight has "
                    f"{tuple(source.shape)}, so it cannot be sliced with it, and starts anew.",
                    stacklevel=6,
                )
    rest = [[v for v in optimizer._variables if id(v) not in following] for optimizer in (old, new)]
    for origin, target in zip(*rest, strict=True):
        assign(target, np.array(read(origin)))


def _slots(optimizer: Any) -> dict[str, list[keras.Variable]]:
    """Lists of an optimizer that have one variable for each trainable weight: its moments."""
    count = len(optimizer._trainable_variables)
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, list)
        and name not in ("_trainable_variables", "_variables")
        and len(value) == count
        and all(isinstance(entry, keras.Variable) for entry in value)
    }
