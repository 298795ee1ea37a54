"""What planning refuses, and what it leaves alone."""

import random
import re

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune import layer_kinds
from keras_prune.structured import analyse, count, plan, remove
from keras_prune.structured.planning.latency import Latency
from tests.subclassed import Opaque


def net(width=16):
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(width, 3, activation="relu", name="a")(inputs)
    y = kl.Conv2D(width, 3, padding="same", name="b")(x)
    x = kl.Conv2D(2 * width, 3, strides=2, activation="relu", name="c")(kl.Add(name="add")([x, y]))
    return keras.Model(inputs, kl.Dense(4, name="head")(kl.GlobalAveragePooling2D()(x)), name="net")


class Mixed(kl.Layer):
    """A layer that no rule knows, without weights, whose `call` goes past Keras."""

    def call(self, x):
        import tensorflow as tf

        return tf.reverse(x, [-1]) + x


def mixed():
    inputs = keras.Input((6,))
    x = kl.Dense(8, name="before")(inputs)
    x = kl.Dense(10, name="after")(Mixed(name="mixed")(x))
    return keras.Model(inputs, kl.Dense(2, name="head")(x), name="with_mixed")


def opaque():
    model = Opaque()
    model(np.zeros((1, 4), "float32"))
    return model


@pytest.mark.parametrize("target", ["params", "flops", "memory"])
@pytest.mark.parametrize("limits", [{}, {"min_width": 5}, {"frozen": ["head"]}, {"round_to": 8}])
def test_the_nearest_that_can_be_met_is_said_and_can_be_met(target, limits):
    with pytest.raises(
        ValueError, match=rf"plan: {target}=0.002 cannot be met: even the smallest model keeps 0\.\d{{4}}"
    ) as error:
        plan(net(), **{target: 0.002}, **limits)
    best, left, whole = re.search(r"keeps (0\.\d{4}) \(([\d,]+) of ([\d,]+)\)", str(error.value)).groups()
    field = {"params": "params", "flops": "macs", "memory": "peak"}[target]
    made = plan(net(), **{target: float(best) + 1e-4}, **limits)
    assert getattr(made.after, field) == int(left.replace(",", ""))
    assert getattr(made.before, field) == int(whole.replace(",", ""))
    why = "it is named in frozen" if "frozen" in limits else "it is an output of the model"
    assert re.search(rf"What stays, and why: .*head/kernel \({why}", str(error.value))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_at_most_the_share_of_memory_is_left(share):
    made = plan(net(), memory=share)
    assert share - 0.12 < made.after.peak / made.before.peak <= share
    assert count(made.apply()).total.peak == made.after.peak
    assert f"peak activation bytes {made.before.peak:,} -> {made.after.peak:,}" in str(made)


def test_inputs_bound_what_memory_can_be():
    inputs = keras.Input((64,))
    model = keras.Model(inputs, kl.Dense(2)(kl.Dense(8)(inputs)))
    with pytest.raises(ValueError, match=r"memory=0.5 cannot .* smallest model keeps 0.9028 \(260 of 288\)"):
        plan(model, memory=0.5)


def test_limits_by_layer():
    made = plan(net(), params=0.3, min_width={"c": 20, "b": 3}, scope="global")
    assert made.kept[1] >= 20
    assert made.kept[0] >= 3
    made = plan(net(), params=0.5, round_to={"a": 6, "b": 4, "c": 5})
    assert made.kept[0] == 12
    assert made.kept[1] % 5 == 0
    with pytest.raises(ValueError, match="'net' has no layer 'x'"):
        plan(net(), params=0.5, min_width={"x": 2})
    with pytest.raises(ValueError, match=r"min_width of 'c' must be a whole number from 1\. Received: 0"):
        plan(net(), params=0.5, min_width={"c": 0})
    with pytest.raises(ValueError, match=r"round_to of 'c' must be a whole number from 1\. Received: 2\.5"):
        plan(net(), params=0.5, round_to={"c": 2.5})


def test_an_output_layer_keeps_its_width():
    with pytest.raises(ValueError, match=r"'head' cannot shrink, as max_share=0\.5 asks: it is an output of the model"):
        plan(net(), params=0.5, max_share={"head": 0.5})
    with pytest.raises(ValueError, match="'head' cannot lose output 0: it is an output of the model"):
        remove(net(), {"head": [0]})
    inputs = keras.Input((6,))
    x = kl.Dense(8, name="first")(inputs)
    model = keras.Model(inputs, [x, kl.Dense(2, name="second")(kl.Dense(9, name="inner")(x))], name="two")
    made = plan(model, params=0.7)
    assert [tensor.shape for tensor in made.apply().outputs] == [(None, 8), (None, 2)]
    assert made.kept.tolist() == [4]
    with pytest.raises(ValueError, match="'first' cannot lose output 3: it is an output of the model"):
        remove(model, {"first": [3]})


