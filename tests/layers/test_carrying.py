"""State that is not a weight goes wherever the weights go: adapted layers, tables, what layers of a user's own keep."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import keras_prune as kp
from keras_prune.layers.carrying import carry_state
from keras_prune.structured import deepen, drop_layers, remove, shrink, widen
from tflite_export.rewrites.graph import flat_copy

WORDS = ["ash", "elm", "fir", "oak", "yew"]
IDS = np.array([[3, 9, 4], [12, 3, 50]])
TEXT = tf.constant([["oak ash"], ["fir fir pine"]])
NUMBERS = np.random.default_rng(0).normal(50.0, 10.0, (6, 4)).astype("float32")


class Centred(kl.Layer):
    """Computes once, from an attribute that `adapt` has left, what `call` reads."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = None

    def adapt(self, x):
        self.seen = np.asarray(x)
        self.finalize_state()

    def finalize_state(self):
        self.mean = self.seen.mean(axis=0)

    def call(self, x):
        return x - self.mean


class Ranked(kl.Layer):
    """Keeps a table in a file of its own."""

    def set_ranks(self, ranks):
        self._ranks = keras.ops.convert_to_tensor(ranks)

    def call(self, x):
        return x * self._ranks

    def save_assets(self, folder):
        (pathlib.Path(folder) / "ranks.json").write_text(json.dumps(np.asarray(self._ranks).tolist()))

    def load_assets(self, folder):
        self.set_ranks(json.loads((pathlib.Path(folder) / "ranks.json").read_text()))


class Counted(kl.Layer):
    """Saves a number that is no variable beside its weight."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")
        self._state = {"count": np.float32(1.0)}

    def call(self, x):
        return x * self.gain / self._state["count"]

    def save_own_variables(self, store):
        store["gain"] = self.gain
        store["count"] = self._state["count"]

    def load_own_variables(self, store):
        self.gain.assign(store["gain"])
        self._state = {"count": np.asarray(store["count"])}


class Tabled(kl.Layer):
    """Makes a table of TensorFlow's when it is adapted, which nothing can copy."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = None

    def adapt(self, ids):
        values = tf.range(1, len(ids) + 1, dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, values), 0)

    def call(self, x):
        return tf.cast(self.table.lookup(tf.cast(x, tf.int64)), "float32")

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype="float32")


