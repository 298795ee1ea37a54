"""`Prunable(layer)`: any layer with kernels, with masks."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_prune.keras_seam import layers_in
from keras_prune.layers.around import Around
from keras_prune.layers.masking import MaskedLayer, Masks
from keras_prune.models.keras2 import refuse_keras2

__all__ = ["Prunable"]


@keras.saving.register_keras_serializable(package="keras_prune")
class Prunable(MaskedLayer, Around):
    """Runs a layer with its kernels masked: $w_i$ where the mask is on, 0 elsewhere.

    Each kernel gets a mask, a non-trainable boolean weight of the kernel's shape, all ones at first. Which variables
    are kernels is decided as everywhere in the library (`keras_prune.Scope`), at any depth inside the layer. A pruning
    callback sets the masks, or `set_masks` does; the kernels themselves keep their values until `keras_prune.strip`.

    Masks cost one byte a weight, and the forward pass one selection a kernel. An `Embedding` pays more: its gradient
    becomes dense, as large as the table.

    Args:
        layer: the layer to wrap; if it is built, its weights are kept. Not one that holds masks already.
        straight_through: pass the gradient of a masked weight on as if it were not masked, $∂L/∂w = ∂L/∂(w m)$, so that
            masked weights go on learning and may come back. By default their gradient is 0.
        **kwargs: what any Keras layer takes; `dtype` is the wrapped layer's.

    Call arguments: those of the wrapped layer.

    Raises:
        ValueError: on construction or when built, the layer has no kernel, or holds masks already.

    A wrapper that makes its own copies of a recurrent layer comes outside: `Prunable(Bidirectional(LSTM(8)))`, or
    `Bidirectional(PrunableLSTM(8))`.

    Example:
        >>> layer = Prunable(keras.layers.Dense(2, use_bias=False, kernel_initializer="ones"))
        >>> layer.build((None, 3))
        >>> layer.set_masks([[[1, 0], [1, 0], [0, 0]]])
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 3)))).tolist()
        [[2.0, 0.0]]
        >>> round(layer.sparsity, 3)
        0.667
    """

    def __init__(self, layer: keras.Layer, straight_through: bool = False, **kwargs: Any) -> None:
        refuse_keras2("Prunable", layer)
        if isinstance(layer, keras.Layer):
            self._check_unmasked(layer)
        super().__init__(layer, **kwargs)
        self.straight_through = bool(straight_through)
        self._masks = Masks(name="masks", dtype=layer.dtype_policy)
        if layer.built:
            self.build()

    def _check_unmasked(self, layer: keras.Layer) -> None:
        for inner in layers_in(layer):
            if isinstance(inner, MaskedLayer):
                raise ValueError(
                    f"{type(self).__name__} wraps a layer without masks. Received: {type(layer).__name__} "
                    f"{layer.name!r}, in which {inner._subject} has masks of its own. "
                    "Use it as it is, or wrap the plain Keras layer."
                )

    def build_around(self) -> None:
        """Make the masks."""
        if not self._masks.built:
            self._make_masks(self.layer)

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which the layer's kernels read as masked."""
        return self._masked_kernels(self.layer)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "straight_through": self.straight_through}
