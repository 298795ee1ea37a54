"""Layers made of layers: what is seen of them, what goes, and what a smaller model keeps of their classes."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

import keras_prune as kp
from keras_prune.structured import Plan, analyse, plan
from keras_prune.structured.surgery.resized import Resized

pytestmark = pytest.mark.filterwarnings("ignore:.*layers made of layers keep their classes")

LAYERS = {}


def layer(kind):
    LAYERS[kind.__name__] = kind
    return kind


@layer
class Block(kl.Layer):
    """A Transformer block as tutorials write it: no `build`, a model inside."""

    def __init__(self, width=8, heads=4, hidden=16, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.hidden = width, heads, hidden
        self.attention = kl.MultiHeadAttention(heads, width)
        self.feed = keras.Sequential([kl.Dense(hidden, activation="relu"), kl.Dense(width)])
        self.first, self.second = kl.LayerNormalization(), kl.LayerNormalization()
        self.dropout = kl.Dropout(0.1)

    def call(self, x, training=None):
        x = self.first(x + self.dropout(self.attention(x, x), training=training))
        return self.second(x + self.feed(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads, "hidden": self.hidden}


@layer
class Heads(kl.Layer):
    """Attention by hand: sizes come from attributes, and scores are scaled by one of them."""

    def __init__(self, width=8, heads=4, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.size = width, heads, width // heads
        self.parts = [kl.Dense(width, name=name) for name in ("query", "key", "value")]
        self.out = kl.Dense(width, name="out")

    def call(self, x):
        length = ops.shape(x)[1]
        q, k, v = (
            ops.transpose(ops.reshape(part(x), (-1, length, self.heads, self.size)), (0, 2, 1, 3))
            for part in self.parts
        )
        scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / ops.sqrt(ops.cast(self.size, "float32")))
        mixed = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
        return self.out(ops.reshape(mixed, (-1, length, self.width)))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@layer
class Squeeze(kl.Layer):
    def __init__(self, ratio=2, **kwargs):
        super().__init__(**kwargs)
        self.ratio = ratio

    def build(self, shape):
        self.down = kl.Dense(shape[-1] // self.ratio, activation="relu", name="down")
        self.up = kl.Dense(shape[-1], activation="sigmoid", name="up")
        self.down.build((None, shape[-1]))
        self.up.build((None, shape[-1] // self.ratio))

    def call(self, x):
        weight = self.up(self.down(ops.mean(x, axis=(1, 2))))
        return x * ops.reshape(weight, (-1, 1, 1, ops.shape(x)[-1]))

    def get_config(self):
        return {**super().get_config(), "ratio": self.ratio}


@layer
class Residual(kl.Layer):
    """Nested: a squeeze-and-excitation inside."""

    def __init__(self, filters=8, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.steps = {"a": kl.Conv2D(filters, 3, padding="same"), "b": kl.Conv2D(filters, 3, padding="same")}
        self.norm, self.squeeze = kl.BatchNormalization(), Squeeze()

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.steps["a"](x), training=training))
        return x + self.squeeze(self.steps["b"](y))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@layer
class Scaled(kl.Layer):
    """Weights of its own: a factor for each channel, and a table of positions."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.positions = self.add_weight(shape=(1, *shape[1:]), name="positions")

    def call(self, x):
        return self.gamma * x + self.positions


@layer
class Product(kl.Layer):
    """A dense layer by hand."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.b = self.add_weight(shape=(self.units,), name="b")

    def call(self, x):
        return ops.relu(ops.matmul(x, self.w) + self.b)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@layer
class Phases(kl.Layer):
    """A layer that only training calls."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.a, self.extra, self.out = kl.Dense(units), kl.Dense(units), kl.Dense(4)

    def call(self, x, training=False):
        y = self.a(x)
        if training:
            y = y + self.extra(x)
        return self.out(y)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@layer
