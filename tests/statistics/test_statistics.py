"""Statistics against NumPy, the model left as it was, and what is said about bad data."""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune import statistics
from keras_prune.scope import Scope
from keras_prune.statistics.batches import Batches

RNG = np.random.default_rng(0)
ALL = frozenset(
    {
        "gradient", "abs_gradient", "squared_gradient", "hessian_gradient",
        "input_norm", "input_mean", "synflow", "seed",
    }
)  # fmt: skip


def random(*shape):
    return RNG.normal(size=shape).astype("float32")


def targets(model):
    return Scope().survey(model).targets


def collect(model, needs, data):
    needs = frozenset({needs}) if isinstance(needs, str) else needs
    found = statistics.collect(model, targets(model), needs, data)
    return {
        t.path.split("/", 1)[-1] if model.name in t.path else t.path: s
        for t, s in zip(targets(model), found, strict=True)
    }


def linear_model(inputs=3, outputs=2):
    model = keras.Sequential([keras.Input((inputs,)), kl.Dense(outputs, use_bias=False)])
    model.compile("sgd", "mse")
    return model, model.layers[0].kernel.numpy()


X, Y = random(50, 3), random(50, 2)


# --- gradients ---


def linear_gradient(w, x, y):
    """Gradient of mean((xw - y)²) over samples and the two outputs."""
    return x.T @ (x @ w - y) * 2 / y.size


def test_gradients_of_a_linear_model():
    model, w = linear_model()
    [found] = collect(model, ALL - {"synflow"}, (X, Y)).values()
    parts = [linear_gradient(w, X[i : i + 32], Y[i : i + 32]) for i in (0, 32)]
    # Over all samples, whatever the batches; plain means over the batches of 32 and 18.
    np.testing.assert_allclose(found["gradient"], linear_gradient(w, X, Y), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["abs_gradient"], np.mean(np.abs(parts), axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["squared_gradient"], np.mean(np.square(parts), axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_gradient_does_not_depend_on_the_batches(size):
    model, w = linear_model()
    batches = [(X[i : i + size], Y[i : i + size]) for i in range(0, 50, size)]
    [found] = collect(model, frozenset({"gradient", "hessian_gradient"}), batches).values()
    g = linear_gradient(w, X, Y)
    np.testing.assert_allclose(found["gradient"], g, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["hessian_gradient"], X.T @ X @ g * 2 / Y.size, rtol=1e-4, atol=1e-6)


def test_gradient_weighs_samples():
    model, w = linear_model()
    weights = RNG.random(50).astype("float32")
    [found] = collect(model, "gradient", (X, Y, weights)).values()
    g = X.T @ ((X @ w - Y) * weights[:, None]) * 2 / Y.size
    np.testing.assert_allclose(found["gradient"], g, rtol=1e-4, atol=1e-6)


def test_gradient_has_the_regularisers_in_it():
    model = keras.Sequential(
        [keras.Input((3,)), kl.Dense(2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    model.compile("sgd", "mse")
    w = model.layers[0].kernel.numpy()
    [found] = collect(model, "gradient", (X, Y)).values()
    np.testing.assert_allclose(found["gradient"], linear_gradient(w, X, Y) + 0.2 * w, rtol=1e-4, atol=1e-6)


def nonlinear_model():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4, activation="tanh"), kl.Dense(2)])
    model.compile("sgd", "mse")
    return model


def test_hessian_product_is_the_finite_difference_of_gradients():
    model = nonlinear_model()
    before = collect(model, frozenset({"gradient", "hessian_gradient"}), (X, Y))
    kernels = [t.variable for t in targets(model)]
    values = [k.numpy() for k in kernels]
    gradients = {}
    step = 1e-2
    for sign in (1, -1):
        for kernel, value, found in zip(kernels, values, before.values(), strict=True):
            kernel.assign(value + sign * step * found["gradient"])
        gradients[sign] = collect(model, "gradient", (X, Y))
    for path, found in before.items():
        difference = (gradients[1][path]["gradient"] - gradients[-1][path]["gradient"]) / (2 * step)
        np.testing.assert_allclose(found["hessian_gradient"], difference, rtol=2e-2, atol=2e-4)


def test_gradients_under_float16_do_not_vanish():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2, use_bias=False, dtype="mixed_float16")])
    model.compile("sgd", "mse")
    w = model.layers[0].kernel.numpy()
    x = X * 1e-4  # gradients of about 1e-5 with parts below the smallest float16
    [found] = collect(model, "gradient", (x, Y)).values()
    np.testing.assert_allclose(found["gradient"], linear_gradient(w, x, Y), rtol=0.02, atol=1e-7)


