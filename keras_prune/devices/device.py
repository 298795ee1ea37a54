"""What is known of a device: the sparse kernels of its runtime, what they gain, and what its files must be like.

Data only: what a device makes of a model is decided in `keras_prune.devices.choosing`, and how a file for it is made
in `tflite_export`. Neither asks for a device's name, so that a device of one's own is treated like one of the library.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from keras.saving import register_keras_serializable

from keras_prune.arrays.encoding import Encoding
from keras_prune.devices.gains import (
    PAYS_ANYWHERE,
    SWITCHES_ON,
    Measured,
    check_gains,
    gain_of,
    pays_from,
)
from keras_prune.devices.npu import Npu
from keras_prune.strategy import Strategy, to_integers

__all__ = ["STAND_INS", "Clusters", "Device", "Kernel"]

STAND_INS = ("arm64", "web", "micro")
"""The runtimes that can run a device's file on another machine: LiteRT for aarch64 under qemu, LiteRT.js under Node,
TensorFlow Lite Micro."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Kernel(Strategy):
    """A sparse kernel of FULLY_CONNECTED, that of `Dense` layers and other matrices.

    Args:
        encoding: what it reads, an `Encoding` or its value: "1x4 blocks", "1x16 blocks" or "CSR".
        source: where its figures come from.
        table: measured gains.
        pays_from: in place of a table, the share of zero units from which it is used: at one row, and at more. A share
            above 1 is never reached. None, without a table: the shares that keep up on x86 and on ARM.

    Example:
        >>> kernel = Kernel("1x4 blocks", "my board", (Measured(1, 2**20, ((0.8, 1.0), (0.9, 2.0))),))
        >>> kernel.gain(1, 2**20, 0.9), kernel.threshold(1, 2**20)
        (2.0, 0.81)
    """

    kind: ClassVar[str] = "kernel"

    encoding: Encoding
    source: str = ""
    table: tuple[Measured, ...] = ()
    pays_from: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        readable = [encoding.value for encoding in Encoding if encoding.has_kernel]
        if self.encoding not in readable:
            raise ValueError(f"Kernel: encoding must be one of {readable}. Received: {self.encoding!r}")
        object.__setattr__(self, "encoding", Encoding(self.encoding))
        _to_tuple(self, "table", Measured)
        if self.pays_from is not None:
            _to_tuple(self, "pays_from", float, int)
            if self.table or len(self.pays_from) != 2 or min(self.pays_from) < 0:
                raise ValueError(
                    "Kernel: pays_from stands in place of a table, and holds two shares of zero units, for one row and "
                    f"for more. Received: pays_from={self.pays_from}, a table of {len(self.table)} settings"
                )

    def gain(self, rows: int | None, weight_bytes: int, share: float) -> float | None:
        """Return the expected gain, or None without a table.

        Between settings log(gain) is interpolated in log(rows) and log(bytes), and held beyond the last one;
        for an unknown number of rows it is the lowest of all.

        Args:
            rows: rows of the multiplication, or None.
            weight_bytes: bytes of all weights of the file when dense.
            share: share of zero units, a fraction in [0, 1].
        """
        return gain_of(self.table, rows, weight_bytes, share) if self.table else None

    def threshold(self, rows: int | None, weight_bytes: int) -> float:
        """Return the share of zero units from which the kernel pays; above 1 where it never does."""
        if self.table:
            return pays_from(self.table, rows, weight_bytes)
        one, more = self.pays_from if self.pays_from is not None else PAYS_ANYWHERE
        return one if rows == 1 else more


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Clusters(Strategy):
    """XNNPACK's sparse inference, which skips single zeros of 1x1 convolutions.

    It takes clusters of operators, which begin with a 3x3 convolution of 3 channels at stride 2, and multiplies the 1x1
    convolutions in them as sparse matrices (SpMM).

    Args:
        zeros_from: share of the zeros of a cluster's 1x1 convolutions above which it switches on.
        gains: (share of zeros, gain of the whole network), as measured; empty where nothing was.
        source: where the figures come from.
        everywhere: every processor that the device stands for has it. False: some have, and the others make the weights
            dense when they load the file.

    Example:
        >>> clusters = Clusters(gains=((0.7, 1.5), (0.9, 3.5)), source="my board")
        >>> clusters.gain(0.6), clusters.gain(0.9)
        (1.0, 3.5)
    """

    kind: ClassVar[str] = "sparse inference"

    zeros_from: float = SWITCHES_ON
    gains: tuple[tuple[float, float], ...] = ()
    source: str = ""
    everywhere: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gains", check_gains("Clusters: gains", self.gains) if self.gains else ())

    def gain(self, share: float) -> float | None:
        """Return the expected gain of the network at a share of zeros; 1 where it does not switch on.

        None where nothing was measured.
        """
        if share <= self.zeros_from:
            return 1.0
        return Measured(1, 1, self.gains).at(share) if self.gains else None


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Device(Strategy):
    """What is known of a device and its TFLite runtime: what `target=` takes besides the name of a built-in one.

    Args:
        name: what reports and messages call it.
        kernels: the sparse kernels of FULLY_CONNECTED to be used there. What the first one skips decides in which
            pattern matrices are pruned; an export takes the one that is expected to be the fastest.
        clusters: XNNPACK's sparse inference, where it can switch on; None where single zeros of 1x1 convolutions are
            not skipped.
        densify: the runtime has DENSIFY: a weight may be stored sparse and made dense when it is loaded.
        decode: the runtime is TensorFlow Lite Micro with DECODE: an int8 weight may be stored as a bitmask, by a
            look-up table or in a Huffman code, and is made dense in each run. Zeros then save flash, and no time.
        runs_on: the machine types (`platform.machine()`, with wildcards) on which its kernels can be timed: an export
            with `tune=True` is refused on any other.
        quantize: number types that its runtime takes, as `tflite_export.export` names them; None: all.
        fixed_sizes: why inputs must have fixed sizes, the batch too, for its runtime; empty where they may be free.
        note: what its user should know.
        integer_io: inputs and outputs of a file for it are integers, where the number type computes in integers.
        stands_in: of `STAND_INS`, the runtimes that stand in for its own on another machine, the nearest first: of
            "arm64" and "web" the first that is installed runs a file whose sparse kernels do not run here; with
            "micro" each file is run in TensorFlow Lite Micro too.
        lists_weights: a file for it lists in its metadata how each weight is stored; False spares the flash.
        npu: the neural processing unit that its files are compiled for; None where a processor runs them as they are.
        multiple: units that layers are made in multiples of: its dense kernels compute so many output channels at a
            time, and what is left over takes as long as a whole multiple.

    Source: XNNPACK `src/subgraph.c`; LiteRT `tflite/delegates/xnnpack/README.md`, "Sparse inference".

    Example:
        >>> import dataclasses
        >>> from keras_prune.devices import DEVICES
        >>> pixel = dataclasses.replace(DEVICES["android"], name="pixel")  # as "android", under a name of its own
        >>> board = Device("board", (Kernel("CSR", "measured on my board", pays_from=(0.9, 0.95)),), densify=False)
        >>> pixel.clusters.zeros_from, board.clusters
        (0.6666666666666666, None)
    """

    kind: ClassVar[str] = "device"

    name: str
    kernels: tuple[Kernel, ...] = ()
    clusters: Clusters | None = None
    densify: bool = True
    runs_on: tuple[str, ...] = ()
    quantize: tuple[str | None, ...] | None = None
    fixed_sizes: str = ""
    note: str = ""
    integer_io: bool = False
    stands_in: tuple[str, ...] = ()
    lists_weights: bool = True
    npu: Npu | None = None
    decode: bool = False
    multiple: int = 1

    def __post_init__(self) -> None:
        for field in ("name", "fixed_sizes", "note"):
            if not isinstance(value := getattr(self, field), str):
                raise TypeError(f"Device: {field} must be a text. Received: {value!r}")
        _to_tuple(self, "kernels", Kernel)
        _to_tuple(self, "runs_on", str)
        _to_tuple(self, "stands_in", str)
        if self.quantize is not None:
            _to_tuple(self, "quantize", str, type(None))
        to_integers(self, "multiple")
        if self.multiple < 1:
            raise ValueError(f"Device: multiple is counted from 1. Received: {self.multiple}")
        if not isinstance(self.clusters, Clusters | None):
            raise TypeError(f"Device: clusters must be a Clusters or None. Received: {self.clusters!r}")
        if not isinstance(self.npu, Npu | None):
            raise TypeError(f"Device: npu must be an Npu or None. Received: {self.npu!r}")
        if unknown := [runtime for runtime in self.stands_in if runtime not in STAND_INS]:
            raise ValueError(f"Device: stands_in takes {list(STAND_INS)}. Received also: {unknown}")
        if self.decode and "micro" not in self.stands_in:
            raise ValueError(
                "Device: decode needs 'micro' in stands_in, since no other runtime can check such files. "
                f"Received: stands_in={self.stands_in}"
            )

    @property
    def matrix_kernel(self) -> Kernel | None:
        """The kernel that matrices are pruned for; None where zeros in them are not skipped."""
        return self.kernels[0] if self.kernels else None

    @property
    def skips_zeros(self) -> bool:
        """Whether its runtime has any kernel that skips zeros: that makes them save time."""
        return bool(self.kernels) or self.clusters is not None

    @property
    def packs_zeros(self) -> bool:
        """Whether zeros take less flash there, without a kernel that skips them."""
        return self.npu is not None or self.decode

    @property
    def runs_here(self) -> bool:
        """Whether its kernels can be timed on this machine."""
        return any(fnmatchcase(platform.machine(), pattern) for pattern in self.runs_on)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Device:
        """Make the device that `get_config` described, in this version or before devices had kernels."""
        if "blocks" not in config:
            return super().from_config(config)
        kernel = Kernel.from_config({"encoding": Encoding.BLOCK.value, "table": config.get("gains", ())})
        return cls(config["name"], (kernel,) if config["blocks"] else (), Clusters() if config["pointwise"] else None)


def _to_tuple(strategy: Strategy, name: str, *kinds: type) -> None:
    """Make a tuple of a field, which compares and hashes by value.

    Raises:
        TypeError: it is a single text, no sequence, or holds something else.
    """
    value = getattr(strategy, name)
    if isinstance(value, str) or not all(isinstance(item, kinds) for item in value):
        known = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{type(strategy).__name__}: {name} must be a tuple of {known}. Received: {value!r}")
    object.__setattr__(strategy, name, tuple(value))