class Stubborn(kl.Layer):
    """The width of its inner layer is in no configuration."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b = kl.Dense(8, activation="relu", name="a"), kl.Dense(4, name="b")

    def call(self, x):
        return self.b(self.a(x))


def sequences(*parts):
    inputs = x = keras.Input((5, 8))
    for part in parts:
        x = part(x)
    return keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalAveragePooling1D()(x))), (3, 5, 8)


def shared():
    block = Residual()
    inputs = keras.Input((6, 6, 3))
    x = block(block(kl.Conv2D(8, 1, name="stem")(inputs)))
    return keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalAveragePooling2D()(x))), (3, 6, 6, 3)


def vectors(*parts):
    inputs = x = keras.Input((5,))
    for part in parts:
        x = part(x)
    return keras.Model(inputs, kl.Dense(2, name="head")(x)), (3, 5)


def scaled():
    inputs = keras.Input((4, 5))
    x = Scaled(name="scaled")(kl.Dense(8, name="before")(inputs))
    return keras.Model(inputs, kl.Dense(2, name="head")(x)), (3, 4, 5)


CASES = {
    "block": (lambda: sequences(Block(), Block()), {4: 2, 8: 4, 16: 2}),  # heads; sizes of keys and values; hidden
    "heads": (lambda: sequences(Heads()), {4: 1, 8: 1}),
    "shared": (shared, {4: 1, 8: 2}),
    "scaled": (scaled, {8: 1}),
    "product": (lambda: vectors(Product(6), Product()), {6: 1, 8: 1}),
    "phases": (lambda: vectors(Phases()), {4: 1, 8: 1}),
    "stubborn": (lambda: vectors(Stubborn()), {4: 1, 8: 1}),
}


def data(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("case", CASES)
def test_inner_layers_are_cut_exactly_train_and_load_again(case, check_removal, tmp_path):
    make, sizes = CASES[case]
    model, shape = make()
    x = data(shape)
    analysis, smaller = check_removal(model, x)
    found = [group.size for group in analysis.groups if group.size > 1]
    for size, number in sizes.items():
        assert found.count(size) >= number, found
    assert [type(one).__name__ for one in smaller.layers] == [type(one).__name__ for one in model.layers]
    assert [one.name for one in smaller.layers] == [one.name for one in model.layers]
    smaller.save(tmp_path / "m.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own, of layers without a build()
        loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects=LAYERS)
    np.testing.assert_array_equal(loaded(x), smaller(x))
    smaller.compile("sgd", "mse")
    before = smaller.get_weights()
    smaller.fit(x, np.zeros(smaller(x).shape), epochs=1, verbose=0)
    assert any((a != b).any() for a, b in zip(before, smaller.get_weights(), strict=True))


def test_a_class_stays_where_its_configuration_says_the_width():
    model, _ = vectors(Product(6, name="a"), Phases(name="b"))
    made = plan(model, params=0.6)
    smaller = made.apply()
    a = smaller.get_layer("a")
    assert type(a) is Product
    assert a.units == a.w.shape[1] < 6
    assert made.after.params == smaller.count_params()


def test_parts_are_put_in_place_where_no_configuration_says_the_width():
    model, _ = vectors(Stubborn(name="s"))
    with pytest.warns(UserWarning, match=r"plan: 1 layers made of layers.*\['s'\].*import keras_prune"):
        smaller = plan(model, params=0.6).apply()
    small = smaller.get_layer("s")
    assert isinstance(small, Stubborn)
    assert isinstance(small, Resized)
    assert type(small).__name__ == "Stubborn"
    assert small.a.units == small.a.kernel.shape[1] < 8
    assert model.get_layer("s").a.units == 8
    assert [variable.path for variable in small.weights] == [variable.path for variable in model.get_layer("s").weights]
    smallest = plan(smaller, params=0.6).apply()  # once more
    assert smallest.get_layer("s").a.units < small.a.units


def test_what_only_training_calls_is_cut_too():
    model, shape = vectors(Phases(name="p"))
    analysis = analyse(model)
    extra = model.get_layer("p").extra
    slot = analysis.slot_of(extra.kernel, 1)
    assert slot is not None
    assert (slot.units >= 0).all()
    keep = np.ones(analysis.size, bool)
    keep[slot.units[:3]] = False
    smaller = Plan(analysis, keep).apply()
    assert smaller.get_layer("p").extra.units == 5
    x = data(shape)
    for variable in (model.get_layer("p").a.kernel, extra.kernel):
        value = np.array(variable)
        value[:, :3] = 0.0
        variable.assign(value)
    np.testing.assert_allclose(smaller(x, training=True), model(x, training=True), atol=1e-5)


def test_importances_see_what_inner_layers_are_given():
    model, shape = vectors(Stubborn(name="s"))
    a = model.get_layer("s").a
    a.set_weights([np.diag([5, 4, 3, 2, 1, 1, 1, 1])[:5].astype("float32"), np.arange(8.0)])
    x = np.ones(shape, "float32")
    analysis = analyse(model)
    scores = kp.structured.MeanActivation(data=x, normalise="none")(model, analysis)
    units = analysis.slot_of(a.kernel, 1).units
    np.testing.assert_allclose(scores[units], np.maximum(np.array(a(x))[0], 0.0), rtol=1e-6)
    assert "call" not in vars(a)


def test_what_cannot_be_followed_is_named_with_the_reason():
    class Fixed(kl.Layer):
        """A size that is a number of the code's."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a, self.b = kl.Dense(8, name="a"), kl.Dense(4, name="b")

        def call(self, x):
            return self.b(ops.reshape(self.a(x), (-1, 8)) * 0.5)

    class Tied(kl.Layer):
        """Reads an inner layer's weights past the layer."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a = kl.Dense(8, name="a")

        def call(self, x):
            return self.a(x) * ops.sum(ops.square(self.a.kernel.value))

    class Beyond(kl.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a = kl.Dense(5, name="a")

        def call(self, x):
            import tensorflow as tf

            return tf.nn.relu(tf.identity(self.a(x)))

    model, _ = vectors(Fixed(name="fixed"), Tied(name="tied"), kl.Dense(5, name="d"), Beyond(name="beyond"))
    found = analyse(model)
    reasons = {skipped.path: skipped.reason for skipped in found.skipped}
    assert "its call() fails" in reasons["fixed/a/kernel"]
    assert reasons["fixed/a/kernel"].endswith(": fixed")
    assert reasons["tied/a/kernel"] == "its value is read in call() of Tied: tied"
    assert reasons["beyond"].startswith("there is no rule for Beyond, and its call() cannot be traced: ")
    assert not [group for group in found.groups if group.size > 1]
    assert not any(one._inbound_nodes for one in model.get_layer("fixed")._flatten_layers(include_self=False))


def test_nothing_is_taken_out_of_or_put_into_code():
    model, _ = vectors(Stubborn(name="s"))
    with pytest.raises(ValueError, match="'s' calls it in its own call"):
        kp.structured.drop_layers(model, ["s/b"])
    with pytest.raises(ValueError, match="is called by 's' in its own call"):
        kp.structured.deepen(model, "s/a")
    assert {block.name for block in kp.structured.droppable(model)} <= {"s", "head"}


def test_counts_look_inside():
    model, _ = vectors(Stubborn(name="s"))
    counts = kp.structured.count(model)
    assert {one.path: one.macs for one in counts.layers} == {"s/a": 40, "s/b": 32, "head": 8}
    assert not counts.not_counted

    def attention(length):
        inputs = keras.Input((length, 8))
        return keras.Model(inputs, kl.Dense(2, name="head")(kl.GlobalAveragePooling1D()(Heads(name="heads")(inputs))))

    open_length, one = (kp.structured.count(attention(length)).total for length in (None, 1))
    assert open_length.macs == one.macs == 4 * 64 + 2 * 8 + 16
    assert open_length.peak == one.peak
    assert kp.structured.count(attention(3)).total.macs == 3 * 4 * 64 + 9 * 2 * 8 + 16
