"""How a layer runs with masked kernels: one mechanism for the wrapper and for every variant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.keras_seam import layers_in
from keras_prune.layer_kinds import quantization_of
from keras_prune.layers.replacing import ReplacedKernels
from keras_prune.masks.bound import select
from keras_prune.models.masked_layers import HoldsMasks, Pairs
from keras_prune.models.variables import read
from keras_prune.scope import Scope

__all__ = ["MaskedKernels", "MaskedLayer"]


class MaskedKernels(ReplacedKernels):
    """A scope in which kernels read as masked.

    Args:
        pairs: kernels, each with its mask.
        straight_through: let the gradient of a masked weight pass as if it were not masked.
    """

    def __init__(self, pairs: Pairs, straight_through: bool) -> None:
        super().__init__([kernel for kernel, _ in pairs])
        self.masks = {id(kernel): mask for kernel, mask in pairs}
        self.straight_through = straight_through

    def replaced(self, kernel: keras.Variable, value: Any) -> Any:
        """Return a kernel masked."""
        masked = select(self.outside(self.masks[id(kernel)]), value)
        if self.straight_through:
            # w + (w - w) and w + (0 - w) are exact, so the forward pass is the same as without.
            return value + ops.stop_gradient(masked - value)
        return masked


class _Untracked:
    """Holds variables of another layer, out of sight of Keras's tracking."""

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.variables = tuple(variables)


class Masks(keras.Layer):
    """Holds the masks of a layer's kernels as weights.

    A layer of its own, because some Keras layers (Dense, Embedding) write down only the weights that they know.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernels = _Untracked(())
        self._names: tuple[str, ...] = ()

    def bind(self, kernels: Sequence[tuple[str, keras.Variable]]) -> None:
        """Make a mask, all ones, for each kernel."""
        self._names = tuple(name for name, _ in kernels)
        self._kernels = _Untracked([kernel for _, kernel in kernels])
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Add the masks: one byte a weight."""
        for name, kernel in zip(self._names, self._kernels.variables, strict=True):
            self.add_weight(name=name, shape=kernel.shape, initializer="ones", dtype="bool", trainable=False)

    @property
    def pairs(self) -> Pairs:
        """The kernels, each with its mask."""
        return list(zip(self._kernels.variables, self.weights, strict=True))

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        """Refuse: the kernel that the mask belongs to would be replaced."""
        raise ValueError(_quantized(self))


def _quantized(layer: keras.Layer) -> str:
    return (
        f"{type(layer).__name__} {layer.path or layer.name!r}: a kernel under a mask cannot be quantized, the mask "
        "would be lost. Call keras_prune.strip(model) first, and quantize what it returns."
    )


class MaskedLayer(HoldsMasks):
    """What `Prunable` and the variants share: masks as weights, and a forward pass through masked kernels."""

    straight_through: bool
    _masks: Masks
    add_loss: Any

    @property
    def mask_pairs(self) -> Pairs:
        """The kernels, each with its mask, a boolean weight (True: kept); none before the layer is built."""
        return self._masks.pairs if self._masks.built else []

    @property
    def sparsity(self) -> float:
        """The fraction of the kernels' weights that the masks put at zero, in [0, 1]."""
        masks = [read(mask) for _, mask in self._built_pairs("sparsity")]
        return 1.0 - sum(int(np.count_nonzero(mask)) for mask in masks) / sum(mask.size for mask in masks)

    def set_masks(self, masks: Sequence[npt.ArrayLike]) -> None:
        """Set the masks, one for each kernel in the order of `mask_pairs`.

        Args:
            masks: arrays of the kernels' shapes, boolean or of zeros and ones (True, 1: kept).

        Raises:
            ValueError: the layer is not built, or a mask has the wrong shape or other values.
        """
        pairs = self._built_pairs("set_masks")
        if len(masks) != len(pairs):
            raise ValueError(
                f"{self._subject}: set_masks takes one mask for each of its {len(pairs)} kernels, "
                f"{[kernel.path for kernel, _ in pairs]}. Received: {len(masks)} masks."
            )
        checked = [self._check_mask(kernel, mask) for (kernel, _), mask in zip(pairs, masks, strict=True)]
        for (_, variable), mask in zip(pairs, checked, strict=True):
            variable.assign(mask)

    def _check_mask(self, kernel: keras.Variable, mask: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        array = np.asarray(mask)
        if array.shape != tuple(kernel.shape):
            raise ValueError(
                f"{self._subject}: the mask of {kernel.path} must have the kernel's shape {tuple(kernel.shape)}. "
                f"Received: shape {array.shape}."
            )
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            raise ValueError(
                f"{self._subject}: the mask of {kernel.path} must hold booleans, or zeros and ones. "
                f"Received: values of type {array.dtype} from {array.min()} to {array.max()}."
            )
        return array.astype(bool)

    @property
    def _subject(self) -> str:
        return f"{type(self).__name__} {getattr(self, 'name', '')!r}"

    def _built_pairs(self, asked: str) -> Pairs:
        if not self.mask_pairs:
            raise ValueError(
                f"{self._subject}: {asked} needs the kernels, and the layer is not built. "
                "Call it on a batch, or call build(input_shape), first."
            )
        return self.mask_pairs

    def _make_masks(self, layer: keras.Layer) -> None:
        """Make a mask for each kernel of `layer`, by the rules of `Scope`; a frozen kernel has one too."""
        kernels, reasons = [], []
        for owner, variable, _, reason in Scope().walk(layer):
            name = variable.name if owner is layer else f"{owner.name}_{variable.name}"
            if reason is None:
                kernels.append((name, variable))
            else:
                reasons.append(f"{variable.path}: {reason}")
        if not kernels:
            raise ValueError(
                f"{self._subject}: {type(layer).__name__} {layer.name!r} has no kernel to mask. "
                f"Left out: {'; '.join(reasons) or 'it has no variables'}. Use the layer without the wrapper, or let "
                "a custom layer name its kernels by a method prunable_weights()."
            )
        self._masks.bind(kernels)

    @contextlib.contextmanager
    def _masked_kernels(self, layer: Any) -> Iterator[None]:
        """The scope in which `layer` reads its kernels masked."""
        if any(quantization_of(one) is not None for one in layers_in(layer)):
            raise ValueError(_quantized(layer))
        scope = MaskedKernels(self.mask_pairs, self.straight_through)
        with scope:
            scope.replace_kernels()
            yield
        if not scope.kernels and scope.original_scope is None:
            raise ValueError(
                f"{self._subject}: {type(layer).__name__} {layer.name!r} was built by its first call, too late for "
                "masks. Build it first (call it on a batch, or layer.build(input_shape)), then wrap it."
            )
        for loss in scope.pending:
            self.add_loss(loss)