class Holder(kl.Layer):
    """Holds an adapted layer."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = kl.StringLookup(output_mode="multi_hot") if inner is None else inner

    def call(self, x):
        return self.inner(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], 3))


def adapted(layer, data):
    layer.adapt(data)
    return layer


def ranked():
    layer = Ranked()
    layer.set_ranks([3.0, 1.0, 2.0, 0.5])
    return layer


def counted(inputs):
    layer = Counted()
    made = layer(inputs)
    layer._state = {"count": np.float32(7.0)}
    return made


def held(inputs):
    layer = Holder()
    layer.inner.adapt(np.array(["oak ash", "elm"]))
    return layer(inputs)


def numbers(make):
    inputs = keras.Input((4,), name="numbers")
    return inputs, make(inputs), NUMBERS


def text(make, shape=(1,)):
    inputs = keras.Input(shape, dtype="string", name="text")
    return inputs, make(inputs), TEXT


def ids(make):
    inputs = keras.Input((3,), dtype="int64", name="ids")
    return inputs, make(inputs), IDS


def nested(inputs):
    inner = keras.Sequential([keras.Input((4,)), adapted(kl.Normalization(), NUMBERS)])
    outer_inputs = keras.Input((4,))
    outer = keras.Model(outer_inputs, inner(outer_inputs) * 2.0)
    return outer(inputs) + outer(inputs + 1.0)


def shared(inputs):
    layer = adapted(kl.Normalization(), NUMBERS)
    return kl.Concatenate()([layer(inputs), layer(inputs * 2.0)])


def timed(inputs):
    layer = kl.TimeDistributed(adapted(kl.Normalization(), NUMBERS[:, :2]))
    return kl.Flatten()(layer(kl.Reshape((2, 2))(inputs)))


def embedded(x):
    return kl.Flatten()(kl.Embedding(20, 4)(x))


def looked_up(**options):
    return lambda x: embedded(adapted(kl.IntegerLookup(**options), np.arange(3, 15))(x))


KINDS = {
    "Normalization": lambda: numbers(adapted(kl.Normalization(), NUMBERS)),
    "Normalization, inverted": lambda: numbers(adapted(kl.Normalization(invert=True), NUMBERS)),
    "Normalization in a model in a model, called twice": lambda: numbers(nested),
    "Normalization, shared": lambda: numbers(shared),
    "Normalization in TimeDistributed": lambda: numbers(timed),
    "Discretization": lambda: numbers(adapted(kl.Discretization(num_bins=4, output_mode="multi_hot"), NUMBERS)),
    "IntegerLookup": lambda: ids(looked_up()),
    "IntegerLookup with a mask": lambda: ids(looked_up(mask_token=3)),
    "StringLookup": lambda: text(adapted(kl.StringLookup(output_mode="multi_hot"), np.array(["oak ash", "elm"]))),
    "TextVectorization": lambda: text(
        lambda x: embedded(adapted(kl.TextVectorization(output_sequence_length=3), np.array(WORDS))(x)), ()
    ),
    "TextVectorization, tf-idf": lambda: text(
        adapted(kl.TextVectorization(output_mode="tf_idf"), np.array(["oak ash", "oak fir", "oak"])), ()
    ),
    "attributes and finalize_state": lambda: numbers(adapted(Centred(), NUMBERS)),
    "assets": lambda: numbers(ranked()),
    "own variables": lambda: numbers(counted),
    "a table": lambda: ids(adapted(Tabled(), IDS[0])),
    "a lookup inside a layer": lambda: text(held),
}


def net(kind):
    """Units 0 and 1 of "a" are dead, and "b" gives 0: what takes them out changes nothing."""
    inputs, features, x = KINDS[kind]()
    h = kl.Dense(8, activation="relu", name="a")(features)
    h = kl.Add(name="sum")([h, kl.Dense(8, kernel_initializer="zeros", name="b")(h)])
    model = keras.Model(inputs, kl.Dense(3, name="c")(h))
    a, c = model.get_layer("a"), model.get_layer("c")
    a.set_weights([a.get_weights()[0] * np.array([0, 0, 1, 1, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1, 1, 1.0])])
    c.set_weights([c.get_weights()[0] * np.array([0, 0, 1, 1, 1, 1, 1, 1])[:, None], np.zeros(3)])
    return model, tf.reshape(x, (-1,)) if inputs.shape == (None,) else x


REWRITES = {
    "strip": kp.strip,
    "remove": lambda model: remove(model, {"a": [0, 1]}).apply(),
    "shrink": shrink,
    "drop_layers": lambda model: drop_layers(model, ["sum"]),
    "widen": lambda model: widen(model, {"a": 10}),
    "deepen": lambda model: deepen(model, "a"),
    "flat_copy": flat_copy,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_rewrite_carries_it(kind):
    model, x = net(kind)
    before = np.asarray(model(x))
    assert np.ptp(before, axis=0).max() > 0.01
    for name, rewrite in REWRITES.items():
        made = rewrite(model)
        np.testing.assert_allclose(np.asarray(made(x)), before, rtol=0, atol=1e-5 * np.abs(before).max(), err_msg=name)
    np.testing.assert_array_equal(np.asarray(model(x)), before)


@pytest.mark.parametrize("kind", ["Normalization", "IntegerLookup", "TextVectorization", "Discretization"])
def test_what_is_cut_and_saved_still_has_it(kind, tmp_path):
    model, x = net(kind)
    made = kp.structured.plan(model, params=0.6).apply()
    made.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(np.asarray(loaded(x)), np.asarray(made(x)), atol=1e-6)


class Weighed(kl.Layer):
    """A kernel, and a table beside it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.table = np.ones(3, "float32")

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) * self.table

    def prunable_weights(self):
        return [self.kernel]


def test_the_layer_inside_a_wrapper_of_ours():
    inner = Weighed()
    model = keras.Sequential([keras.Input((4,)), kp.Prunable(inner), kp.PrunableDense(2)])
    inner.table = np.array([1.0, 5.0, 9.0], "float32")
    kp.prune(model, 0.5)
    plain = kp.strip(model)
    np.testing.assert_array_equal(plain.layers[0].table, [1.0, 5.0, 9.0])
    np.testing.assert_array_equal(np.asarray(plain(NUMBERS)), np.asarray(model(NUMBERS)))


