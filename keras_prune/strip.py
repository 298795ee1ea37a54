"""Masks off: a plain Keras model with exact zeros."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.keras_seam import (
    layers_in,
    own_methods,
)
from keras_prune.layers.carrying import carry_state
from keras_prune.layers.plain_copies import Copier, has_graph, is_plain_functional, masked_in, signatures, sources
from keras_prune.masks.bound import MaskConstraint, mask_of
from keras_prune.models.agreement import check_agreement
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.models.stand_ins import run_at_rest, stand_ins_in
from keras_prune.models.variables import read
from keras_prune.optimizers.compiling import compile_like

__all__ = ["effective_mask", "strip", "written_under"]

MaskArray = npt.NDArray[np.bool_]

STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics", "compile")
"""Methods of a model's class by which it trains in a way of its own."""


def strip(model: keras.Model, *, into: keras.Model | None = None) -> keras.Model:
    """Return a plain Keras model of the same outputs, whose pruned weights are exactly 0.0.

    Nothing of the library is left in it: wrapper layers become the layers that they wrap, variants the Keras layers
    that they vary, and masks are gone. A constraint of the user's own stays. The model given is left as it was, and
    the two share no weight. A model that was never pruned comes back as an equal copy.

    A compiled model comes back compiled with the same settings and a fresh optimizer: the state of the old one
    (momentum, step count) belongs to the pruned training. Where the settings cannot be written down, there is a warning
    and the result is not compiled.

    Args:
        model: a built model: Sequential, functional or subclassed, with other models inside.
        into: a plain model of the same layers, made by you, that takes the weights. For subclassed models that cannot
            be made again from a configuration, or that make wrapper layers in their own code.

    Returns:
        The plain model: a new one, or `into`.

    What a layer holds besides its weights comes along (see `carry_state`). Both models are run on a few drawn inputs
    before the result is returned. A functional model of a class that cannot be rebuilt from its configuration is
    made again from its graph, as a `keras.Model`.

    Raises:
        TypeError: the model is not a Keras model.
        ValueError: the model is not built, or cannot be rebuilt without wrapper layers, or what is made answers
            otherwise; the message says why and what helps. There is no half-stripped result.

    Warns:
        UserWarning: the class of a functional model is lost, with its own steps of training; the result is not
            compiled; or it could not be run beside the model.

    Example:
        >>> from keras_prune.layers import PrunableDense
        >>> model = keras.Sequential([keras.Input((4,)), PrunableDense(2)])
        >>> plain = strip(model)
        >>> type(plain.layers[0]).__name__, len(plain.weights)
        ('Dense', 2)
    """
    refuse_keras2("strip", model)
    if not isinstance(model, keras.Model):
        raise TypeError(f"strip takes a keras.Model. Received: {model!r} of type {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"strip: {type(model).__name__} {model.name!r} is not built, so there is nothing to copy. "
            "Call it on a batch first."
        )
    if into is not None:
        return _filled(model, into, [(model, into)])
    copier = Copier(by_graph=False)
    try:
        plain = _filled(model, copier.copy(model), copier.made)
    except ValueError:
        if not any(has_graph(layer) and not is_plain_functional(layer) for layer in layers_in(model)):
            raise
        copier = Copier(by_graph=True)
        plain = _filled(model, copier.copy(model), copier.made)
    for layer in copier.reduced:
        _warn_reduced(layer)
    compile_like("strip", model, plain, list(zip(sources(model), plain.weights, strict=True)))
    return plain


def _filled(model: keras.Model, plain: keras.Model, made: list[tuple[Any, Any]]) -> keras.Model:
    """Give a plain copy the weights of a model and all else that its layers hold, and hold it against the model."""
    _check_plain(model, plain)
    _copy_weights(model, plain)
    for old, new in made:
        if new is plain or id(new) in {id(layer) for layer in layers_in(plain)}:
            carry_state(old, new)
    check_agreement("strip", model, plain, reference=run_at_rest(model) if stand_ins_in(model) else None)
    return plain


