import math

import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from benchmarks.model_counts import macs_by_shapes, profiled_macs
from keras_prune.structured import Plan, analyse, count, plan
from keras_prune.structured.counting.counting import Counter
from tests.structured.test_random_graphs import generate


def tiny(kind, **options):
    return kind(weights=None, input_shape=(64, 64, 3), classes=10, **options)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: tiny(keras.applications.MobileNetV2, alpha=0.35), id="MobileNetV2"),
        pytest.param(lambda: tiny(keras.applications.EfficientNetB0), id="EfficientNetB0"),
        pytest.param(lambda: tiny(keras.applications.ResNet50), id="ResNet50"),
    ],
)
def test_counts_are_those_of_tensorflow(make):
    model = make()
    counted = count(model)
    assert counted.total.params == model.count_params()
    assert counted.total.params == sum(layer.params for layer in counted.layers)
    assert counted.total.macs == sum(layer.macs for layer in counted.layers)
    assert counted.total.macs == macs_by_shapes(model) == pytest.approx(profiled_macs(model), rel=0.01)


def test_what_the_profiler_leaves_out_is_grouped_convolutions():
    """It knows no shapes inside of them, so ConvNeXt is held against a count of another kind."""
    model = tiny(keras.applications.ConvNeXtTiny)
    counted = count(model)
    assert counted.total.params == model.count_params()
    assert counted.total.macs == macs_by_shapes(model)
    grouped = {layer.name for layer in model.layers if getattr(layer, "groups", 1) > 1}
    left_out = sum(layer.macs for layer in counted.layers if layer.path in grouped)
    assert counted.total.macs - profiled_macs(model) == left_out > 0.01 * counted.total.macs


def layers(model):
    return {layer.path: (layer.params, layer.macs) for layer in count(model).layers if layer.params or layer.macs}


def test_each_kind_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = kl.Conv2D(6, 3, groups=2, padding="same", name="grouped")(inputs)
    x = kl.SeparableConv2D(5, 3, depth_multiplier=2, use_bias=False, padding="same", name="separable")(x)
    x = kl.Conv2DTranspose(3, 2, strides=2, use_bias=False, name="transposed")(x)
    model = keras.Model(inputs, x)
    assert layers(model) == {
        "grouped": (3 * 3 * 2 * 6 + 6, 64 * 9 * 2 * 6),
        "separable": (9 * 6 * 2 + 12 * 5, 64 * (9 * 12 + 12 * 5)),
        "transposed": (2 * 2 * 5 * 3, 64 * 4 * 5 * 3),
    }


def test_sequences_by_hand():
    inputs = keras.Input((5, 3))
    x = kl.LSTM(4, return_sequences=True, name="lstm")(inputs)
    x = kl.TimeDistributed(kl.Dense(6, use_bias=False), name="each")(x)
    x = kl.MultiHeadAttention(2, 3, value_dim=4, use_bias=False, name="heads")(x, x)
    model = keras.Model(inputs, x)
    assert layers(model) == {
        "lstm": (3 * 16 + 4 * 16 + 16, 5 * (3 * 16 + 4 * 16)),
        "each": (24, 5 * 24),
        "heads": (6 * 6 * 2 + 6 * 8 + 8 * 6, 5 * (6 * 6 * 2 + 6 * 8 + 8 * 6) + 25 * 2 * (3 + 4)),
    }


def test_products_of_tensors_count():
    inputs = keras.Input((5, 3))
    a, b = kl.Dense(7, use_bias=False, name="a")(inputs), kl.Dense(7, use_bias=False, name="b")(inputs)
    model = keras.Model(inputs, ops.einsum("bik,bjk->bij", a, b))
    assert count(model).total.macs == 2 * 5 * 21 + 25 * 7


def test_a_shared_layer_weighs_once_and_works_twice():
    inputs = keras.Input((3,))
    shared = kl.Dense(3, name="shared")
    assert layers(keras.Model(inputs, shared(shared(inputs)))) == {"shared": (12, 18)}


