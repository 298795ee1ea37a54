import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_prune as kp
from keras_prune.models.stand_ins import at_rest
from keras_prune.quantization import QuantizedRecurrent, quantize_aware, report
from keras_prune.quantization.layers import Seen
from keras_prune.quantization.steps import STEPS, tensors_of
from tests.quantization.test_quantize_aware import rounded
from tests.quantization.test_quantize_aware import tensors_of as tensors_in
from tflite_export import export
from tflite_export.runtimes.litert import LiteRTSession

STEPS_IN_X = 4
RNG = np.random.default_rng(0)


def drawn_samples(number):
    """Sequences of four classes."""
    x = RNG.normal(size=(number, STEPS_IN_X, 3)).astype("float32")
    return x, (x[:, :2].sum((1, 2)) > x[:, 2:].sum((1, 2))).astype("int32") + 2 * (x[:, :, 0].sum(1) > 0)


X, Y = drawn_samples(128)

CELLS = {
    "lstm": lambda: layers.LSTMCell(5),
    "lstm, relu, no bias": lambda: layers.LSTMCell(5, activation="relu", use_bias=False),
    "gru": lambda: layers.GRUCell(5),
    "gru, no bias": lambda: layers.GRUCell(5, use_bias=False),
    "gru, reset before": lambda: layers.GRUCell(5, reset_after=False),
    "simple": lambda: layers.SimpleRNNCell(5),
    "simple, linear": lambda: layers.SimpleRNNCell(5, activation="linear", use_bias=False),
}


def drawn(variables):
    """Fill variables with values that int8 holds exactly, and with biases that are not 0."""
    for variable in variables:
        values = RNG.integers(-127, 128, variable.shape).astype("float32") / 127
        values[0] = 1.0
        variable.assign(values)


