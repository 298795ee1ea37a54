import dataclasses

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.structured import (
    FPGM,
    L1,
    L2,
    BatchNormScale,
    Fisher,
    Gradient,
    LAMPScore,
    Random,
    Taylor,
    analyse,
)
from keras_prune.structured.importances.names import NAMES, resolve_importance

FIRST = np.array([[3.0, 0.0, 1.0], [-4.0, 2.0, 1.0]])
SECOND = np.array([[1.0], [-2.0], [5.0]])


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(3, use_bias=False), kl.Dense(1, use_bias=False)])
    model.set_weights([FIRST, SECOND])
    model.compile(loss="mse")
    return model


def scores(importance, model):
    return importance(model, analyse(model))


def test_l1_and_l2_by_hand(model):
    plain = {"normalise": "none"}
    np.testing.assert_allclose(scores(L1(**plain, reduction="first"), model), [7, 2, 2])
    np.testing.assert_allclose(scores(L1(**plain, reduction="sum"), model), [8, 4, 7])
    np.testing.assert_allclose(scores(L1(**plain, reduction="mean"), model), [4, 2, 3.5])
    np.testing.assert_allclose(scores(L1(**plain, reduction="max"), model), [7, 2, 5])
    np.testing.assert_allclose(scores(L2(**plain, reduction="first"), model), [5, 2, 2**0.5])


def test_normalisation_by_hand(model):
    np.testing.assert_allclose(scores(L1(reduction="sum", normalise="max"), model), [1, 0.5, 0.875])
    np.testing.assert_allclose(scores(L1(reduction="sum", normalise="sum"), model), np.array([8, 4, 7]) / 19)
    np.testing.assert_allclose(scores(L1(reduction="sum"), model).mean(), 1.0)


def test_gradients_by_hand(model):
    x, y = np.array([[1.0, 2.0]], "float32"), np.array([[0.0]], "float32")
    hidden = x @ FIRST
    error = 2 * (hidden @ SECOND)
    first, second = x.T @ (error @ SECOND.T), hidden.T @ error
    expected = {
        Taylor: np.abs(FIRST * first).sum(0) + np.abs(SECOND * second)[:, 0],
        Gradient: np.abs(first).sum(0) + np.abs(second)[:, 0],
        Fisher: (np.square(FIRST * first).sum(0) + np.square(SECOND * second)[:, 0]) / 2,
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(
            scores(kind(reduction="sum", normalise="none", data=(x, y)), model), values, rtol=1e-5
        )


def test_batch_norm_scale_counts_only_scales():
    inputs = keras.Input((2,))
    x = kl.BatchNormalization(name="bn")(kl.Dense(2)(inputs))
    model = keras.Model(inputs, kl.Dense(1)(kl.Dense(3)(x)))
    model.get_layer("bn").gamma.assign([-2.0, 1.0])
    np.testing.assert_allclose(scores(BatchNormScale(normalise="none"), model), [2, 1, np.inf, np.inf, np.inf])


def test_fpgm_is_the_sum_of_distances(model):
    expected = [np.linalg.norm(FIRST - FIRST[:, [i]], axis=0).sum() for i in range(3)]
    np.testing.assert_allclose(scores(FPGM(normalise="none"), model), expected)


def test_lamp_by_hand(model):
    np.testing.assert_allclose(scores(LAMPScore(reduction="first"), model), [1, 4 / 29, 2 / 31])


def test_random_depends_on_the_seed_alone(model):
    np.testing.assert_array_equal(scores(Random(seed=3), model), scores(Random(seed=3), model))
    assert not np.array_equal(scores(Random(seed=3), model), scores(Random(seed=4), model))


def test_a_unit_that_lies_on_an_axis_twice_is_summed():
    inputs = keras.Input((2, 1, 1))
    conv, dense = kl.Conv2D(2, 1, use_bias=False), kl.Dense(1, use_bias=False)
    model = keras.Model(inputs, dense(kl.Flatten()(conv(inputs))))
    conv.kernel.assign(np.zeros((1, 1, 1, 2)))
    dense.kernel.assign([[1.0], [10.0], [2.0], [20.0]])
    np.testing.assert_allclose(scores(L1(reduction="sum", normalise="none"), model), [3, 30])


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_and_configurations(name):
    found = resolve_importance(name)
    assert type(found) is NAMES[name]
    changed = dataclasses.replace(found, normalise="max", **({"reduction": "sum"} if with_reduction(found) else {}))
    assert type(changed).from_config(changed.get_config()) == changed
    # As they were written when each importance had a reduction.
    assert type(changed).from_config({"reduction": "sum", **changed.get_config()}) == changed


def with_reduction(importance):
    return "reduction" in importance.get_config()


def test_only_those_have_a_reduction_that_reduce():
    assert {name for name, kind in NAMES.items() if with_reduction(kind())} == {
        "batch_norm_scale", "fisher", "fpgm", "gradient", "l1", "l2", "lamp", "learned", "taylor",
    }  # fmt: skip


def test_lamp_is_normalised_only_when_asked(model):
    expected = np.array([1, 4 / 29, 2 / 31])
    np.testing.assert_allclose(scores(LAMPScore(reduction="first", normalise="max"), model), expected)
    np.testing.assert_allclose(scores(LAMPScore(reduction="first", normalise="sum"), model), expected / expected.sum())


def test_former_names():
    assert kp.structured.LAMP is LAMPScore
    assert kp.structured.Scored is kp.structured.ScoredUnits
    assert kp.structured.Block is kp.structured.RemovableBlock
    assert kp.structured.Flow is kp.structured.PruningHistory
    saved = {"module": None, "class_name": "LAMP", "config": LAMPScore(normalise="max").get_config()}
    saved["registered_name"] = "keras_prune_structured>LAMP"
    assert keras.saving.deserialize_keras_object(saved) == LAMPScore(normalise="max")


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match=r"L1: reduction must be one of .*'median'"):
        L1(reduction="median")
    with pytest.raises(ValueError, match=r"L2: normalise must be one of .*'std'"):
        L2(normalise="std")
    with pytest.raises(ValueError, match=r"Unknown importance: 'tailor'.*Did you mean 'taylor'"):
        resolve_importance("tailor")
    with pytest.raises(ValueError, match=r"data=None"):
        scores(Taylor(), model)


def test_data_reaches_a_named_importance():
    data = (np.zeros((1, 2)), np.zeros((1, 1)))
    assert resolve_importance("taylor", data).data is data
    assert resolve_importance(Taylor(data=1), data).data == 1
    assert resolve_importance("l2", data) == L2()