def test_embedding_gradients_are_dense_and_a_kernel_off_the_path_has_none():
    inputs = keras.Input((4,), dtype="int32")
    hidden = kl.GlobalAveragePooling1D()(kl.Embedding(6, 3)(inputs))
    model = keras.Model(inputs, [kl.Dense(1, name="used")(hidden), kl.Dense(1, name="unused")(hidden)])
    model.compile("sgd", ["mse", None])
    found = collect(model, "gradient", (np.array([[0, 1, 1, 5]]), np.ones((1, 1))))
    rows = np.abs(found["embedding/embeddings"]["gradient"]).sum(axis=1) > 0
    np.testing.assert_array_equal(rows, [True, True, False, False, False, True])
    assert not found["unused/kernel"]["gradient"].any()
    assert found["used/kernel"]["gradient"].any()


def test_gradients_within_a_strategy_are_not_divided_by_its_replicas(mirrored):
    with mirrored.scope():
        model, w = linear_model()
        [found] = collect(model, "gradient", (X, Y)).values()
    np.testing.assert_allclose(found["gradient"], linear_gradient(w, X, Y), rtol=1e-4, atol=1e-6)
    [found] = collect(model, "gradient", (X, Y)).values()
    np.testing.assert_allclose(found["gradient"], linear_gradient(w, X, Y), rtol=1e-4, atol=1e-6)
    model.fit(X, Y, batch_size=10, verbose=0)


# --- loss and sensitivity ---


def test_loss_is_that_of_evaluate():
    model = nonlinear_model()
    x, y = random(300, 3), random(300, 2)
    assert statistics.loss(model, (x, y)) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    assert statistics.loss(model, [(x[:7], y[:7]), (x[7:], y[7:])]) == pytest.approx(
        statistics.loss(model, (x, y)), rel=1e-6
    )


def test_sensitivity_curves_by_hand():
    model, w = linear_model()

    def masks_at(index, sparsity):
        mask = np.ones_like(w, dtype=bool)
        mask[: round(3 * sparsity)] = False
        return mask

    [curve] = statistics.sensitivity_curves(model, targets(model), masks_at, (1 / 3, 2 / 3), (X, Y))

    def loss(kernel):
        return np.mean((X @ kernel - Y) ** 2)

    expected = [loss(w * masks_at(0, s)) - loss(w) for s in (1 / 3, 2 / 3)]
    assert [s for s, _ in curve] == [1 / 3, 2 / 3]
    np.testing.assert_allclose([increase for _, increase in curve], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), w)


def test_sensitivity_curves_refuse_a_mask_of_another_shape():
    model, _ = linear_model()
    with pytest.raises(ValueError, match=r"must have the shape \(3, 2\). Received: \(2, 3\)"):
        statistics.sensitivity_curves(model, targets(model), lambda i, s: np.ones((2, 3), bool), (0.5,), (X, Y))


# --- SynFlow ---


def two_layers(activation="relu", last=None):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            kl.Dense(2, activation=activation, name="a"),
            kl.Dense(1, activation=last, name="b"),
        ]
    )
    model.set_weights([np.array([[1.0, -2.0], [3.0, 0.0]]), np.zeros(2), np.array([[-5.0], [1.0]]), np.zeros(1)])
    return model


@pytest.mark.parametrize(
    ("activation", "last"), [("relu", None), ("tanh", None), ("relu", "softmax"), (None, "sigmoid")]
)
def test_synflow_by_hand(activation, last):
    # |a| = [[1, 2], [3, 0]], |b| = [5, 1]: hidden (4, 2), R = 22. dR/da = [[5, 1], [5, 1]], dR/db = (4, 2).
    found = collect(two_layers(activation, last), "synflow", None)
    np.testing.assert_allclose(found["a/kernel"]["synflow"] * 22, [[5, 1], [5, 1]], rtol=1e-5)
    np.testing.assert_allclose(found["b/kernel"]["synflow"] * 22, [[4], [2]], rtol=1e-5)


