"""The devices that a file is made for: which sparse kernels run there, and what they were measured to gain.

Data only. A gain is (time of XNNPACK's dense kernel) / (time of the sparse one), of the operator that reads the
weight: above 1 is faster.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from keras_prune.devices.gains import (
    ARM_BLOCKS,
    SWITCHES_ON,
    WEB_BLOCKS,
    X86_BLOCKS,
    ZERO_BLOCKS_ANYWHERE,
    Measured,
    gain_of,
    pays_from,
)
from tflite_export.errors import ExportError
from tflite_export.file.encoding import Encoding

__all__ = [
    "ANDROID",
    "ANY",
    "ARM64",
    "IOS",
    "MCU",
    "TARGETS",
    "WEB",
    "X86",
    "Clusters",
    "Kernel",
    "Target",
    "resolve_target",
]


@dataclass(frozen=True)
class Kernel:
    """A sparse kernel of a runtime.

    Args:
        encoding: what it reads.
        source: where its figures come from.
        table: measured gains.
        pays_from: share of zero units from which it is used where there is no table: at one row, and at more.
    """

    encoding: Encoding
    source: str
    table: tuple[Measured, ...] = ()
    pays_from: tuple[float, float] | None = None

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
        if self.pays_from is not None:
            return self.pays_from[0] if rows == 1 else self.pays_from[1]
        return pays_from(self.table, rows, weight_bytes)


@dataclass(frozen=True)
class Clusters:
    """XNNPACK's sparse inference: 1x1 convolutions in NCHW, by SpMM.

    Args:
        zeros_from: share of the zeros of a cluster's 1x1 convolutions above which it switches on.
        gains: (share of zeros, gain of the whole network), as measured.
        source: where the figures come from.
    """

    zeros_from: float
    gains: tuple[tuple[float, float], ...]
    source: str

    def gain(self, share: float) -> float:
        """Return the expected gain of the cluster at a share of zeros; 1 where it does not switch on."""
        return Measured(1, 1, self.gains).at(share) if share > self.zeros_from else 1.0


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Args:
        name: what `resolve_target` knows it by.
        kernels: sparse kernels that are to be used there.
        clusters: XNNPACK's sparse inference, where it can switch on.
        densify: the runtime has DENSIFY: a weight may be stored sparse and made dense when it is loaded.
        runs_on: the machine types (`platform.machine()`) on which its kernels can be timed.
        quantize: number types that its runtime takes; None: all.
        fixed_sizes: why inputs must have fixed sizes, the batch too, for its runtime; empty where they may be free.
        note: what its user should know.
    """

    name: str
    kernels: tuple[Kernel, ...] = ()
    clusters: Clusters | None = None
    densify: bool = True
    runs_on: tuple[str, ...] = ()
    quantize: tuple[str | None, ...] | None = None
    fixed_sizes: str = ""
    note: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether its kernels can be timed on this machine; those of no particular device can."""
        return self.name == "any" or platform.machine() in self.runs_on


_X86 = (
    "python -m benchmarks.never_slower --gains: chains of Dense(n), one thread, LiteRT 2.3, AMD EPYC with AVX-512, "
    "1 MB of L2 and 32 MB of L3 cache"
)
_ARM = (
    "three Dense(512), aarch64 (cortex-a76), LiteRT 2.3: guest instructions under qemu, which do not see the memory "
    "traffic that zeros save"
)
_WEB = (
    "python -m benchmarks.web_dense: three Dense(n), one thread, Node 20, @litertjs/core 2.5.3, relaxed SIMD, AMD EPYC"
)
_KB = 1024

_X86_KERNELS = (
    Kernel(
        Encoding.BLOCK,
        _X86,
        X86_BLOCKS,
    ),
    Kernel(
        Encoding.CSR,
        _X86,
        (
            Measured(1, 768 * _KB, ((0.90, 0.57), (0.95, 1.07), (0.98, 2.01))),
            Measured(1, 3072 * _KB, ((0.90, 0.51), (0.95, 1.11), (0.98, 2.61))),
            Measured(1, 12288 * _KB, ((0.90, 0.87), (0.95, 1.74), (0.98, 4.94))),
            Measured(1, 40960 * _KB, ((0.90, 1.12), (0.95, 2.31), (0.98, 5.39))),
            Measured(4, 768 * _KB, ((0.90, 0.61), (0.95, 1.21), (0.98, 2.31))),
            Measured(4, 3072 * _KB, ((0.90, 0.52), (0.95, 1.20), (0.98, 2.82))),
            Measured(4, 12288 * _KB, ((0.90, 0.47), (0.95, 1.04), (0.98, 3.11))),
            Measured(4, 40960 * _KB, ((0.90, 0.46), (0.95, 1.02), (0.98, 2.73))),
            Measured(16, 768 * _KB, ((0.90, 0.50), (0.95, 1.03), (0.98, 2.13))),
            Measured(16, 3072 * _KB, ((0.90, 0.43), (0.95, 1.01), (0.98, 2.43))),
            Measured(16, 12288 * _KB, ((0.90, 0.42), (0.95, 1.00), (0.98, 2.98))),
            Measured(196, 768 * _KB, ((0.90, 0.39), (0.95, 0.82), (0.98, 1.75))),
            Measured(196, 3072 * _KB, ((0.90, 0.34), (0.95, 0.79), (0.98, 1.92))),
            Measured(196, 12288 * _KB, ((0.90, 0.29), (0.95, 0.69), (0.98, 2.04))),
        ),
    ),
    Kernel(
        Encoding.BLOCK16,
        _X86,
        (
            Measured(1, 192 * _KB, ((0.80, 0.23), (0.90, 0.33), (0.95, 0.42))),
            Measured(1, 768 * _KB, ((0.80, 0.25), (0.90, 0.43), (0.95, 0.63))),
            Measured(1, 3072 * _KB, ((0.80, 0.37), (0.90, 0.66), (0.95, 1.14))),
            Measured(1, 10240 * _KB, ((0.80, 0.37), (0.90, 0.68), (0.95, 1.17))),
            Measured(4, 192 * _KB, ((0.80, 0.19), (0.90, 0.28), (0.95, 0.35))),
            Measured(4, 768 * _KB, ((0.80, 0.20), (0.90, 0.35), (0.95, 0.52))),
            Measured(4, 3072 * _KB, ((0.80, 0.21), (0.90, 0.38), (0.95, 0.66))),
            Measured(4, 10240 * _KB, ((0.80, 0.21), (0.90, 0.39), (0.95, 0.65))),
            Measured(196, 192 * _KB, ((0.80, 0.10), (0.90, 0.16), (0.95, 0.19))),
            Measured(196, 768 * _KB, ((0.80, 0.11), (0.90, 0.19), (0.95, 0.29))),
            Measured(196, 3072 * _KB, ((0.80, 0.12), (0.90, 0.22), (0.95, 0.38))),
        ),
    ),
)

_WEB_KERNELS = (
    Kernel(
        Encoding.BLOCK,
        _WEB,
        WEB_BLOCKS,
    ),
    Kernel(
        Encoding.CSR,
        _WEB,
        (
            Measured(1, 768 * _KB, ((0.80, 1.09), (0.90, 1.5), (0.95, 1.6), (0.98, 1.85))),
            Measured(1, 3072 * _KB, ((0.80, 1.01), (0.90, 1.68), (0.95, 2.52), (0.98, 3.8))),
            Measured(1, 12288 * _KB, ((0.80, 1.14), (0.90, 2.5), (0.95, 3.67), (0.98, 6.62))),
            Measured(16, 768 * _KB, ((0.80, 1.96), (0.90, 3.64), (0.95, 5.91), (0.98, 7.66))),
            Measured(16, 3072 * _KB, ((0.80, 2.24), (0.90, 4.38), (0.95, 7.62), (0.98, 13.24))),
            Measured(16, 12288 * _KB, ((0.80, 2.33), (0.90, 4.77), (0.95, 9.37), (0.98, 20.32))),
            Measured(196, 768 * _KB, ((0.80, 2.15), (0.90, 4.05), (0.95, 7.1), (0.98, 12.92))),
            Measured(196, 3072 * _KB, ((0.80, 2.11), (0.90, 4.25), (0.95, 7.96), (0.98, 16.54))),
            Measured(196, 12288 * _KB, ((0.80, 2.0), (0.90, 4.23), (0.95, 8.57), (0.98, 19.65))),
        ),
    ),
    Kernel(
        Encoding.BLOCK16,
        _WEB,
        (
            Measured(1, 192 * _KB, ((0.70, 6.59), (0.80, 7.36), (0.90, 8.29), (0.95, 9.43))),
            Measured(1, 768 * _KB, ((0.70, 11.76), (0.80, 14.47), (0.90, 19.78), (0.95, 25.77))),
            Measured(1, 3072 * _KB, ((0.70, 12.67), (0.80, 18.1), (0.90, 29.78), (0.95, 43.61))),
            Measured(16, 192 * _KB, ((0.70, 7.77), (0.80, 10.33), (0.90, 16.02), (0.95, 22.26))),
            Measured(16, 768 * _KB, ((0.70, 8.79), (0.80, 12.52), (0.90, 20.99), (0.95, 33.51))),
            Measured(16, 3072 * _KB, ((0.70, 9.26), (0.80, 13.52), (0.90, 25.12), (0.95, 44.14))),
            Measured(196, 192 * _KB, ((0.70, 8.15), (0.80, 11.45), (0.90, 19.13), (0.95, 29.41))),
            Measured(196, 768 * _KB, ((0.70, 8.8), (0.80, 12.71), (0.90, 22.84), (0.95, 38.52))),
            Measured(196, 3072 * _KB, ((0.70, 9.06), (0.80, 13.34), (0.90, 25.66), (0.95, 42.01))),
        ),
    ),
)

_ARM_KERNELS = (
    Kernel(
        Encoding.BLOCK,
        _ARM,
        ARM_BLOCKS,
    ),
    Kernel(
        Encoding.BLOCK16,
        _ARM,
        (
            Measured(1, 768 * _KB, ((0.80, 0.4), (0.90, 0.6), (0.95, 0.7))),
            Measured(196, 768 * _KB, ((0.80, 0.3), (0.90, 0.4), (0.95, 0.5))),
        ),
    ),
)

_NEVER = (2.0, 2.0)

_ARM_CLUSTERS = Clusters(
    SWITCHES_ON,
    ((0.70, 1.51), (0.80, 2.10), (0.90, 3.46)),
    "a MobileNet-V1-like net at 224, one thread, aarch64 (cortex-a76), guest instructions under qemu",
)

ANY = Target(
    "any",
    (
        Kernel(
            Encoding.BLOCK,
            "three Dense(512), one thread, x86 with AVX-512; 1 row, 80 %: 1.1 to 2.3 x; 4 rows, 90 %: 1.1 x; 196 rows, "
            "80 %: 0.54 x, 90 %: 1.0 x (aarch64, in instructions: 1.75 x)",
            pays_from=ZERO_BLOCKS_ANYWHERE,
        ),
        Kernel(Encoding.BLOCK16, "loses nearly everywhere on x86 and aarch64: used for size only", pays_from=_NEVER),
    ),
    note="no particular device: kernels are used where they gain or keep up on x86 and on ARM",
)
"""What an export without a target is made for."""

ARM64 = Target("arm64", _ARM_KERNELS, _ARM_CLUSTERS, runs_on=("aarch64", "arm64"))
ANDROID = Target("android", _ARM_KERNELS, _ARM_CLUSTERS, note="64-bit ARM: the figures of arm64")
IOS = Target("ios", _ARM_KERNELS, _ARM_CLUSTERS, note="64-bit ARM: the figures of arm64")
WEB = Target(
    "web",
    _WEB_KERNELS,
    Clusters(
        SWITCHES_ON,
        ((0.70, 1.66), (0.80, 2.29), (0.90, 3.37)),
        "a MobileNet-V1-like net at 224, one thread, Node 20, @litertjs/core 2.5.3, relaxed SIMD",
    ),
    fixed_sizes="LiteRT.js refuses files with free sizes",
)
X86 = Target(
    "x86", _X86_KERNELS, runs_on=("x86_64", "AMD64"), note="XNNPACK has no sparse convolutions on x86 with AVX"
)
MCU = Target(
    "mcu",
    densify=False,
    quantize=("int8",),
    fixed_sizes="TensorFlow Lite Micro knows fixed sizes only",
    note="TFLite Micro has no DENSIFY and no sparse kernels (tensorflow/lite/micro/kernels): zeros cost their bytes",
)

TARGETS = {target.name: target for target in (ANY, ANDROID, IOS, ARM64, WEB, X86, MCU)}


def resolve_target(target: str | Target | None) -> Target:
    """Return a target by its name; None is `ANY`; a `Target` is itself.

    Raises:
        ExportError: the name is not known.

    Example:
        >>> resolve_target("x86").name, resolve_target(None).name
        ('x86', 'any')
    """
    if isinstance(target, Target):
        return target
    found = TARGETS.get(ANY.name if target is None else target)
    if found is None:
        raise ExportError("target", f"must be one of {sorted(TARGETS)}", repr(target), "Choose one of these.")
    return found
