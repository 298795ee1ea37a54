"""Quantization-aware training: kernels and activations rounded as an int8 file will round them, while a model trains.

`quantize_aware(model, data=...)` gives the model that trains so, `report` says what of a model does and what does not,
and why. `QuantizedKernels` and `FakeQuantize` are the layers that it puts in.
"""

from keras_prune.quantization.aware import quantize_aware
from keras_prune.quantization.layers import FakeQuantize, QuantizedKernels
from keras_prune.quantization.recurrent import QuantizedRecurrent
from keras_prune.quantization.report import QuantizationReport, report

__all__ = ["FakeQuantize", "QuantizationReport", "QuantizedKernels", "QuantizedRecurrent", "quantize_aware", "report"]