@pytest.fixture(scope="module")
def trained():
    """An LSTM before a GRU, trained, pruned to one half at once, made quantization-aware, trained to 60 % zeros."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((STEPS_IN_X, 3), name="x"),
            layers.LSTM(6, return_sequences=True, name="lstm"),
            layers.GRU(5, name="gru"),
            layers.Dense(4, name="head"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, metrics=["accuracy"])
    model.fit(X, Y, epochs=12, batch_size=16, verbose=0)
    model = quantize_aware(kp.prune(model, 0.5), data=(X, Y))
    model.ranges_before = report(model).ranges
    model.fit(X, Y, epochs=4, batch_size=16, verbose=0, callbacks=[kp.Pruning(0.6)])
    return model


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    export(trained, path, quantize="int8", data=X[:16], batch_size=1, target=kp.Device("plain", densify=False))
    return path.read_bytes()


# -- a step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_a_step_that_rounds_nothing_is_the_cells_own(make):
    cell = make()
    cell.build((2, 3))
    drawn(cell.weights)
    states = [RNG.normal(size=(2, 5)).astype("float32") for _ in cell.get_initial_state(2)]
    names = []
    output, new = STEPS[type(cell)].run(cell, X[:2, 0], states, lambda name, values: names.append(name) or values)
    expected, expected_new = cell(X[:2, 0], states)
    for one, other in zip([output, *new], [expected, *expected_new], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert tensors_of(cell).keys() <= set(names)


@pytest.mark.parametrize(
    "options",
    [
        {"return_sequences": True, "return_state": True},
        {"go_backwards": True},
        {"zero_output_for_mask": True, "return_sequences": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_the_loop_over_the_steps_is_keras_own(kind, options):
    layer = kind(5, **options)
    quantized = QuantizedRecurrent(layer)
    quantized.build((None, STEPS_IN_X, 3))
    drawn(layer.weights)
    states = [ops.convert_to_tensor(RNG.normal(size=(8, 5)).astype("float32")) for _ in layer.state_size]
    arguments = {"initial_state": states, "mask": RNG.random((8, STEPS_IN_X)) < 0.6}
    expected = layer(X[:8], **arguments)
    rounded_too = quantized(X[:8], **arguments)
    for tensor in quantized.tensors.values():
        tensor.watch = Seen(tensor.steps)
    found = (keras.tree.flatten(one) for one in (quantized(X[:8], **arguments), expected, rounded_too))
    for one, other, off in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.abs(off - other).max() > 1e-4


@pytest.fixture
def summing():
    """A layer whose state is the sum of its inputs, its ranges from -8 to 8."""
    quantized = QuantizedRecurrent(layers.SimpleRNN(1, activation="linear", use_bias=False), momentum=0.75)
    quantized.build((None, STEPS_IN_X, 1))
    quantized.layer.set_weights([np.ones((1, 1)), np.ones((1, 1))])
    for tensor in quantized.tensors.values():
        tensor.set_range(-8.0, 8.0)
    return quantized


def test_a_moving_range_follows_the_extremes_of_its_step(summing):
    given = np.float32([-1, -1, 2, 1]).reshape(1, 4, 1)
    summing(given)
    assert summing.tensors["sum"].ends_by_step == ((-8.0, 8.0),) * 4
    summing(given, training=True)
    wanted = {  # states are -1, -2, 0, 1
        "state_sum": ((0, 0), (-1, 0), (-2, 0), (0, 0)),
        "sum": ((-1, 0), (-2, 0), (0, 2), (0, 1)),
    }
    for name, extremes in wanted.items():
        ends = [(0.75 * -8 + 0.25 * low, 0.75 * 8 + 0.25 * high) for low, high in extremes]
        np.testing.assert_allclose(summing.tensors[name].ends_by_step, ends, atol=0.25 * 16 / 255)
        found = summing.tensors[name].ends_by_step
        assert summing.tensors[name].ends == (min(low for low, _ in found), max(high for _, high in found))


def test_values_are_rounded_to_the_range_of_their_step(summing):
    summing.layer.return_sequences = True
    for tensor in summing.tensors.values():
        tensor.set_range(-np.float32([1, 2, 4, 8]), np.float32([1, 2, 4, 8]))
    given = np.float32([0.5, 0.51, 0.52, 0.53]).reshape(1, 4, 1)
    wanted, state = [], 0.0
    for value, end in zip(given[0, :, 0], (1, 2, 4, 8), strict=True):
        width = 2 * end / 255
        state = (np.floor(value / width + 0.5) + np.floor(state / width + 0.5)) * width
        wanted.append(state)
    np.testing.assert_allclose(ops.convert_to_numpy(summing(given))[0, :, 0], wanted, atol=1e-5)


def test_the_range_of_a_step_whose_values_are_zero_is_a_share_of_the_widest(summing):
    tensor = summing.tensors["state_sum"]
    tensor.set_range(np.float32([0, -1, -2, 0]), np.float32([0, 0, 2, 0]))
    assert tensor.ends_by_step == ((0.0, 4 / 256), (-1.0, 0.0), (-2.0, 2.0), (0.0, 4 / 256))
    for _ in range(40):
        tensor.move(np.zeros(4, "float32"), np.float32([0, 0, 1, 0]))
    low, high = tensor.ends_by_step[0]
    assert low == 0
    assert high == pytest.approx((tensor.ends[1] - tensor.ends[0]) / 256, rel=1e-5)


def test_sequences_of_another_length_have_the_ranges_of_their_steps(summing):
    """Of a longer one the last steps share a range; a shorter one leaves the others where they are."""
    summing(np.ones((1, 6, 1), "float32"), training=True)
    highs = [high for _, high in summing.tensors["sum"].ends_by_step]
    np.testing.assert_allclose(highs, 0.75 * 8 + 0.25 * np.float32([1, 2, 3, 6]), atol=0.25 * 16 / 255)
    summing(np.zeros((1, 2, 1), "float32"), training=True)
    later = [high for _, high in summing.tensors["sum"].ends_by_step]
    np.testing.assert_allclose(later, [0.75 * highs[0], 0.75 * highs[1], *highs[2:]], rtol=1e-6)


def test_inputs_are_dropped_in_training_only_and_alike_at_each_step():
    quantized = QuantizedRecurrent(layers.SimpleRNN(3, activation="linear", use_bias=False, dropout=0.5, seed=1))
    quantized.build((None, STEPS_IN_X, 3))
    quantized.layer.set_weights([np.eye(3, dtype="float32"), np.zeros((3, 3), "float32")])
    for tensor in quantized.tensors.values():
        tensor.watch = Seen(tensor.steps)
    quantized.layer.return_sequences = True
    ones = np.ones((4, STEPS_IN_X, 3), "float32")
    dropped = ops.convert_to_numpy(quantized(ones, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert (dropped == dropped[:, :1]).all()
    assert (ops.convert_to_numpy(quantized(ones)) == 1).all()
    assert (ops.convert_to_numpy(quantized(ones, training=True)) != dropped).any()


# -- the model --------------------------------------------------------------------------------------------------------


def test_both_kernels_and_the_tensors_of_a_step_are_rounded(trained):
    found = report(trained)
    assert not found.skipped
    names = {tuple(path.split("/")[-2:]) for path in found.kernels}
    cells = {(cell, kernel) for cell in ("lstm_cell", "gru_cell") for kernel in ("kernel", "recurrent_kernel")}
    assert names == cells | {("head", "kernel")}
    ranges = {one.name: one for one in found.ranges}
    assert {f"lstm_{name}_range" for name in tensors_of(layers.LSTMCell(1))} < ranges.keys()
    assert "lstm_range" not in ranges  # the state is rounded in the cell, and its range is the one of the output
    assert (ranges["gru_rest_range"].low, ranges["gru_rest_range"].high) == (0.0, 1.0)
    moved = {one.name for one, before in zip(found.ranges, trained.ranges_before, strict=True) if one != before}
    assert {"lstm_carry_range", "gru_sum_range"} < moved
    assert not moved & {"lstm_gate_range", "gru_candidate_range"}


def test_it_is_saved_cloned_and_stripped_with_its_zeros(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = kp.load_model(tmp_path / "model.keras")
    expected = trained.predict(X, verbose=0)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    assert report(loaded).ranges == report(trained).ranges
    plain = kp.strip(loaded)
    assert [type(one) for one in plain.layers] == [layers.LSTM, layers.GRU, layers.Dense]
    with at_rest(trained):
        np.testing.assert_allclose(plain(X), trained(X), atol=1e-5)
    kernels = [variable.numpy() for variable in plain.weights if variable.name.endswith("kernel")]
    assert sum((k == 0).sum() for k in kernels) == round(0.6 * sum(k.size for k in kernels))
    for model in (loaded, plain):  # what a kernel reads is taken from the layers' own calls
        kp.prune(model, 0.9, criterion=kp.criteria.Activation(data=X[:32]))
    pairs = zip(*([v.numpy() for v in m.weights if v.name.endswith("kernel")] for m in (loaded, plain)), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_it_is_counted_as_the_plain_model(trained):
    found = kp.report(trained)
    lstm, gru = 4 * 4 * 6 * (3 + 6), 4 * 3 * 5 * (6 + 5)  # steps, gates, units, inputs and units
    assert [(one.path, one.macs) for one in found.counts.layers] == [("lstm", lstm), ("gru", gru), ("head", 5 * 4)]
    assert found.counts.total.macs == lstm + gru + 5 * 4
    assert found.counts.total.params == 4 * 6 * (3 + 6 + 1) + 3 * 5 * (6 + 5 + 2) + 4 * (5 + 1)
    assert not found.counts.not_counted


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: layers.ConvLSTM1D(2, 2)(layers.Reshape((4, 3, 1))(x)), "ConvLSTM1D of ConvLSTMCell"),
        (lambda x: layers.RNN(layers.StackedRNNCells([layers.GRUCell(2)]))(x), "inside RNN 'rnn"),
        (lambda x: layers.LSTM(2, recurrent_activation="hard_sigmoid")(x), "recurrent_activation 'hard_sigmoid' beco"),
        (lambda x: layers.GRU(2, recurrent_dropout=0.1)(x), "no recurrent_dropout="),
        (lambda x: layers.GRU(2, activity_regularizer="l2")(x), "its activity_regularizer is not computed"),
        (lambda x: layers.Bidirectional(layers.LSTM(2))(x), "inside Bidirectional 'bidirectional"),
    ],
)
def test_what_is_not_rounded_is_named_with_the_reason(make, reason):
    x = keras.Input((4, 3))
    model = quantize_aware(keras.Model(x, layers.Dense(2)(layers.Flatten()(make(x)))), data=X[:4])
    found = report(model)
    assert len(found.kernels) == 1
    assert found.skipped
    assert all(reason in one.reason for one in found.skipped)


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (lambda: layers.LSTM(2, stateful=True), (1, 4, 3), "it is stateful"),
        (lambda: layers.LSTM(2), (None, None, 3), "no fixed length"),
        (lambda: layers.Dense(2), (None, 3), "it is no LSTM, GRU or SimpleRNN"),
    ],
)
def test_layers_that_cannot_be_wrapped_are_refused(layer, shape, reason):
    made = layer()
    made(keras.Input(batch_shape=shape))
    with pytest.raises(ValueError, match=f"cannot be wrapped: .*{reason}"):
        QuantizedRecurrent(made)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_answers_as_the_model_does(trained, file):
    x, y = drawn_samples(2048)
    (answers,) = LiteRTSession(file).run([x], ["x"], ["output_0"], 1)
    expected = trained.predict(x, batch_size=256, verbose=0)
    step = next((one.high - one.low) / 255 for one in report(trained).ranges if one.name == "head_range")
    off = np.abs(answers - expected) / step
    assert off.mean() < 0.5  # a step off early in a sequence may grow on the way
    assert (off < 1.5).mean() > 0.95
    assert (answers.argmax(1) == expected.argmax(1)).mean() > 0.97
    accuracy = (answers.argmax(1) == y).mean(), (expected.argmax(1) == y).mean()
    assert abs(accuracy[0] - accuracy[1]) <= 0.005
    assert accuracy[1] > 0.6


def test_the_file_has_the_trained_ranges_and_no_others(trained, file):
    _, tensors = tensors_in(file)
    scales = {np.float32(t.quantization.scale[0]) for t in tensors if len(t.quantization.scale) == 1}
    ends = [pair for one in report(trained).ranges for pair in one.steps or [(one.low, one.high)]]
    wanted = {np.float32((high - low) / 255) for low, high in ends}
    np.testing.assert_allclose(sorted(scales), sorted(wanted), rtol=1e-5)


def test_the_kernels_of_the_file_are_stored_once_with_the_zeros_of_the_model(trained, file):
    model, tensors = tensors_in(file)
    found = {}
    for tensor in tensors:
        if len(tensor.quantization.scale) > 1 and len(tensor.shape) == 2:
            shape = [int(n) for n in tensor.shape]
            found.setdefault(
                tensor.buffer, np.frombuffer(bytes(model.buffers[tensor.buffer].data), "int8").reshape(shape)
            )
    kernels = [v.numpy() for v in kp.strip(trained).weights if v.name.endswith("kernel")]
    assert len(found) == len(kernels) == 5
    for kernel in kernels:
        integers = rounded(kernel, (1,))[0].T
        assert any(c.shape == integers.shape and (c == integers).all() for c in found.values())
