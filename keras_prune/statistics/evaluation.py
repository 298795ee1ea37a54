r"""A model as a pure function: weights and a batch -> outputs or loss, with nothing in the model changed.

Everything runs in `keras.StatelessScope`: what a layer, a loss or a metric assigns (statistics of
BatchNormalization, states of stateful recurrent layers, seeds, trackers) is dropped when the scope ends, and
weights to be tried are mapped, never assigned. So the model needs no restoring, in the middle of `fit` or
after an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.keras_seam import loss_of_batch, takes_training
from keras_prune.statistics.batches import Batch

__all__ = ["batch_loss", "check_compiled", "outputs", "raw_values"]

Mapping = Sequence[tuple[keras.Variable, Any]]


def raw_values(variables: Sequence[keras.Variable]) -> list[Any]:
    """Return the values as plain tensors, which a derivative can be taken by."""
    return [ops.copy(ops.convert_to_tensor(v.value)) for v in variables]


def outputs(model: keras.Layer, x: Any) -> Any:
    """Return the model's outputs in inference mode; call inside a StatelessScope."""
    return model(x, training=False) if takes_training(model) else model(x)


def forward(model: keras.Layer, x: Any, weights: Mapping = ()) -> Any:
    """Return the outputs in inference mode with `weights` in the place of the model's own."""
    with _replicas(model), keras.StatelessScope(list(weights)):
        return outputs(model, x)


def check_compiled(model: keras.Layer) -> None:
    """Refuse a model without a loss."""
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"The loss of {type(model).__name__} {model.name!r} is needed, and the model is not compiled. "
            "Call model.compile(loss=...) first, with the loss that it is trained on."
        )


def batch_loss(model: keras.Model, batch: Batch, weights: Mapping = ()) -> Any:
    """Return the loss on one batch in inference mode, with `weights` in the place of the model's own.

    It is `model.compute_loss`, regularisers and `add_loss` included. Inference mode, because a score should
    not depend on what Dropout happened to draw, and BatchNormalization is to be judged as it will run.

    Raises:
        ValueError: the model's loss does not take this batch; the cause is chained.
    """
    # Layer._get_regularization_losses finds a variable in the scope only if it is mapped.
    mapping = [(v, v.value) for v in model.trainable_variables if v.regularizer is not None]
    with _replicas(model) as replicas, keras.StatelessScope(mapping + list(weights), collect_losses=True):
        try:
            y_pred = outputs(model, batch.x)
            _check_loss(model)
            loss = loss_of_batch(model, batch.x, batch.y, y_pred, batch.sample_weight)
        except Exception as error:
            raise ValueError(
                f"The loss of {model.name!r} cannot be computed on this batch. Received: {batch}. "
                f"{type(error).__name__}: {str(error).strip()}"
            ) from error
        return ops.cast(loss, "float32") * replicas


def _check_loss(model: keras.Model) -> None:
    """Refuse what the JAX trainer lets pass: no loss at all, whose gradient is zero everywhere."""
    own = type(model).compute_loss is not keras.Model.compute_loss
    if not own and getattr(model, "loss", None) is None and not model.losses:
        raise ValueError("No loss to compute. Compile the model with a loss: model.compile(loss=...).")


@contextlib.contextmanager
def _replicas(model: keras.Layer) -> Any:
    """The scope of the model's tf.distribute strategy, and its replicas, by which Keras divides losses.

    Variables that a loss or metric makes when it is first called have to be made in that scope.
    """
    strategy = getattr(model, "distribute_strategy", None) if keras.backend.backend() == "tensorflow" else None
    if strategy is None:
        yield 1
    else:
        with strategy.scope():
            yield strategy.num_replicas_in_sync


def to_float64(tensor: Any) -> npt.NDArray[np.float64]:
    """Return a tensor as an array of the same shape in double precision, for sums."""
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")), dtype=np.float64)
