"""What the converter's file holds: each constant once, and what the model answers."""

import keras
import numpy as np
from keras import layers as kl

from tflite_export.convert.converter import convert
from tflite_export.file import flatbuffer
from tflite_export.model.signature import signature_of
from tflite_export.runtimes.litert import LiteRTSession


def twins():
    """Two Dense layers of equal kernels, one of them called twice, and a third kernel that differs in one value."""
    entry = keras.Input((24,))
    first, second, third = (kl.Dense(24, activation="relu", bias_initializer="random_normal") for _ in range(3))
    model = keras.Model(entry, third(second(first(first(entry)))))
    second.kernel.assign(first.kernel)
    kernel = first.kernel.numpy().copy()
    kernel[3, 5] += 1.0
    third.kernel.assign(kernel)
    return model


def test_equal_constants_are_stored_once():
    model = twins()
    converted = convert(lambda: model, signature_of(model))
    file = converted.file.model
    (graph,) = file.subgraphs
    kernels = [graph.tensors[int(op.inputs[1])] for op in graph.operators]
    assert len(kernels) == 4
    values = [flatbuffer.constant(file, tensor) for tensor in kernels]
    assert len({each.tobytes() for each in values}) == len({tensor.buffer for tensor in kernels}) == 2
    stored = sum(buffer.data.nbytes for buffer in file.buffers if buffer.data is not None)
    assert 2 * 4 * 24 * 24 <= stored < 3 * 4 * 24 * 24
    feed = np.random.default_rng(1).standard_normal((3, 24), dtype=np.float32)
    (found,) = LiteRTSession(converted.file).run([feed], converted.inputs, converted.outputs)
    np.testing.assert_allclose(found, model(feed), atol=1e-5)
