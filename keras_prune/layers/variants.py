"""Keras layers that carry their own masks: drop-in replacements, with one argument more."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, TypeVar

import keras

from keras_prune.keras_seam import auto_name
from keras_prune.layers.masking import MaskedLayer, Masks

__all__ = [
    "PrunableConv1D",
    "PrunableConv2D",
    "PrunableDense",
    "PrunableDepthwiseConv2D",
    "PrunableEmbedding",
    "PrunableGRU",
    "PrunableLSTM",
    "PrunableMultiHeadAttention",
]


class Variant(MaskedLayer):
    """A Keras layer with masks: its base class's constructor and call, and `straight_through`.

    Layers without a name are called as the plain layer would be, so that the paths of weights are the same.
    """

    plain: ClassVar[type]
    """The Keras layer that it becomes when it is stripped."""

    def __init__(self, *args: Any, straight_through: bool = False, **kwargs: Any) -> None:
        if kwargs.get("name") is None:
            kwargs["name"] = auto_name(self.plain.__name__)
        super().__init__(*args, **kwargs)
        self.straight_through = bool(straight_through)
        self._masks = Masks(name="masks", dtype=self.dtype_policy)  # type: ignore[attr-defined]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return {**config, "straight_through": self.straight_through}

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Refuse: the kernels that the masks belong to would be replaced."""
        self._masks.quantize(mode, **kwargs)


V = TypeVar("V", bound=type)

VARIANTS: dict[type, type] = {}
"""Variant -> the plain Keras layer."""


def _variant(cls: V) -> V:
    """Give a class `build` and `call` with the signatures of its Keras base, by which Keras finds their arguments."""
    plain: Any = cls.__bases__[-1]

    @functools.wraps(plain.build)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        plain.build(self, *args, **kwargs)
        self._make_masks(self)

    @functools.wraps(plain.call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._masked_kernels(self):
            return plain.call(self, *args, **kwargs)

    methods: dict[str, Any] = {"build": build, "call": call, "plain": plain}
    for name, method in methods.items():
        setattr(cls, name, method)
    VARIANTS[cls] = plain
    return keras.saving.register_keras_serializable(package="keras_prune")(cls)


@_variant
class PrunableDense(Variant, keras.layers.Dense):
    """`keras.layers.Dense` with a masked kernel.

    Args:
        *args: as for `keras.layers.Dense`.
        straight_through: let masked weights go on learning (see `Prunable`).
        **kwargs: as for `keras.layers.Dense`.

    Example:
        >>> layer = PrunableDense(1, use_bias=False, kernel_initializer="ones")
        >>> layer.build((None, 2))
        >>> layer.set_masks([[[1], [0]]])
        >>> keras.ops.convert_to_numpy(layer(keras.ops.array([[3.0, 4.0]]))).tolist()
        [[3.0]]
    """


@_variant
class PrunableConv1D(Variant, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a masked kernel and the argument `straight_through` (see `Prunable`)."""


@_variant
class PrunableConv2D(Variant, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a masked kernel and the argument `straight_through` (see `Prunable`).

    Example:
        >>> layer = PrunableConv2D(8, 3, padding="same")
        >>> layer.build((None, 16, 16, 3))
        >>> layer.sparsity
        0.0
    """


@_variant
class PrunableDepthwiseConv2D(Variant, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a masked kernel and the argument `straight_through` (see `Prunable`)."""


@_variant
class PrunableLSTM(Variant, keras.layers.LSTM):
    """`keras.layers.LSTM` with masked kernels, for the input and for the state, and the argument `straight_through`.

    Example:
        >>> layer = keras.layers.Bidirectional(PrunableLSTM(4))
        >>> layer(keras.ops.ones((2, 5, 3))).shape[1]
        8
    """


@_variant
class PrunableGRU(Variant, keras.layers.GRU):
    """`keras.layers.GRU` with masked kernels, for input and state, and `straight_through` (see `Prunable`)."""


@_variant
class PrunableEmbedding(Variant, keras.layers.Embedding):
    """`keras.layers.Embedding` with a masked table and the argument `straight_through` (see `Prunable`).

    The gradient is dense, as large as the table.
    """


@_variant
class PrunableMultiHeadAttention(Variant, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with masked projections: query, key, value and output.

    Args:
        *args: as for `keras.layers.MultiHeadAttention`.
        straight_through: let masked weights go on learning (see `Prunable`).
        **kwargs: as for `keras.layers.MultiHeadAttention`.

    Example:
        >>> layer = PrunableMultiHeadAttention(num_heads=2, key_dim=3)
        >>> x = keras.ops.ones((1, 4, 6))
        >>> layer(x, x).shape[-1], len(layer.mask_pairs)
        (6, 4)
    """
