"""Statistics of batch normalisation, estimated again on data: what pruning moved, put right without training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
from keras import layers as kl

from keras_prune.keras_seam.layers import layers_in
from keras_prune.models.attributes import replaced
from keras_prune.models.variables import assign, read
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import outputs

__all__ = ["recalibrate"]


def recalibrate(model: keras.Model, data: Any) -> keras.Model:
    r"""Estimate the moving means and variances of a model's batch normalisations again, in place, from data.

    The data goes through the model once. Each BatchNormalization normalises by the statistics of the batch, as in
    training, and ends with their mean over all batches, $\mu = \frac{1}{B} \sum_b \mu_b$, likewise the variance.
    All other layers, Dropout among them, work as at inference. What is frozen (`trainable=False`) keeps its statistics.

    Args:
        model: built.
        data: inputs, or batches of them; labels are not looked at. Batches that come as such stay as they are: give
            them the size that the model was trained with. An array is cut into batches of 32.

    Returns:
        The same model.

    Raises:
        ValueError: the data does not fit the model, or is empty. The model is as it was before.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), kl.BatchNormalization()])
        >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
        >>> recalibrate(model, x).layers[0].moving_mean.numpy()
        array([ 2., 20.], dtype=float32)
    """
    found = [one for one in layers_in(model) if isinstance(one, kl.BatchNormalization) and one.trainable]
    before = [(v, read(v).copy()) for one in found for v in (one.moving_mean, one.moving_variance)]
    try:
        with contextlib.ExitStack() as undo:
            for layer in found:
                undo.enter_context(replaced(layer, "call", _as_in_training(layer.call)))
            for number, batch in enumerate(Batches(data, model, labels=False)):
                # The mean of all batches so far: new = old * n / (n + 1) + batch / (n + 1).
                with contextlib.ExitStack() as share:
                    for layer in found:
                        share.enter_context(replaced(layer, "momentum", number / (number + 1)))
                    outputs(model, batch.x)
    except BaseException:
        for variable, value in before:
            assign(variable, value)
        raise
    return model


def _as_in_training(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": True})

    return run