def test_synflow_has_biases_by_their_absolute_values():
    model = two_layers()
    model.layers[0].bias.assign([-1.0, 0.0])
    # hidden (4 + 1, 2), R = 27.
    np.testing.assert_allclose(collect(model, "synflow", None)["b/kernel"]["synflow"] * 27, [[5], [2]], rtol=1e-5)


def deep_model():
    inputs = hidden = keras.Input((2, 2, 3))
    for _ in range(40):
        hidden = kl.ReLU()(kl.Conv2D(64, 1, kernel_initializer="ones")(hidden))
    return keras.Model(inputs, kl.Dense(10, activation="softmax")(kl.GlobalAveragePooling2D()(hidden)))


def test_synflow_is_conserved_from_layer_to_layer_and_survives_a_flow_beyond_float32():
    model = deep_model()
    policies = [layer.dtype_policy for layer in model.layers]
    found = statistics.collect(model, targets(model), frozenset({"synflow"}), None)
    totals = [
        float((np.abs(t.variable.numpy()) * s["synflow"]).sum()) for t, s in zip(targets(model), found, strict=True)
    ]
    np.testing.assert_allclose(totals, 1.0, rtol=1e-3)
    assert [layer.dtype_policy for layer in model.layers] == policies


def test_synflow_reads_all_rows_of_an_embedding():
    model = keras.Sequential([keras.Input((None,), dtype="int32"), kl.Embedding(5, 3), kl.GRU(4), kl.Dense(1)])
    for found in collect(model, "synflow", None).values():
        assert (found["synflow"] > 0).any()
    assert (collect(model, "synflow", None)["embedding/embeddings"]["synflow"] > 0).all()


def test_synflow_passes_normalisation_and_refuses_what_only_turns_attention():
    inputs = keras.Input((3, 4))
    hidden = kl.LayerNormalization()(kl.Dense(4, name="before")(inputs))
    model = keras.Model(inputs, kl.Dense(1)(kl.MultiHeadAttention(2, 2, name="mha")(hidden, hidden)))
    with pytest.raises(ValueError, match=r"Received: \['mha/query/kernel', 'mha/key/kernel'\].*exclude"):
        collect(model, "synflow", None)
    scope = Scope(exclude=(".*/query/kernel", ".*/key/kernel"))
    chosen = scope.survey(model).targets
    found = statistics.collect(model, chosen, frozenset({"synflow"}), None)
    totals = [float((np.abs(t.variable.numpy()) * s["synflow"]).sum()) for t, s in zip(chosen, found, strict=True)]
    np.testing.assert_allclose(totals, 1.0, rtol=1e-4)


def test_synflow_names_a_tensor_that_no_flow_reaches():
    inputs = keras.Input((2,))
    outputs = kl.Dense(1, name="dead")(kl.Dense(1, name="zero")(inputs)) + kl.Dense(1)(inputs)
    model = keras.Model(inputs, outputs)
    model.get_layer("zero").kernel.assign(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"reaches 'dead/kernel'. Received: dR/d\|w\| = 0 for all 1 weights"):
        collect(model, "synflow", None)


def test_synflow_of_a_network_without_flow():
    model = two_layers()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    with pytest.raises(ValueError, match="Received: log R = -inf"):
        collect(model, "synflow", None)


# --- inputs ---


def over(array, *axes):
    """Norm and mean |a| over all but `axes`."""
    axes = tuple(a % array.ndim for a in axes)
    rest = tuple(a for a in range(array.ndim) if a not in axes)
    return np.sqrt(np.square(array).sum(axis=rest)), np.abs(array).mean(axis=rest)


def check(found, expected, shape):
    norm, mean = expected
    np.testing.assert_allclose(found["input_norm"], norm.reshape(shape), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["input_mean"], mean.reshape(shape), rtol=1e-4, atol=1e-6)


INPUT = frozenset({"input_norm", "input_mean"})
IMAGE, SEQUENCE, VOLUME = random(40, 6, 5, 4), random(40, 7, 4), random(33, 4, 4, 4, 2)

