"""A layer made of layers that keeps its class, with inner layers, weights and numbers of other sizes in place."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import keras
from keras.saving import deserialize_keras_object, register_keras_serializable

from keras_prune.graph.held import Place, exchange, find
from keras_prune.keras_seam import forget_weight, unlocked
from keras_prune.structured.surgery.constructor import own_build, write_down

__all__ = ["Changes", "Resized", "resized", "tell_resized"]


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """What is put into a layer in the places of what its class made.

    Attributes:
        inside: layers.
        weights: shapes of the layer's own weights.
        numbers: attributes.
    """

    inside: Mapping[Place, Any]
    weights: Mapping[Place, tuple[int, ...]]
    numbers: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.inside or self.weights or self.numbers)

    def put_into(self, layer: Any) -> None:
        """Change a layer."""
        for place, inner in self.inside.items():
            owner, before = find(layer, place)
            if before is not inner:
                exchange(owner, before, inner)
        for place, shape in self.weights.items():
            owner, before = find(layer, place)
            if tuple(before.shape) != tuple(shape):
                exchange(owner, before, _weight_like(owner, before, tuple(shape)))
        for name, value in self.numbers.items():
            setattr(layer, name, value)


def _weight_like(layer: Any, variable: keras.Variable, shape: tuple[int, ...]) -> keras.Variable:
    """A weight of another shape, in no place yet."""
    with unlocked(layer):
        new = layer.add_weight(
            shape=shape,
            initializer="zeros",
            dtype=variable.dtype,
            trainable=variable.trainable,
            regularizer=variable.regularizer,
            constraint=variable.constraint,
            name=variable.name,
        )
        forget_weight(layer, new)
    return new


@register_keras_serializable(package="keras_prune", name="Resized")
class Resized(keras.layers.Layer):
    """What a resized layer's class has before the class it had: how the layer is written down and made again.

    The configuration holds that of the layer as its own class makes it, and what was put into it. Keras loads it
    wherever `keras_prune` was imported.
    """

    _made_from: Mapping[str, Any]
    _changes: Changes

    def get_config(self) -> dict[str, Any]:
        changes = self._changes
        return {
            "layer": dict(self._made_from),
            "inside": [[list(place), write_down(inner)] for place, inner in changes.inside.items()],
            "weights": [[list(place), list(shape)] for place, shape in changes.weights.items()],
            "numbers": dict(changes.numbers),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if "layer" not in config:  # found by its name, where its own class is meant
            return cls.__mro__[2].from_config(config)  # type: ignore[attr-defined]
        plain = deserialize_keras_object(dict(config["layer"]))
        changes = Changes(
            {tuple(place): deserialize_keras_object(inner) for place, inner in config["inside"]},
            {tuple(place): tuple(shape) for place, shape in config["weights"]},
            dict(config["numbers"]),
        )
        return resized(plain, config["layer"], changes)

    def get_build_config(self) -> Any:
        """Return nothing where the class has no `build`: then Keras builds what is inside by a call."""
        return super().get_build_config() if own_build(self) else None

    def build_from_config(self, config: Any) -> None:
        """Nothing: what `build` makes is there, and put in place."""


def resized(layer: Any, made_from: Mapping[str, Any], changes: Changes) -> Any:
    """Change a layer and give it a class of the same name that can write the changes down.

    Args:
        layer: as its class makes it.
        made_from: how Keras writes it down.
        changes: to put into it.
    """
    changes.put_into(layer)
    kind = type(layer)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    layer.__class__ = register_keras_serializable(package="keras_prune", name="Resized")(
        type(kind.__name__, (Resized, kind), names)
    )
    vars(layer).update(_made_from=made_from, _changes=changes)
    return layer


def tell_resized(owner: str, names: list[str]) -> None:
    """Warn how files of a model are read in which layers have parts that their classes would not make."""
    if names:
        warnings.warn(
            f"{owner}: {len(names)} layers made of layers keep their classes, but no configuration of these gives the "
            f"sizes that are left: {names[:5]}{' and more' if len(names) > 5 else ''}. A file of the smaller model has "
            "what they are made of, and loads where the library is imported: import keras_prune, then "
            "keras.saving.load_model.",
            stacklevel=5,
        )
