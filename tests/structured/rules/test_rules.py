"""Every rule, by its promise: units whose weights are zero can be removed, and outputs stay what they are.

Each case says how many units there are to remove, so that a rule that freezes everything does not pass.
"""

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.layers import Gated
from keras_prune.structured import Plan, analyse

IMAGE = (6, 6, 3)
SEQUENCE = (5, 3)
VECTOR = (6,)


def case(name, shape, build, units):
    return pytest.param(shape, build, units, id=name)


def image(layer, after=None):
    """Convolution to 8 channels, the layer, then a head that reads what is left."""

    def build(x):
        x = kl.Conv2D(8, 3, name="first")(x)
        x = layer(x)
        return kl.Dense(2)(kl.Flatten()(x))

    return build


def sequence(layer):
    def build(x):
        return kl.Dense(2)(kl.Flatten()(layer(kl.Dense(8)(x))))

    return build


def vector(function):
    def build(x):
        return kl.Dense(2)(function(kl.Dense(12, activation="tanh")(x)))

    return build


def residual(merge):
    def build(x):
        a, b = kl.Conv2D(8, 3)(x), kl.Conv2D(8, 3)(x)
        return kl.Dense(2)(kl.GlobalAveragePooling2D()(merge([a, b])))

    return build


def squeeze_and_excitation(x):
    x = kl.Conv2D(8, 3)(x)
    s = kl.GlobalAveragePooling2D(keepdims=True)(x)
    s = kl.Conv2D(8, 1, activation="sigmoid")(kl.Conv2D(4, 1, activation="relu")(s))
    return kl.Dense(2)(kl.Flatten()(kl.Multiply()([x, s])))


def attend(layer, width=8):
    def build(x):
        x = kl.Dense(width)(x)
        return kl.Dense(2)(layer(x, x))

    return build


def dot_attention(x):
    q, k, v = (kl.Dense(6)(x) for _ in range(3))
    return kl.Dense(2)(ops.matmul(ops.softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1)))), v))


def heads_by_hand(x):
    q, k, v = (ops.reshape(kl.Dense(12)(x), (-1, 5, 3, 4)) for _ in range(3))
    scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k))
    out = ops.einsum("bhqk,bkhd->bqhd", scores, v)
    return kl.Dense(2)(ops.reshape(out, (-1, 5, 12)))


def gated(x):
    a, b = ops.split(kl.Dense(12)(x), 2, axis=-1)
    return kl.Dense(2)(a * ops.sigmoid(b))


def halves(x):
    a, b = ops.split(kl.Dense(12)(x), 2, axis=-1)
    return kl.Dense(2)(ops.concatenate([ops.relu(a), ops.tanh(b)], axis=-1))


def sliced(x):
    x = kl.Dense(12)(x)
    return kl.Dense(2)(ops.concatenate([x[:, 7:], ops.relu(x[:, :7])], axis=-1))


def tied_embedding(x):
    table = kl.ReversibleEmbedding(7, 6)
    return table(kl.Dense(6)(table(x)), reverse=True)


def transposed(layer, width=6):
    """The layer on a tensor whose units lie along the axis of its steps."""

    def build(x):
        return kl.Dense(2)(kl.Flatten()(layer(kl.Permute((2, 1))(kl.Dense(width)(x)))))

    return build


def normalised(function):
    """A sum of squares over what the function gives: units that do not become 0 cannot go."""
    return vector(lambda x: kl.RMSNormalization()(function(x)))


def with_state(layer, states, make_state):
    def build(x):
        state = [make_state(x) for _ in range(states)]
        x = layer(x, initial_state=state if states > 1 else state[0])
        return kl.Dense(2)(kl.RMSNormalization()(x))

    return build


def shuffle(x):
    x = kl.Conv2D(8, 1, groups=1)(x)
    x = kl.Reshape((6, 6, 2, 4))(x)
    x = kl.Reshape((6, 6, 8))(kl.Permute((1, 2, 4, 3))(x))
    return kl.Dense(2)(kl.GlobalAveragePooling2D()(kl.Conv2D(8, 3, groups=2)(x)))


