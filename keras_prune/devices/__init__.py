"""What is known of devices: which zeros their runtimes skip, and what is gained by that."""

from keras_prune.arrays.encoding import Encoding
from keras_prune.devices.catalogue import DEVICES, resolve_device
from keras_prune.devices.device import Clusters, Device, Kernel
from keras_prune.devices.gains import Measured
from keras_prune.devices.npu import Npu

__all__ = ["DEVICES", "Clusters", "Device", "Encoding", "Kernel", "Measured", "Npu", "resolve_device"]
