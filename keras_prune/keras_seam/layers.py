"""What Keras keeps of a layer or model, and has no public name for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.src.layers.preprocessing.index_lookup import IndexLookup
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import ObjectSharingScope
from keras.src.utils.io_utils import print_msg
from keras.src.utils.naming import auto_name

__all__ = [
    "DROPOUT_MASKS",
    "DTYPE_POLICY",
    "INPUT_CHECK",
    "RECORDS_OF_CALLS",
    "RECORDS_OF_LAYERS",
    "IndexLookup",
    "ObjectSharingScope",
    "Saved",
    "attention_axes",
    "auto_name",
    "built_shapes",
    "first_shape",
    "forget_weight",
    "from_keras",
    "global_seed",
    "has_gate",
    "is_of_applications",
    "is_operation",
    "layers_in",
    "layers_of",
    "loss_arguments",
    "loss_of_batch",
    "metrics_given",
    "own_methods",
    "own_state",
    "own_variables",
    "print_msg",
    "projection_of",
    "random_states",
    "replace_record",
    "takes_training",
    "unlocked",
]

DTYPE_POLICY = "_dtype_policy"
"""The attribute of a layer that holds its policy: set past `dtype_policy`, nothing is quantized."""
DROPOUT_MASKS = "_maybe_config_dropout_masks"
"""The method of a recurrent layer that calls its cell once, to make the masks of dropout."""
INPUT_CHECK = "_assert_input_compatibility"
"""The method of a layer that refuses inputs of other shapes than it was built for."""

# fmt: off
RECORDS_OF_LAYERS = frozenset((
    "_trainable_variables", "_non_trainable_variables", "_layers", "_metrics", "_seed_generators", "_losses",
    "_losses_override", "_tracker", "_inbound_nodes", "_outbound_nodes", "_build_shapes_dict", "_loss_ids",
    "_self_setattr_tracking", "_self_unconditional_checkpoint_dependencies", "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies", "_self_name_based_restores", "_self_saveable_object_factories",
    "_functional", "_operations", "_operations_by_depth", "_nodes", "_nodes_by_depth",
))
"""Attributes of a layer in which Keras and TensorFlow list what its other attributes hold."""
RECORDS_OF_CALLS = frozenset(("_name", "_inbound_nodes", "_outbound_nodes", "_auto_config", "_lock"))
"""Attributes of an operation of `keras.ops` that say nothing of what it computes."""
# fmt: on


class Saved(KerasSaveable):
    """What Keras saves with a model whose attribute it is, and loads with it, by `save_own_variables` and its twin."""

    def _obj_type(self) -> str:
        # Keras asks what attributes an object of a kind has anyway, to pass over them; of all kinds a Loss has the
        # fewest.
        return "Loss"


# -- whose code it is -------------------------------------------------------------------------------------------------


def from_keras(thing: Any) -> bool:
    """Return whether a class or function is Keras's own.

    Example:
        >>> class Mine(keras.layers.Dense):
        ...     pass
        >>> from_keras(keras.layers.Dense), from_keras(Mine), from_keras(Mine.call)
        (True, False, True)
    """
    return str(getattr(thing, "__module__", "")).split(".")[0] == "keras"


def own_methods(model: Any, names: Iterable[str]) -> list[str]:
    """Return those of the named methods that the class of a model defines itself, or takes from no class of Keras.

    Example:
        >>> class Mine(keras.Model):
        ...     def train_step(self, data):
        ...         return {}
        >>> own_methods(Mine(), ("train_step", "compute_loss"))
        ['train_step']
    """
    return [name for name in names if not from_keras(getattr(type(model), name))]


def is_operation(operation: Any) -> bool:
    """Return whether an operation is one of `keras.ops`, whose classes have no public names."""
    return type(operation).__module__.startswith("keras.src.ops.")


def is_of_applications(kind: type) -> bool:
    """Return whether a class is a layer that `keras.applications` has for its models only."""
    return kind.__module__.startswith("keras.src.applications.")


# -- layers and variables inside --------------------------------------------------------------------------------------


def layers_in(layer: Any, *, include_self: bool = True) -> list[Any]:
    """Return a layer and all layers inside it, at any depth, in the one order that Keras has for it and its copies."""
    return list(layer._flatten_layers(include_self=include_self, recursive=True))


def layers_of(layer: Any) -> list[Any]:
    """Return the layers that a layer holds itself, an InputLayer among them; not those inside these."""
    return list(layer._layers)


def own_variables(layer: Any) -> list[Any]:
    """Return the variables that a layer holds itself: those made as trainable, then the others."""
    return [*layer._trainable_variables, *own_state(layer)]


def own_state(layer: Any) -> list[Any]:
    """Return the variables of a layer's own that were made as not trainable; a frozen layer's weights are none."""
    return list(getattr(layer, "_non_trainable_variables", ()))


def random_states(layer: Any) -> list[Any]:
    """Return the states of the random generators that a layer holds itself."""
    return [generator.state for generator in getattr(layer, "_seed_generators", ())]


def global_seed() -> keras.Variable:
    """Return the state of the random generator that calls without a seed use."""
    state: keras.Variable = global_seed_generator().state
    return state


def built_shapes(layer: Any) -> dict[str, Any]:
    """Return the shapes that `build` was called with, by argument; none where it was not, or without shapes."""
    return dict(getattr(layer, "_build_shapes_dict", None) or {})


def first_shape(layer: Any) -> tuple[int | None, ...] | None:
    """Return the shape of the inputs that the first layer of a tf_keras Sequential was made for; None for another."""
    shape = getattr(layer, "_batch_input_shape", None)
    return None if shape is None else tuple(shape)


def takes_training(operation: Any) -> bool:
    """Return whether a layer's `call` is told whether it trains; operations of `keras.ops` are not."""
    return bool(getattr(operation, "_call_has_training_arg", False))