# layer, its input, kept axes of the input, shape in which they broadcast to the kernel
SINGLE = [
    (lambda: kl.Dense(3), random(40, 4), (-1,), (4, 1)),
    (lambda: kl.Dense(3), IMAGE, (-1,), (4, 1)),
    (lambda: kl.Conv1D(3, 2, strides=2), SEQUENCE, (-1,), (1, 4, 1)),
    (lambda: kl.Conv2D(3, 2), IMAGE, (-1,), (1, 1, 4, 1)),
    (lambda: kl.Conv3D(3, 2), VOLUME, (-1,), (1, 1, 1, 2, 1)),
    (lambda: kl.Conv1DTranspose(3, 2), SEQUENCE, (-1,), (1, 1, 4)),
    (lambda: kl.Conv2DTranspose(3, 2), IMAGE, (-1,), (1, 1, 1, 4)),
    (lambda: kl.Conv3DTranspose(3, 2), VOLUME, (-1,), (1, 1, 1, 1, 2)),
    (lambda: kl.DepthwiseConv1D(2, depth_multiplier=2), SEQUENCE, (-1,), (1, 4, 1)),
    (lambda: kl.DepthwiseConv2D(2, depth_multiplier=2), IMAGE, (-1,), (1, 1, 4, 1)),
    (lambda: kl.EinsumDense("abc,cd->abd", (None, 3)), SEQUENCE, (-1,), (4, 1)),
    (lambda: kl.EinsumDense("...bc,bcde->...de", (2, 3)), IMAGE, (-2, -1), (5, 4, 1, 1)),
    (lambda: kl.EinsumDense("abc,cbd->abd", (7, 3)), SEQUENCE, (2, 1), None),
]


@pytest.mark.parametrize(("layer", "x", "axes", "shape"), SINGLE, ids=lambda v: getattr(v, "__name__", None) and " ")
def test_inputs_of_a_single_layer(layer, x, axes, shape):
    model = keras.Sequential([keras.Input(x.shape[1:]), layer()])
    [target] = targets(model)
    [found] = collect(model, INPUT, x).values()
    expected = over(x, *axes)
    if shape is None:  # abc,cbd: the kernel has c before b
        expected, shape = tuple(e.T for e in expected), (4, 7, 1)
    check(found, expected, shape)
    np.broadcast_to(found["input_norm"], target.variable.shape)


def test_inputs_of_grouped_convolutions():
    model = keras.Sequential([keras.Input((6, 5, 4)), kl.Conv2D(6, 2, groups=2)])
    [found] = collect(model, INPUT, IMAGE).values()
    norm = over(IMAGE, -1)[0]
    # Kernel (2, 2, 2, 6): outputs 0 to 2 read channels 0 and 1, outputs 3 to 5 read channels 2 and 3.
    expected = np.array([[norm[0]] * 3 + [norm[2]] * 3, [norm[1]] * 3 + [norm[3]] * 3])
    np.testing.assert_allclose(found["input_norm"], expected[None, None], rtol=1e-4)


@pytest.mark.parametrize(("layer", "x"), [(kl.SeparableConv1D, SEQUENCE), (kl.SeparableConv2D, IMAGE)])
def test_inputs_of_separable_convolutions(layer, x):
    model = keras.Sequential([keras.Input(x.shape[1:]), layer(3, 2, strides=2, depth_multiplier=2)])
    found = list(collect(model, INPUT, x).values())
    ones = [1] * (x.ndim - 2)
    check(found[0], over(x, -1), (*ones, 4, 1))
    between = ops.convert_to_numpy(ops.depthwise_conv(x, model.layers[0].depthwise_kernel, strides=2))
    check(found[1], over(between, -1), (*ones, 8, 1))


def test_inputs_of_an_embedding_are_counts():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), kl.Embedding(5, 2)])
    [found] = collect(model, INPUT, np.array([[0, 0, 4], [4, 4, 1]])).values()
    np.testing.assert_allclose(found["input_norm"], np.sqrt([[2], [1], [0], [0], [3]]))
    np.testing.assert_allclose(found["input_mean"], np.array([[2], [1], [0], [0], [3]]) / 6)


def test_inputs_of_an_embedding_that_is_its_own_output_layer():
    tokens = keras.Input((3,), dtype="int32")
    table = kl.ReversibleEmbedding(5, 2)
    model = keras.Model(tokens, table(table(tokens), reverse=True))
    data = np.array([[0, 0, 4]])
    [found] = collect(model, "input_norm", data).values()
    vectors = table.embeddings.numpy()[data]
    squares = np.array([[2], [0], [0], [0], [1]]) + np.square(vectors).sum(axis=(0, 1))
    np.testing.assert_allclose(found["input_norm"], np.sqrt(squares), rtol=1e-4)