def test_a_frozen_node_in_the_way_is_named_and_the_rest_shrinks():
    made = plan(mixed(), params=0.8)
    assert [group.size for group in made.analysis.groups] == [10]
    smaller = made.apply()
    assert smaller.get_layer("before").units == 8
    assert smaller.get_layer("after").units < 10
    text = str(made)
    assert "left alone: mixed (there is no rule for Mixed, and its call() cannot be traced: " in text
    assert "left alone: before/kernel (there is no rule for Mixed, and its call() cannot be traced: " in text
    with pytest.raises(ValueError, match=r"'before' cannot lose output 1: there is no rule for Mixed, .*: mixed"):
        remove(mixed(), {"before": [1]})
    with pytest.raises(
        ValueError, match=r"'before' cannot shrink, as max_share=0\.5 asks: there is no rule for Mixed, .*: mixed"
    ):
        plan(mixed(), params=0.8, max_share={"before": 0.5})
    with pytest.raises(ValueError, match=r"cannot be met.*mixed \(there is no rule for Mixed, and"):
        plan(mixed(), params=0.1)


def test_a_layer_asked_to_stay_holds_what_is_coupled_to_it():
    with pytest.raises(ValueError, match=r"'a' cannot shrink, as max_share=0\.5 asks: it is named in frozen: b"):
        plan(net(), params=0.8, frozen=["b"], max_share={"a": 0.5})


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda model: plan(model, params=0.5), id="plan"),
        pytest.param(lambda model: remove(model, {"dense": [0]}), id="remove"),
        pytest.param(count, id="count"),
        pytest.param(analyse, id="analyse"),
    ],
)
def test_a_graph_that_cannot_be_seen_is_refused_and_left_as_it_was(use):
    model = opaque()
    x = np.ones((2, 4), "float32")
    before, nodes = np.asarray(model(x)), [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    with pytest.raises(ValueError, match=r"graph of Opaque 'opaque' cannot be traced.*Use layers and keras\.ops"):
        use(model)
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
    np.testing.assert_array_equal(np.asarray(model(x)), before)
    assert kp.report(model).counts is None


def state_of(model):
    return {
        "values": [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]],
        "constraints": [v.constraint for v in model.variables],
        "trainable": [v.trainable for v in model.variables],
        "nodes": [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model.layers],
        "layers": [id(layer) for layer in model.layers],
        "config": model.to_json(),
        "compile": model.get_compile_config(),
    }


def world():
    return {
        "rules": dict(layer_kinds.KINDS),
        "policy": keras.config.dtype_policy().name,
        "floatx": keras.config.floatx(),
        "numpy": np.random.get_state()[1].tolist(),
        "objects": sorted(keras.saving.get_custom_objects()),
    }


def test_nothing_is_changed_but_what_is_returned():
    model = net()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    model.fit(x, np.arange(8) % 4, verbose=0)
    before, around = state_of(model), world()
    made = [
        plan(model, params=0.5, importance="taylor", data=(x, np.arange(8) % 4)),
        plan(model, flops=0.5, importance="activation_sum", data=x),
        plan(model, memory=0.7),
        plan(model, latency=0.7, measure=lambda one: float(count(one).total.macs)),
    ]
    smaller = [one.apply() for one in made]
    text = str(kp.report(model))
    after, still = state_of(model), world()
    assert around == still
    for name, value in before.items():
        if name == "values":
            for old, new in zip(value, after[name], strict=True):
                np.testing.assert_array_equal(old, new)
        else:
            assert value == after[name], name
    assert str(kp.report(model)) == text
    owned = {id(v) for v in model.variables}
    assert not any(id(v) in owned for one in smaller for v in one.variables)
    assert isinstance(made[-1].latency, Latency)


def test_plans_of_several_models_do_not_meet():
    keras.utils.set_random_seed(3)
    first, second = net(), net(24)
    alone = [plan(one, params=0.5, scope="global").keep for one in (first, second)]
    analyses = [analyse(first), analyse(second)]
    random.Random(0).shuffle(analyses)
    made = [plan(one, params=0.5, scope="global") for one in (second, first)][::-1]
    smaller = [one.apply() for one in made[::-1]][::-1]
    for one, keep, model in zip(made, alone, smaller, strict=True):
        np.testing.assert_array_equal(one.keep, keep)
        assert model.count_params() == one.after.params
    np.testing.assert_array_equal(plan(first, params=0.5, scope="global").keep, alone[0])
