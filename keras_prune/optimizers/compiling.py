"""Settings of `compile`, given to a model that was made from another."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_prune.keras_seam import keep_decay_from, layers_in
from keras_prune.optimizers.averages import all_optimizers

__all__ = ["compile_like", "known_objects"]

Pairs = Sequence[tuple[keras.Variable, keras.Variable]]


def compile_like(owner: str, source: keras.Model, model: keras.Model, pairs: Pairs, *, stacklevel: int = 3) -> None:
    """Compile `model` as `source` is compiled, with a fresh optimizer; do nothing where it is not compiled.

    What `exclude_from_weight_decay` was told comes along, which no configuration holds.

    Args:
        owner: the function that made the model, for the message.
        source: the model that was.
        model: what was made from it.
        pairs: variables of `source`, each with the one of `model` that it became.
        stacklevel: of the warning.

    Warns:
        UserWarning: the settings cannot be written down, so `model` is not compiled.
    """
    if not source.compiled:
        return
    try:
        with known_objects(source):
            model.compile_from_config(source.get_compile_config())
    except Exception as error:
        warnings.warn(
            f"{owner}: the result is not compiled, since the settings of {source.name!r} cannot be serialized "
            f"({error}). Call compile(...) on it if you mean to train or evaluate it.",
            stacklevel=stacklevel,
        )
        return
    for old, new in zip(all_optimizers(source.optimizer), all_optimizers(model.optimizer), strict=False):
        keep_decay_from(new, old, pairs)


@contextlib.contextmanager
def known_objects(layer: Any) -> Iterator[None]:
    """The scope in which the classes and functions in use in a layer are found by name, without being registered."""
    inside = layers_in(layer) if isinstance(layer, keras.Layer) else [layer]
    objects: dict[str, Any] = {type(one).__name__: type(one) for one in inside if not _is_keras(type(one))}
    for one in inside:
        values = [*vars(one).values()]
        values += [entry for value in values if isinstance(value, list | tuple) for entry in value]
        named = [value for value in values if callable(value) and hasattr(value, "__name__")]
        # Regularizers, optimizers, metrics: whatever has a configuration, too.
        named += [type(value) for value in values if hasattr(value, "get_config")]
        objects.update({value.__name__: value for value in named if not _is_keras(value)})
    with keras.saving.CustomObjectScope(objects):
        yield


def _is_keras(value: Any) -> bool:
    return str(value.__module__).split(".")[0] in ("keras", "keras_prune")
