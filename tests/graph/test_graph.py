import sys

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.graph.trace import trace
from keras_prune.structured import analyse
from tests.subclassed import Opaque, Residual


def test_order_is_topological_and_operations_are_nodes():
    inputs = keras.Input((4,))
    a = kl.Dense(3, name="a")(inputs)
    b = kl.Dense(3, name="b")(a)
    graph = trace(keras.Model(inputs, ops.tanh(a + b)))
    known = set(graph.inputs)
    for node in graph.nodes:
        assert set(node.inputs) <= known
        known |= set(node.outputs)
    assert [node.path.split("_")[0] for node in graph.nodes] == ["a", "b", "add", "tanh"]


def test_a_shared_layer_is_one_operation_of_two_nodes():
    inputs = keras.Input((4,))
    shared = kl.Dense(4, name="shared")
    graph = trace(keras.Model(inputs, shared(shared(inputs))))
    assert [node.operation for node in graph.nodes] == [shared, shared]


def test_nested_models_have_bodies():
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(3, name="deep")], name="inner")
    inputs = keras.Input((4,))
    graph = trace(keras.Model(inputs, kl.Dense(2, name="top")(inner(inputs))))
    assert [node.path for node in graph.walk()] == ["inner", "inner/deep", "top"]


def test_a_subclassed_model_is_seen_by_a_symbolic_call():
    model = Residual()
    model(np.zeros((1, 4), "float32"))
    weights = model.get_weights()
    found = analyse(model)
    assert [group.size for group in found.groups] == [8]
    assert [node.path.split("_")[0] for node in found.graph.nodes] == ["first", "second", "add", "relu", "head"]
    assert not any(layer._inbound_nodes for layer in model.layers)  # no trace is left of it
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])


def test_what_cannot_be_seen_is_named():
    model = Opaque()
    model(np.zeros((1, 4), "float32"))
    with pytest.raises(ValueError, match=r"graph of Opaque 'opaque' cannot be traced.*keras\.ops"):
        trace(model)
    with pytest.raises(ValueError, match="Residual 'residual' is not built"):
        trace(Residual())
    with pytest.raises(ValueError, match="'fresh' is not built"):
        trace(keras.Sequential([kl.Dense(2)], name="fresh"))


def test_a_thousand_layers_need_no_deep_stack():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # Keras itself needs it, to build the model
    try:
        model = keras.Sequential([keras.Input((4,)), *(kl.Dense(4, use_bias=False) for _ in range(1000))])
    finally:
        sys.setrecursionlimit(limit)
    found = analyse(model)
    assert len(found.graph.nodes) == 1000
    assert [group.size for group in found.groups] == [4] * 999
