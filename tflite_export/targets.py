"""The device that a file is made for: by its name, or as one's own `keras_prune.devices.Device`."""

from __future__ import annotations

from keras_prune.devices import Clusters, Device, Kernel
from keras_prune.devices.catalogue import (
    ANDROID,
    ANY,
    ARM64,
    DEVICES,
    ETHOS_U55,
    ETHOS_U65,
    ETHOS_U85,
    IOS,
    MCU,
    WEB,
    X86,
)
from tflite_export.errors import ExportError

__all__ = [
    "ANDROID",
    "ANY",
    "ARM64",
    "ETHOS_U55",
    "ETHOS_U65",
    "ETHOS_U85",
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

Target = Device
"""What `Device` is called in this package."""
TARGETS = DEVICES


def resolve_target(target: str | Device | None) -> Device:
    """Return a device by its name; None is `ANY`; a `Device` is itself.

    Raises:
        ExportError: the name is not known.

    Example:
        >>> resolve_target("x86").name, resolve_target(None).name
        ('x86', 'any')
    """
    if isinstance(target, Device):
        return target
    found = ANY if target is None else DEVICES.get(target) if isinstance(target, str) else None
    if found is None:
        raise ExportError("target", f"must be one of {sorted(DEVICES)}", repr(target), "Choose one of these.")
    return found
