"""Peak activation memory: cases worked out by hand, and an executor that shares nothing with the code."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import tree

from keras_prune.graph.trace import trace
from keras_prune.structured import analyse, count, plan
from keras_prune.structured.analysis.running import results_of
from keras_prune.structured.counting.memory import Memory, item_bytes


def live(model):
    """Path -> bytes that live while the call runs."""
    return {layer.path: layer.peak for layer in count(model).layers}


def executed(model):
    """Run a model call by call, hold what is still to be read, and weigh it with NumPy."""
    graph = trace(model)
    steps = []

    def flatten(part, names):
        known = dict(zip(part.inputs, names, strict=True))
        for node in part.nodes:
            if node.body is not None:
                made = flatten(node.body, [known[i] for i in node.entries])
            else:
                made = [object() for _ in node.outputs]
                steps.append((node, [known[i] for i in node.inputs], made))
            known.update(zip(node.outputs, made, strict=True))
        return [known[i] for i in part.outputs]

    inputs = [object() for _ in graph.inputs]
    ends = flatten(graph, inputs)
    feeds = [np.zeros([1, *(size or 1 for size in graph.shapes[i][1:])], "float32") for i in graph.inputs]
    held = {name: keras.ops.convert_to_tensor(feed) for name, feed in zip(inputs, feeds, strict=True)}
    most = 0
    for place, (node, taken, made) in enumerate(steps):
        known = {number: held[name] for number, name in zip(node.inputs, taken, strict=True)}
        held.update(zip(made, results_of(node.operation, *node.filled(known))[0], strict=True))
        most = max(most, sum(np.asarray(value).nbytes for value in held.values()))
        later = {name for _, names, _ in steps[place + 1 :] for name in names} | set(ends)
        held = {name: value for name, value in held.items() if name in later}
    return most


def chain():
    return keras.Sequential([keras.Input((10,)), kl.Dense(20, name="a"), kl.Dense(5, name="b"), kl.Dense(1, name="c")])


def residual():
    inputs = keras.Input((8,))
    x = kl.Dense(16, name="a")(inputs)
    y = kl.Dense(32, name="b")(x)
    y = kl.Dense(16, name="c")(y)
    return keras.Model(inputs, kl.Dense(2, name="head")(kl.Add(name="add")([x, y])))


def concat():
    inputs = keras.Input((4, 4, 2))
    a = kl.Conv2D(3, 1, name="a")(inputs)
    b = kl.Conv2D(5, 1, name="b")(inputs)
    x = kl.Concatenate(name="cat")([a, b])
    return keras.Model(inputs, kl.GlobalAveragePooling2D(name="pool")(x))


def branches():
    inputs = keras.Input((6,))
    a, b, c = (kl.Dense(4, name=name)(inputs) for name in "abc")
    return keras.Model(inputs, [kl.Add(name="sum")([a, b, c]), kl.Dense(3, name="other")(a)])


def test_a_chain_holds_two_tensors_at_a_time():
    assert live(chain()) == {"a": 4 * (10 + 20), "b": 4 * (20 + 5), "c": 4 * (5 + 1)}
    total = count(chain()).total
    assert (total.activations, total.peak) == (4 * (20 + 5 + 1), 120)


def test_a_residual_path_holds_its_start():
    assert live(residual()) == {
        "a": 4 * (8 + 16),
        "b": 4 * (16 + 32),
        "c": 4 * (16 + 32 + 16),
        "add": 4 * (16 + 16 + 16),
        "head": 4 * (16 + 2),
    }
    assert count(residual()).total.peak == 256


def test_a_concatenation_holds_its_parts_and_the_whole():
    found = live(concat())
    assert found["cat"] == 4 * 16 * (3 + 5 + 8)
    assert found["pool"] == 4 * (16 * 8 + 8)
    assert found["a"] == 4 * 16 * (2 + 3)
    assert found["b"] == 4 * 16 * (2 + 3 + 5)


def test_branches_hold_their_input_until_the_last_has_read_it():
    found = live(branches())
    assert found["a"] == 4 * (6 + 4)
    assert found["b"] == 4 * (6 + 4 + 4)
    assert found["c"] == 4 * (6 + 4 + 4 + 4)


@pytest.mark.parametrize("make", [chain, residual, concat, branches])
def test_an_executor_holds_as_much(make):
    assert count(make()).total.peak == executed(make())


def test_results_of_the_model_live_to_its_end():
    inputs = keras.Input((100,))
    early = kl.Dense(50, name="early")(inputs)
    late = kl.Dense(2, name="late")(kl.Dense(3, name="mid")(early))
    assert live(keras.Model(inputs, late))["late"] == 4 * (3 + 2)
    assert live(keras.Model(inputs, [early, late]))["late"] == 4 * (50 + 3 + 2)


def test_nested_and_shared_models_run_in_their_place():
    inner = keras.Sequential([keras.Input((8,)), kl.Dense(64, name="wide"), kl.Dense(8, name="back")], name="inner")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, inner(inner(inputs)))
    found = {layer.path: layer for layer in count(model).layers}
    assert found["inner/wide"].peak == 4 * (8 + 64)
    assert found["inner/wide"].activations == 2 * 4 * 64
    assert count(model).total.peak == executed(model)


def test_the_compute_policy_gives_the_size_of_numbers():
    inputs = keras.Input((8,), dtype="float16")
    x = kl.Dense(6, dtype="mixed_float16", name="half")(inputs)
    found = live(keras.Model(inputs, kl.Dense(2, dtype="float32", name="full")(x)))
    assert found == {"half": 2 * (8 + 6), "full": 2 * 6 + 4 * 2}
    assert [item_bytes(name) for name in ("float16", "bfloat16", "float64", "int8", "bool")] == [2, 2, 8, 1, 1]


def test_lengths_that_are_open_count_as_one():
    inputs = keras.Input((None, 3))
    assert count(keras.Model(inputs, kl.Dense(4)(inputs))).total.peak == 4 * (3 + 4)


def test_a_model_without_calls_holds_its_inputs():
    inputs = keras.Input((7,))
    assert count(keras.Model(inputs, inputs)).total.peak == 28


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_plan_knows_the_memory_of_the_model_made(share):
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 4, "minimalistic": True}
    made = plan(keras.applications.MobileNetV3Small(**options), params=share, scope="global")
    smaller = made.apply()
    assert made.after == count(smaller).total
    assert made.after.peak == executed(smaller)
    assert made.before.peak > made.after.peak
    memory = Memory(made.analysis)
    assert memory.peak(made.kept) == memory.live(made.kept).max() == made.after.peak
    assert memory.made(made.kept).sum() == made.after.activations
    assert len(memory.paths) == len(list(analyse(smaller).graph.walk()))
    assert tree.flatten(smaller.output_shape)[-1] == 4
