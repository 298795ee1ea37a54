"""The statistics that criteria declare, collected from data or from the model, which is left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.scope import Target
from keras_prune.statistics.gradients import gradient_statistics
from keras_prune.statistics.kernel_inputs import input_statistics
from keras_prune.statistics.pruned_alone import loss, sensitivity_curves
from keras_prune.statistics.synaptic_flow import synaptic_flow
from keras_prune.statistics.walks import kept

__all__ = ["collect", "loss", "sensitivity_curves"]

GRADIENTS = frozenset({"gradient", "abs_gradient", "squared_gradient", "hessian_gradient"})
INPUTS = frozenset({"input_norm", "input_mean"})
WITHOUT_DATA = frozenset({"synflow", "seed"})
KNOWN = GRADIENTS | INPUTS | WITHOUT_DATA


def collect(model: keras.Model, targets: Sequence[Target], needs: frozenset[str], data: Any) -> list[dict[str, Any]]:
    r"""Return what `needs` names for each target, in inference mode and with nothing in the model changed.

    | statistic | value | cost |
    | --- | --- | --- |
    | "gradient" | gradient of the mean loss over all samples | a pass forward and back |
    | "abs_gradient", "squared_gradient" | plain mean over batches of $\|g\|$, $g^2$ | the same pass |
    | "hessian_gradient" | $H g$ of the mean loss over all samples | a second walk, forward and twice back |
    | "synflow" | $\partial R / \partial \|w\|$, up to one factor for the whole model | one sample, no data |
    | "input_norm", "input_mean" | $\sqrt{\sum a^2}$, mean $\|a\|$ over samples, positions | a pass forward |
    | "seed" | `target.index` | none |

    Args:
        model: built, and compiled with a loss where gradients are needed. On the JAX backend, in the middle
            of `fit`, call `model.jax_state_sync()` first.
        targets: the tensors, as `Scope.survey` found them.
        needs: names, as criteria declare them.
        data: `(x, y)` or `(x, y, sample_weight)` as arrays, which are cut into batches of 32; a
            `tf.data.Dataset`, a PyDataset or another iterable of batches. For inputs alone, also x without y.

    Returns:
        For each target a mapping from name to a float32 array that has the kernel's shape, or broadcasts to
        it.

    Raises:
        ValueError: a statistic is unknown or comes from training only, data is missing or does not fit, the
            model has no loss, a gradient is not finite, or a target's input cannot be told.

    Example:
        >>> from keras_prune.scope import Scope
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> targets = Scope().survey(model).targets
        >>> [found] = collect(model, targets, frozenset({"input_norm"}), np.array([[3.0, 0.0], [4.0, 1.0]]))
        >>> found["input_norm"]
        array([[5.],
               [1.]], dtype=float32)
    """
    needs = frozenset(needs)
    _check(needs, data)
    data = kept(data)  # walked once for each kind of statistic
    found: list[dict[str, Any]] = [{} for _ in targets]
    if "seed" in needs:
        _merge(found, [{"seed": target.index} for target in targets])
    if needs & GRADIENTS:
        _merge(found, gradient_statistics(model, targets, needs & GRADIENTS, data))
    if needs & INPUTS:
        _merge(found, input_statistics(model, targets, needs & INPUTS, data))
    if "synflow" in needs:
        _merge(found, [{"synflow": flow} for flow in synaptic_flow(model, targets, data)])
    return found


def _check(needs: frozenset[str], data: Any) -> None:
    if "movement" in needs:
        raise ValueError(
            "Movement is gathered in training only, step by step: no pass over data gives it. Received: "
            "needs=['movement'] outside of training. Use the criterion in a callback of model.fit, without "
            "data."
        )
    unknown = sorted(needs - KNOWN)
    if unknown:
        raise ValueError(f"Unknown statistics: {unknown}. Known ones: {sorted(KNOWN | {'movement'})}")
    of_data = sorted(needs - WITHOUT_DATA)
    if of_data and data is None:
        raise ValueError(
            f"{of_data} are computed from data. Received: data=None. Give the criterion some, such as "
            f"criterion(data=(x, y))."
        )


def _merge(found: list[dict[str, Any]], more: Sequence[dict[str, Any]]) -> None:
    for into, values in zip(found, more, strict=True):
        into.update({k: v if isinstance(v, int) else np.asarray(v, dtype=np.float32) for k, v in values.items()})