CASES = [
    case("dense", VECTOR, lambda: vector(kl.Dense(5, activation="relu")), 12 + 5),
    case("dense without bias", VECTOR, lambda: vector(kl.Dense(5, use_bias=False, activation="gelu")), 12 + 5),
    case("dense with a softmax", VECTOR, lambda: vector(kl.Dense(5, activation="softmax")), 12),
    case("einsum", SEQUENCE, lambda: sequence(kl.EinsumDense("abc,cde->abde", (5, 2, 4), bias_axes="de")), 8 + 4),
    case("einsum with ellipsis", SEQUENCE, lambda: sequence(kl.EinsumDense("...x,xy->...y", 4, bias_axes="y")), 8 + 4),
    case("conv1d", SEQUENCE, lambda: sequence(kl.Conv1D(4, 3, activation="relu")), 8 + 4),
    case("conv2d strided", IMAGE, lambda: image(kl.Conv2D(4, 3, strides=2, padding="same")), 8 + 4),
    case("conv3d", (4, 4, 4, 2),
         lambda: lambda x: kl.Dense(2)(kl.Flatten()(kl.Conv3D(4, 2)(kl.Conv3D(6, 2)(x)))), 6 + 4),
    case("conv2d in groups", IMAGE, lambda: image(kl.Conv2D(6, 3, groups=2)), 4 + 3),
    case("conv2d, a group a channel", IMAGE, lambda: image(kl.Conv2D(16, 3, groups=8)), 8),
    case("depthwise", IMAGE, lambda: image(kl.DepthwiseConv2D(3)), 8),
    case("depthwise, multiplier", IMAGE,
         lambda: image(kl.DepthwiseConv2D(3, depth_multiplier=3, activation="tanh")), 8),
    case("depthwise 1d", SEQUENCE, lambda: sequence(kl.DepthwiseConv1D(3, depth_multiplier=2)), 8),
    case("separable", IMAGE, lambda: image(kl.SeparableConv2D(5, 3, depth_multiplier=2)), 8 + 5),
    case("separable 1d", SEQUENCE, lambda: sequence(kl.SeparableConv1D(5, 3)), 8 + 5),
    case("gates of dense", (4,), lambda: lambda x: kl.Dense(2)(Gated(kl.Dense(5, "sigmoid"), hidden=3)(x)), 5 + 3),
    case("gates of a convolution", IMAGE, lambda: image(Gated(kl.Conv2D(4, 3, activation="exponential"), hidden=3)),
         8 + 4 + 3),
    case("gates of separable", IMAGE, lambda: image(Gated(kl.SeparableConv2D(4, 3), hidden=3)), 8 + 4 + 3),
    case("gates of depthwise", IMAGE, lambda: image(Gated(kl.DepthwiseConv2D(3, depth_multiplier=2), hidden=3)), 8 + 3),
    case("gates behind a norm", IMAGE,
         lambda: image(Gated(keras.Sequential([kl.Conv2D(4, 3), kl.BatchNormalization(), kl.Activation("sigmoid")]),
                             hidden=3)), 8 + 4 + 3),
    case("gates of groups", IMAGE, lambda: image(Gated(kl.Conv2D(8, 3, groups=2), hidden=3)), 4 + 4 + 3),
    case("conv1d transpose", SEQUENCE, lambda: sequence(kl.Conv1DTranspose(4, 3)), 8 + 4),
    case("conv2d transpose", IMAGE, lambda: image(kl.Conv2DTranspose(4, 3, strides=2)), 8 + 4),
    case("batch norm", IMAGE, lambda: image(kl.BatchNormalization()), 8),
    case("batch norm without scale", IMAGE, lambda: image(kl.BatchNormalization(scale=False)), 8),
    case("layer norm stays", IMAGE, lambda: image(kl.LayerNormalization()), 0),
    case("group norm", IMAGE, lambda: image(kl.GroupNormalization(4)), 4),
    case("instance norm", IMAGE, lambda: image(kl.GroupNormalization(-1)), 8),
    case("rms norm", SEQUENCE, lambda: sequence(kl.RMSNormalization(epsilon=0.01)), 8),
    case("unit norm", SEQUENCE, lambda: sequence(kl.UnitNormalization()), 8),
    case("prelu", IMAGE, lambda: image(kl.PReLU()), 8),
    case("prelu, shared", IMAGE, lambda: image(kl.PReLU(shared_axes=[1, 2])), 8),
    case("activation", IMAGE, lambda: image(kl.Activation("swish")), 8),
    case("leaky relu", IMAGE, lambda: image(kl.LeakyReLU()), 8),
    case("softmax over space", IMAGE, lambda: image(kl.Softmax(axis=(1, 2))), 8),
    case("softmax over channels", IMAGE, lambda: image(kl.Softmax()), 0),
    case("max pooling", IMAGE, lambda: image(kl.MaxPooling2D()), 8),
    case("average pooling", IMAGE, lambda: image(kl.AveragePooling2D(2, padding="same")), 8),
    case("adaptive pooling", IMAGE, lambda: image(kl.AdaptiveAveragePooling2D(2)), 8),
    case("global max pooling", IMAGE, lambda: lambda x: kl.Dense(2)(kl.GlobalMaxPooling2D()(kl.Conv2D(8, 3)(x))), 8),
    case("padding, cropping, upsampling", IMAGE,
         lambda: image(keras.Sequential([kl.ZeroPadding2D(2), kl.Cropping2D(1), kl.UpSampling2D()])), 8),
    case("dropout and noise", IMAGE, lambda: image(keras.Sequential([kl.Dropout(0.5), kl.GaussianNoise(1.0)])), 8),
    case("rescaling", IMAGE, lambda: image(kl.Rescaling(0.5, offset=1.0)), 8),
    case("permute", IMAGE, lambda: image(kl.Permute((3, 1, 2))), 8),
    case("reshape apart and together", IMAGE, lambda: image(kl.Reshape((16, 8))), 8),
    case("reshape splits channels", VECTOR, lambda: vector(kl.Reshape((3, 4))), 4),
    case("reshape with -1", IMAGE, lambda: image(kl.Reshape((-1, 8))), 8),
    case("repeat vector", VECTOR, lambda: vector(kl.RepeatVector(3)), 12),
    case("channel shuffle", IMAGE, lambda: shuffle, 2 + 4),
    case("add", IMAGE, lambda: residual(kl.Add()), 8),
    case("subtract", IMAGE, lambda: residual(kl.Subtract()), 8),
    case("multiply", IMAGE, lambda: residual(kl.Multiply()), 8),
    case("average", IMAGE, lambda: residual(kl.Average()), 8),
    case("maximum", IMAGE, lambda: residual(kl.Maximum()), 8),
    case("concatenate", IMAGE, lambda: residual(kl.Concatenate()), 16),
    case("dot", SEQUENCE, lambda: lambda x: kl.Dense(2)(kl.Dot(axes=2)([kl.Dense(6)(x), kl.Dense(6)(x)])), 6),
    case("dot of sigmoids stays", SEQUENCE,
         lambda: lambda x: kl.Dense(2)(kl.Dot(axes=2)([kl.Dense(6, activation="sigmoid")(x) for _ in range(2)])), 0),
    case("squeeze and excitation", IMAGE, lambda: squeeze_and_excitation, 8 + 4),
    case("simple rnn", SEQUENCE, lambda: sequence(kl.SimpleRNN(4)), 8 + 4),
    case("lstm", SEQUENCE, lambda: sequence(kl.LSTM(4, return_sequences=True)), 8 + 4),
    case("gru", SEQUENCE, lambda: sequence(kl.GRU(4)), 8 + 4),
    case("gru, reset before", SEQUENCE, lambda: sequence(kl.GRU(4, reset_after=False, use_bias=False)), 8 + 4),
    case("rnn of a cell", SEQUENCE, lambda: sequence(kl.RNN(kl.LSTMCell(4))), 8 + 4),
    case("bidirectional", SEQUENCE, lambda: sequence(kl.Bidirectional(kl.LSTM(4, return_sequences=True))), 8 + 4),
    case("bidirectional, summed", SEQUENCE, lambda: sequence(kl.Bidirectional(kl.GRU(4), merge_mode="sum")), 8 + 4),
    case("bidirectional of two", SEQUENCE,
         lambda: sequence(kl.Bidirectional(kl.LSTM(4), backward_layer=kl.GRU(4, go_backwards=True))), 8 + 4),
    case("time distributed", SEQUENCE, lambda: sequence(kl.TimeDistributed(kl.Dense(4))), 8 + 4),
    case("attention", SEQUENCE, lambda: attend(lambda x, y: kl.Attention()([x, y])), 8),
    case("additive attention", SEQUENCE, lambda: attend(lambda x, y: kl.AdditiveAttention()([x, y])), 8),
    case("heads, sizes, width", SEQUENCE, lambda: attend(kl.MultiHeadAttention(3, 4, value_dim=5)), 8 + 3 + 4 + 5 + 8),
    case("heads of another width", SEQUENCE,
         lambda: attend(kl.MultiHeadAttention(2, 4, output_shape=6)), 8 + 2 + 4 + 4 + 6),
    case("gated heads", SEQUENCE, lambda: attend(kl.MultiHeadAttention(2, 4, use_gate=True)), 8 + 2 + 4 + 4 + 8),
    case("grouped queries", SEQUENCE, lambda: attend(kl.GroupQueryAttention(4, 6, 3)), 8 + 3 + 4),
    case("attention by operations", SEQUENCE, lambda: dot_attention, 6 + 6),
    case("heads by operations", SEQUENCE, lambda: heads_by_hand, 4 + 4),
    case("split and gate", VECTOR, lambda: gated, 6),
    case("slices", VECTOR, lambda: sliced, 12),
    case("operations of shape", VECTOR, lambda: vector(lambda x: ops.squeeze(ops.expand_dims(x, 1), 1)), 12),
    case("stack and sum", VECTOR, lambda: vector(lambda x: ops.sum(ops.stack([x, ops.tanh(x)], axis=1), axis=1)), 12),
    case("swapaxes", SEQUENCE, lambda: sequence(lambda x: ops.swapaxes(ops.moveaxis(x, 2, 1), 1, 2)), 8),
    case("sum of zeros", SEQUENCE, lambda: sequence(lambda x: ops.sum(x, axis=-1, keepdims=True)), 8),
    case("mean stays", SEQUENCE, lambda: sequence(lambda x: ops.mean(x, axis=-1, keepdims=True)), 0),
    case("sum of ones stays", SEQUENCE, lambda: sequence(lambda x: ops.sum(ops.exp(x), axis=-1, keepdims=True)), 0),
    case("sum over heads of zeros, biased", SEQUENCE,
         lambda: sequence(lambda x: ops.sum(kl.Dense(3)(ops.swapaxes(x, 1, 2)), axis=1)), 3),
    case("halves that are joined again", VECTOR,
         lambda: halves, 12),
    case("power", VECTOR, lambda: vector(lambda x: x**2), 12),
    case("repeat", VECTOR, lambda: vector(lambda x: ops.repeat(x, 3, axis=-1)), 12),
    case("numbers", VECTOR, lambda: vector(lambda x: 2.0 * x + 1.0), 12),
    case("add a constant layer", VECTOR, lambda: normalised(lambda x: kl.Add()([x, ops.full((1, 1), 0.5)])), 0),
    case("maximum with a constant layer", VECTOR,
         lambda: normalised(lambda x: kl.Maximum()([x, ops.full((1, 1), 0.5)])), 0),
    case("minimum with a constant", VECTOR, lambda: normalised(lambda x: ops.minimum(np.full((1, 1), -0.5), x)), 0),
    case("a constant first", VECTOR, lambda: normalised(lambda x: ops.subtract(0.5, x)), 0),
    case("multiply by a constant", VECTOR,
         lambda: normalised(lambda x: kl.Multiply()([x, ops.full((1, 1), 0.5)])), 12),
    case("divided by a number", VECTOR, lambda: normalised(lambda x: x / 2.0), 12),
    case("a number divided", VECTOR, lambda: vector(lambda x: 1.0 / (x + 3.0)), 12),
    case("an added constant in a product", SEQUENCE,
         lambda: lambda x: kl.Dense(2)(kl.Dot(axes=2)(
             [kl.Add()([kl.Dense(6)(x), ops.ones((1, 1, 1))]), kl.Add()([kl.Dense(6)(x), ops.ones((1, 1, 1))])])), 0),
    case("largest of a number and a sum", SEQUENCE,
         lambda: sequence(lambda x: ops.sum(ops.max(x, axis=1, initial=1.0), axis=-1, keepdims=True)), 0),
    case("shifted along another axis", SEQUENCE,
         lambda: transposed(lambda x: ops.sum(kl.BatchNormalization()(x), axis=1)), 0),
    case("lstm from a state that becomes 0", SEQUENCE,
         lambda: with_state(kl.LSTM(4), 2, lambda x: kl.Dense(4)(x[:, 0])), 4),
    case("lstm from a state that does not", SEQUENCE,
         lambda: with_state(kl.LSTM(4), 2, lambda x: kl.Dense(4, "sigmoid")(x[:, 0])), 0),
    case("gru from a state that does not", SEQUENCE,
         lambda: with_state(kl.GRU(4), 1, lambda x: ops.exp(kl.Dense(4)(x[:, 0]))), 0),
    case("gru from a constant", SEQUENCE, lambda: with_state(kl.GRU(4), 1, lambda x: ops.ones((1, 4))), 0),
    case("steps of a recurrent layer", SEQUENCE, lambda: transposed(kl.LSTM(4)), 4),
    case("steps of a bidirectional layer", SEQUENCE, lambda: transposed(kl.Bidirectional(kl.GRU(4))), 4),
    case("steps of a distributed layer", SEQUENCE, lambda: transposed(kl.TimeDistributed(kl.Dense(4))), 4),
    case("rows that attend", SEQUENCE, lambda: transposed(lambda x: kl.Attention()([x, x])), 0),
    case("rows that attend by sums", SEQUENCE, lambda: transposed(lambda x: kl.AdditiveAttention()([x, x])), 0),
    case("rows of heads", SEQUENCE, lambda: transposed(lambda x: kl.MultiHeadAttention(2, 3)(x, x)), 2 + 3 + 3 + 5),
    case("grouped queries of the data", SEQUENCE,
         lambda: lambda x: kl.Dense(2)(kl.GroupQueryAttention(4, 4, 2)(x, kl.Dense(3)(x))), 2 + 4),
    case("dense across the steps", SEQUENCE, lambda: transposed(kl.Dense(4)), 4),
    case("a sum after a number stays", SEQUENCE,
         lambda: sequence(lambda x: ops.sum(x + 1.0, axis=-1, keepdims=True)), 0),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "build", "units"), CASES)
