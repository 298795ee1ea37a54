"""Devices: which tensors they choose, in which pattern, and what they say of the rest."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.devices import DEVICES
from keras_prune.patterns import Block, ByPath, Unstructured


def mobile_net(stem_stride=2):
    """A stem, a depthwise separable block, squeeze-and-excitation, and a head written as a 1x1 convolution."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=stem_stride, padding="same", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(16, 1, name="mix")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(6, 1, activation="relu", name="squeeze")(s)
    x = layers.Multiply()([x, layers.Conv2D(16, 1, activation="hard_sigmoid", name="excite")(s)])
    x = layers.Conv2D(12, 1, strides=2, name="strided")(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Flatten()(layers.Conv2D(8, 1, name="head")(x))
    return keras.Model(inputs, layers.Dense(10, name="scores")(x))


def chosen(model, target):
    survey, pattern = DEVICES[target].assign(model, kp.Scope().survey(model))
    patterns = {tensor.path.split("/")[0]: pattern.at(tensor.path) for tensor in survey.targets}
    return patterns, {skipped.path: skipped.reason for skipped in survey.skipped}


@pytest.mark.parametrize("target", ["android", "ios", "arm64", "web"])
def test_devices_with_sparse_convolutions_take_pointwise_kernels_and_matrices(target):
    patterns, reasons = chosen(mobile_net(), target)
    assert patterns == {
        "mix": Unstructured(),
        "squeeze": Block(4, 1),
        # Its 6 inputs do not divide, and need not: within the network any zero is skipped.
        "excite": Unstructured(),
        "head": Block(4, 1),
        "scores": Block(4, 1),
    }
    assert "a kernel of shape (3, 3, 3, 8) of Conv2D" in reasons["stem/kernel"]
    assert "a kernel of shape (3, 3, 8, 1) of DepthwiseConv2D" in reasons["depthwise/kernel"]
    assert "(1, 1, 16, 12) of Conv2D" in reasons["strided/kernel"]
    assert reasons["stem/bias"].startswith("biases")


def test_a_pc_takes_matrices_only():
    patterns, reasons = chosen(mobile_net(), "x86")
    assert patterns == {"squeeze": Block(4, 1), "head": Block(4, 1), "scores": Block(4, 1)}
    assert reasons["mix/kernel"] == "target='x86' has no kernel that skips zeros of convolutions"


def test_sparse_inference_needs_its_beginning():
    _, reasons = chosen(mobile_net(stem_stride=1), "web")
    assert "does not begin with a 3x3 convolution of 3 channels at stride 2" in reasons["mix/kernel"]


def test_attention_and_recurrent_kernels_are_matrices_and_embeddings_are_not():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(6, name="memory")(x)))
    survey, pattern = DEVICES["android"].assign(model, kp.Scope().survey(model))
    paths = [tensor.path for tensor in survey.targets]
    assert len(paths) == 5, paths
    assert {pattern.at(path) for path in paths} == {Block(4, 1)}
    reasons = {skipped.path: skipped.reason for skipped in survey.skipped}
    assert "looks up rows of an embedding" in reasons["table/embeddings"]
    # 6 inputs do not divide by 4.
    assert "6 inputs do not divide" in reasons["memory/lstm_cell/recurrent_kernel"]


def test_a_microcontroller_skips_nothing_and_says_so():
    with pytest.raises(ValueError, match=r"target='mcu': its runtime has no kernel that skips zeros.*pattern='filter'"):
        kp.prune(mobile_net(), 0.5, target="mcu")


def test_a_model_that_no_zero_makes_faster_is_refused_with_the_reasons():
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="only")])
    with pytest.raises(ValueError, match=r"target='web' would be faster for zeros in no tensor.*only/kernel"):
        kp.prune(model, 0.5, target="web")


def test_a_typo_and_two_choices_at_once_are_refused():
    schedule = kp.schedules.OneShot(0.5)
    with pytest.raises(ValueError, match=r"Unknown target: 'andriod'.*Did you mean 'android'\?"):
        kp.Pruning(schedule, target="andriod")
    with pytest.raises(ValueError, match=r"prune: target='web' chooses the pattern.*Received also: pattern=Block"):
        kp.prune(mobile_net(), 0.5, pattern=Block(4, 1), target="web")


def test_fit_prunes_for_a_device_in_whole_blocks_to_the_exact_count():
    model = mobile_net()
    model.compile("sgd", "mse")
    pruning = kp.Pruning(kp.schedules.OneShot(0.75, step=1), allocation="uniform", target="web")
    model.fit(np.ones((8, 16, 16, 3)), np.ones((8, 10)), batch_size=4, verbose=0, callbacks=[pruning])
    mix = model.get_layer("mix").kernel.numpy()
    assert np.count_nonzero(mix == 0) == 96
    head = model.get_layer("head").kernel.numpy()[0, 0]
    blocks = head.reshape(3, 4, 8)
    off = (blocks == 0).all(axis=1)
    assert off.sum() == 18
    assert np.count_nonzero(head == 0) == 4 * 18
    assert (model.get_layer("depthwise").kernel.numpy() != 0).all()
    assert any("DepthwiseConv2D" in skipped.reason for skipped in pruning.skipped)


def test_global_allocation_over_two_patterns_meets_the_number_of_weights():
    a, b = layers.Dense(8, name="a", use_bias=False), layers.Dense(4, name="b", use_bias=False)
    model = keras.Sequential([keras.Input((8,)), a, b])
    kp.prune(model, 0.5, pattern={"a/.*": "unstructured", ".*": Block(4, 1)})
    zeros = sum(np.count_nonzero(layer.kernel.numpy() == 0) for layer in (a, b))
    assert abs(zeros - 48) <= 2
    assert ((b.kernel.numpy() == 0).reshape(2, 4, 4).sum(axis=1) % 4 == 0).all()


def test_patterns_by_path_name_the_tensor_that_none_fits():
    pattern = ByPath({"a/.*": Unstructured()})
    with pytest.raises(ValueError, match=r"no key fits the tensor 'b/kernel'\. Received the keys \['a/\.\*'\]"):
        pattern.at("b/kernel")
    again = ByPath.from_config(pattern.get_config())
    assert again == pattern
