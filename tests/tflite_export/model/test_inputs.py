import warnings

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import ExportError
from tflite_export.model.inputs import collect_inputs
from tflite_export.model.signature import signature_of


@pytest.fixture
def pair():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    return keras.Model([a, b], layers.Concatenate()([a, layers.Rescaling(1.0)(b)]))


@pytest.fixture
def single():
    return keras.Sequential([keras.Input((3,), name="x"), layers.Dense(2)])


def collect(model, data, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return collect_inputs(model, signature_of(model), data, **arguments)


X = np.arange(15.0).reshape(5, 3)
B = np.arange(10).reshape(5, 2)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[index : index + 2], np.zeros(2)


def dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, np.zeros(5))).batch(2)


@pytest.mark.parametrize(
    "data",
    [
        lambda: X,
        lambda: X.tolist() and [X],
        lambda: {"x": X},
        dataset,
        lambda: iter([X[:2], X[2:4], X[4:]]),
        Batches,
    ],
    ids=["array", "list", "dictionary", "tf.data", "iterator", "PyDataset"],
)
def test_samples_come_from_anything_that_holds_them(single, data):
    found = collect(single, data(), samples=3)
    assert len(found) == 3
    assert found.arrays[0].dtype == np.float32
    assert not found.drawn
    if not isinstance(data(), Batches):
        np.testing.assert_array_equal(found.arrays[0], X[:3])


@pytest.mark.parametrize(
    "data",
    [[X, B], (X, B), {"b": B, "a": X}, iter([((X, B), np.zeros(5))]), iter([{"a": X, "b": B}])],
    ids=["list", "tuple", "dictionary", "batches of (x, y)", "batches of dictionaries"],
)
def test_several_inputs_are_given_in_order_or_by_name(pair, data):
    found = collect(pair, data)
    np.testing.assert_array_equal(found.arrays[0], X)
    np.testing.assert_array_equal(found.arrays[1], B)
    assert [array.dtype.name for array in found.arrays] == ["float32", "int32"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((5, 4)), r"data for input 'x': must have the shape \('samples', 3\)\. Received: \(5, 4\)"),
        (np.ones(3), r"Received: \(3,\)\. Was the batch dimension left out"),
        (np.where(X == 4, np.nan, X), r"must hold no NaN\. Received: 1 NaN"),
        (np.array([["a", "b", "c"]]), r"must convert to float32 without loss\. Received: str"),
        (np.ones((0, 3)), r"at least one sample is needed\. Received: an array of shape \(0, 3\)"),
        ({"y": X}, r"must hold the inputs \['x'\]\. Received: \['y'\]\. Add \['x'\]"),
        (iter([]), r"at least one sample is needed\. Received: <list_iterator .*, which is empty"),
        (iter([np.ones((1, 4)), np.ones((1, 3))]), r"must have the same sizes|must have the shape"),
        (7, r"Data must be an array, .* Received: data=7 of type int"),
    ],
)
def test_data_that_do_not_fit_are_refused(single, data, message):
    with pytest.raises(ExportError, match=message):
        collect(single, data)


def test_fractions_are_no_integers(pair):
    with pytest.raises(ExportError, match=r"input 'b': must convert to int32 without loss\. Received: float64"):
        collect(pair, [X, B + 0.5])


def test_drawn_inputs_warn_and_repeat(single):
    signature = signature_of(single)
    with pytest.warns(UserWarning, match=r"no data given: .* standard normal"):
        first = collect_inputs(single, signature)
    with pytest.warns(UserWarning, match="no data given"):
        again = collect_inputs(single, signature)
    assert first.drawn
    np.testing.assert_array_equal(first.arrays[0], again.arrays[0])


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_drawn_indices_stay_in_the_embedding(dtype):
    model = keras.Sequential([keras.Input((50,), dtype=dtype), layers.Embedding(3, 4)])
    with pytest.warns(UserWarning, match="no data given"):
        drawn = collect_inputs(model, signature_of(model))
    assert set(np.unique(drawn.arrays[0])) == {0, 1, 2}


