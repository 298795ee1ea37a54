"""Layers that hold masks of their kernels as weights: what the rest of the library knows of them."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["HoldsMasks", "Pairs", "mask_pairs_of"]

Pairs = list[tuple[keras.Variable, keras.Variable]]
"""Kernels, each with its mask."""


class HoldsMasks:
    """Base of layers that hold masks: `Prunable` and the variants."""

    @property
    def mask_pairs(self) -> Pairs:
        """The kernels, each with its mask, a boolean weight of the kernel's shape (True: kept)."""
        return []


def mask_pairs_of(layer: Any) -> Pairs:
    """Return the kernels of a layer, each with the mask that the layer itself holds; none for other layers.

    Example:
        >>> mask_pairs_of(keras.layers.Dense(2))
        []
    """
    return layer.mask_pairs if isinstance(layer, HoldsMasks) else []
