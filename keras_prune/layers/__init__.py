"""Layers that carry their mask: a wrapper for any layer with kernels, and ready-made variants of Keras's own.

Their mask is a weight like any other: it is saved in `.keras` and `.weights.h5` files and comes back with them, and
`keras.saving.load_model` needs no `custom_objects` once `keras_prune` is imported.
"""

from keras_prune.layers.gated import Gated
from keras_prune.layers.masking import MaskedLayer
from keras_prune.layers.prunable import Prunable
from keras_prune.layers.variants import (
    VARIANTS,
    PrunableConv1D,
    PrunableConv2D,
    PrunableDense,
    PrunableDepthwiseConv2D,
    PrunableEmbedding,
    PrunableGRU,
    PrunableLSTM,
    PrunableMultiHeadAttention,
)

__all__ = [
    "VARIANTS",
    "Gated",
    "MaskedLayer",
    "Prunable",
    "PrunableConv1D",
    "PrunableConv2D",
    "PrunableDense",
    "PrunableDepthwiseConv2D",
    "PrunableEmbedding",
    "PrunableGRU",
    "PrunableLSTM",
    "PrunableMultiHeadAttention",
]