def before(states):
    """h of the step before: zeros, then all but the last."""
    return np.concatenate([np.zeros_like(states[:, :1]), states[:, :-1]], axis=1)


@pytest.mark.parametrize("layer", [kl.SimpleRNN, kl.LSTM, kl.GRU])
@pytest.mark.parametrize("unroll", [False, True])
def test_inputs_of_recurrent_layers(layer, unroll):
    model = keras.Sequential([keras.Input((7, 4)), layer(3, return_sequences=True, unroll=unroll)])
    kernel, recurrent = collect(model, INPUT, SEQUENCE).values()
    check(kernel, over(SEQUENCE, -1), (4, 1))
    check(recurrent, over(before(model.predict(SEQUENCE, verbose=0)), -1), (3, 1))
    assert model.layers[0].unroll is unroll


def test_inputs_of_conv_lstm():
    x = random(5, 4, 6, 2)
    model = keras.Sequential([keras.Input(x.shape[1:]), kl.ConvLSTM1D(3, 2, padding="same", return_sequences=True)])
    kernel, recurrent = collect(model, INPUT, x).values()
    check(kernel, over(x, -1), (1, 2, 1))
    check(recurrent, over(before(model.predict(x, verbose=0)), -1), (1, 3, 1))


def test_inputs_of_bidirectional_stacked_and_time_distributed_layers():
    inputs = keras.Input((7, 4))
    hidden = kl.Bidirectional(kl.LSTM(3, return_sequences=True), name="both")(inputs)
    hidden = kl.RNN([kl.GRUCell(2), kl.GRUCell(3)], return_sequences=True, name="stack")(hidden)
    model = keras.Model(inputs, kl.TimeDistributed(kl.Dense(2), name="each")(hidden))
    parts = keras.Model(inputs, [model.get_layer("both").output, hidden])
    both, stack = parts.predict(SEQUENCE, verbose=0)
    found = collect(model, INPUT, SEQUENCE)
    check(found["both/forward_lstm/lstm_cell/kernel"], over(SEQUENCE, -1), (4, 1))
    check(found["both/backward_lstm/lstm_cell/kernel"], over(SEQUENCE, -1), (4, 1))
    check(found["both/forward_lstm/lstm_cell/recurrent_kernel"], over(before(both[..., :3]), -1), (3, 1))
    backward = before(both[:, ::-1, 3:])
    check(found["both/backward_lstm/lstm_cell/recurrent_kernel"], over(backward, -1), (3, 1))
    cells = [key for key in found if key.endswith("/recurrent_kernel")]
    check(found[cells[-1]], over(before(stack), -1), (3, 1))
    check(found[next(key for key in found if key.startswith("each"))], over(stack, -1), (3, 1))


@pytest.mark.parametrize(
    "layer",
    [kl.MultiHeadAttention(2, 3, name="mha"), kl.GroupQueryAttention(3, 4, 2, name="mha")],
    ids=["mha", "gqa"],
)
def test_inputs_of_attention(layer):
    query, value = keras.Input((7, 4)), keras.Input((5, 4))
    model = keras.Model([query, value], layer(query, value))
    other = random(40, 5, 4)
    found = collect(model, INPUT, ([SEQUENCE, other],))
    parts = {key.split("/")[-2]: stats for key, stats in found.items()}
    check(parts["query"], over(SEQUENCE, -1), (4, 1, 1))
    check(parts["key"], over(other, -1), (4, 1, 1))
    check(parts["value"], over(other, -1), (4, 1, 1))
    heads, size = parts["attention_output"]["input_norm"].shape[:2]
    assert (heads, size) in {(2, 3), (4, 3)}
    assert (parts["attention_output"]["input_norm"] > 0).all()


def test_inputs_of_shared_nested_and_subclassed_models():
    shared = kl.Dense(4, name="shared")

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.shared = shared
            self.inner = keras.Sequential([keras.Input((4,)), kl.Dense(2, name="inner")])

        def call(self, x):
            return self.inner(self.shared(self.shared(x)))

    model, x = Own(), random(40, 4)
    once, twice = shared(x), shared(shared(x))
    model(x)
    found = {
        t.layer.name: s
        for t, s in zip(targets(model), statistics.collect(model, targets(model), INPUT, x), strict=True)
    }
    check(found["shared"], over(np.concatenate([x, once]), -1), (4, 1))
    check(found["inner"], over(np.asarray(twice), -1), (4, 1))


