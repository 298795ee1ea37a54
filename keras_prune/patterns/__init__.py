"""Where zeros may fall: scores + target -> mask, in units of a weight, a block, a group of m, or a channel.

Patterns see every kernel in one layout, `[..., in, out]`, the layout of Keras's Dense and Conv kernels: last axis
outputs, the one before it inputs, any others space. (`keras_prune.scope` brings transposed, depthwise and einsum
kernels into it.) TFLite stores the transpose, `[out, ..., in]`: its 1x4 block along the inputs is `Block(4, 1)` here.
"""

from keras_prune.patterns.blocks import Block, NofM, Unstructured
from keras_prune.patterns.by_path import ByPath
from keras_prune.patterns.channels import Channel, Filter
from keras_prune.patterns.pattern import Pattern

__all__ = ["Block", "ByPath", "Channel", "Filter", "NofM", "Pattern", "Unstructured"]
