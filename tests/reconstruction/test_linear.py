"""Rows times matrices are what the layer computes, for every kind of layer, and both ways of a kernel are inverse."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.reconstruction.linear import linear_map

LAYERS = [
    (kl.Dense(5), (7,)),
    (kl.Dense(5, use_bias=False), (3, 7)),
    (kl.Conv1D(6, 3, strides=2, padding="same"), (9, 4)),
    (kl.Conv1D(6, 3, dilation_rate=2, padding="causal"), (9, 4)),
    (kl.Conv2D(6, (3, 2), strides=(2, 1), padding="same"), (9, 8, 4)),
    (kl.Conv2D(6, 3, groups=2, dilation_rate=2), (9, 8, 4)),
    (kl.Conv2D(6, 1, strides=2, use_bias=False), (8, 8, 4)),
    (kl.Conv3D(3, 2, padding="same"), (4, 5, 3, 2)),
    (kl.DepthwiseConv1D(3, depth_multiplier=2), (9, 4)),
    (kl.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2), (9, 8, 4)),
    (kl.EinsumDense("ab,bc->ac", output_shape=5, bias_axes="c"), (7,)),
    (kl.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3), bias_axes="de"), (4, 6)),
    (kl.EinsumDense("abcd,cde->abe", output_shape=(None, 5), bias_axes="e"), (4, 2, 3)),
    (kl.EinsumDense("abg,gbc->agc", output_shape=(3, 4), bias_axes="gc"), (6, 3)),
    (kl.EinsumDense("...x,xy->...y", output_shape=5, bias_axes="y"), (4, 6)),
    (kl.EinsumDense("abc,cd->abd", output_shape=(4, 5), bias_axes="bd"), (4, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: getattr(value, "name", str(value)))
def test_rows_times_matrices_are_what_the_layer_computes(layer, shape):
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    layer.build(x.shape)
    for variable in layer.trainable_variables:
        variable.assign(keras.random.normal(variable.shape))
    found = linear_map(layer, layer.kernel)
    kernel = np.asarray(layer.kernel)
    matrices = found.matrices(kernel)
    made = np.einsum("ngk,gko->ngo", found.rows(x, lambda samples: slice(None)), matrices)
    if found.vectors is None:
        layer.bias = None
        layer.use_bias = False
    else:
        bias = np.asarray(layer.bias)
        made = made + found.vectors(bias)
        np.testing.assert_array_equal(found.bias(found.vectors(bias)), bias)
    wanted = np.asarray(layer(x))
    # Each sample's outputs, in whatever order: the same numbers once both are sorted.
    np.testing.assert_allclose(np.sort(made, axis=None), np.sort(wanted, axis=None), atol=1e-4)
    np.testing.assert_array_equal(found.kernel(matrices), kernel)
    some = found.rows(x, lambda samples: np.arange(1, samples, 2))
    np.testing.assert_array_equal(some, found.rows(x, lambda samples: slice(None))[1::2])


def test_what_is_no_linear_map_of_its_input_is_not_known():
    cell = kl.LSTMCell(3)
    cell.build((None, 2))
    table = kl.Embedding(4, 2)
    table.build()
    apart = kl.SeparableConv2D(3, 3)
    apart.build((None, 8, 8, 2))
    for layer, variable in (
        (cell, cell.kernel),
        (table, table.embeddings),
        (apart, apart.pointwise_kernel),
        (kl.Dense(2), None),
    ):
        assert variable is None or linear_map(layer, variable) is None