def test_counts_of_a_plan_are_those_of_the_model_made(random_keep):
    model = tiny(keras.applications.MobileNetV3Small, minimalistic=True)
    made = plan(model, params=0.4, scope="global")
    smaller = count(made.apply())
    assert (made.after.params, made.after.macs) == (smaller.total.params, smaller.total.macs)
    counter = Counter(made.analysis)
    assert counter.layers(made.kept)[5].params == smaller.layers[5].params


def test_unknown_lengths_count_as_one():
    inputs = keras.Input((None, 3))
    assert count(keras.Model(inputs, kl.Dense(4)(inputs))).total.macs == 12


def test_widths_are_linear_in_units():
    inputs = keras.Input((4, 4, 3))
    x = kl.Flatten()(kl.Conv2D(8, 1, name="conv")(inputs))
    model = keras.Model(inputs, kl.Dense(2, name="head")(x))
    counter = Counter(analyse(model))
    found = counter.layers(np.array([3]))
    assert [(layer.path, layer.params) for layer in found if layer.params] == [("conv", 12), ("head", 16 * 3 * 2 + 2)]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (lambda x: kl.Attention()([x, x]), 2 * 25 * 8),
        (lambda x: kl.Attention(score_mode="concat")([x, x]), 25 * 8),
        (lambda x: kl.AdditiveAttention()([x, x]), 25 * 8),
        (lambda x: kl.MultiHeadAttention(3, 4, use_gate=True)(x, x), 5 * 5 * 8 * 12 + 2 * 25 * 12),
        (lambda x: kl.MultiHeadAttention(3, 4, value_dim=2)(x, x[:, :2]),
         5 * 8 * (12 + 6) + 2 * 8 * (12 + 6) + 10 * 3 * (4 + 2)),
        (lambda x: kl.GroupQueryAttention(4, 4, 2)(x, x), 5 * 8 * (16 + 2 * 8 + 16) + 2 * 25 * 16),
        (lambda x: kl.Dense(3)(kl.Permute((2, 1))(x)), 8 * 5 * 3),
    ],
)  # fmt: skip
def test_attention_by_hand(layer, macs):
    inputs = keras.Input((5, 8))
    counted = count(keras.Model(inputs, layer(inputs)))
    assert counted.total.macs == macs
    assert counted.not_counted == ()


def test_attention_over_chosen_axes_by_hand():
    inputs = keras.Input((4, 5, 6))
    model = keras.Model(inputs, kl.MultiHeadAttention(3, 4, attention_axes=(2,))(inputs, inputs))
    assert count(model).total.macs == 4 * 20 * 6 * 12 + 2 * 4 * 25 * 12


def test_what_cannot_be_counted_is_named():
    inputs = keras.Input((5, 8))
    x = ops.matmul(inputs, np.ones((8, 3), "float32"))
    x = kl.TimeDistributed(kl.Lambda(lambda y: y))(x)
    x = kl.RNN(kl.StackedRNNCells([kl.GRUCell(2)]), name="stacked")(x)
    assert [left.reason for left in count(keras.Model(inputs, x)).not_counted] == [
        "it multiplies by a constant, or by a vector",
        "there is no rule for the Lambda inside",
        "its cell is a StackedRNNCells",
    ]


def einsum_macs(subscripts, *operands):
    sizes = {}
    for letters, operand in zip(subscripts.split("->")[0].split(","), operands, strict=True):
        head, dots, tail = letters.partition("...")
        leading = range(len(operand.shape) - len(head) - len(tail)) if dots else ()
        sizes.update(zip([*head, *leading, *tail], operand.shape, strict=True))
    return math.prod(sizes.values())


