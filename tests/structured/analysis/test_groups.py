import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops

from keras_prune.arrays.union_find import Elements
from keras_prune.structured import Effect, analyse, rule_for


def slices(analysis, unit):
    """Which indices of which variables a unit takes along."""
    return {
        f"{slot.variable.path}[{slot.axis}]": np.flatnonzero(slot.units == unit).tolist()
        for slot in analysis.slots
        if slot.variable is not None and (slot.units == unit).any()
    }


def test_a_unit_takes_its_slices_through_norm_and_flatten():
    inputs = keras.Input((2, 2, 3))
    x = kl.BatchNormalization(name="bn")(kl.Conv2D(4, 1, name="conv")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(x)))
    assert slices(analyse(model), 1) == {
        "conv/kernel[3]": [1],
        "conv/bias[0]": [1],
        "bn/gamma[0]": [1],
        "bn/beta[0]": [1],
        "bn/moving_mean[0]": [1],
        "bn/moving_variance[0]": [1],
        "head/kernel[0]": [1, 5, 9, 13],
    }


def test_branches_that_are_added_go_together_and_those_that_are_joined_do_not():
    inputs = keras.Input((3,))
    a, b, c = (kl.Dense(4, name=name)(inputs) for name in "abc")
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Concatenate()([kl.Add()([a, b]), c])))
    found = analyse(model)
    assert [group.size for group in found.groups] == [4, 4]
    assert slices(found, 2) == {
        "a/kernel[1]": [2],
        "a/bias[0]": [2],
        "b/kernel[1]": [2],
        "b/bias[0]": [2],
        "head/kernel[0]": [2],
    }
    assert slices(found, 6)["head/kernel[0]"] == [6]


def test_groups_of_a_convolution_lose_the_same_places():
    inputs = keras.Input((4, 4, 3))
    x = kl.Conv2D(4, 1, name="first", use_bias=False)(inputs)
    x = kl.Conv2D(6, 1, groups=2, name="grouped", use_bias=False)(x)
    model = keras.Model(inputs, kl.Conv2D(2, 1, name="head", use_bias=False)(x))
    found = analyse(model)
    assert [group.size for group in found.groups] == [2, 3]
    assert slices(found, 0) == {"first/kernel[3]": [0, 2], "grouped/kernel[2]": [0]}
    assert slices(found, 2) == {"grouped/kernel[3]": [0, 3], "head/kernel[2]": [0, 3]}


def test_parts_of_a_split_are_groups_of_their_own():
    inputs = keras.Input((3,))
    a, b = ops.split(kl.Dense(8)(inputs), [2], axis=-1)
    found = analyse(keras.Model(inputs, kl.Dense(2)(ops.concatenate([ops.tanh(a), b], axis=-1))))
    assert [group.size for group in found.groups] == [2, 6]


def test_a_shared_layer_ties_what_its_calls_read():
    inputs = keras.Input((3,))
    a, b = kl.Dense(4, name="a")(inputs), kl.Dense(4, name="b")(inputs)
    shared = kl.Dense(5, name="shared")
    model = keras.Model(inputs, kl.Dense(1)(kl.Concatenate()([shared(a), shared(b)])))
    found = analyse(model)
    assert [group.size for group in found.groups] == [4, 5]
    assert set(slices(found, 0)) == {"a/kernel[1]", "a/bias[0]", "b/kernel[1]", "b/bias[0]", "shared/kernel[0]"}


def test_a_shared_function_ties_nothing_and_a_shared_shape_does(check_removal):
    inputs = keras.Input((4, 4, 3))
    relu, shape = kl.ReLU(), kl.Reshape((16, 8))
    a, b, c = (relu(kl.Conv2D(width, 1, name=name)(inputs)) for width, name in ((8, "a"), (8, "b"), (6, "c")))
    parts = [kl.Flatten()(x) for x in (shape(a), shape(b), c)]
    model = keras.Model(inputs, kl.Dense(2)(kl.Concatenate()(parts)))
    found, smaller = check_removal(model, np.random.default_rng(0).normal(size=(3, 4, 4, 3)).astype("float32"))
    assert [group.size for group in found.groups] == [8, 6]
    assert smaller.get_layer(shape.name).target_shape == (16, 4)


def test_a_shape_that_an_input_has_too_stays():
    inputs = keras.Input((4, 4, 8))
    shape = kl.Reshape((16, 8))
    parts = [shape(inputs), shape(kl.Conv2D(8, 1, name="conv")(inputs))]
    found = analyse(keras.Model(inputs, kl.Dense(2)(kl.Concatenate()(parts))))
    assert found.size == 0
    assert "also called on tensors of other shapes" in found.skipped[0].reason


def test_a_shared_model_without_weights_has_one_width(check_removal):
    block = keras.Sequential([keras.Input((8,)), kl.ReLU()])
    inputs = keras.Input((3,))
    a, b = block(kl.Dense(8)(inputs)), block(kl.Dense(8)(inputs))
    model = keras.Model(inputs, kl.Dense(2)(kl.Concatenate()([a, b])))
    found, _ = check_removal(model, np.random.default_rng(0).normal(size=(3, 3)).astype("float32"))
    assert [group.size for group in found.groups] == [8]


