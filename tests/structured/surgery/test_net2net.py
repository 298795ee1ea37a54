import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.structured import analyse
from keras_prune.structured.surgery.deepen import deepen
from keras_prune.structured.surgery.net2net import _occurrence, summed_axes, widen
from keras_prune.structured.surgery.rewrite import rebuild


def randomise(model, seed=0):
    """Every number apart from the others, so that one out of place shows."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.dtype == "float32":
            value = rng.normal(0.0, 1.0, variable.shape) / max(1.0, np.prod(variable.shape[:-1]) / 2.0) ** 0.5
            variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


def same(model, wide, x, atol=1e-5):
    for a, b in zip(keras.tree.flatten(model(x)), keras.tree.flatten(wide(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def test_the_papers_equations_by_hand():
    a, b = kl.Dense(2, name="a"), kl.Dense(1, use_bias=False, name="b")
    model = keras.Sequential([keras.Input((2,)), a, b])
    a.set_weights([np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([5.0, 6.0])])
    b.set_weights([np.array([[12.0], [24.0]])])
    wide = widen(model, {"a": 4}, seed=0)
    kernel, bias = wide.layers[0].get_weights()
    out = wide.layers[1].get_weights()[0][:, 0]
    first, second = (int(np.count_nonzero(kernel[0] == value)) for value in (1.0, 2.0))
    assert first + second == 4
    assert min(first, second) >= 1
    assert kernel.tolist() == [[1.0] * first + [2.0] * second, [3.0] * first + [4.0] * second]
    assert bias.tolist() == [5.0] * first + [6.0] * second
    np.testing.assert_allclose(out, [12.0 / first] * first + [24.0 / second] * second)


def test_which_units_are_copied_follows_the_seed():
    model = randomise(keras.Sequential([keras.Input((3,)), kl.Dense(6, name="a"), kl.Dense(2)]))
    one, again, other = (widen(model, {"a": 12}, seed=seed).get_weights()[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_noise_divides_unevenly_and_changes_nothing():
    model = randomise(keras.Sequential([keras.Input((3,)), kl.Dense(2, activation="relu", name="a"), kl.Dense(2)]))
    wide = widen(model, {"a": 8}, noise=0.5)
    same(model, wide, normal(5, 3))
    rows = wide.layers[1].get_weights()[0]
    assert len(np.unique(rows.round(6), axis=0)) == 8
    even = widen(model, {"a": 8}).layers[1].get_weights()[0]
    assert len(np.unique(even.round(6), axis=0)) == 2


def convolutions():
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = kl.BatchNormalization()(x)
    x = kl.ReLU()(x)
    y = kl.Conv2D(4, 3, padding="same", activation="relu", name="inside")(x)
    y = kl.BatchNormalization()(kl.Conv2D(4, 1, name="last")(y))
    x = kl.Add()([x, y])
    x = kl.Concatenate()([x, kl.Conv2D(3, 1, name="side")(x)])
    x = kl.MaxPooling2D()(x)
    x = kl.Flatten()(x)
    return keras.Model(inputs, kl.Dense(3)(x))


@pytest.mark.parametrize(
    "widths", [{"first": 7}, {"inside": 9}, {"side": 5}, {"first": 6, "last": 6, "side": 4, "inside": 5}]
)
def test_residuals_normalisations_concatenation_and_flatten(widths):
    model = randomise(convolutions())
    wide = widen(model, widths)
    for name, width in widths.items():
        assert wide.get_layer(name).filters == width
    if "first" in widths:
        assert wide.get_layer("last").filters == widths["first"]
    same(model, wide, normal(2, 8, 8, 3))


def sequence(make, shape=(5, 3)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, kl.Dense(2)(make(kl.Dense(4, name="in")(inputs))))


@pytest.mark.parametrize(
    ("make", "widths"),
    [
        (kl.LSTM(4, name="u"), {"u": 6, "in": 5}),
        (kl.GRU(4, name="u"), {"u": 6, "in": 5}),
        (kl.GRU(4, reset_after=False, name="u"), {"u": 7}),
        (kl.SimpleRNN(4, return_sequences=True, name="u"), {"u": 7}),
        (kl.Bidirectional(kl.LSTM(3), name="u"), {"u": 10}),
        (kl.Bidirectional(kl.GRU(3), merge_mode="sum", name="u"), {"u": 5}),
        (kl.TimeDistributed(kl.Dense(4, activation="relu"), name="u"), {"u": 6, "in": 6}),
        (kl.SeparableConv1D(4, 3, name="u"), {"u": 6, "in": 6}),
        (kl.SeparableConv1D(4, 3, depth_multiplier=2), {"in": 6}),
        (kl.DepthwiseConv1D(3, depth_multiplier=2), {"in": 6}),
        (kl.Conv1D(8, 3, groups=4), {"in": 6}),
        (kl.Conv1D(8, 3, groups=2, name="u"), {"in": 8, "u": 12}),
        (kl.Conv1DTranspose(4, 3, name="u"), {"u": 6, "in": 6}),
        (kl.EinsumDense("abc,cde->abde", (None, 2, 3)), {"in": 7}),
        (kl.GroupNormalization(2), {"in": 8}),
        (kl.PReLU(), {"in": 6}),
        (lambda x: kl.Flatten()(kl.Permute((2, 1))(x)), {"in": 6}),
        (lambda x: kl.Reshape((5, 2, 2))(x), {"in": 6}),
        (lambda x: x[..., 2:] * ops.sigmoid(x[..., :2]), {"in": 8}),
        (lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], axis=-1), {"in": 7}),
    ],
    ids=lambda value: getattr(value, "name", None) or "",
)
def test_layers(make, widths):
    model = randomise(sequence(make))
    wide = widen(model, widths)
    assert wide.count_params() > model.count_params()
    same(model, wide, normal(3, 5, 3))


def test_attention():
    inputs = keras.Input((5, 4))
    x = kl.Dense(6, name="embed")(inputs)
    x = x + kl.MultiHeadAttention(2, 3, name="attend")(x, x)
    x = x + kl.Dense(6, name="down")(kl.Dense(8, activation="gelu", name="up")(x))
    model = randomise(keras.Model(inputs, kl.Dense(2)(x)))
    wide = widen(model, {"embed": 9, "up": 11})
    assert wide.get_layer("attend").output.shape[-1] == 9
    same(model, wide, normal(2, 5, 4))


def test_heads_and_head_sizes_are_summed_over_too():
    inputs = keras.Input((5, 4))
    layer = kl.MultiHeadAttention(2, 3, name="attend")
    model = randomise(keras.Model(inputs, kl.Dense(2)(layer(inputs, inputs))))
    analysis = analyse(model)
    copies = np.ones(analysis.size, np.int64)
    for group in analysis.groups:
        copies[group.start] = 3
    summed = summed_axes(analysis)

    def factors(variable, axis, taken):
        units = analysis.slot_of(variable, axis).units[taken]
        return 1.0 / copies[units] if (id(variable), axis) in summed else None

    wide = rebuild(analysis, copies, factors=factors)
    assert wide.get_layer("attend").num_heads == 4
    assert wide.get_layer("attend").key_dim == 5
    same(model, wide, normal(2, 5, 4))
    assert _occurrence(np.array([0, 1, 0, 1, 2, 0])).tolist() == [0, 0, 1, 1, 0, 2]


def test_random_graphs_keep_their_outputs():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        keras.utils.clear_session(free_memory=False)
        inputs = keras.Input((6, 6, 2))
        tensors = [kl.Conv2D(4, 3, padding="same", name="c0")(inputs)]
        names = ["c0"]
        for i in range(1, 6):
            kind, x = rng.integers(5), tensors[rng.integers(len(tensors))]
            y = tensors[rng.integers(len(tensors))]
            if kind == 0 and x.shape == y.shape:
                x = kl.Add()([x, y])
            elif kind == 1:
                x = kl.Concatenate()([x, y])
            elif kind == 2:
                x = kl.BatchNormalization()(x)
            elif kind == 3:
                x = kl.DepthwiseConv2D(3, padding="same", activation="relu")(x)
            else:
                x = kl.Conv2D(4, 1, activation="relu", name=f"c{i}")(x)
                names.append(f"c{i}")
            tensors.append(x)
        x = kl.Concatenate()(tensors)
        model = randomise(keras.Model(inputs, kl.Dense(2)(kl.GlobalAveragePooling2D()(x))), seed)
        chosen = names[rng.integers(len(names))]
        same(model, widen(model, {chosen: 7}, noise=0.3, seed=seed), normal(2, 6, 6, 2))


def test_training_goes_on_and_the_source_stays():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(4, activation="relu", name="a"), kl.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = normal(16, 3), normal(16, 1)
    model.fit(x, y, epochs=2, verbose=0)
    before = [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]
    wide = widen(model, {"a": 6}, noise=0.2)
    for value, variable in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert type(wide) is keras.Sequential
    assert int(wide.optimizer.iterations) == int(model.optimizer.iterations)
    assert wide.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    wide.fit(x, y, verbose=0)
    kernel = wide.layers[0].get_weights()[0]
    assert len(np.unique(kernel, axis=1).T) == 6  # noise let the copies part


def plain():
    return keras.Sequential([keras.Input((3,)), kl.Dense(4, name="hidden"), kl.Dense(2, name="head")], name="net")


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"hiden": 5}, r"widen: 'net' has no layer 'hiden'\. Near to it are \['hidden'\]"),
        ({"hidden": 3}, r"'hidden' has 4 outputs; its new width must be .* not smaller\. Received: 3"),
        ({"hidden": 4.5}, r"must be a whole number .*Received: 4.5"),
        ({"head": 3}, r"'head' must keep its width: it is an output of the model"),
    ],
)
def test_bad_widths(widths, message):
    with pytest.raises(ValueError, match=message):
        widen(plain(), widths)


def test_bad_noise():
    with pytest.raises(ValueError, match=r"noise must be in \[0, 1\)\. Received: 1"):
        widen(plain(), {"hidden": 5}, noise=1)


def test_tied_layers_with_other_widths():
    with pytest.raises(ValueError, match=r"'first' is tied to another layer, which would have 6 outputs\. Received: "):
        widen(convolutions(), {"first": 5, "last": 6})


def test_steps():
    model = sequence(kl.Bidirectional(kl.LSTM(3), name="u"))
    with pytest.raises(ValueError, match=r"'u' has 6 outputs, and can only be widened by 2 at a time.*Received: 9"):
        widen(model, {"u": 9})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (kl.LayerNormalization(), r"'in' must keep its width: .*layer normalisation"),
        (kl.RMSNormalization(), r"\(RMSNormalization\) sums over units without weights"),
        (kl.UnitNormalization(), r"\(UnitNormalization\) sums over units without weights"),
        (kl.Softmax(), r"'in' must keep its width: softmax normalises over this axis"),
        (lambda x: kl.Dot((2, 2))([x, x]), r"\(Dot\) sums over units without weights"),
        (lambda x: ops.sum(x, axis=-1, keepdims=True), r"\(Sum\) sums over units, and has no weights"),
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), r"\(Matmul\) sums over units, and has no weights"),
        (lambda x: kl.Attention()([x, x]), r"\(Attention\) sums over units without weights"),
    ],
)
def test_what_cannot_be_divided_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        widen(sequence(make), {"in": 6})


def test_what_the_rules_do_not_show_is_found_by_running_both():
    # All four channels are tied into one unit, whose copies would have to lie in another order.
    model = sequence(lambda x: x[..., 1:] * ops.sigmoid(x[..., :3]))
    with pytest.raises(ValueError, match=r"widen: the outputs of .* would change by .*, first at .get_item"):
        widen(model, {"in": 8})


# -- deeper -----------------------------------------------------------------------------------------------------------


def deep_net():
    inputs = keras.Input((6, 6, 2))
    x = kl.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = kl.BatchNormalization(name="bn")(x)
    x = kl.ReLU(6.0, name="relu6")(x)
    x = kl.Flatten()(x)
    x = kl.Dense(5, activation="sigmoid", name="sig")(x)
    x = kl.Activation("relu", name="act")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(x), name="net")


@pytest.mark.parametrize(
    ("after", "kind", "activation"),
    [("conv", kl.Conv2D, "relu"), ("relu6", kl.Conv2D, "relu6"), ("act", kl.Dense, "relu")],
)
def test_a_deeper_model_gives_the_same(after, kind, activation):
    model = randomise(deep_net())
    model.compile("adam", "mse", metrics=["mae"])
    deeper = deepen(model, after)
    new = deeper.get_layer(f"{after}_deeper")
    assert type(new) is kind
    assert new.activation.__name__ == activation
    assert len(deeper.layers) == len(model.layers) + 1
    x = normal(3, 6, 6, 2)
    same(model, deeper, x)
    before = new.get_weights()[0]
    deeper.fit(x, normal(3, 3), epochs=2, verbose=0)
    assert np.abs(new.get_weights()[0] - before).max() > 0
    assert keras.Model.from_config(deeper.get_config()).count_params() == deeper.count_params()


def test_a_deeper_sequential_model_stays_one():
    inner = keras.Sequential([keras.Input((3,)), kl.Dense(4, activation="relu", name="a")], name="inner")
    model = randomise(keras.Sequential([keras.Input((3,)), inner, kl.Dense(2, name="b")]))
    deeper = deepen(model, "a", name="again")
    assert type(deeper) is keras.Sequential
    assert [layer.name for layer in deeper.get_layer("inner").layers] == ["a", "again"]
    same(model, deeper, normal(5, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"after": "con"}, r"deepen: 'net' has no layer 'con'\. Near to it are \['conv'\]"),
        ({"after": "sig"}, r"activation of 'sig' must be one that changes nothing when it is applied again.*: sigmoid"),
        ({"after": "bn"}, r"'bn' \(BatchNormalization\) must end with an activation"),
        ({"after": "head"}, r"'head' \(Dense\) must end with an activation"),
        ({"after": "conv", "kernel_size": 2}, r"kernel_size must be odd.*Received: 2"),
        ({"after": "conv", "name": "bn"}, r"'net' has a layer 'bn' already"),
    ],
)
def test_what_cannot_be_deeper(wrong, message):
    with pytest.raises(ValueError, match=message):
        deepen(deep_net(), **wrong)