def _warn_reduced(model: Any) -> None:
    own = own_methods(model, STEPS)
    if own:
        warnings.warn(
            f"strip: {type(model).__name__} {model.name!r} cannot be rebuilt from its configuration, so its graph "
            f"was copied into a keras.Model, without its own {', '.join(own)}. To keep the class, give it get_config() "
            "and from_config(), or call strip(model, into=plain_model).",
            stacklevel=3,
        )


def effective_mask(model: keras.Layer, *, bound: bool = True) -> dict[int, MaskArray]:
    """Return the mask of each masked variable by the variable's id.

    Args:
        model: built.
        bound: also the masks that act in training only, on the variable; without them it is what layers compute with.

    Returns:
        For each, an array of the variable's shape: False where the weight is pruned.

    Raises:
        ValueError: two layers mask one kernel, and their masks differ.
    """
    found: dict[int, MaskArray] = {}
    for layer in layers_in(model):
        for kernel, mask in mask_pairs_of(layer):
            values = read(mask)
            if not np.array_equal(found.setdefault(id(kernel), values), values):
                raise ValueError(
                    f"{kernel.path} is masked by two layers whose masks differ, so its zeros are not defined. "
                    "Wrap the layer once and use the wrapper in both places."
                )
    for variable in model.weights if bound else ():
        mask = mask_of(variable)
        if mask is not None:
            found[id(variable)] = mask & found.get(id(variable), np.True_)
    return found


def written_under(variable: keras.Variable, computed: MaskArray | None = None) -> int:
    """Return how many weights are not zero although a mask on the variable prunes them: something wrote to them.

    Args:
        variable: a kernel.
        computed: the mask of the layer that computes with it, of the variable's shape; None where there is none.
    """
    mask = mask_of(variable)
    if mask is None:
        return 0
    off = ~mask if computed is None else ~mask & computed
    return int(np.count_nonzero(read(variable)[off]))


def _check_plain(model: keras.Model, plain: keras.Model) -> None:
    """Refuse a copy that is not built, holds something of the library, or has other weights than the model."""
    if not isinstance(plain, keras.Model) or plain is model:
        raise ValueError(f"strip: into must be another keras.Model than the one to strip. Received: {plain!r}")
    left = masked_in(plain)
    if left:
        raise ValueError(
            f"strip: {type(model).__name__} {model.name!r} makes {left} in its own code, where they cannot be "
            "replaced. Make a plain model with the same layers, without masks, and call strip(model, into=plain_model)."
        )
    wanted, found = signatures(sources(model)), signatures(plain.weights)
    if wanted != found:
        odd = next((a, b) for a, b in zip([*wanted, None], [*found, None], strict=False) if a != b)
        raise ValueError(
            f"strip: the plain model has {len(found)} weights and {type(model).__name__} {model.name!r} has "
            f"{len(wanted)} without its masks; the first that differ are {odd[1]} and {odd[0]}. "
            "A subclassed model has to be built by build() or by a call on an input of a known shape: build one "
            "yourself and call strip(model, into=plain_model)."
        )


def _copy_weights(model: keras.Model, plain: keras.Model) -> None:
    """Copy the weights that the model computes with, and the constraints that were set on variables by hand."""
    masks = effective_mask(model, bound=False)
    written = [(v.path, written_under(v, masks.get(id(v)))) for v in sources(model)]
    lost = [path for path, number in written if number]
    if lost:
        warnings.warn(
            f"strip: the masks of {len(lost)} variables no longer hold, the first {lost[0]!r}: "
            f"{sum(number for _, number in written):,} of the weights that they prune are not zero, since something "
            "wrote to them. The result has the weights as they are, and answers as the model does. For zeros, prune "
            "again, or train on: a training step puts them back.",
            stacklevel=4,
        )
    for source, target in zip(sources(model), plain.weights, strict=True):
        value, mask, bound = read(source), masks.get(id(source)), mask_of(source)
        if bound is not None:
            value = np.where(
                bound | (value != 0), value, np.zeros((), value.dtype)
            )  # +0.0, whatever a user has written
        target.assign(value if mask is None else np.where(mask, value, np.zeros((), value.dtype)))
        constraint = source.constraint
        while isinstance(constraint, MaskConstraint):
            constraint = constraint.inner
        if target.constraint is None:
            target.constraint = constraint
