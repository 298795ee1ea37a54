"""What Keras keeps of optimizers and of the values of variables, and has no public name for."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.optimizers.base_optimizer import BaseOptimizer

__all__ = [
    "average_of",
    "begin_of_slot",
    "calls_counted",
    "float64_policy",
    "hidden_variables",
    "in_stateless_scope",
    "keep_decay_from",
    "moved_by",
    "optimizer_at_work",
    "set_value_now",
    "slots_by_weight",
    "value_held",
    "variables_of",
]

AVERAGES = "_model_variables_moving_average"
NO_SLOTS = frozenset(("_trainable_variables", "_variables", AVERAGES))
"""Lists of an optimizer that may be as long as that of its weights, and hold no state of its steps."""


# -- optimizers -------------------------------------------------------------------------------------------------------


def moved_by(optimizer: Any) -> list[keras.Variable]:
    """Return the weights that an optimizer was built with, in its order; none before."""
    found: list[keras.Variable] = optimizer._trainable_variables
    return found


def variables_of(optimizer: Any) -> list[keras.Variable]:
    """Return an optimizer's own variables; not those of the optimizers inside it."""
    return list(optimizer._variables)


@contextlib.contextmanager
def hidden_variables(optimizer: Any, hidden: Collection[int]) -> Iterator[None]:
    """The scope in which an optimizer's list of variables leaves some out, by their ids."""
    # Past `__setattr__`, which would track the list as a new one.
    attributes = vars(optimizer)
    variables = attributes["_variables"]
    attributes["_variables"] = [variable for variable in variables if id(variable) not in hidden]
    try:
        yield
    finally:
        attributes["_variables"] = variables


def calls_counted(optimizer: Any) -> keras.Variable:
    """Return the counter of an optimizer's calls; with accumulation of gradients, several calls make a step."""
    counter: keras.Variable = optimizer._iterations
    return counter


def slots_by_weight(optimizer: Any, *, averages: bool) -> dict[str, list[Any]]:
    """Return the lists that a built optimizer has of its moments: an entry for each weight, None where it has none.

    Args:
        optimizer: the one that moves the weights.
        averages: whether the averages of the weights themselves are meant, too.
    """
    count = len(moved_by(optimizer))
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, list)
        and len(value) == count
        and (name not in NO_SLOTS or (averages and name == AVERAGES))
        and any(isinstance(entry, keras.Variable) for entry in value)
    }


def begin_of_slot(optimizer: Any, name: str) -> float:
    """Return the value at which the moments of a list begin: above 0 where something is divided by their root."""
    return float(getattr(optimizer, "initial_accumulator_value", 0.0)) if name == "_accumulators" else 0.0


def average_of(optimizer: Any, variable: keras.Variable) -> keras.Variable | None:
    """Return the average of a weight that this optimizer keeps, or None.

    Example:
        >>> layer = keras.layers.Dense(1, use_bias=False)
        >>> layer.build((None, 2))
        >>> optimizer = keras.optimizers.SGD(use_ema=True)
        >>> optimizer.build([layer.kernel])
        >>> tuple(average_of(optimizer, layer.kernel).shape)
        (2, 1)
    """
    averages = getattr(optimizer, AVERAGES, None)
    if not averages:
        return None
    place = optimizer._trainable_variables_indices.get(optimizer._var_key(variable))
    return None if place is None else averages[place]


def keep_decay_from(new: Any, old: Any, pairs: Any) -> None:
    """Leave out of weight decay what `exclude_from_weight_decay` was told for another optimizer.

    Names are left out as they are; variables by what they became.

    Args:
        new: the optimizer to be told.
        old: the one that was told.
        pairs: variables that `old` may know, each with the one that it became.
    """
    pattern = getattr(old, "_exclude_from_weight_decay_pattern", None)
    keys = getattr(old, "_exclude_from_weight_decay", None) or ()
    variables = {new._var_key(target) for source, target in pairs if old._var_key(source) in keys}
    if pattern is not None or variables:
        # `exclude_from_weight_decay` takes words, of which only the pattern is left.
        new._exclude_from_weight_decay, new._exclude_from_weight_decay_pattern = variables, pattern
        new._exclude_from_weight_decay_cache = {}


def optimizer_at_work() -> Any:
    """Return the optimizer in whose `apply` this is called, traced or not; None outside of every optimizer's step.

    A constraint is called there and is told no more than the weight: the model may be part of a larger one that is
    trained, and may be compiled anew at any time.
    """
    # Keras enters a name scope of its own for whatever makes variables.
    scopes = global_state.get_global_attribute("name_scope_stack") or []
    return scopes[-1].caller if scopes and isinstance(scopes[-1].caller, BaseOptimizer) else None


# -- values -----------------------------------------------------------------------------------------------------------


def value_held(variable: keras.Variable) -> Any:
    """Return what a variable holds, whatever scope this is called in; None while JAX's compiled step holds it."""
    return variable._value


def set_value_now(variable: keras.Variable, value: Any) -> None:
    """Write a variable's value past the scopes that put updates off."""
    variable._direct_assign(value)


def float64_policy() -> keras.DTypePolicy:
    """Return a policy of which only the type of computing counts, float64: Keras has none by name for other weights."""
    policy = keras.DTypePolicy("mixed_bfloat16")
    policy._compute_dtype = "float64"
    return policy
