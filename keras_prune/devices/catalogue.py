"""The devices that the library knows by name: what was measured on each, and where the figures come from.

To add a device, add an instance here, with a line in `DEVICES`: nothing else tells one device from another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_prune.arrays.encoding import Encoding
from keras_prune.devices.device import Clusters, Device, Kernel
from keras_prune.devices.gains import PAYS_ANYWHERE, SWITCHES_ON, Measured
from keras_prune.devices.npu import Npu
from keras_prune.strategy import resolve

__all__ = [
    "ANDROID",
    "ANY",
    "ARM64",
    "DEVICES",
    "ETHOS_U55",
    "ETHOS_U65",
    "ETHOS_U85",
    "IOS",
    "MCU",
    "WEB",
    "X86",
    "resolve_device",
]

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
        (
            Measured(1, 768 * _KB, ((0.80, 0.92), (0.85, 1.18), (0.90, 1.57), (0.95, 2.38))),
            Measured(1, 3072 * _KB, ((0.80, 0.93), (0.85, 1.22), (0.90, 1.86), (0.95, 3.29))),
            Measured(1, 12288 * _KB, ((0.80, 1.67), (0.85, 2.19), (0.90, 3.29), (0.95, 5.89))),
            Measured(1, 40960 * _KB, ((0.80, 2.07), (0.85, 2.84), (0.90, 4.28), (0.95, 10.0))),
            Measured(4, 768 * _KB, ((0.80, 0.95), (0.85, 1.21), (0.90, 1.68), (0.95, 2.61))),
            Measured(4, 3072 * _KB, ((0.80, 0.94), (0.85, 1.24), (0.90, 1.88), (0.95, 3.38))),
            Measured(4, 12288 * _KB, ((0.80, 0.89), (0.85, 1.20), (0.90, 1.87), (0.95, 3.93))),
            Measured(4, 40960 * _KB, ((0.80, 0.86), (0.85, 1.15), (0.90, 1.75), (0.95, 3.67))),
            Measured(16, 768 * _KB, ((0.80, 0.80), (0.85, 1.02), (0.90, 1.41), (0.95, 2.18))),
            Measured(16, 3072 * _KB, ((0.80, 0.79), (0.85, 1.06), (0.90, 1.59), (0.95, 2.83))),
            Measured(16, 12288 * _KB, ((0.80, 0.79), (0.85, 1.07), (0.90, 1.72), (0.95, 3.40))),
            Measured(196, 768 * _KB, ((0.80, 0.62), (0.85, 0.81), (0.90, 1.11), (0.95, 1.75))),
            Measured(196, 3072 * _KB, ((0.80, 0.61), (0.85, 0.82), (0.90, 1.23), (0.95, 2.21))),
            Measured(196, 12288 * _KB, ((0.80, 0.57), (0.85, 0.78), (0.90, 1.24), (0.95, 2.50))),
        ),
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
        (
            Measured(1, 768 * _KB, ((0.60, 0.96), (0.70, 1.28), (0.80, 1.45), (0.90, 1.72), (0.95, 1.97))),
            Measured(1, 3072 * _KB, ((0.60, 0.86), (0.70, 1.08), (0.80, 1.66), (0.90, 2.45), (0.95, 3.41))),
            Measured(1, 12288 * _KB, ((0.60, 0.93), (0.70, 1.19), (0.80, 1.66), (0.90, 3.41), (0.95, 5.46))),
            Measured(16, 768 * _KB, ((0.60, 1.66), (0.70, 1.77), (0.80, 2.56), (0.90, 4.6), (0.95, 7.17))),
            Measured(16, 3072 * _KB, ((0.60, 1.21), (0.70, 1.67), (0.80, 2.61), (0.90, 5.27), (0.95, 9.63))),
            Measured(16, 12288 * _KB, ((0.60, 1.2), (0.70, 1.69), (0.80, 2.63), (0.90, 5.61), (0.95, 11.46))),
            Measured(196, 768 * _KB, ((0.60, 1.25), (0.70, 1.71), (0.80, 2.54), (0.90, 5.13), (0.95, 9.38))),
            Measured(196, 3072 * _KB, ((0.60, 1.08), (0.70, 1.5), (0.80, 2.41), (0.90, 4.97), (0.95, 10.32))),
            Measured(196, 12288 * _KB, ((0.60, 1.03), (0.70, 1.4), (0.80, 2.18), (0.90, 4.87), (0.95, 10.11))),
        ),
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
        (
            Measured(1, 3072 * _KB, ((0.80, 0.7), (0.90, 1.2), (0.95, 2.1))),
            Measured(196, 3072 * _KB, ((0.80, 1.0), (0.90, 1.75), (0.95, 2.8))),
        ),
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

_CHANNELS = 8
"""Output channels that XNNPACK's dense kernels compute at a time, or half of them, and that an Ethos-U likes."""

