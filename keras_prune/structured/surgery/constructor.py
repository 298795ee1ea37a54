"""What a layer is made again from: its configuration, or what its constructor was given where that does not do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras.saving import get_registered_name, serialize_keras_object

from keras_prune.keras_seam import from_keras

__all__ = [
    "arguments_of",
    "config_of",
    "configurations",
    "described",
    "made_again",
    "make",
    "own_build",
    "unbuilt",
    "write_down",
    "written",
]


def configurations(layer: Any) -> list[dict[str, Any]]:
    """What a layer's class may be made from, in turn: what `get_config` gives, if it does; what constructors take.

    Those of all its classes, and then that of its own class alone, which may hand on to the others what it works out.
    """
    found: list[dict[str, Any]] = []
    config = config_of(layer)
    if config is not None:
        found.append(unbuilt(config))
    for arguments in (arguments_of(layer), arguments_of(layer, inherited=False)):
        if arguments not in found:
            found.append(arguments)
    return found


def make(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return a layer of a class from one of its `configurations`.

    Arguments of a constructor may be what the class's own `from_config` has to decode first (a class, say, and not what
    stands for it in a file); where it fails, they go to the constructor as they are.
    """
    try:
        return kind.from_config(dict(config))
    except Exception:
        plain = keras.layers.Layer.from_config.__func__
        if kind.from_config.__func__ is plain:
            raise
        return plain(kind, dict(config))


def config_of(layer: Any) -> dict[str, Any] | None:
    """What `get_config` gives; None where a class has none, or one that fails."""
    try:
        return dict(layer.get_config())
    except Exception:
        return None


def described(layer: Any) -> dict[str, Any]:
    """What tells a layer from another one of its class."""
    config = config_of(layer)
    return dict(unbuilt(arguments_of(layer) if config is None else config))


def made_again(operation: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A layer or operation from its configuration, changed; or from what its constructor was given."""
    if not isinstance(operation, keras.layers.Layer):
        return type(operation).from_config(change(unbuilt(operation.get_config())))
    failure: Exception | None = None
    for config in configurations(operation):
        try:
            return make(type(operation), change(config))
        except Exception as error:
            failure = failure or error
    assert failure is not None
    raise failure


def arguments_of(layer: Any, *, inherited: bool = True) -> dict[str, Any]:
    """What a layer's constructor was given, as far as can be told: for a class whose `get_config` gives more or less.

    Entries of the configuration that a constructor of its classes names, and attributes with the name of an argument.

    Example:
        >>> class Twice(keras.layers.Layer):
        ...     def __init__(self, units, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.units = units
        ...         self.doubled = 2 * units
        ...     def get_config(self):
        ...         return {**super().get_config(), "units": self.units, "doubled": self.doubled}
        >>> arguments_of(Twice(3, name="twice", dtype="float32"))["units"], "doubled" in arguments_of(Twice(3))
        (3, False)
    """
    config = {
        "name": layer.name,
        "trainable": layer.trainable,
        "dtype": keras.dtype_policies.serialize(layer.dtype_policy),
        **(config_of(layer) or {}),
    }
    named: set[str] = set()
    for kind in type(layer).__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
            named |= {one.name for one in parameters}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
            if not inherited:
                named |= {"name", "trainable", "dtype"}
                break
    found = {key: _given(layer, config[key]) for key in config if key in named}
    for one in inspect.signature(type(layer)).parameters.values():
        name = one.name
        if name != "self" and name not in found and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
            attributes = [vars(layer)[key] for key in (name, f"_{name}", f"{name}_layer") if key in vars(layer)]
            if attributes:
                found[name] = _given(layer, attributes[0])
    return dict(unbuilt(found))


def _given(layer: Any, value: Any) -> Any:
    """What a constructor was given where an attribute has what it made of it.

    The class of a layer that it made from a class it keeps; the rate of a Dropout.
    """
    if isinstance(value, keras.layers.Dropout):
        return value.rate
    kept = [one for one in vars(layer).values() if isinstance(one, type)]
    return type(value) if isinstance(value, keras.Layer) and type(value) in kept else value


def write_down(layer: Any) -> dict[str, Any]:
    """A layer as Keras writes it into a file; from its constructor's arguments where it has no configuration."""
    if not own_code(layer) or hasattr(layer, "_made_from"):
        return dict(serialize_keras_object(layer))
    failure: Exception | None = None
    for i, config in enumerate(configurations(layer)):
        try:
            make(type(layer), config)
        except Exception as error:
            failure = failure or error
            continue
        as_keras_does = i == 0 and config_of(layer) is not None
        result = dict(serialize_keras_object(layer)) if as_keras_does else written(layer, config)
        return result if own_build(layer) else {key: value for key, value in result.items() if key != "build_config"}
    raise ValueError(f"{type(layer).__name__} {layer.name!r} cannot be written down ({failure}).") from failure


def written(layer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What Keras would write into a file if this were the layer's configuration."""
    kind = type(layer)
    result = {
        "module": kind.__module__,
        "class_name": kind.__name__,
        "config": {key: _entry(value) for key, value in config.items()},
        "registered_name": get_registered_name(kind),
    }
    build = layer.get_build_config() if own_build(layer) else None
    return result if build is None else {**result, "build_config": build}


def _entry(value: Any) -> Any:
    """An entry of a configuration as a file holds it; a class in the form that Keras gives to functions."""
    if not isinstance(value, type):
        return serialize_keras_object(value)
    exported = from_keras(value) and getattr(keras.layers, value.__name__, None) is value
    return {
        "module": "keras.layers" if exported else value.__module__,
        "class_name": "function",
        "config": value.__name__,
        "registered_name": None if exported else get_registered_name(value),
    }


def own_build(layer: Any) -> bool:
    """Whether a layer's class makes its weights and inner layers in a `build` of its own."""
    return type(layer).build not in (keras.layers.Layer.build, keras.Model.build)


def own_code(layer: Any) -> bool:
    """Whether a layer's class is neither Keras's nor the library's."""
    return type(layer).__module__.split(".")[0] not in ("keras", "keras_prune")


def unbuilt(config: Any) -> Any:
    """A configuration in which no layer says what it was built for: the shapes are others now."""
    if isinstance(config, dict):
        return {key: unbuilt(value) for key, value in config.items() if key != "build_config"}
    if isinstance(config, list | tuple):
        return type(config)(unbuilt(value) for value in config)
    return config
