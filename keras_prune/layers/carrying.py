"""What a layer holds besides its weights, given to its copy: tables, adapted statistics, states of random generators.

A configuration and weights are not all of a layer. A lookup keeps a table, a `Normalization` constants that it makes
from its weights once, a layer of the user's own whatever `adapt` left on it. Every rewrite of the library makes layers
again from their configurations, fills in the weights, and then calls `carry_state`.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.keras_seam import built_shapes, from_keras, layers_in, random_states
from keras_prune.layer_kinds import Held, held_by
from keras_prune.models.variables import read

__all__ = ["carry_attributes", "carry_state"]

Pair = tuple[Any, Any]
Indices = Callable[[keras.Variable], tuple[Any, ...]]


def carry_attributes(old: Any, new: Any) -> None:
    """Give a copy that was just made the attributes of a layer's own that it lacks, before it is called.

    Its `call` may read what `adapt` has left on the layer. What differs, `carry_state` sets later.

    Args:
        old: a layer.
        new: made from its configuration, of the same widths.
    """
    pairs = [*_pairs(old, new)] if len(_bare(old)) == len(_bare(new)) else [(old, new)]
    for source, target in pairs:
        if _is_users(source):
            _carry_attributes(source, target, lacking=True)


def carry_state(old: Any, new: Any, indices: Indices | None = None) -> None:
    """Give a copy what a layer holds besides its weights, and what the layers inside it hold.

    In this order: states of random generators and of stateful recurrent layers; tables of lookups; attributes of the
    user's own that hold plain data; what `save_assets` and `save_own_variables` write; what `finalize_state` computes.

    Args:
        old: a built layer; it stays as it is. Layers that hold masks are passed over.
        new: made from its configuration, built, with its weights; some may be cut. A layer with cut weights gets no
            attributes, since these may follow from the widths.
        indices: for each axis of a variable of `old`, which indices stay, None for all; by default none is cut.

    Raises:
        ValueError: a method of the layer's own fails, or the copy holds other layers (with the layer and the reason).

    Example:
        >>> old, new = keras.layers.Normalization(), keras.layers.Normalization()
        >>> old.adapt(np.array([[1.0], [3.0]]))
        >>> new.build((None, 1))
        >>> new.set_weights(old.get_weights())
        >>> carry_state(old, new)
        >>> float(new(np.array([[3.0]]))[0, 0])
        1.0
    """
    for source, target in reversed([*_pairs(old, new)]):  # what a layer makes may come from those inside it
        try:
            _carry(source, target, indices)
        except Exception as error:
            raise ValueError(
                f"{type(source).__name__} {source.name!r} holds state besides its weights that its copy cannot take "
                f"over ({type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}). Check its save_assets, "
                "load_assets, save_own_variables, load_own_variables and finalize_state."
            ) from error


def _pairs(old: Any, new: Any) -> Iterator[Pair]:
    """A layer and its copy, then the layers inside, in the one order that Keras has for both."""
    sources, targets = _bare(old), _bare(new)
    if len(sources) != len(targets):
        raise ValueError(
            f"{type(old).__name__} {old.name!r} holds {len(sources) - 1} layers, but rebuilt from its configuration it "
            f"holds {len(targets) - 1}: its get_config() leaves something out, or its build() makes layers anew."
        )
    yield from zip(sources, targets, strict=True)


def _bare(layer: Any) -> list[Any]:
    """A layer and those inside, in Keras's order, without those that hold masks."""
    return [one for one in layers_in(layer) if not _holds_masks(one)]


def _holds_masks(layer: Any) -> bool:
    """Whether a layer is one that pruning put around another or into it, so that the copy has none such."""
    from keras_prune.layers import Prunable
    from keras_prune.layers.masking import Masks

    return isinstance(layer, Prunable | Masks)