def test_lstm_units_take_four_gates():
    inputs = keras.Input((5, 2))
    model = keras.Model(inputs, kl.Dense(1)(kl.LSTM(3, name="lstm")(inputs)))
    found = slices(analyse(model), 1)
    assert found["lstm/lstm_cell/kernel[1]"] == [1, 4, 7, 10]
    assert found["lstm/lstm_cell/recurrent_kernel[0]"] == [1]
    assert found["lstm/lstm_cell/recurrent_kernel[1]"] == [1, 4, 7, 10]


def test_outputs_inputs_and_unknown_layers_stay_with_a_reason():
    class Mystery(kl.Layer):
        def call(self, x):
            return tf.reverse(x, [1])

    inputs = keras.Input((4,))
    x = Mystery(name="mystery")(kl.Dense(5, name="before")(inputs))
    model = keras.Model(inputs, kl.Dense(3, name="out")(x))
    found = analyse(model)
    assert found.size == 0
    reasons = {skipped.path: skipped.reason for skipped in found.skipped}
    unseen = "there is no rule for Mystery, and its call() cannot be traced: "
    assert reasons.pop("mystery").startswith(unseen)
    before = reasons.pop("before/kernel")
    assert before.startswith(unseen)
    assert before.endswith(": mystery")
    assert reasons == {"out/kernel": "it is an output of the model"}


def test_what_makes_units_and_what_reads_them_are_told_apart():
    inputs = keras.Input((4, 4, 2))
    x = kl.Conv2DTranspose(5, 2, name="up")(kl.Conv2D(6, 1, name="conv")(inputs))
    model = keras.Model(inputs, kl.Softmax(name="soft")(x))
    reasons = {skipped.path: skipped.reason for skipped in analyse(model).skipped}
    assert reasons == {"up/kernel": "softmax normalises over this axis: soft"}


def test_a_user_may_write_a_rule(check_removal):
    @keras.saving.register_keras_serializable(package="test")
    class Gain(kl.Layer):
        def build(self, shape):
            self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

        def call(self, x):
            return x * self.gain

    @rule_for(Gain)
    def gain(call):
        x = call.inputs[0]
        call.bind(call.layer.gain, 0, x[-1])
        return Effect([x])

    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(3)(Gain()(kl.Dense(6)(inputs))))
    found, _ = check_removal(model, np.ones((2, 4), "float32"))
    assert found.size == 6


def test_a_rule_that_forgets_an_axis_is_refused():
    class Odd(kl.Layer):
        def call(self, x):
            return x

    @rule_for(Odd)
    def odd(call):
        return Effect([type(call.inputs[0])(call.inputs[0][:1])])

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"rule of Odd must give the axes.*\[2\]. Received: \[1\]"):
        analyse(keras.Model(inputs, Odd()(inputs)))


def test_a_subclass_with_a_call_of_its_own_has_no_rule_of_its_parent():
    class Twice(kl.Dense):
        def call(self, x):
            return 2.0 * super().call(x)[:, ::-1]

    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(2)(Twice(5, name="twice")(inputs)))
    assert analyse(model).size == 0


def test_frozen_layers_keep_their_shapes():
    def make():
        inputs = keras.Input((3,))
        x = inputs
        for name in ("a", "b", "c"):
            x = kl.Dense(4, name=name)(x)
        return keras.Model(inputs, kl.Dense(2, name="head")(x), name="net")

    assert [group.size for group in analyse(make()).groups] == [4, 4, 4]
    found = analyse(make(), frozen=["b"])
    assert [found.slots[group.slots[0]].path for group in found.groups] == ["c"]
    assert len(analyse(make(), frozen=["[ab]"]).groups) == 1
    with pytest.raises(ValueError, match=r"frozen must name layers of 'net': no layer matches \['x'\]"):
        analyse(make(), frozen=["x", "a"])


def test_elements_are_tied_in_chains_and_frozen_for_the_first_reason():
    elements = Elements()
    a, b, c = (elements.fresh(2000) for _ in range(3))
    elements.tie(a, b[::-1], "")
    elements.tie(b, c, "")
    np.testing.assert_array_equal(elements.find(c), a[::-1])
    elements.freeze(c[:1], "first")
    elements.freeze(a[-1:], "second")
    assert elements.reason(int(b[0])) == "first"
    assert np.count_nonzero(elements.frozen(a)) == 1
    all_to_one = elements.fresh(5)
    elements.tie(all_to_one[[1, 1, 1, 1]], all_to_one[[0, 2, 3, 4]], "")
    assert len(np.unique(elements.find(all_to_one))) == 1


def test_numbers_of_tied_elements_agree_with_one_by_one_union():
    rng = np.random.default_rng(0)
    for _ in range(50):
        elements = Elements()
        labels = elements.fresh(30)
        leader = list(range(30))
        for _ in range(6):
            a, b = rng.integers(0, 30, 5), rng.integers(0, 30, 5)
            elements.tie(labels[a], labels[b], "")
            for i, j in zip(a, b, strict=True):
                old, new = leader[i], leader[j]
                leader = [new if one == old else one for one in leader]
        roots = elements.find(labels)
        for i in range(30):
            assert [roots[i] == r for r in roots] == [leader[i] == one for one in leader]
