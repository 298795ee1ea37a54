"""How a layer runs with other kernels than it holds: one mechanism for masks and for quantization.

The layer's own `call` runs unchanged inside a scope in which its kernels read as others. Nothing of the layer is
replaced, so there is nothing to put back after an exception, and replicas that run in threads do not meet.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_prune.keras_seam import set_value_now, value_held

__all__ = ["ReplacedKernels"]


class ReplacedKernels(keras.StatelessScope, abc.ABC):
    """A scope in which kernels read as `replaced` has them.

    Every other read, and every update, goes where it would have gone without the scope.

    Args:
        kernels: the variables.

    Attributes:
        pending: losses added inside that no scope outside collects; whatever opened the scope adds them to its layer.
    """

    def __init__(self, kernels: Sequence[keras.Variable]) -> None:
        super().__init__()
        self.kernels = tuple(kernels)
        self.pending: list[Any] = []

    @abc.abstractmethod
    def replaced(self, kernel: keras.Variable, value: Any) -> Any:
        """Return what a kernel reads as.

        Args:
            kernel: the variable.
            value: what it holds, a tensor in its own type.
        """

    def __enter__(self) -> ReplacedKernels:
        super().__enter__()
        self.collect_losses = self.original_scope is None or self.original_scope.collect_losses
        return self

    def replace_kernels(self) -> None:
        """Compute the kernels, once for everything that reads them: a loop over time steps, say."""
        for kernel in self.kernels:
            self.state_mapping[id(kernel)] = self.replaced(kernel, self.outside(kernel))

    def outside(self, variable: keras.Variable) -> Any:
        """Return what the scope outside holds, in the variable's own type: Keras casts it where the layer reads it."""
        value = None if self.original_scope is None else self.original_scope.get_current_value(variable)
        if value is None:
            held = value_held(variable)
            value = variable.value if held is None else held
        return ops.convert_to_tensor(value)

    def get_current_value(self, variable: keras.Variable) -> Any:
        """Return a kernel replaced, and anything else as the scope outside has it."""
        value = self.state_mapping.get(id(variable))
        if value is None and self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Pass an update on; a kernel reads as what replaces its new value from here on (spectral normalization)."""
        variable, value = update
        if self.original_scope is None:
            set_value_now(variable, value)
        else:
            self.original_scope.add_update(update)
        for kernel in self.kernels:
            if kernel is variable:
                self.state_mapping[id(kernel)] = self.replaced(kernel, value)

    def add_loss(self, loss: Any) -> None:
        """Pass a loss on to the scope outside, or keep it for the layer."""
        if self.original_scope is None:
            self.pending.append(loss)
        else:
            self.original_scope.add_loss(loss)