_ARM_CLUSTERS = Clusters(
    SWITCHES_ON,
    ((0.70, 1.51), (0.80, 2.10), (0.90, 3.46)),
    "a MobileNet-V1-like net at 224, one thread, aarch64 (cortex-a76), guest instructions under qemu",
)

ANY = Device(
    "any",
    (
        Kernel(
            Encoding.BLOCK,
            "three Dense(512), one thread, x86 with AVX-512; 1 row, 80 %: 1.1 to 2.3 x; 4 rows, 90 %: 1.1 x; 196 rows, "
            "80 %: 0.54 x, 90 %: 1.0 x (aarch64, in instructions: 1.75 x)",
            pays_from=PAYS_ANYWHERE,
        ),
        Kernel(Encoding.BLOCK16, "loses nearly everywhere on x86 and aarch64: used for size only", pays_from=_NEVER),
    ),
    # A file for a PC, where sparse inference is off, may get to a phone all the same.
    Clusters(source="XNNPACK has it on ARM and in WebAssembly, and not on x86 with AVX", everywhere=False),
    runs_on=("*",),
    note="no particular device: kernels are used where they gain or keep up on x86 and on ARM",
    stands_in=("web",),
    multiple=_CHANNELS,
)
"""What an export without a target is made for."""

ARM64 = Device(
    "arm64",
    _ARM_KERNELS,
    _ARM_CLUSTERS,
    runs_on=("aarch64", "arm64"),
    stands_in=("arm64", "web"),
    multiple=_CHANNELS,
)
ANDROID = dataclasses.replace(ARM64, name="android", runs_on=(), note="64-bit ARM: the figures of arm64")
IOS = dataclasses.replace(ANDROID, name="ios")
WEB = Device(
    "web",
    _WEB_KERNELS,
    Clusters(
        SWITCHES_ON,
        ((0.70, 1.66), (0.80, 2.29), (0.90, 3.37)),
        "a MobileNet-V1-like net at 224, one thread, Node 20, @litertjs/core 2.5.3, relaxed SIMD",
    ),
    fixed_sizes="LiteRT.js refuses files with free sizes",
    stands_in=("web",),
    multiple=_CHANNELS,
)
X86 = Device(
    "x86",
    _X86_KERNELS,
    runs_on=("x86_64", "AMD64"),
    note="XNNPACK has no sparse convolutions on x86 with AVX",
    multiple=_CHANNELS,
)
MCU = Device(
    "mcu",
    densify=False,
    quantize=("int8",),
    fixed_sizes="TensorFlow Lite Micro knows fixed sizes only",
    note="TFLite Micro has no DENSIFY and no sparse kernels (tensorflow/lite/micro/kernels). Its DECODE reads zeros "
    "and few values from less flash, for RAM and time",
    integer_io=True,
    stands_in=("micro",),
    lists_weights=False,
    decode=True,
)


def _ethos(name: str, npu: Npu, note: str) -> Device:
    """Return an Arm Ethos-U with the processor beside it, which runs the operators that the NPU lacks."""
    return Device(
        name,
        densify=False,
        quantize=("int8",),
        fixed_sizes="Vela compiles fixed sizes only",
        note=f"{note}; zeros shrink what Vela writes, and speed up what waits for memory (benchmarks/npu_files.py)",
        integer_io=True,
        lists_weights=False,
        npu=npu,
        multiple=_CHANNELS,
    )


ETHOS_U55 = _ethos(
    "ethos-u55",
    Npu("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "an Ethos-U55 of 128 MACs per cycle at 500 MHz, weights in flash at 0.5 GB/s",
)
ETHOS_U65 = _ethos(
    "ethos-u65",
    Npu("ethos-u65-256", "Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "an Ethos-U65 of 256 MACs per cycle at 1 GHz, weights in DRAM at 12 GB/s",
)
ETHOS_U85 = _ethos(
    "ethos-u85",
    Npu("ethos-u85-256", "Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB", fast_zeros=(2, 4)),
    "an Ethos-U85 of 256 MACs per cycle at 1 GHz, weights in DRAM; it multiplies twice as fast where 2 of 4 are zero",
)

DEVICES = {device.name: device for device in (ANY, ANDROID, IOS, ARM64, WEB, X86, MCU, ETHOS_U55, ETHOS_U65, ETHOS_U85)}
"""The devices that `target=` knows by name."""


def resolve_device(value: str | Device | Mapping[str, Any]) -> Device:
    """Return the device that a name, an instance or a saved configuration stands for.

    Raises:
        ValueError: the name is not known. TypeError: it is neither.

    Example:
        >>> resolve_device("web") is WEB, resolve_device(WEB) is WEB
        (True, True)
    """
    return resolve(value, Device, DEVICES)