def test_inputs_channels_first():
    # The readers only: on a CPU, TensorFlow has no convolutions of this layout.
    from keras_prune.statistics import kernel_inputs as inputs

    layer = kl.Conv2D(3, 2, data_format="channels_first")
    layer.build((None, 4, 6, 5))
    x = random(40, 4, 6, 5)
    sums = inputs.Moments()
    model = keras.Sequential([keras.Input((4, 6, 5)), layer]) if keras.backend.backend() != "tensorflow" else layer
    [target] = targets(model)
    inputs.reader_of(layer, target)({"inputs": x}).add_to(sums)
    check(sums.statistics(), over(x, 1), (1, 1, 4, 1))


class OneKernel(keras.Layer):
    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 3), name="kernel")

    def call(self, x):
        return x @ self.kernel


class TwoKernels(keras.Layer):
    def build(self, shape):
        self.up = self.add_weight((shape[-1], 3), name="up_kernel")
        self.down = self.add_weight((3, 2), name="down_kernel")

    def call(self, x):
        return x @ self.up @ self.down


class TwoInputs(OneKernel):
    def build(self, a_shape, b_shape):
        super().build(a_shape)

    def call(self, a, b):
        return a @ self.kernel + b @ self.kernel


def test_inputs_of_a_custom_layer_with_one_kernel():
    model = keras.Sequential([keras.Input((7, 4)), OneKernel()])
    check(next(iter(collect(model, INPUT, SEQUENCE).values())), over(SEQUENCE, -1), (4, 1))


def test_inputs_that_cannot_be_told_are_refused_with_the_layer():
    model = keras.Sequential([keras.Input((4,)), TwoKernels(name="mine")])
    with pytest.raises(
        ValueError,
        match=r"layer 'mine' of type TwoKernels holds 2 variables.*\['up_kernel', 'down_kernel'\].*exclude",
    ):
        collect(model, INPUT, random(8, 4))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, TwoInputs(name="mine")(inputs, inputs))
    with pytest.raises(ValueError, match=r"'mine' of type TwoInputs.*inputs of shape \[\(8, 4\), \(8, 4\)\]"):
        collect(model, INPUT, random(8, 4))


def test_inputs_of_a_layer_that_is_not_called_are_refused():
    class Uncalled(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(2, name="bypassed")
            self.dense.build((None, 4))

        def call(self, x):
            return x @ self.dense.kernel

    model = Uncalled()
    model(random(8, 4))
    with pytest.raises(ValueError, match="'bypassed' of type Dense was not called on the data"):
        collect(model, INPUT, random(8, 4))


# --- the model stays as it is ---


def busy_model(eager=True):
    """State of every kind: moving statistics, seeds, stateful cells, metrics, an optimizer with slots, add_loss."""

    class Noisy(keras.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, x):
            noise = keras.random.normal(ops.shape(x), seed=self.seeds)
            self.add_loss(1e-3 * ops.mean(ops.square(x)))
            return x + 0.01 * noise

    inputs = keras.Input((2, 4), batch_size=8)
    hidden = kl.SimpleRNN(4, stateful=True, unroll=True, dropout=0.2)(inputs)
    hidden = Noisy()(kl.BatchNormalization()(hidden))
    hidden = kl.Dropout(0.5)(kl.Dense(4, activation="relu")(hidden))
    model = keras.Model(inputs, {"a": kl.Dense(2, name="a")(hidden), "b": kl.Dense(1, name="b")(hidden)})
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), {"a": "mse", "b": "mse"}, metrics={"a": ["mae"]}, run_eagerly=eager
    )
    return model


def snapshot(model):
    metrics = [v for m in model.metrics for v in m.variables]
    variables = [*model.variables, *model.optimizer.variables, *metrics, *model.non_trainable_variables]
    attributes = [(layer, sorted(map(str, layer.__dict__))) for layer in model._flatten_layers()]
    return [v.numpy().tobytes() for v in variables], attributes


