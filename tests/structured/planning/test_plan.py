import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.devices import DEVICES
from keras_prune.structured import plan, prune, remove


def net(width=16):
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(width, 3, activation="relu", name="a")(inputs)
    y = kl.Conv2D(width, 3, padding="same", name="b")(x)
    x = kl.Add(name="add")([x, y])
    x = kl.Conv2D(2 * width, 3, strides=2, activation="relu", name="c")(x)
    x = kl.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, kl.Dense(4, name="head")(x), name="net")


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(("target", "field"), [("params", "params"), ("flops", "macs")])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_at_most_the_share_is_left_and_hardly_less(scope, target, field, share):
    made = plan(net(), **{target: share}, scope=scope)
    left = getattr(made.after, field) / getattr(made.before, field)
    assert share - 0.12 < left <= share


def test_both_targets_hold():
    made = plan(net(), params=0.6, flops=0.3)
    assert made.after.params <= 0.6 * made.before.params
    assert made.after.macs <= 0.3 * made.before.macs


def test_local_takes_the_same_share_of_each_group():
    sizes = np.array([16, 32])
    kept = plan(net(), params=0.5).kept
    assert np.abs(kept / sizes - kept.sum() / sizes.sum()).max() <= 1 / 16


def test_global_takes_the_lowest_of_all():
    model = net()
    kernel = model.get_layer("c").kernel
    kernel.assign(kernel * np.where(np.arange(32) < 20, 1e-3, 1.0).astype("float32"))
    head = model.get_layer("head").kernel
    head.assign(head * np.where(np.arange(32) < 20, 1e-3, 1.0).astype("float32")[:, None])
    made = plan(model, params=0.7, scope="global")
    assert made.kept[0] == 16
    assert not made.keep[16:32].any() or made.keep[16 + 20 :].all()


def test_the_weakest_units_go():
    model = net()
    weak = model.get_layer("c")
    weak.kernel.assign(np.ones(weak.kernel.shape) * (1.0 + np.arange(32)))
    made = plan(model, params=0.5, importance=kp.structured.L1(reduction="first"))
    gone = 32 - made.kept[1]
    assert not made.keep[16 : 16 + gone].any()
    assert made.keep[16 + gone :].all()


def test_multiples_widths_and_limits_hold():
    made = plan(net(), params=0.5, round_to=8)
    assert (made.kept % 8 == 0).all()
    made = plan(net(), params=0.5, min_width=12, scope="global")
    assert made.kept.min() >= 12
    made = plan(net(), params=0.5, max_share={"a": 0.25})
    assert made.kept[0] >= 12
    made = plan(net(), params=0.7, max_share={"b": 0.0})
    assert made.kept[0] == 16
    assert plan(net(), params=0.7, max_share=0.5).kept.min() >= 8


def test_a_target_has_multiples():
    board = dataclasses.replace(DEVICES["ethos-u55"], name="board", multiple=6)
    for target in ("ethos-u55", "android", "web", "x86"):
        assert plan(net(20), flops=0.5, target=target).kept.tolist() == [8, 24]
    assert plan(net(20), flops=0.5, target=board).kept.tolist() == [12, 30]
    # What the user states, and devices without a multiple, leave any number of units.
    assert (plan(net(20), flops=0.5, target="ethos-u55", round_to=1).kept == plan(net(20), flops=0.5).kept).all()
    assert (plan(net(20), flops=0.5, target="mcu").kept == plan(net(20), flops=0.5).kept).all()
    with pytest.raises(ValueError, match=r"Unknown device: 'ethos-u99'"):
        plan(net(), flops=0.5, target="ethos-u99")


def test_frozen_layers_stay():
    made = plan(net(), params=0.8, frozen=["a"])
    assert made.kept.tolist()[0] < 32
    smaller = made.apply()
    assert smaller.get_layer("a").kernel.shape == (3, 3, 3, 16)
    assert smaller.get_layer("c").filters < 32


def test_a_plan_prints_before_it_acts():
    model = net()
    made = plan(model, params=0.5)
    text = str(made)
    assert "Plan for net" in text
    assert f"parameters {made.before.params:,} -> {made.after.params:,}" in text
    assert "left alone: head/kernel (it is an output of the model)" in text
    assert "a/kernel[3]" in text
    assert made.to_dict()["after"]["params"] == made.after.params
    assert model.get_layer("a").filters == 16


def test_prune_is_plan_and_apply():
    smaller = prune(net(), flops=0.5, importance="l1")
    assert smaller.count_params() == plan(net(), flops=0.5, importance="l1").after.params
    assert smaller.output_shape == (None, 4)


