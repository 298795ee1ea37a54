"""What is known of a neural processing unit: what its compiler is told, and the zeros that it likes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.strategy import Strategy

__all__ = ["Npu"]


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Npu(Strategy):
    """An Arm Ethos-U, for which Vela compiles files: it stores weights coded, so that any zero saves flash.

    Args:
        accelerator: what Vela calls it, with its multiplications per cycle: "ethos-u55-128".
        system: the system configuration, of Vela's configuration file: clocks, and where memories are.
        memory: the memory mode, likewise.
        config: that file, as Vela's `--config` takes it: the path of one's own, or a name of Vela's.
        fast_zeros: (n, m) where the hardware is faster for kernels in which at most n of each m neighbouring input
            channels are not zero; None where zeros save only what is read of them.

    Example:
        >>> from keras_prune.devices import DEVICES
        >>> small = dataclasses.replace(DEVICES["ethos-u55"].npu, accelerator="ethos-u55-32")
        >>> board = dataclasses.replace(DEVICES["ethos-u55"], name="board", npu=small)
        >>> board.multiple, board.packs_zeros
        (8, True)
    """

    kind: ClassVar[str] = "NPU"

    accelerator: str
    system: str
    memory: str
    config: str = "Arm/vela.ini"
    fast_zeros: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for field in ("accelerator", "system", "memory", "config"):
            if not isinstance(value := getattr(self, field), str) or not value:
                raise TypeError(f"Npu: {field} must be a text. Received: {value!r}")
        if self.fast_zeros is not None:
            kept, of = self.fast_zeros
            if not 1 <= kept < of:
                raise ValueError(f"Npu: fast_zeros is (n, m) with 1 <= n < m. Received: {self.fast_zeros}")
            object.__setattr__(self, "fast_zeros", (int(kept), int(of)))