@pytest.mark.parametrize(
    "before", [layers.Reshape((10, 5)), keras.layers.Lambda(lambda x: x)], ids=["reshape", "lambda"]
)
def test_drawn_indices_stay_in_an_embedding_behind_other_layers(before):
    model = keras.Sequential([keras.Input((50,), dtype="int32"), before, layers.Embedding(7, 4)])
    with pytest.warns(UserWarning, match="no data given"):
        drawn = collect_inputs(model, signature_of(model))
    assert set(np.unique(drawn.arrays[0])) == set(range(7))


def test_other_drawn_integers_are_zeros_and_ones(pair):
    with pytest.warns(UserWarning, match="no data given"):
        drawn = collect_inputs(pair, signature_of(pair))
    assert set(np.unique(drawn.arrays[1])) <= {0, 1}


def test_a_free_size_cannot_be_drawn():
    model = keras.Sequential([keras.Input((None, 4), name="x"), layers.Dense(2)])
    with (
        pytest.warns(UserWarning, match="no data given"),
        pytest.raises(ExportError, match=r"input 'x': its shape must be known"),
    ):
        collect_inputs(model, signature_of(model))


# -- data as people have them ------------------------------------------------------------------------------------------


def slices():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, np.zeros(5)))


def endless(batch=2):
    place = 0
    while True:
        yield X[np.arange(place, place + batch) % 5], np.zeros(batch)
        place += batch


@pytest.mark.parametrize(
    ("data", "batched_here"),
    [
        ((X, np.zeros(5)), False),
        ((X, np.zeros(5), np.ones(5)), False),
        ([X, np.zeros(5)], False),
        ([X[:2], X[2:]], False),
        (lambda: ([x[None]] for x in X), False),
        (lambda: ({"x": x[None]} for x in X), False),
        (lambda: [X[:2], X[2:]], False),
        (lambda: iter([X]), False),
        (slices(), True),
        (slices().repeat(), True),
        (slices().batch(2).repeat(), False),
        (zip(X, range(5), strict=True), True),
        (endless(), False),
        (endless, False),
        ([[X, np.zeros(5)]], False),
    ],
)
def test_what_is_meant_is_told_by_shapes(single, data, batched_here):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = collect_inputs(single, signature_of(single), data, 4)
    np.testing.assert_array_equal(found.arrays[0], X[:4])
    said = [str(warning.message) for warning in caught if "single samples, x of shape (3,)" in str(warning.message)]
    assert len(said) == batched_here


@pytest.mark.parametrize(
    "data",
    [
        lambda: ([x[None], b[None]] for x, b in zip(X, B, strict=True)),
        lambda: ({"a": x[None], "b": b[None]} for x, b in zip(X, B, strict=True)),
        [((X, B), np.zeros(5))],
        [{"a": X, "b": B}],
        [(X, B)],
        ({"a": X, "b": B}, np.zeros(5)),
        ([X, B], np.zeros(5)),
        iter([([x, b], 0) for x, b in zip(X, B, strict=True)]),
    ],
)
@pytest.mark.filterwarnings("ignore:data. single samples")
def test_several_inputs_are_told_by_shapes(pair, data):
    found = collect_inputs(pair, signature_of(pair), data, 5)
    np.testing.assert_array_equal(found.arrays[0], X)
    np.testing.assert_array_equal(found.arrays[1], B)


def test_a_generator_is_read_no_further_than_needed_and_again(single):
    asked = []

    def batches():
        for place in range(100):
            asked.append(place)
            yield X

    data = batches()
    for _ in range(2):
        assert len(collect(single, data, samples=7)) == 7
        assert asked == [0, 1]


def test_types_of_a_subclassed_model_are_read_from_any_data():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.table = layers.Embedding(10, 4)

        def call(self, ids):
            return self.table(ids)

    model = Own()
    model(B)
    for data in (B, (B, np.zeros(5)), lambda: ([b[None]] for b in B), iter([(B, np.zeros(5))]), [B]):
        assert signature_of(model, data).inputs[0].dtype == "int64"