def test_taylor_takes_the_data_given():
    model = net()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = (np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32"), np.arange(8) % 4)
    smaller = prune(model, flops=0.5, importance="taylor", data=data)
    assert np.isfinite(smaller.evaluate(*data, verbose=0))


def test_targets_out_of_reach_say_the_nearest():
    with pytest.raises(ValueError, match=r"params=0.005 cannot .* smallest model keeps 0\.0074 \(56 of 7,540\)"):
        plan(net(), params=0.005)
    with pytest.raises(ValueError, match=r"flops=0.5 cannot be met: even the smallest model keeps 1.0000.*head/kernel"):
        plan(net(), flops=0.5, frozen=["a", "b", "c"])
    with pytest.raises(ValueError, match="by the units whose score is finite"):
        plan(net(), params=0.5, importance="batch_norm_scale")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one kind of target.*params=None, flops=None, memory=None, latency=None, threshold=None"),
        ({"params": 0.5, "threshold": 1.0}, "needs one kind of target.*params=0.5, flops=None.*threshold=1.0"),
        ({"params": 50}, r"params must be a fraction in \[0, 1\). Received: 50.*write 0.5"),
        ({"flops": 0.0}, "flops is the share that may be left, so it is above 0. Received: 0.0"),
        ({"params": 0.5, "scope": "layer"}, "'local' or 'global'. Received: 'layer'"),
        ({"params": 0.5, "round_to": 0}, "round_to must be a whole number from 1. Received: 0"),
        ({"params": 0.5, "min_width": 1.5}, "min_width must be a whole number from 1. Received: 1.5"),
        ({"params": 0.5, "max_share": {"head": 0.5}}, "'head' cannot shrink, as max_share=0.5 asks: it is an output"),
        ({"params": 0.5, "max_share": {"x": 0.5}}, "'net' has no layer 'x'"),
        ({"params": 0.5, "importance": "l3"}, "Unknown importance: 'l3'"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        plan(net(), **options)


def test_masks_have_to_come_off_first():
    model = kp.prune(net(), 0.5)
    with pytest.raises(ValueError, match=r"'net' has masks on \d+ variables.*kp\.strip"):
        plan(model, params=0.5)
    assert plan(kp.strip(model), params=0.5).after.params > 0


def test_units_by_hand():
    made = remove(net(), {"a": [0, 3], "c": [31]})
    smaller = made.apply()
    assert smaller.get_layer("b").kernel.shape == (3, 3, 14, 14)
    assert smaller.get_layer("head").kernel.shape == (31, 4)


def test_hands_off_outputs_and_last_units():
    with pytest.raises(ValueError, match="'head' cannot lose output 1: it is an output of the model"):
        remove(net(), {"head": [1]})
    with pytest.raises(ValueError, match=r"'a' must keep one unit at least\. Received: all 16"):
        remove(net(), {"a": range(16)})
    with pytest.raises(ValueError, match="'net' has no layer 'x'"):
        remove(net(), {"x": [0]})
    with pytest.raises(ValueError, match=r"'a' has the outputs 0 to 15\. Received: 16"):
        remove(net(), {"a": [16]})


def test_a_quantized_model_says_that_it_is():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.Dense(3)])
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"What stays, and why: .*dense.* \(it is quantized \(int8\)\)"):
        plan(model, params=0.5)


@pytest.mark.parametrize(
    "drop",
    [
        keras.layers.Flatten(name="left_out"),
        keras.layers.Reshape((8, 8)),
        keras.layers.Reshape((-1,)),
        lambda x: keras.ops.squeeze(x, -1),
        lambda x: keras.ops.reshape(x, (-1, 64)),
        lambda x: keras.ops.reshape(x, (-1, 16, 4)),
        lambda x: x[..., 0],
        lambda x: keras.ops.max(x, -1),
        lambda x: keras.ops.sum(x, -1),
        lambda x: keras.ops.reshape(keras.ops.transpose(x, (0, 3, 1, 2)), (-1, 8, 8)),
    ],
    ids=lambda drop: getattr(drop, "__name__", type(drop).__name__),
)
def test_an_axis_of_one_channel_may_be_left_out(drop):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(1, 1)(keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(drop(x))))
    made = plan(model, flops=0.5)
    assert made.apply().count_params() == made.after.params < made.before.params


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_reversible_embedding_need_not_be_reversed(tied, reverse):
    ids = keras.Input((5,), dtype="int32")
    layer = keras.layers.ReversibleEmbedding(10, 8, tie_weights=tied)
    h = layer(ids)
    model = keras.Model(ids, layer(h, reverse=True) if reverse else keras.layers.Dense(2)(h))
    made = plan(model, params=0.7)
    smaller = made.apply()
    assert smaller.count_params() == made.after.params < made.before.params
    assert {w.shape[-1 if w.shape[0] == 10 else 0] for w in smaller.layers[1].weights} == {smaller.layers[1].output_dim}
