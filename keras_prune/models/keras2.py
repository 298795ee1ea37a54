"""Models and files of Keras 2 (`tf_keras`): known as such, so that whoever is handed one can say what to do."""

from __future__ import annotations

from typing import Any

__all__ = ["WAY_OUT", "is_keras2", "refuse_keras2"]

WAY_OUT = (
    "To prune it, make the same model in Keras 3 and copy the weights: new.set_weights(old.get_weights()). "
    "tflite_export.export takes a tf_keras model, pruned by tfmot or not, as it is."
)


def is_keras2(thing: Any) -> bool:
    """Return whether an object is a model or layer of tf_keras, without importing that library.

    Example:
        >>> import keras
        >>> is_keras2(keras.Sequential())
        False
    """
    return any(
        base.__module__.split(".")[0] == "tf_keras" and base.__name__ in ("Layer", "Model")
        for base in type(thing).__mro__
    )


def refuse_keras2(name: str, thing: Any) -> None:
    """Refuse a model or layer of tf_keras.

    Args:
        name: who was handed it.
        thing: anything.

    Raises:
        TypeError: it is of Keras 2; with what to do.
    """
    if is_keras2(thing):
        raise TypeError(
            f"{name}: this is a model of Keras 2 (tf_keras), and this library prunes models of Keras 3. "
            f"Received: {type(thing).__module__}.{type(thing).__name__}. {WAY_OUT}"
        )
