"""How far two answers may be apart: the bounds of every comparison, the strictest first.

All but the last two are shares of an output's scale, its largest absolute value. Those of number types are theirs: see
`tflite_export.convert.number_types.NumberType`.
"""

from __future__ import annotations

__all__ = [
    "MICRO_FLOAT",
    "MICRO_STEPS",
    "NEGLIGIBLE",
    "NOTABLE",
    "NOTABLE_AGREEMENT",
    "OTHER_RUNTIME",
    "REWRITE",
    "SAME_IN_COMPANY",
]

REWRITE = 1e-5
"""Of a rewritten Keras model from the one before: sums in another order, no more."""
MICRO_FLOAT = 1e-4
"""Of a float output in TensorFlow Lite Micro from LiteRT's."""
SAME_IN_COMPANY = 1e-3
"""Of a model's answer to a sample alone from that to the sample among others, above which it depends on them."""
NEGLIGIBLE = 1e-3
"""A report never warns of an error up to this one: it is rounding, however small the span of the output."""
OTHER_RUNTIME = 0.02
"""Of outputs in another runtime from LiteRT's on this machine.

Garbage is off by all of the scale. Float kernels agree to 1e-5; int8 kernels may round the other way, by a few steps of
1/255.
"""
NOTABLE = 0.05
"""Largest error, as a share of an output's scale or of its span, whichever is smaller, above which a report warns.

Most int8 files of a few layers stay below (see `tflite_export.convert.number_types`). Above it, the error shows in the
application: 3 pixels of 64.
"""
NOTABLE_AGREEMENT = 0.95
"""Share of samples that keep their class, below which a report warns."""
MICRO_STEPS = 8
"""Steps of an output's quantization, of 255, that TensorFlow Lite Micro may differ from LiteRT.

Each rounds its sums in its own way. Measured: 0 on dense and convolutional nets, 1 on dilated convolutions, 3 on
attention. A kernel that is wrong is off by tens.
"""