def test_what_is_zero_can_be_removed(shape, build, units, check_removal):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build()(inputs))
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
    analysis, _ = check_removal(model, x)
    assert analysis.size == units


def decoder_block(x):
    """Root-mean-square norms, grouped queries and a gate, as in current language models: its width can shrink."""
    y = kl.RMSNormalization()(x)
    x = kl.Add()([x, kl.GroupQueryAttention(4, 4, 2, use_bias=False)(y, y, use_causal_mask=True)])
    y = kl.RMSNormalization()(x)
    y = kl.Dense(10, activation="silu", use_bias=False)(y) * kl.Dense(10, use_bias=False)(y)
    return kl.Add()([x, kl.Dense(6, use_bias=False)(y)])


def encoder_block(x):
    """Layer norms after residuals, as in BERT: heads, their sizes and the inner layer can shrink, the width cannot."""
    x = kl.LayerNormalization()(kl.Add()([x, kl.MultiHeadAttention(2, 3, dropout=0.1)(x, x)]))
    return kl.LayerNormalization()(kl.Add()([x, kl.Dense(6)(kl.Dense(10, activation="gelu")(x))]))


def test_a_decoder_shrinks_in_width_heads_and_gates(check_removal):
    inputs = keras.Input((5,), dtype="int32")
    table = kl.ReversibleEmbedding(9, 6)
    x = decoder_block(decoder_block(table(inputs)))
    model = keras.Model(inputs, table(kl.RMSNormalization()(x), reverse=True))
    analysis, smaller = check_removal(model, np.random.default_rng(0).integers(0, 9, (3, 5)))
    assert analysis.size == 6 + 2 * (2 + 4 + 10)
    assert smaller.output_shape == (None, 5, 9)