BUSY = (random(24, 2, 4), {"a": random(24, 2), "b": random(24, 1)})
BATCHES = [(BUSY[0][i : i + 8], {k: v[i : i + 8] for k, v in BUSY[1].items()}) for i in (0, 8, 16)]


def everything(model):
    found = targets(model)
    statistics.collect(model, found, ALL, BATCHES[:1])
    statistics.loss(model, BATCHES[:1])
    statistics.sensitivity_curves(
        model, found[:1], lambda i, s: np.zeros(found[i].variable.shape, bool), (0.5,), BATCHES[:1]
    )


def test_collecting_leaves_no_trace():
    model = busy_model()
    model.fit(*BUSY, batch_size=8, verbose=0, shuffle=False)
    before = snapshot(model)
    everything(model)
    assert snapshot(model) == before


def test_an_error_in_the_middle_leaves_no_trace():
    model = busy_model()
    model.fit(*BUSY, batch_size=8, verbose=0, shuffle=False)
    before = snapshot(model)
    bad = (BATCHES[0][0], {"a": np.ones((8, 3)), "b": np.ones((8, 1))})
    with pytest.raises(ValueError, match=r"Received: x \(8, 2, 4\), y \[\(8, 3\), \(8, 1\)\]"):
        statistics.collect(model, targets(model), frozenset({"gradient"}), [BATCHES[0], bad])
    with pytest.raises(ValueError, match=r"Received: x of shape \(8, 1, 4\)"):
        statistics.collect(model, targets(model), INPUT, [BATCHES[0], BATCHES[0][0][:, :1]])
    assert snapshot(model) == before


