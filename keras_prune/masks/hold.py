"""Zeros that stay: masks for a model whose zeros come from a file, from a copy, or from another library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.keras_seam import layers_in
from keras_prune.masks.bound import MaskConstraint, mask_of
from keras_prune.masks.state import TrainingState, strategy_scope
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.models.variables import read
from keras_prune.scope import Scope

__all__ = ["hold", "is_held", "loose_zeros", "under_masks"]

NAME = "pruning_held"


def hold(model: keras.Model) -> keras.Model:
    """Keep the zeros of a model at zero in whatever training follows, in place.

    Every kernel that has zeros gets a mask, as pruning would give it: $w_i$ stays 0 where it is 0 now. This is for
    models whose zeros no mask holds: those of `keras.saving.load_model`, `load_weights`, `copy.deepcopy`, `pickle`,
    `clone_model`, `kp.strip`, or of another library. `kp.load_model` does it by itself. Where a mask is there already,
    or the file had one, that counts. A kernel that is zero throughout is left alone: it was not pruned, but has not
    been trained.

    A later `fit`, compiled anew or not, with or without a callback, keeps the zeros; a callback goes on from them;
    `kp.strip` takes the masks off again. Call it on the model that is trained, not on a part of it.

    Args:
        model: a built model.

    Returns:
        The same model.

    Raises:
        TypeError: it is no Keras 3 model.
        ValueError: it is not built.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.array([[1.0, 0.0], [2.0, 3.0]])])
        >>> hold(model).compile("sgd", "mse")
        >>> _ = model.fit(np.ones((8, 2)), np.ones((8, 2)), verbose=0)
        >>> (model.get_weights()[0] == 0).tolist()
        [[False, True], [False, False]]
    """
    refuse_keras2("hold", model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"hold takes a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"hold: {type(model).__name__} {model.name!r} is not built, so it has no zeros yet. "
            "Build it first: call it on a batch."
        )
    with strategy_scope(model):
        for variable, mask in _masks(model):
            held = keras.Variable(mask, dtype="bool", trainable=False, name=NAME)
            variable.constraint = MaskConstraint(held, variable.constraint)
    # One that was compiled before would train without the masks.
    model.train_function = None
    return model


def is_held(constraint: Any) -> bool:
    """Return whether a constraint is a mask that `hold` has made of zeros that were there."""
    return isinstance(constraint, MaskConstraint) and constraint.mask.name.startswith(NAME)


def under_masks(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that carry a mask of pruning; those of `hold` are not among them."""
    return [v for v in model.variables if isinstance(v.constraint, MaskConstraint) and not is_held(v.constraint)]


def loose_zeros(variable: keras.Variable, mask: npt.NDArray[np.bool_] | None) -> int:
    """Return how many zeros of a kernel no mask holds; 0 for one that is zero throughout.

    Args:
        variable: the kernel.
        mask: its mask, True where kept, of its shape; or None.
    """
    zeros = read(variable) == 0
    loose = int(np.count_nonzero(zeros if mask is None else zeros & mask))
    return 0 if zeros.all() else loose


def _masks(model: keras.Model) -> Iterator[tuple[keras.Variable, npt.NDArray[np.bool_]]]:
    """The variables to hold, each with its mask: from the file that the model was loaded from, or from the zeros."""
    weights = list(model.weights)
    known = {}
    state = TrainingState.held_by(model)
    for key, array in ({} if state is None else state.arrays).items():
        place = re.fullmatch(r"(mask|gate):(\d+)", key)
        if place and int(place[2]) < len(weights) and array.shape == tuple(weights[int(place[2])].shape):
            known[id(weights[int(place[2])])] = array.astype(bool)
    kernels = {id(variable) for _, variable, _, reason in Scope().walk(model) if reason is None}
    layers = layers_in(model)
    wrapped = {id(kernel) for layer in layers for kernel, _ in mask_pairs_of(layer)}
    for variable in weights:
        if id(variable) in wrapped or not str(variable.dtype).startswith(("float", "bfloat")):
            continue
        present = mask_of(variable)
        if id(variable) in known and present is None:
            if not known[id(variable)].all():
                yield variable, known[id(variable)]
        elif id(variable) in kernels and loose_zeros(variable, present):
            yield variable, np.array(read(variable) != 0)