def test_an_encoder_shrinks_inside_its_blocks(check_removal):
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, kl.Dense(2)(encoder_block(encoder_block(kl.Dense(6)(inputs)))))
    analysis, _ = check_removal(model, np.random.default_rng(0).normal(size=(3, 5, 3)).astype("float32"))
    assert analysis.size == 2 * (2 + 3 + 3 + 10)


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_table_is_tied_to_its_reverse(share, check_removal):
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, tied_embedding(inputs))
    analysis, smaller = check_removal(model, np.arange(10).reshape(2, 5) % 7, share=share)
    assert analysis.size == 6
    assert smaller.layers[1].output_dim == 6 - round(share * 6)


def test_channels_first_are_followed():
    inputs = keras.Input((3, 6, 6))
    x = kl.Conv2D(8, 3, data_format="channels_first")(inputs)
    x = kl.BatchNormalization(axis=1)(x)
    x = kl.Flatten(data_format="channels_first")(x)
    model = keras.Model(inputs, kl.Dense(2)(x))
    analysis = analyse(model)
    assert analysis.size == 8
    dense = analysis.slot_of(model.layers[-1].kernel, 0)
    assert dense.units.tolist() == list(range(8)) * 16


@pytest.mark.parametrize(
    "make",
    [
        lambda: kl.LSTM(4),
        lambda: kl.Bidirectional(kl.GRU(4)),
        lambda: keras.Sequential([kl.TimeDistributed(kl.Dense(4)), kl.GlobalAveragePooling1D()]),
    ],
)
def test_masks_go_on(make):
    inputs = keras.Input((5,), dtype="int32")
    x = kl.Embedding(7, 6, mask_zero=True)(inputs)
    model = keras.Model(inputs, kl.Dense(2)(make()(kl.Dropout(0.1)(x))))
    analysis = analyse(model)
    assert analysis.size == 10
    smaller = Plan(analysis, np.ones(10, bool)).apply()
    words = np.array([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    np.testing.assert_allclose(smaller(words), model(words), rtol=1e-6)
    changed = model(np.where(words == 0, 6, words))
    assert not np.allclose(changed[0], model(words)[0])


def test_initial_states_have_the_units_of_the_layer(check_removal):
    inputs = keras.Input((5, 3))
    state = [kl.Dense(4, name=name)(inputs[:, 0]) for name in "hc"]
    model = keras.Model(inputs, kl.Dense(2)(kl.LSTM(4)(inputs, initial_state=state)))
    analysis, _ = check_removal(model, np.random.default_rng(0).normal(size=(3, 5, 3)).astype("float32"))
    assert analysis.size == 4


def test_layer_norm_lets_channels_go_only_if_asked():
    inputs = keras.Input(VECTOR)
    model = keras.Model(inputs, kl.Dense(2)(kl.LayerNormalization()(kl.Dense(8, name="made")(inputs))))
    assert analyse(model).size == 0
    assert "layer normalisation" in analyse(model).skipped[0].reason
    analysis = analyse(model, exact=False)
    assert analysis.size == 8
    smaller = Plan(analysis, np.arange(8) < 5).apply()
    assert smaller.get_layer("made").units == 5
    assert smaller(np.ones((2, 6), "float32")).shape == (2, 2)


def test_an_index_out_of_place_would_show(check_removal, monkeypatch):
    """The check itself: with a Flatten that takes channels first, it has to fail."""
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, image(kl.Identity())(inputs))

    def wrong(self, x):
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (-1, np.prod(x.shape[1:])))

    monkeypatch.setattr(kl.Flatten, "call", wrong)
    with pytest.raises(ValueError, match=r"would change by .*, first at .flatten. \(Flatten\)"):
        check_removal(model, np.random.default_rng(1).normal(size=(4, *IMAGE)).astype("float32"))
