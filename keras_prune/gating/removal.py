"""A model without the channels that no sample opens."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.arrays.union_find import OPAQUE
from keras_prune.gating.opened import Opened, gated_layers, opened_gates
from keras_prune.keras_seam import layers_in
from keras_prune.layers.gated import Gated
from keras_prune.models.agreement import check_agreement
from keras_prune.models.masked_layers import HoldsMasks
from keras_prune.statistics.batches import Batches
from keras_prune.structured.analysis.groups import Analysis, Keep, Slot, analyse
from keras_prune.structured.surgery.shrink import reading_axes, rebuild_bare, refuse_masks

__all__ = ["remove_closed"]


def remove_closed(model: keras.Model, data: Any) -> keras.Model:
    """Return a smaller model without the channels that no sample of `data` opens; it answers the same on the data.

    A channel that is closed is 0. So what it is multiplied by in the next layer may go with it, and so may its logit.
    It answers as before wherever none of these channels would have opened, which is known of the data only.

    A channel stays where its removal would change answers: where a layer makes something else of its zeros before they
    are multiplied (the offset of a batch normalisation, a sigmoid), where it is added to a channel that is open, and as
    the last one of a layer. A warning names the layers, and why.

    Args:
        model: built, with `Gated` layers and without masks (`keras_prune.strip` takes those off); it stays as it is.
        data: inputs in any form that `fit` takes, those that the model is made for; labels are not read.

    Returns:
        A new model; the optimizer's moments are sliced, settings of `compile` kept.

    Raises:
        TypeError: it is no Keras model.
        ValueError: no layer has gates, or masks are on a variable, or no closed channel can go (with the reasons).

    Warns:
        UserWarning: channels that are closed on all samples stay.

    Example:
        >>> from keras_prune.layers import Gated
        >>> layer = Gated(keras.layers.Dense(3), hidden=1)
        >>> model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
        >>> layer.head.logit_bias.assign([-9.0, 9.0, 9.0]).shape
        TensorShape([3])
        >>> remove_closed(model, np.ones((8, 4))).layers[0].layer.units
        2
    """
    opened, _ = opened_gates("remove_closed", model, data)
    refuse_masks(model, set())
    if any(isinstance(layer, HoldsMasks) for layer in layers_in(model)):
        raise ValueError(f"remove_closed: layers of {model.name!r} hold masks. Take them off first: kp.strip(model).")
    analysis = analyse(model)
    closed = [(layer, _never(gates)) for layer, gates in zip(gated_layers("remove_closed", model), opened, strict=True)]
    gone, kept = _removable(analysis, closed)
    number = sum(int(never.sum()) for _, never in closed)
    words = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
    if not gone.any():
        raise ValueError(
            f"remove_closed: of the channels of {model.name!r} {number} are closed on all samples, and none can be "
            f"removed{': ' + words if words else '. Train it to a smaller share'}."
        )
    if kept:
        warnings.warn(f"remove_closed: channels that are closed on all samples stay: {words}.", stacklevel=2)
    smaller = rebuild_bare(model, analysis, ~gone)
    # `rebuild` has compared it with the model whose removed units are 0; here they had weights.
    check_agreement("remove_closed", model, smaller, inputs=next(iter(Batches(data, model, labels=False))).x)
    return smaller


def _never(opened: Opened) -> npt.NDArray[np.bool_]:
    """Which channels are open in no call for any sample."""
    return np.asarray(~np.concatenate(opened).any(axis=0))


def _removable(analysis: Analysis, closed: list[tuple[Gated, npt.NDArray[np.bool_]]]) -> tuple[Keep, dict[str, str]]:
    """For each unit whether it is 0 on all samples wherever it is read; and why closed channels stay, by path."""
    gone, why = np.zeros(analysis.size, bool), np.full(analysis.size, "", object)
    logits: dict[int, tuple[Slot, npt.NDArray[np.bool_]]] = {}
    for layer, never in closed:
        slot = analysis.slot_of(layer.head.logit_bias, 0)
        if slot is not None:
            logits[id(layer)] = (slot, never)
            gone[slot.units[np.logical_and(never, slot.units >= 0)]] = True
    for layer, never in closed:
        if id(layer) in logits:
            slot = logits[id(layer)][0]
            _keep(gone, why, slot.units[~never], f"{slot.path} opens it, or a channel that goes with it")
    mine = {id(variable) for layer, _ in closed for variable in layer.weights}
    readers = reading_axes(analysis) | {(id(layer.head.hidden_kernel), 0) for layer, _ in closed}
    for slot in analysis.slots:
        variable = slot.variable
        if variable is not None and id(variable) not in mine and (id(variable), slot.axis) not in readers:
            _keep(gone, why, slot.units, f"{slot.path} has a {variable.name} for it")
    for node in analysis.graph.walk():
        if node.body is None:
            for entry in (entry for dims in analysis.inputs_of[id(node)] for entry in dims if entry is not None):
                if not entry.zero:
                    _keep(gone, why, analysis.units_of(entry.labels), f"{node.path} reads it as something else than 0")
    for group in analysis.groups:
        if gone[group.start : group.stop].all():
            _keep(gone, why, np.array([group.start]), "it is the last one")
    kept = {}
    for layer, never in closed:
        slot = logits.get(id(layer), (None, never))[0]
        stay = [] if slot is None else [unit for unit in slot.units[never] if unit < 0 or not gone[unit]]
        if never.any() and (slot is None or stay):
            known = next((str(why[unit]) for unit in stay if unit >= 0 and why[unit]), "")
            kept[layer.name if slot is None else slot.path] = known or _reason(analysis, layer)
    return gone, kept


def _keep(gone: Keep, why: npt.NDArray[Any], units: npt.NDArray[np.int64], reason: str) -> None:
    units = units[units >= 0]
    why[units[gone[units]]] = reason
    gone[units] = False


def _reason(analysis: Analysis, layer: Gated) -> str:
    """Why all channels of a layer stay."""
    node = next(node for node in analysis.graph.walk() if node.operation is layer)
    entries = [entry for entry in analysis.effects[id(node)].outputs[0] if entry is not None]
    labels = entries[-1].labels if entries else np.zeros(0, np.int64)
    unknown = next((one.reason for one in analysis.skipped if one.path == node.path), "they go with its input's")
    return analysis.reason(labels) if (labels > OPAQUE).any() else unknown