def _carry(old: Any, new: Any, indices: Indices | None) -> None:
    for source, target in zip(random_states(old), random_states(new), strict=False):
        target.assign(read(source))
    held = held_by(old)
    if held is Held.STATES and old.stateful:
        _carry_steps(old, new, indices)
    whole = _is_users(old) and _is_whole(old, new)
    if held is Held.TABLE:
        _carry_table(old, new)
    if whole:
        _carry_attributes(old, new)
    if _defines(old, "save_assets") and _defines(old, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    if _defines(old, "save_own_variables") and _defines(old, "load_own_variables"):
        new.load_own_variables(_own_variables(old, new))
    if held is Held.BOUNDARIES:
        # Its summary is not saved by Keras, so what it would compute from it may be less than it holds.
        new.summary, new.bin_boundaries = old.summary, old.bin_boundaries
    elif new.built and hasattr(new, "finalize_state"):
        new.finalize_state()
        if whole:
            _carry_attributes(old, new)  # what it has just computed anew, perhaps from less than the layer had


def _defines(layer: Any, method: str) -> bool:
    """Whether a layer's class has a method that is not Keras's: those of Keras write variables, and nothing else."""
    owner = next((base for base in type(layer).__mro__ if method in vars(base)), None)
    return owner is not None and not from_keras(owner)


def _is_users(layer: Any) -> bool:
    return type(layer).__module__.split(".")[0] not in ("keras", "keras_prune")


def _is_whole(old: Any, new: Any) -> bool:
    """Whether nothing is cut: neither a weight nor an input; a size that is open in one model may be any."""
    weights = [[tuple(v.shape) for v in layer.variables] for layer in (old, new)]
    sizes = [keras.tree.flatten(built_shapes(layer)) for layer in (old, new)]
    differ = any(a != b for a, b in zip(*sizes, strict=False) if a is not None and b is not None)
    return weights[0] == weights[1] and not differ


def _carry_table(old: Any, new: Any) -> None:
    """Give a lookup the words of another, and their frequencies."""
    words = old.get_vocabulary()
    if words == new.get_vocabulary() or not old.get_vocabulary(include_special_tokens=False):
        return
    weights = old.idf_weights_const.numpy() if old.output_mode == "tf_idf" else None
    if weights is not None:
        new.load_own_variables({"idf_weights": weights})  # makes the variable, which `set_vocabulary` expects
    new.set_vocabulary(words, weights)


def _carry_steps(old: Any, new: Any, indices: Indices | None) -> None:
    """Give a recurrent layer the state that another one has reached; state j is that of unit j."""
    cells = getattr(old.cell, "cells", None)
    states, targets = old.states or [], new.states or []
    for place, (source, target) in enumerate(zip(states, targets, strict=True)):
        for one, to in zip(keras.tree.flatten(source), keras.tree.flatten(target), strict=True):
            value = np.array(read(one))
            cell = old.cell if cells is None else cells[place]
            stays: Any = None if indices is None else indices(cell.recurrent_kernel)[-2]
            axis = next((i for i, (a, b) in enumerate(zip(value.shape, to.shape, strict=True)) if a != b), None)
            to.assign(value if axis is None else np.take(value, stays, axis))


class _Store(dict[str, Any]):
    """Takes what a layer saves, as a file does: variables and tensors as arrays."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, keras.Variable):
            value = read(value)
        super().__setitem__(key, np.array(ops.convert_to_numpy(value) if ops.is_tensor(value) else value))


def _own_variables(old: Any, new: Any) -> _Store:
    """What a layer saves, with the values of the copy where it saves a variable: they may be cut."""
    store = _Store()
    old.save_own_variables(store)
    pairs = [(read(a), read(b)) for a, b in zip(old.variables, new.variables, strict=True)]
    for key, value in store.items():
        match = next((i for i, (source, _) in enumerate(pairs) if np.array_equal(source, value)), None)
        if match is not None:
            store[key] = pairs.pop(match)[1]
    return store


def _carry_attributes(old: Any, new: Any, *, lacking: bool = False) -> None:
    """Set attributes of the user's own that hold plain data and differ, and such as the copy lacks (or these only)."""
    for name, value in vars(old).items():
        if name in _attributes_of_keras():
            continue
        there = vars(new).get(name)
        if lacking and there is not None:
            continue
        if _is_data(value):
            if not _equal(value, there):
                setattr(new, name, _plain(value))
        elif there is None and not isinstance(old, keras.Model) and not _is_tracked(value):
            setattr(new, name, _copied(value))


@functools.cache
def _attributes_of_keras() -> frozenset[str]:
    """Names that Keras itself keeps on layers and models, trained ones too."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    model.compile("sgd", "mse")
    functional = keras.Model(model.inputs, model.outputs)
    names = {name for one in (model, functional, *model.layers) for name in vars(one)}
    return frozenset(names | {"history", "train_function", "test_function", "predict_function"})


def _is_data(value: Any) -> bool:
    """Whether a value is made of numbers, text and arrays only."""
    if isinstance(value, Mapping):
        return all(_is_data(entry) for entry in (*value.keys(), *value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_data(entry) for entry in value)
    if isinstance(value, keras.Variable | keras.KerasTensor):
        return False
    known = (type(None), bool, int, float, complex, str, bytes, np.ndarray, np.generic)
    return isinstance(value, known) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    # A variable of TensorFlow's is a tensor to Keras, too.
    return bool(ops.is_tensor(value)) and not hasattr(value, "assign")


def _is_tracked(value: Any) -> bool:
    """Whether Keras tracks a value, or it holds something that Keras does: its copy is made by the layer itself."""
    if isinstance(value, Mapping):
        return any(_is_tracked(entry) for entry in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_is_tracked(entry) for entry in value)
    kinds = (keras.Variable, keras.KerasTensor, keras.Operation, keras.optimizers.Optimizer, keras.metrics.Metric)
    return isinstance(value, kinds)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray | np.generic) or _is_tensor(a):
        if b is None or not hasattr(b, "shape"):
            return False
        a, b = (np.asarray(ops.convert_to_numpy(x) if _is_tensor(x) else x) for x in (a, b))
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    return bool(type(a) is type(b) and a == b)


def _plain(value: Any) -> Any:
    """A copy of plain data, in which the containers are not those that Keras tracks."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, tuple):
        parts = [_plain(entry) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return np.array(value) if isinstance(value, np.ndarray) else copy.copy(value)


def _copied(value: Any) -> Any:
    """A copy of an object; the object itself where it cannot be copied, as a table of TensorFlow cannot."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value
