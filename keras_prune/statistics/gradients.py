"""Gradients of a data set's loss with respect to targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_prune.keras_seam import layers_in
from keras_prune.scope import Target
from keras_prune.statistics.batches import Batch, Batches
from keras_prune.statistics.differentiation import gradient, hessian_product
from keras_prune.statistics.evaluation import batch_loss, check_compiled, raw_values, to_float64

__all__ = ["gradient_statistics", "loss_gradients"]

Array = npt.NDArray[np.float64]

_SUMMANDS: dict[str, Callable[[Array, int], Array]] = {
    "gradient": lambda g, size: g * size,
    "abs_gradient": lambda g, size: np.abs(g),
    "squared_gradient": lambda g, size: np.square(g),
}
FIRST_ORDER = frozenset(_SUMMANDS)


def gradient_statistics(
    model: keras.Model, targets: Sequence[Target], needs: frozenset[str], data: Any
) -> list[dict[str, Array]]:
    r"""Collect the kinds of gradient that `needs` names.

    With batches b of $n_b$ samples and $g_b$ the gradient of the mean loss of batch b: $\sum_b n_b g_b /
    \sum_b n_b$, which is the gradient of the mean loss over all samples; the plain means over batches of
    $|g_b|$ and $g_b^2$; and, in a second walk, $\sum_b n_b H_b \bar g / \sum_b n_b$ with $\bar g$ the first
    of these, the Hessian over all targets together.

    Returns:
        For each target, by the statistic's name, an array of the kernel's shape.
    """
    check_compiled(model)
    batches = Batches(data, model, labels=True)
    names = set(needs) | ({"gradient"} if "hessian_gradient" in needs else set())
    sums = {name: [np.zeros(tuple(t.variable.shape)) for t in targets] for name in names}
    samples, count = 0, 0
    for batch in batches:
        _, found = loss_gradients(model, batch, targets)
        for name in FIRST_ORDER & names:
            for total, g in zip(sums[name], found, strict=True):
                total += _SUMMANDS[name](g, batch.size)
        samples += batch.size
        count += 1
    for name in FIRST_ORDER & names:
        for total in sums[name]:
            total /= samples if name == "gradient" else count
    if "hessian_gradient" in needs:
        for batch in batches:
            products = _hessian_products(model, batch, targets, sums["gradient"])
            for total, product in zip(sums["hessian_gradient"], products, strict=True):
                total += product * (batch.size / samples)
    return [{name: sums[name][i] for name in sorted(needs)} for i in range(len(targets))]


def loss_gradients(model: keras.Model, batch: Batch, targets: Sequence[Target]) -> tuple[float, list[Array]]:
    """Return the loss of one batch and its gradient with respect to each target; the model stays as it is.

    A gradient has the shape of the target's kernel.

    Raises:
        ValueError: a gradient is NaN or infinite, with the target's path.
    """
    variables = [t.variable for t in targets]
    values = raw_values(variables)
    value, found = 0.0, []
    for scale in _loss_scales(model):
        scaled, gradients = gradient(_scaled_loss(model, batch, variables, scale), values)
        value, found = float(scaled) / scale, [to_float64(g) / scale for g in gradients]
        if _finite(found):
            break
    _check_finite(targets, found, f"gradient of the loss ({value:g})")
    return value, found


def _hessian_products(
    model: keras.Model, batch: Batch, targets: Sequence[Target], vectors: Sequence[Array]
) -> list[Array]:
    variables = [t.variable for t in targets]
    values = raw_values(variables)
    found: list[Array] = []
    for scale in _loss_scales(model):
        products = hessian_product(_scaled_loss(model, batch, variables, scale), values, vectors)
        found = [to_float64(p) / scale for p in products]
        if _finite(found):
            break
    _check_finite(targets, found, "product of Hessian and gradient")
    return found


def _scaled_loss(model: keras.Model, batch: Batch, variables: Sequence[keras.Variable], scale: float) -> Any:
    def scaled(values: Sequence[Any]) -> Any:
        return batch_loss(model, batch, list(zip(variables, values, strict=True))) * scale

    return scaled


def _loss_scales(model: keras.Model) -> tuple[float, ...]:
    """Factors to try on the loss: float16 gradients vanish below 6e-8, so lift them short of overflow."""
    half = any(layer.compute_dtype == "float16" for layer in layers_in(model))
    return (2.0**15, 2.0**10, 2.0**5, 1.0) if half else (1.0,)


def _finite(arrays: Sequence[Array]) -> bool:
    return all(np.isfinite(array).all() for array in arrays)


def _check_finite(targets: Sequence[Target], arrays: Sequence[Array], what: str) -> None:
    for target, array in zip(targets, arrays, strict=True):
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise ValueError(
                f"The {what} must be finite. Received: {wrong} of {array.size} values NaN or infinite at "
                f"{target.path!r}. "
                "Look for NaN in the data or the weights, or for a learning rate that made training diverge."
            )
