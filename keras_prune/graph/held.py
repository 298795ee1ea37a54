"""What a layer holds in its attributes, and in lists, tuples and dictionaries there: found, lent, exchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_prune.keras_seam import RECORDS_OF_LAYERS, replace_record, unlocked
from keras_prune.models.attributes import replaced

__all__ = ["Place", "exchange", "find", "held", "is_layer", "is_variable", "lent"]

Place = tuple[Any, ...]
"""An attribute's name, then the indices and keys that lead to a value in it; further on, attributes of inner layers."""

RECORDS = RECORDS_OF_LAYERS | {"_made_from", "_changes"}
"""Attributes in which Keras, and a resized layer, keep records of what the others hold."""


def held(layer: Any, wanted: Callable[[Any], bool], *, through: bool = False) -> dict[Place, Any]:
    """Return what a layer holds that `wanted` is true of, by place.

    Args:
        layer: the layer.
        wanted: asked of each value.
        through: whether layers that are not wanted are looked through, too.

    Example:
        >>> class Two(keras.layers.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.parts = [keras.layers.ReLU(name="a"), {"b": keras.layers.ReLU(name="b")}]
        >>> list(held(Two(), lambda value: isinstance(value, keras.layers.Layer)))
        [('parts', 0), ('parts', 1, 'b')]
    """
    found: dict[Place, Any] = {}
    passed = {id(layer)}

    def look(value: Any, place: Place) -> None:
        if wanted(value):
            found[place] = value
        elif through and is_layer(value) and id(value) not in passed:
            passed.add(id(value))
            look_at_attributes(value, place)
        elif isinstance(value, list | tuple):
            for i, one in enumerate(value):
                look(one, (*place, i))
        elif isinstance(value, Mapping):
            for key, one in value.items():
                look(one, (*place, key))

    def look_at_attributes(owner: Any, place: Place) -> None:
        for name, value in vars(owner).items():
            if name not in RECORDS:
                look(value, (*place, name))

    look_at_attributes(layer, ())
    return found


def find(layer: Any, place: Place) -> tuple[Any, Any]:
    """Return what is at a place, behind the layer that holds it."""
    owner = value = layer
    for key in place:
        if is_layer(value):
            owner, value = value, vars(value)[key]
        else:
            value = value[key]
    return owner, value


def _with(value: Any, place: Place, new: Any) -> Any:
    """A container with another entry; the one given stays as it is."""
    if not place:
        return new
    if isinstance(value, Mapping):
        return {key: _with(one, place[1:], new) if key == place[0] else one for key, one in value.items()}
    entries = [_with(one, place[1:], new) if i == place[0] else one for i, one in enumerate(value)]
    if isinstance(value, tuple):
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return entries


@contextlib.contextmanager
def lent(layer: Any, values: Mapping[Place, Any]) -> Iterator[None]:
    """The scope in which a layer holds other values, behind Keras's back, so that nothing is tracked."""
    with contextlib.ExitStack() as scope:
        for (name, *rest), value in values.items():
            new = _with(vars(layer).get(name), tuple(rest), value)
            scope.enter_context(replaced(layer, name, new))
        yield


def exchange(layer: Any, old: Any, new: Any) -> None:
    """Put a layer or variable in another one's place, wherever `layer` holds it, and in Keras's record of it."""
    with unlocked(layer):
        replace_record(layer, old, new)
        for name, *rest in held(layer, lambda value: value is old):
            if not rest:
                setattr(layer, name, new)
                continue
            container = vars(layer)[name]
            for key in rest[:-1]:
                container = container[key]
            if isinstance(container, tuple):
                setattr(layer, name, _with(vars(layer)[name], tuple(rest), new))
            elif isinstance(container, dict):
                dict.__setitem__(container, rest[-1], new)
            else:
                list.__setitem__(container, rest[-1], new)


def is_layer(value: Any) -> bool:
    """Whether a value is a layer (or a model)."""
    return isinstance(value, keras.Layer)


def is_variable(value: Any) -> bool:
    """Whether a value is a variable."""
    return isinstance(value, keras.Variable)