# -- Keras's list of them ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unlocked(layer: Any) -> Iterator[None]:
    """The scope in which a built layer takes other weights and layers."""
    tracker = layer._tracker
    locked = tracker.locked
    tracker.unlock()
    try:
        yield
    finally:
        if locked:
            tracker.lock()


def replace_record(layer: Any, old: Any, new: Any) -> None:
    """Put a layer or variable in another one's place in the lists that Keras has of what a layer holds."""
    tracker = layer._tracker
    for name, (_, store) in tracker.config.items():
        for i, one in enumerate(store):
            if one is old:
                store[i] = new
                tracker.stored_ids[name].discard(id(old))
                tracker.stored_ids[name].add(id(new))


def forget_weight(layer: Any, variable: Any) -> None:
    """Take a variable that no attribute holds out of the lists that Keras has of what a layer holds."""
    layer._tracker.untrack(variable)


# -- attention --------------------------------------------------------------------------------------------------------


def projection_of(attention: Any, name: str) -> Any:
    """Return the layer that makes "query", "key", "value" or "gate", or "output", of a built attention layer."""
    return getattr(attention, f"_{name}_dense")


def attention_axes(attention: Any) -> tuple[int, ...] | None:
    """Return the axes that an attention layer attends over; None: all but the first and the last."""
    axes = getattr(attention, "_attention_axes", None)
    return tuple(axes) if axes else None


def has_gate(attention: Any) -> bool:
    """Return whether an attention layer multiplies what it answers by a gate."""
    return bool(getattr(attention, "_use_gate", False) or getattr(attention, "use_gate", False))


# -- losses and metrics -----------------------------------------------------------------------------------------------


def loss_of_batch(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Return a compiled model's loss of a batch outside of training, with the losses that its layers add."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Return what one of Keras's losses hands on to its function, such as `from_logits`."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def metrics_given(model: Any) -> Any:
    """Return the metrics that `compile` was given, as they were given; None without."""
    return getattr(getattr(model, "_compile_metrics", None), "_user_metrics", None)
