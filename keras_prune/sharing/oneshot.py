"""Weights that share values at once, without training."""

from __future__ import annotations

from typing import Any

import keras

from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.variables import assign
from keras_prune.scope import Scope
from keras_prune.sharing.choices import Choices
from keras_prune.sharing.starts import Start

__all__ = ["share"]


def share(
    model: keras.Model,
    values: int = 16,
    start: str | Start = "k-means++",
    *,
    granularity: str = "tensor",
    group_by: str = "value",
    data: Any = None,
    scope: Scope | None = None,
    seed: int = 0,
) -> keras.Model:
    r"""Let the weights of each tensor share a few values, in place, without training: $\min \sum_i (w_i - c_{k(i)})^2$.

    Zeros are a value of their own, one of the `values`, and stay 0, so prune first. A tensor that has no more values
    already keeps them. Nothing holds the values together in a later training: `WeightSharing` in `fit` trains them as
    they are.

    Args:
        model: a built model; compiled, for `group_by="gradient"`.
        values: the most values of a codebook, from 2 to 256, zero counted.
        start: where k-means begins, as for `WeightSharing`.
        granularity: "tensor" or "channel", as for `WeightSharing`.
        group_by: "value" or "gradient", as for `WeightSharing`.
        data: what gradients are taken on.
        scope: which tensors; None for all kernels.
        seed: for starts that draw at random.

    Returns:
        The same model.

    Raises:
        ValueError: a choice is none of those that there are; the model is not built, nothing is there to share, or
            weights are not finite. Then nothing is changed.
        ImportError: scikit-learn is not installed; the message has the command.

    Source: Han et al. 2016, "Deep Compression", section 3.1.

    Example:
        >>> import numpy as np
        >>> import keras_prune as kp
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
        >>> weights = kp.share(kp.prune(model, 0.5), 16).get_weights()[0]
        >>> len(np.unique(weights)), float((weights == 0).mean())
        (16, 0.5)
    """
    choices = Choices.of("share", values, start, granularity, group_by, data, scope, seed)
    refuse_keras2("share", model)
    targets, _ = choices.survey(model)
    # All of them before the first is written: nothing is changed where one is refused.
    codebooks = choices.codebooks(model, targets)
    for target, codebook in zip(targets, codebooks, strict=True):
        assign(target.variable, codebook.expand())
    return model
