"""Which constant of a file each kernel became, and whether its zeros are there."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers as kl

from tflite_export.convert.converter import convert
from tflite_export.model.signature import signature_of
from tflite_export.plan.eligibility import Weight
from tflite_export.plan.weights import Names, collect
from tflite_export.plan.zeros import kernels_of, lost_zeros, match_kernels, with_paths


def weight(values, name="constant", index=0):
    return Weight(name=name, values=np.asarray(values, "float32"), consumers=(), tensors=((0, index),))


def kernel(shape, seed=0, zeros=0.7):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * (rng.random(shape) >= zeros)).astype("float32")


@pytest.mark.parametrize(("shape", "factors"), [((6, 3, 3, 4), (6, 1, 1, 1)), ((1, 3, 3, 6), (1, 1, 1, 6))])
def test_a_kernel_is_found_by_its_channels_up_to_factors(shape, factors):
    scale = np.random.default_rng(9).uniform(-2, 2, factors)
    wanted, other = kernel(shape), kernel(shape, seed=1)
    matches = match_kernels({"a": wanted, "b": other}, [weight(other, "x", 0), weight(wanted * scale, "y", 1)])
    assert [(match.path, match.weight.name, match.folded, match.lost) for match in matches] == [
        *(("a", "y", True, 0), ("b", "x", False, 0))
    ]
    assert lost_zeros(matches) == {}
    assert [one.name for one in with_paths([matches[0].weight, weight([1.0], "z", 5)], matches)] == ["a", "z"]


def test_zeros_that_were_lost_are_counted():
    wanted = kernel((40, 5))
    constant = wanted * 3
    lost = np.flatnonzero(wanted == 0)[:4]
    constant.reshape(-1)[lost] = 0.5
    matches = match_kernels({"a": wanted}, [weight(constant)])
    assert lost_zeros(matches) == {"a": 4}


def test_a_kernel_that_is_not_in_the_file_has_no_match():
    assert match_kernels({"a": kernel((6, 5))}, [weight(kernel((6, 5), seed=1)), weight(kernel((5, 6)))]) == ()
    assert match_kernels({"a": np.zeros((6, 5), "float32")}, [weight(kernel((6, 5)))]) == ()


def test_equal_kernels_are_given_a_constant_each():
    same = kernel((6, 5))
    matches = match_kernels({"a": same, "b": same}, [weight(same, "x", 0), weight(same * 2, "y", 1)])
    assert [(match.path, match.weight.name) for match in matches] == [("a", "x"), ("b", "y")]


def test_every_kernel_of_a_net_is_found_in_its_file_and_keeps_its_zeros():
    stack = [
        keras.Input((12, 12, 3)),
        kl.Conv2D(8, (3, 2), strides=2, use_bias=False, name="stem"),
        kl.BatchNormalization(),
        kl.ReLU(),
        kl.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"),
        kl.BatchNormalization(),
        kl.SeparableConv2D(6, 3, depth_multiplier=2, name="separable"),
        kl.BatchNormalization(),
        kl.Conv2DTranspose(5, 3, strides=2, name="transpose"),
        kl.Reshape((-1, 5)),
        kl.Conv1D(4, 3, name="line"),
        kl.GlobalAveragePooling1D(),
        kl.Dense(7, name="head"),
    ]
    model = keras.Sequential(stack)
    rng = np.random.default_rng(0)
    for seed, variable in enumerate(model.variables):
        if "kernel" in variable.path:
            variable.assign(kernel(variable.shape, seed))
        elif "normalization" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    dense = convert(lambda: model, signature_of(model), 1).file.model
    weights = collect(dense, names=Names({}, {}), rows={})
    kernels = kernels_of(model)
    matches = match_kernels(kernels, weights)
    assert [match.path for match in matches] == list(kernels)
    assert [match.path.split("/")[-2] for match in matches if match.folded] == [*("stem", "depthwise", "separable")]
    assert lost_zeros(matches) == {}
    assert {path for path in kernels} <= {one.name for one in with_paths(weights, matches)}
