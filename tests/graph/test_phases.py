"""What a subclassed model does in training only: kept where it can be, and named where it cannot."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.structured import analyse, plan

X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")


class Base(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.c = kl.Dense(16, "relu", name="a"), kl.Dense(2, name="c")
        self.drop, self.noise = kl.Dropout(0.5, name="drop"), kl.GaussianNoise(1.0, name="noise")
        self.norm, self.extra = kl.BatchNormalization(name="norm"), kl.Dense(16, name="extra")


class Regularised(Base):
    def call(self, x, training=False):
        h = self.a(x)
        if training:
            h = self.noise(self.drop(h), training=True)
        return self.c(self.norm(h, training=training))


class Other(Base):
    def build(self, shape):
        for layer, width in ((self.a, 6), (self.c, 16), (self.extra, 16)):
            layer.build((None, width))

    def call(self, x, training=False):
        h = self.a(x)
        return self.c(h + self.extra(h) if training else h)


class Scaled(Base):
    def call(self, x, training=False):
        h = self.a(x)
        return self.c(h * 2.0 if training else h)


class Always(Base):
    def call(self, x, training=False):
        return self.c(self.drop(self.a(x), training=True))


def built(kind):
    model = kind()
    model(X)
    return model


def test_dropout_in_training_only_is_kept():
    model = built(Regularised)
    smaller = plan(model, params=0.6).apply()
    assert [layer.name for layer in smaller.layers[1:]] == ["a", "drop", "noise", "norm", "c"]
    np.testing.assert_array_equal(np.asarray(smaller(X)), np.asarray(smaller(X)))
    assert not np.array_equal(smaller(X, training=True), smaller(X, training=True))
    before = np.array(smaller.get_layer("norm").moving_mean)
    smaller.compile("sgd", "mse")
    smaller.fit(X, np.zeros((16, 2)), verbose=0)
    assert not np.array_equal(np.array(smaller.get_layer("norm").moving_mean), before)


@pytest.mark.parametrize(("kind", "reason"), [(Other, "calls ['extra']"), (Scaled, "computes otherwise")])
def test_other_layers_in_training_only_are_named(kind, reason):
    made = plan(built(kind), params=0.8)
    assert any(reason in skipped.reason for skipped in made.skipped)
    if kind is Other:  # a weight that inference does not reach has no place in the graph
        with (
            pytest.warns(UserWarning, match="extra"),
            pytest.raises(ValueError, match="weights that no layer called by it holds"),
        ):
            made.apply()
        return
    with pytest.warns(UserWarning, match=f"leaves out what .* does in training: it {reason} in training only"):
        made.apply()


def test_a_dropout_that_is_always_on_stays_so():
    with pytest.warns(UserWarning, match="its answers are random"):
        smaller = plan(built(Always), params=0.6).apply()
    assert not np.array_equal(smaller(X), smaller(X))


def test_nothing_is_left_on_the_model():
    model = built(Regularised)
    counts = [len(layer._inbound_nodes) for layer in model.layers]
    analyse(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == counts
    assert model.losses == []
