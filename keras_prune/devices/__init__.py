"""What a device's runtime can skip, and what to prune so that it gains."""

from keras_prune.devices.device import DEVICES, Choice, Device, resolve_device

__all__ = ["DEVICES", "Choice", "Device", "resolve_device"]