@pytest.fixture
def backend_macs(monkeypatch):
    """Multiplications of a model's products for one sample, counted where Keras hands them to its backend."""
    backend = keras.src.backend

    def convolved(out, kernel):
        return math.prod(out.shape[:-1]) * math.prod(kernel.shape)

    counters = {
        (backend.numpy, "matmul"): lambda out, a, b, **_: math.prod(out.shape) * a.shape[-1],
        (backend.numpy, "einsum"): lambda out, subscripts, *operands, **_: einsum_macs(subscripts, *operands),
        (backend.nn, "conv"): lambda out, x, kernel, *_, **__: convolved(out, kernel),
        (backend.nn, "depthwise_conv"): lambda out, x, kernel, *_, **__: convolved(out[..., :1], kernel),
        (backend.nn, "separable_conv"): lambda out, x, deep, point, *_, **__: (
            convolved(out, deep) + convolved(out, point)
        ),
        (backend.nn, "dot_product_attention"): lambda out, query, key, value, *_, **__: (
            math.prod(query.shape[:3]) * key.shape[1] * (query.shape[3] + value.shape[3])
        ),
        (backend.nn, "conv_transpose"): lambda out, x, kernel, *_, **__: convolved(x, kernel),
    }
    total = 0

    def watch(function, macs):
        def watched(*args, **kwargs):
            nonlocal total
            out = function(*args, **kwargs)
            total += macs(out, *args, **kwargs)
            return out

        return watched

    for (module, name), macs in counters.items():
        monkeypatch.setattr(module, name, watch(getattr(module, name), macs))

    def run(model):
        nonlocal total
        total = 0
        model(np.zeros((1, *model.input_shape[1:]), "float32"))
        return total

    return run


def sequences(seed):
    """A random graph over sequences, whose units also lie along other axes than the last."""
    rng = np.random.default_rng(seed)
    width = lambda: int(rng.choice([2, 4, 6]))  # noqa: E731
    gqa = lambda x: kl.GroupQueryAttention(width(), 4, 2, use_gate=bool(rng.integers(2)))(x, x)  # noqa: E731
    steps = [
        lambda x: kl.Dense(width())(x),
        lambda x: kl.EinsumDense("...x,xy->...y", width())(x),
        lambda x: kl.Permute((2, 1))(kl.Dense(x.shape[1])(kl.Dense(width(), "gelu")(kl.Permute((2, 1))(x)))),
        lambda x: kl.EinsumDense("btx,ts->bsx", tuple(x.shape[1:]))(x),
        lambda x: kl.Conv1D(width(), 3, strides=int(rng.integers(1, 3)), padding="same")(x),
        lambda x: kl.SeparableConv1D(width(), 3, padding="same")(x),
        lambda x: kl.Attention()([x, kl.Dense(x.shape[-1])(x)]),
        lambda x: kl.AdditiveAttention()([x, x]),
        lambda x: kl.MultiHeadAttention(width(), width(), value_dim=width(), use_gate=bool(rng.integers(2)))(x, x),
        lambda x: gqa(x),
        lambda x: kl.Add()([x, kl.Dense(x.shape[-1])(x)]),
        lambda x: kl.GRU(width(), return_sequences=True, unroll=True)(x),
        lambda x: kl.Bidirectional(kl.LSTM(width(), return_sequences=True, unroll=True))(x),
        lambda x: kl.TimeDistributed(kl.Dense(width()))(x),
        lambda x: ops.matmul(x, kl.Permute((2, 1))(kl.Dense(x.shape[-1])(x))),
    ]
    inputs = x = keras.Input((int(rng.integers(3, 6)), 3))
    for step in rng.choice(len(steps), int(rng.integers(3, 7))):
        x = steps[step](x)
    return keras.Model(inputs, kl.Dense(2)(kl.GlobalAveragePooling1D()(x)))


@pytest.mark.parametrize("make", [generate, sequences])
def test_multiplications_are_those_that_the_backend_is_asked_for(make, backend_macs, random_keep):
    smaller = 0
    for seed in range(30):
        model = make(seed)
        assert count(model).total.macs == backend_macs(model), seed
        analysis = analyse(model)
        made = Plan(analysis, random_keep(analysis, np.random.default_rng(seed)))
        assert made.after.macs == backend_macs(made.apply()), seed
        smaller += made.after.macs < made.before.macs
    assert smaller > 22