def test_training_goes_on_as_if_nothing_had_been_collected():
    ends = []
    for collecting in (False, True):
        keras.utils.set_random_seed(0)
        keras.utils.clear_session(free_memory=False)
        model = busy_model(eager=False)
        calls = [lambda batch, logs, model=model: batch or everything(model)] * collecting
        callbacks = [keras.callbacks.LambdaCallback(on_train_batch_end=call) for call in calls]
        history = model.fit(*BUSY, batch_size=8, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
        ends.append((history.history, [v.numpy().tobytes() for v in model.variables + model.optimizer.variables]))
    assert ends[0] == ends[1]


# --- data, and what is said about it ---


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return (X[:25], Y[:25]) if index == 0 else (X[25:], Y[25:])


def tf_dataset(size=25):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(size)


HALVES = [(X[:25], Y[:25]), (X[25:], Y[25:])]
FORMS = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (ops.convert_to_tensor(X), ops.convert_to_tensor(Y)),
    "float64": lambda: (X.astype("float64"), Y.astype("float64")),
    "dataset": tf_dataset,
    "PyDataset": Sequence,
    "list": lambda: HALVES,
    "lists as batches": lambda: [list(batch) for batch in HALVES],
    "generator": lambda: (batch for batch in HALVES),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same(form):
    model, w = linear_model()
    g = linear_gradient(w, X, Y)
    [found] = collect(model, frozenset({"gradient", "hessian_gradient", "input_norm"}), FORMS[form]()).values()
    np.testing.assert_allclose(found["input_norm"], over(X, -1)[0][:, None], rtol=1e-4)
    np.testing.assert_allclose(found["gradient"], g, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["hessian_gradient"], X.T @ X @ g * 2 / Y.size, rtol=1e-4, atol=1e-6)


def test_labels_may_be_a_list_of_numbers_and_inputs_of_rank_one_less():
    model = keras.Sequential([keras.Input((1,)), kl.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert statistics.loss(model, (np.arange(4.0), [0, 1, 1, 0])) > 0


BAD = [
    ((X[:, :2], Y), r"inputs of 'sequential', of shape \(None, 3\). Received: x of shape \(32, 2\)"),
    ((X[:20], Y[:20, :1].repeat(3, axis=1)), r"loss of 'sequential' cannot be computed.*x \(20, 3\), y \(20, 3\)"),
    ((X, Y[:20]), r"same number of samples. Received: \[50, 20\] samples"),
    ((X,), r"The loss needs targets.*Received: x alone, of shape \(32, 3\)"),
    (X, r"Received: x alone, of shape \(32, 3\)"),
    ([], r"at least one sample. Received: data=\[\] of type list, which is empty"),
    ((X[:0], Y[:0]), "at least one sample"),
    (None, "are computed from data. Received: data=None"),
    (7, r"Received: data=7 of type int"),
    ("x", r"Received: data='x' of type str"),
    ((X, Y, Y, Y), "Received: a tuple of 4 parts"),
    (lambda: 7, r"a function without arguments that returns a generator"),
    (lambda x: [x], r"a function without arguments that returns a generator"),
    (([1, "a"], Y), r"where an array should be: 1 of type int"),
    ((np.full_like(X, np.nan), Y), r"finite. Received: 6 of 6 values NaN or infinite at 'dense/kernel'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD)
def test_bad_data(data, message):
    model, _ = linear_model()
    with pytest.raises(ValueError, match=message):
        collect(model, "gradient", data)


def endless():
    while True:
        yield from HALVES


@pytest.mark.parametrize(
    "data",
    [
        lambda: tf_dataset().repeat(),
        lambda: tf_dataset().unbatch().repeat().batch(25),
        endless,
        lambda: endless,
        lambda: tf_dataset().unbatch().repeat(),
    ],
    ids=["data set", "other batches", "generator", "function", "single samples"],
)
def test_data_without_end_are_read_to_1024_samples(data):
    model, _ = linear_model()
    with pytest.warns(UserWarning, match=r"data: the first \d+ samples are read, and there are more"):
        sizes = [batch.size for batch in Batches(data(), model, labels=True)]
    # Whole batches, and as many of them as reach 1,024.
    assert sum(sizes[:-1]) < 1024 <= sum(sizes)


def test_single_samples_are_batched_and_said_so():
    import tensorflow as tf

    model, _ = linear_model()
    wanted = collect(model, "gradient", (X, Y))
    single = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.warns(UserWarning, match=r"single samples, x of shape \(3,\), are put into batches of 32"):
        found = collect(model, "gradient", single)
    for got, values in zip(keras.tree.flatten(found), keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(got, values, rtol=1e-5)
    with pytest.warns(UserWarning, match="single samples"):
        collect(model, "gradient", zip(X, Y, strict=True))


def test_a_generator_may_be_read_again():
    model, _ = linear_model()
    given = 0

    def once():
        nonlocal given
        for half in HALVES:
            given += 1
            yield half

    data = once()
    first = collect(model, "gradient", data)
    again = collect(model, "gradient", data)
    assert given == len(HALVES)
    for got, values in zip(keras.tree.flatten(again), keras.tree.flatten(first), strict=True):
        np.testing.assert_array_equal(got, values)


def test_an_iterator_that_was_walked_before_is_empty():
    model, _ = linear_model()
    walked = iter(HALVES)  # unlike a generator, a list's iterator leaves no trace of what it gave
    collect(model, "gradient", walked)
    with pytest.raises(ValueError, match=r"Received: data=<list_iterator.*walked before"):
        collect(model, "gradient", walked)


def test_a_model_that_is_not_compiled_or_has_no_loss():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2)])
    for act in (lambda: collect(model, "gradient", (X, Y)), lambda: statistics.loss(model, (X, Y))):
        with pytest.raises(
            ValueError, match=r"Sequential 'sequential' is needed.*not compiled.*model.compile\(loss=...\)"
        ):
            act()
    model.compile("sgd")
    with pytest.raises(ValueError, match=r"No loss to compute.*model.compile\(loss=...\)"):
        collect(model, "gradient", (X, Y))


def test_movement_comes_from_training_only():
    model, _ = linear_model()
    with pytest.raises(ValueError, match=r"gathered in training only.*Received: needs=\['movement'\]"):
        collect(model, "movement", (X, Y))


def test_unknown_statistics_are_listed():
    model, _ = linear_model()
    with pytest.raises(ValueError, match=r"Unknown statistics: \['gradiant'\]. Known ones: \['abs_gradient'"):
        collect(model, "gradiant", (X, Y))


def test_seed_is_the_targets_own_and_results_are_float32():
    model, _ = linear_model()
    [target] = targets(model)
    [found] = statistics.collect(model, [target], ALL, (X, Y))
    assert found.pop("seed") == target.index
    assert {str(a.dtype) for a in found.values()} == {"float32"}
    for array in found.values():
        assert np.broadcast_shapes(array.shape, target.variable.shape) == target.variable.shape
