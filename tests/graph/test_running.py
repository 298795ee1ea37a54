"""Calls in order, those that are needed, and nothing held longer than it is read."""

import weakref

import keras
from keras import layers as kl

from keras_prune.graph.running import needed, run_calls
from keras_prune.graph.trace import trace


class Value:
    """What stands for a tensor."""

    def __init__(self, text):
        self.text = text


def test_values_live_until_the_last_call_that_reads_them():
    inputs = keras.Input((4,))
    a = kl.ReLU(name="a")(inputs)
    x = kl.Add(name="sum")([kl.ReLU(name="c")(kl.ReLU(name="b")(a)), a])
    graph = trace(keras.Model(inputs, [kl.ReLU(name="end")(x), x]))
    made, alive = {}, {}

    def call(node, known):
        alive[node.path] = sorted(name for name, value in made.items() if value() is not None)
        value = Value(f"{node.path}({','.join(known[i].text for i in node.inputs)})")
        made[node.path] = weakref.ref(value)
        return [value]

    results = run_calls(graph, [Value("x")], call)
    assert [value.text for value in results] == ["end(sum(c(b(a(x))),a(x)))", "sum(c(b(a(x))),a(x))"]
    assert alive == {"a": [], "b": ["a"], "c": ["a", "b"], "sum": ["a", "c"], "end": ["sum"]}


def test_calls_that_are_left_out_hand_on_what_takes_their_place():
    inputs = keras.Input((4,))
    x = kl.Dense(4, name="kept")(inputs)
    y = kl.Dense(4, name="inner")(x)
    graph = trace(keras.Model(inputs, kl.Add(name="out")([x, kl.ReLU(name="left out")(y)])))
    node = next(node for node in graph.nodes if node.path == "left out")
    kept = next(node for node in graph.nodes if node.path == "kept")
    skip = {id(node): kept.outputs[0]}
    assert [one.path for one in needed(graph, skip)] == ["kept", "left out", "out"]
    [text] = run_calls(graph, ["x"], lambda n, known: [f"{n.path}({','.join(known[i] for i in n.inputs)})"], skip)
    assert text == "out(kept(x),kept(x))"