def test_random_generators_go_on_where_they_were():
    model = keras.Sequential([keras.Input((4,)), kl.Dropout(0.5), kl.Dense(2)])
    model(NUMBERS, training=True)
    made = [kp.strip(model), remove(model, {}).apply()]
    wanted = np.asarray(model(NUMBERS, training=True))
    for one in made:
        np.testing.assert_array_equal(np.asarray(one(NUMBERS, training=True)), wanted)


def test_a_dropout_that_is_always_on_stays_so():
    inputs = keras.Input((4,))
    h = kl.Dense(8, "relu", name="a")(inputs)
    h = kl.Add(name="sum")([h, kl.Dense(8, name="b")(kl.Dropout(0.5)(h, training=True))])
    model = keras.Model(inputs, kl.Dense(2)(kl.Dropout(0.5)(h, training=True)))
    for name in ("strip", "remove", "drop_layers", "widen", "deepen", "flat_copy"):
        made = REWRITES[name](model) if name != "remove" else kp.structured.prune(model, params=0.6)
        assert not np.array_equal(made(NUMBERS), made(NUMBERS)), name


def test_a_stateful_layer_is_not_moved_by_the_comparison():
    model = keras.Sequential([keras.Input((2, 4), batch_size=3), kl.GRU(3, stateful=True), kl.Dense(2)])
    x = np.ones((3, 2, 4), "float32")
    model(x)
    states = [np.array(state) for state in model.layers[0].states]
    for made, units in ((kp.strip(model), [0, 1, 2]), (remove(model, {"gru": [0]}).apply(), [1, 2])):
        np.testing.assert_array_equal(np.asarray(model.layers[0].states[0]), states[0])
        np.testing.assert_array_equal(np.asarray(made.layers[0].states[0]), states[0][:, units])


class Drawn(kl.Layer):
    """Draws in build what nothing holds, but an object that is there in each copy."""

    def build(self, shape):
        factor = np.random.default_rng().normal()
        self.box = [lambda: factor]

    def call(self, x):
        return x * self.box[0]()


def test_what_cannot_be_carried_is_refused_with_the_layer_and_the_difference():
    model = keras.Sequential([keras.Input((4,)), Drawn(name="odd"), kl.Dense(6, name="a"), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"strip: the outputs of 'sequential.*' would change by [0-9.e+-]+ of their"):
        kp.strip(model)
    with pytest.raises(ValueError, match=r"would change by .*, first at 'odd' \(Drawn\), by [0-9.e+-]+ of its scale"):
        kp.structured.prune(model, params=0.6)


class Broken(Ranked):
    def load_assets(self, folder):
        raise OSError("the disk is gone")


def test_a_method_that_fails_is_named():
    layer = Broken(name="broken")
    layer.set_ranks([1.0])
    with pytest.raises(ValueError, match=r"Broken 'broken' holds state.*OSError: the disk is gone"):
        carry_state(layer, Broken(name="copy"))


class Noisy(kl.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


def test_a_model_whose_answers_are_random_is_handed_over_with_a_warning():
    model = keras.Sequential([keras.Input((4,)), Noisy(), kl.Dense(6), kl.Dense(2)])
    with pytest.warns(UserWarning, match="strip: the result was not compared with .* its answers are random"):
        kp.strip(model)


class Picky(kl.Layer):
    def call(self, x):
        if isinstance(x, tf.Tensor) and tf.executing_eagerly() and float(tf.reduce_min(x)) < 100.0:
            raise ValueError("too small")
        return x


def test_a_model_that_takes_no_drawn_inputs_is_compared_on_given_ones():
    model = keras.Sequential([keras.Input((4,)), Picky(), kl.Dense(6), kl.Dense(2)])
    with pytest.warns(
        UserWarning, match="was not compared with .* because it does not run on drawn inputs .*too small"
    ):
        kp.structured.prune(model, params=0.6)
    x = 100.0 + np.abs(NUMBERS)
    assert kp.structured.prune(model, params=0.6, data=(x,)).layers[1].units < 6
