"""Shared values in an int8 file: a channel keeps at most as many as its tensor has."""

import importlib.util

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx
from tflite_export.file.flatbuffer import constant
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.tflm.decode_operators import without_decode
from tflite_export.verification.ports import ports_of

IMAGES = np.random.default_rng(1).normal(size=(32, 12, 12, 3)).astype("float32")
NEEDED = {"mcu": "tflite_micro", "ethos-u55": "ethosu.vela"}


def make_net():
    """A normalization to fold, and a kernel of each kind."""
    keras.utils.set_random_seed(0)
    net = [keras.Input((12, 12, 3)), kl.Conv2D(24, 3, use_bias=False), kl.BatchNormalization(), kl.ReLU()]
    net += [kl.DepthwiseConv2D(3), kl.GlobalAveragePooling2D(), kl.Dense(64, "relu"), kl.Dense(10)]
    return keras.Sequential(net)


def channels_of(weights, axis):
    return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)


def test_each_channel_of_an_int8_file_has_at_most_the_shared_values_and_zeros_stay(tmp_path):
    model = kp.strip(kp.share(kp.prune(make_net(), 0.5), 8))
    tx.export(model, tmp_path / "m.tflite", quantize="int8", data=IMAGES)
    runner = Interpreter(str(tmp_path / "m.tflite"), experimental_preserve_all_tensors=True)
    runner.allocate_tensors()
    weights = [each for each in runner.get_tensor_details() if each["dtype"] == np.int8 and len(each["shape"]) > 1]
    weights = [each for each in weights if len(each["quantization_parameters"]["scales"]) > 1]
    assert len(weights) == 4
    for each in weights:
        axis = each["quantization_parameters"]["quantized_dimension"]
        channels = channels_of(runner.get_tensor(each["index"]), axis)
        assert max(len(np.unique(channel)) for channel in channels) <= 8
    zeros = sum(int(np.sum(np.asarray(w) == 0)) for w in model.trainable_weights if len(w.shape) > 1)
    assert sum(int(np.sum(runner.get_tensor(each["index"]) == 0)) for each in weights) >= zeros


# -- trained quantization-aware ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Pruned, made to share values, and trained on as an int8 file rounds it."""
    shared = kp.share(kp.prune(make_net(), 0.5), 8)
    shared.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model = kp.quantize_aware(shared, data=IMAGES)
    model.before = [kernel.numpy() for kernel in kernels_of(model)]
    model.fit(IMAGES, np.arange(32) % 10, batch_size=8, epochs=2, verbose=0, callbacks=[kp.WeightSharing(8)])
    return model


def kernels_of(model):
    return [weight for weight in model.trainable_weights if len(weight.shape) > 1]


def test_values_learn_with_rounded_kernels_and_who_shares_one_stays(trained):
    for before, kernel in zip(trained.before, kernels_of(trained), strict=True):
        after = kernel.numpy()
        values = np.unique(before)
        assert len(values) <= 8
        assert 0 in values
        moved = [np.unique(after[before == value]) for value in values]
        assert [len(each) for each in moved] == [1] * len(values)
        assert moved[values.tolist().index(0)] == [0]
        assert np.abs(np.concatenate(moved) - values).max() > 1e-3


@pytest.mark.parametrize("target", ["mcu", "ethos-u55"])
def test_a_file_of_them_has_their_zeros_and_no_more_values_in_each_channel(trained, target, tmp_path):
    if importlib.util.find_spec(NEEDED[target].split(".")[0]) is None:
        pytest.skip(f"needs {NEEDED[target]}")
    report = tx.export(trained, tmp_path / "m.tflite", target=target, quantize="int8", data=IMAGES)
    if target == "mcu":
        assert report.micro.decoding is not None
    else:
        assert report.npu.compiled.flash_bytes < report.npu.filled.flash_bytes
    file = without_decode(TFLiteFile((tmp_path / "m.tflite").read_bytes()))
    stored = {
        values.shape: channels_of(values, int(tensor.quantization.quantizedDimension))
        for tensor in file.model.subgraphs[0].tensors
        if (values := constant(file.model, tensor)) is not None and values.dtype == np.int8
    }
    assert len(stored) == 4
    for kernel, shape in zip(kernels_of(trained), [(24, 3, 3, 3), (1, 3, 3, 24), (64, 24), (10, 64)], strict=True):
        own = channels_of(kernel.numpy().reshape(*kernel.shape[:2], -1) if shape[0] == 1 else kernel.numpy(), -1)
        for channel, integers in zip(own, stored[shape], strict=True):
            assert not integers[channel == 0].any()
            # Equal weights are equal integers.
            assert all(len(np.unique(integers[channel == value])) == 1 for value in np.unique(channel))
    [(name, taken)], [(out, given)] = (ports.items() for ports in ports_of(file.model))
    (answers,) = LiteRTSession(file.content).run([taken.store(IMAGES)], [name], [out], 1)
    assert np.abs(given.real(answers) - trained.predict(IMAGES, verbose=0)).max() <= 2.01 * given.scale
