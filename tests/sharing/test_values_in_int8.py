"""Shared values in an int8 file: a channel keeps at most as many as its tensor has."""

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl

import keras_prune as kp
import tflite_export as tx


def test_each_channel_of_an_int8_file_has_at_most_the_shared_values_and_zeros_stay(tmp_path):
    keras.utils.set_random_seed(0)
    net = [keras.Input((12, 12, 3)), kl.Conv2D(24, 3, use_bias=False), kl.BatchNormalization(), kl.ReLU()]
    net += [kl.DepthwiseConv2D(3), kl.GlobalAveragePooling2D(), kl.Dense(32, "relu"), kl.Dense(10)]
    model = kp.strip(kp.share(kp.prune(keras.Sequential(net), 0.5), 8))
    images = np.random.default_rng(1).normal(size=(32, 12, 12, 3)).astype("float32")
    tx.export(model, tmp_path / "m.tflite", quantize="int8", data=images)
    runner = Interpreter(str(tmp_path / "m.tflite"), experimental_preserve_all_tensors=True)
    runner.allocate_tensors()
    weights = [each for each in runner.get_tensor_details() if each["dtype"] == np.int8 and len(each["shape"]) > 1]
    weights = [each for each in weights if len(each["quantization_parameters"]["scales"]) > 1]
    assert len(weights) == 4
    for each in weights:
        axis = each["quantization_parameters"]["quantized_dimension"]
        channels = np.moveaxis(runner.get_tensor(each["index"]), axis, 0).reshape(each["shape"][axis], -1)
        assert max(len(np.unique(channel)) for channel in channels) <= 8
    zeros = sum(int(np.sum(np.asarray(w) == 0)) for w in model.trainable_weights if len(w.shape) > 1)
    assert sum(int(np.sum(runner.get_tensor(each["index"]) == 0)) for each in weights) >= zeros
