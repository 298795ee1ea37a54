import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.structured import ActivationSum, APoZ, Entropy, MeanActivation, analyse, plan

KERNEL = np.array([[1.0, 0.0, -1.0], [1.0, 0.5, -1.0]])
X = np.array([[1.0, 2.0], [-1.0, 1.0], [2.0, 0.0]], "float32")
SUMS = X @ KERNEL + [0.5, 0.0, 0.0]
HIDDEN = np.maximum(SUMS, 0.0)


@pytest.fixture
def model():
    model = keras.Sequential(
        [keras.Input((2,)), kl.Dense(3, activation="relu"), kl.Dense(2, activation="sigmoid"), kl.Dense(1)]
    )
    model.layers[0].set_weights([KERNEL, np.array([0.5, 0.0, 0.0])])
    return model


def scores(importance, model):
    return importance(model, analyse(model))[:3]


def test_mean_activation_by_hand(model):
    np.testing.assert_allclose(scores(MeanActivation(normalise="none", data=X), model), HIDDEN.mean(0))
    np.testing.assert_allclose(scores(MeanActivation(data=X), model), HIDDEN.mean(0) / HIDDEN.mean(), rtol=1e-6)


def test_apoz_by_hand(model):
    np.testing.assert_allclose(scores(APoZ(normalise="none", data=X), model), (HIDDEN > 0).mean(0))
    np.testing.assert_allclose(scores(APoZ(normalise="none", theta=0.6, data=X), model), (HIDDEN > 0.6).mean(0))


def test_activation_sum_is_taken_before_the_function_which_is_put_back(model):
    np.testing.assert_allclose(scores(ActivationSum(normalise="none", data=X), model), SUMS.mean(0), atol=1e-6)
    assert [layer.activation for layer in model.layers[:2]] == [keras.activations.relu, keras.activations.sigmoid]


def test_entropy_by_hand(model):
    # Of three samples, the first unit has three different values, the third, always off, has one.
    found = scores(Entropy(normalise="none", bins=4, data=X), model)
    np.testing.assert_allclose(found[[0, 2]], [np.log(3), 0.0], atol=1e-9)


def test_batches_are_averaged_by_their_size(model):
    whole = scores(MeanActivation(normalise="none", data=X), model)
    parts = scores(MeanActivation(normalise="none", data=[X[:1], X[1:]]), model)
    np.testing.assert_allclose(whole, parts)
    whole = scores(Entropy(normalise="none", data=X), model)
    np.testing.assert_allclose(whole, scores(Entropy(normalise="none", data=[X[:1], X[1:]]), model))


def test_activations_are_seen_past_norms_pools_and_nested_models():
    inner = keras.Sequential([keras.Input((4, 4, 3)), kl.BatchNormalization(name="bn"), kl.ReLU()])
    inputs = keras.Input((4, 4, 2))
    x = inner(kl.Conv2D(3, 1, name="conv")(inputs))
    model = keras.Model(inputs, kl.Dense(1)(kl.Flatten()(kl.MaxPooling2D()(x))))
    inner.get_layer("bn").beta.assign([-100.0, 0.0, 100.0])
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype("float32")
    found = MeanActivation(normalise="none", data=x)(model, analyse(model))
    assert found[0] == 0.0
    assert found[0] < found[1] < found[2]
    np.testing.assert_allclose(found[2], 100.0, atol=3.0)


def test_a_threshold_takes_what_is_not_above_it(model):
    made = plan(model, threshold=0.0, importance="mean_activation", data=X)
    assert made.keep.tolist() == [True, True, False, True, True]
    assert made.apply().layers[0].units == 2
    # One unit is left in each group, whatever the threshold.
    assert plan(model, threshold=1e9, importance="mean_activation", data=X).kept.tolist() == [1, 1]


def test_data_is_asked_for(model):
    with pytest.raises(ValueError, match=r"APoZ is taken on data\. Received: data=None"):
        plan(model, params=0.5, importance="apoz")
