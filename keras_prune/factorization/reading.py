"""What kernels read on data, summed as Gram matrices, and what a choice of factors loses on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_prune.factorization.chains import Array, Decomposition
from keras_prune.models.attributes import replaced
from keras_prune.reconstruction.linear import LinearMap, linear_map
from keras_prune.scope import Target
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import forward

__all__ = ["grams_of", "on_data"]

ROWS = 8_192
"""Windows of a batch that are looked at, at most, at equal distances."""
CHOICES = 24
"""Ranks of a form whose loss on data is computed one by one."""


def grams_of(model: keras.Model, targets: Sequence[Target], data: Any) -> dict[int, Array]:
    r"""Return $\sum x x^T$ of what each kernel reads, `[window x in, window x in]`, by the variable's id.

    Args:
        model: built; it runs in inference mode.
        targets: kernels of Dense layers and convolutions.
        data: inputs, or batches of them; labels are not looked at.
    """
    sums: dict[int, Array] = {}
    with contextlib.ExitStack() as stack:
        for target in targets:
            found = linear_map(target.layer, target.variable)
            assert found is not None
            stack.enter_context(replaced(target.layer, "call", _watched(target, found, sums)))
        for batch in Batches(data, model, labels=False):
            forward(model, batch.x)
    unseen = [target.path for target in targets if id(target.variable) not in sums]
    if unseen:
        raise ValueError(f"factorize: no call of the layers of {unseen} was seen on data. Leave them out by scope=.")
    return sums


def _watched(target: Target, found: LinearMap, sums: dict[int, Array]) -> Callable[..., Any]:
    layer: Any = target.layer
    call, key = layer.call, id(target.variable)

    def some(number: int) -> slice:
        return slice(None, None, -(-number // ROWS))

    def watched(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        x = np.asarray(ops.convert_to_numpy(ops.cast(inputs, "float32")))
        rows = found.rows(x, some)[:, 0].astype(np.float64)
        sums[key] = sums.get(key, 0.0) + rows.T @ rows
        return call(inputs, *args, **kwargs)

    return watched


def on_data(form: Decomposition, kernel: Array, gram: Array) -> Decomposition:
    r"""Let a form's losses be those on data, $\|C^{1/2} (W - W')\|^2 / \|C^{1/2} W\|^2$, for some of its ranks.

    Args:
        form: what it loses of the kernel is known; at most `CHOICES` of its ranks stay, at all levels of that.
        kernel: `[window..., in, out]`.
        gram: C.
    """
    order = np.lexsort((form.lost, form.macs))
    least = np.minimum.accumulate(form.lost[order])
    best = order[np.append(True, least[1:] < least[:-1])]
    rows = best[np.unique(np.linspace(0, len(best) - 1, CHOICES).round().astype(int))]
    form.ranks, form.params, form.macs = form.ranks[rows], form.params[rows], form.macs[rows]
    flat = kernel.reshape(-1, kernel.shape[-1])
    whole = np.einsum("io,ij,jo->", flat, gram, flat, optimize=True)
    losses = []
    for ranks in form.ranks.tolist():
        gone = flat - form.approximation(ranks).reshape(flat.shape)
        losses.append(np.einsum("io,ij,jo->", gone, gram, gone, optimize=True) / whole if whole else 0.0)
    form.lost = np.maximum(losses, 0.0)
    return form
