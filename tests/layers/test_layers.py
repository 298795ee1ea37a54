"""Wrapper layers: what they compute, what they learn, what they save, what they refuse."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from keras import ops

from keras_prune import layers as kp
from keras_prune.layers import VARIANTS, Prunable
from keras_prune.scope import Scope

# Plain class -> constructor arguments that differ from the defaults, input shape, kernels.
CASES = {
    kl.Dense: ({"units": 4, "activation": "tanh"}, (3,), 1),
    kl.Conv1D: ({"filters": 4, "kernel_size": 3, "padding": "same"}, (8, 3), 1),
    kl.Conv2D: ({"filters": 4, "kernel_size": 3, "strides": 2}, (7, 7, 3), 1),
    kl.DepthwiseConv2D: ({"kernel_size": 3, "depth_multiplier": 2}, (6, 6, 3), 1),
    kl.LSTM: ({"units": 4, "return_sequences": True}, (5, 3), 2),
    kl.GRU: ({"units": 4, "reset_after": False}, (5, 3), 2),
    kl.Embedding: ({"input_dim": 10, "output_dim": 4}, (5,), 1),
    kl.MultiHeadAttention: ({"num_heads": 2, "key_dim": 3}, (5, 4), 4),
}
BY_PLAIN = {plain: variant for variant, plain in VARIANTS.items()}
FORMS = {
    "variant": lambda plain, args, **extra: BY_PLAIN[plain](**args, **extra),
    "wrapper": lambda plain, args, **extra: Prunable(plain(**args), **extra),
}
each_case = pytest.mark.parametrize("plain", CASES, ids=lambda plain: plain.__name__)
each_form = pytest.mark.parametrize("form", FORMS)


def batch(plain, size=6):
    shape = (size, *CASES[plain][1])
    rng = np.random.default_rng(1)
    return rng.integers(0, 10, shape) if plain is kl.Embedding else rng.normal(size=shape).astype("float32")


def call(layer, x, **kwargs):
    attention = isinstance(layer, kl.MultiHeadAttention) or (
        isinstance(layer, Prunable) and isinstance(layer.layer, kl.MultiHeadAttention)
    )
    return layer(x, x, **kwargs) if attention else layer(x, **kwargs)


def weights_of(layer):
    """The weights without the masks, as the plain layer has them."""
    return [weight for weight in layer.weights if weight.dtype != "bool"]


def randomly_masked(form, plain, **extra):
    """A built layer with random masks, and the plain layer that holds the masked weights."""
    args, _, _ = CASES[plain]
    layer, reference = FORMS[form](plain, args, **extra), plain(**args)
    call(layer, batch(plain)), call(reference, batch(plain))
    rng = np.random.default_rng(2)
    layer.set_masks([rng.random(kernel.shape) < 0.5 for kernel, _ in layer.mask_pairs])
    masks = {id(kernel): ops.convert_to_numpy(mask) for kernel, mask in layer.mask_pairs}
    reference.set_weights([w.numpy() * masks.get(id(w), 1) for w in weights_of(layer)])
    return layer, reference


def test_a_variant_for_each_case():
    assert set(BY_PLAIN) == set(CASES)
    assert {variant.__name__ for variant in VARIANTS} == {f"Prunable{plain.__name__}" for plain in CASES}


@each_case
@each_form
def test_forward_is_the_plain_layer_with_masked_weights(plain, form):
    layer, reference = randomly_masked(form, plain)
    assert len(layer.mask_pairs) == CASES[plain][2]
    assert 0.3 < layer.sparsity < 0.7
    np.testing.assert_array_equal(call(layer, batch(plain)), call(reference, batch(plain)))


@each_case
@each_form
@pytest.mark.parametrize("straight_through", [False, True])
def test_gradients(plain, form, straight_through):
    """Straight through, the gradient is that at the masked weights; else it is that, where the mask is on."""
    layer, reference = randomly_masked(form, plain, straight_through=straight_through)
    x = batch(plain)
    with tf.GradientTape() as tape:
        loss = ops.sum(ops.square(call(layer, x) - 1))
    found = tape.gradient(loss, [kernel.value for kernel, _ in layer.mask_pairs])
    places = [next(i for i, w in enumerate(weights_of(layer)) if w is k) for k, _ in layer.mask_pairs]
    with tf.GradientTape() as tape:
        loss = ops.sum(ops.square(call(reference, x) - 1))
    wanted = tape.gradient(loss, [reference.weights[i].value for i in places])
    for gradient, full, (_, mask) in zip(found, wanted, layer.mask_pairs, strict=True):
        full, mask = tf.convert_to_tensor(full).numpy(), mask.numpy()
        np.testing.assert_allclose(gradient, full if straight_through else full * mask, rtol=1e-5, atol=1e-6)
        assert np.any(full[~mask]), "a case in which masked weights have no gradient tests nothing"


@each_case
@each_form
def test_keras_file_brings_the_masks_back(plain, form, tmp_path):
    inputs = keras.Input(CASES[plain][1], dtype="int32" if plain is kl.Embedding else "float32")
    layer = FORMS[form](plain, CASES[plain][0], straight_through=True)
    model = keras.Model(inputs, call(layer, inputs))
    rng = np.random.default_rng(3)
    layer.set_masks([rng.random(kernel.shape) < 0.5 for kernel, _ in layer.mask_pairs])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert json.dumps(loaded.layers[-1].get_config()) == json.dumps(layer.get_config())
    assert loaded.layers[-1].straight_through
    for (_, ours), (_, theirs) in zip(layer.mask_pairs, loaded.layers[-1].mask_pairs, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model(batch(plain)), loaded(batch(plain)))

    model.save_weights(tmp_path / "model.weights.h5")
    loaded.layers[-1].set_masks([np.ones(k.shape) for k, _ in layer.mask_pairs])
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert loaded.layers[-1].sparsity == layer.sparsity > 0


@pytest.mark.parametrize(
    ("plain", "settings"),
    [
        (kl.Dense, {"jit_compile": True}),
        (kl.Dense, {"run_eagerly": True}),
        (kl.Dense, {"steps_per_execution": 2}),
        (kl.LSTM, {"jit_compile": True}),
        (kl.Embedding, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@each_form
def test_fit_leaves_masked_weights_alone(plain, form, settings):
    layer, _ = randomly_masked(form, plain)
    model = keras.Sequential([keras.Input(CASES[plain][1]), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", **settings)
    before = [kernel.numpy() for kernel, _ in layer.mask_pairs]
    x = batch(plain)
    model.fit(x, np.ones(model(x).shape), batch_size=3, verbose=0)
    for (kernel, mask), old in zip(layer.mask_pairs, before, strict=True):
        moved = kernel.numpy() != old
        assert moved[mask.numpy()].any()
        assert not moved[~mask.numpy()].any()


@each_form
def test_straight_through_learns_what_is_masked(form):
    layer, _ = randomly_masked(form, kl.Dense, straight_through=True)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=True)
    (kernel, mask), old = layer.mask_pairs[0], layer.mask_pairs[0][0].numpy()
    model.fit(batch(kl.Dense), np.ones((6, 4)), verbose=0)
    assert (kernel.numpy() != old)[~mask.numpy()].all()
    masked = ops.tanh(batch(kl.Dense) @ (kernel.numpy() * mask.numpy()) + layer.weights[1].numpy())
    np.testing.assert_allclose(model(batch(kl.Dense)), masked, atol=1e-6)


@each_form
def test_mixed_precision_computes_as_the_plain_layer_does(form):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer, reference = randomly_masked(form, kl.Dense)
        out = call(layer, batch(kl.Dense))
    finally:
        keras.config.set_dtype_policy("float32")
    assert out.dtype == tf.float16
    assert layer.mask_pairs[0][0].value.dtype == tf.float32
    np.testing.assert_array_equal(out, call(reference, batch(kl.Dense)))


def test_a_layer_inside_keeps_its_own_precision():
    class Exact(keras.layers.Layer):
        def build(self, shape):
            self.inner = kl.Dense(1, use_bias=False, dtype="float32")
            self.inner.build(shape)

        def call(self, x):
            return self.inner(x)

    layer = Prunable(Exact(dtype="mixed_float16"))
    layer.build((None, 1))
    layer.layer.inner.kernel.assign([[1 + 2**-20]])  # not a float16
    assert layer(ops.ones((1, 1), "float32")).numpy() == np.float32(1 + 2**-20)


def test_mirrored_strategy(mirrored):
    with mirrored.scope():
        layer = Prunable(kl.Dense(2))
        model = keras.Sequential([keras.Input((4,)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    mask = np.arange(8).reshape(4, 2) % 2 == 0
    layer.set_masks([mask])
    old = layer.mask_pairs[0][0].numpy()
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    model.fit(x, np.ones((8, 2)), verbose=0)
    kernel = layer.mask_pairs[0][0].numpy()
    np.testing.assert_array_equal((kernel != old), mask)


@each_form
def test_dropout_draws_the_same_numbers_as_the_plain_layer(form):
    args = {"units": 3, "dropout": 0.4, "recurrent_dropout": 0.3, "seed": 7}
    layer, plain = FORMS[form](kl.LSTM, args), kl.LSTM(**args)
    x = batch(kl.LSTM)
    layer(x), plain(x)
    plain.set_weights([w.numpy() for w in weights_of(layer)])
    ours = [layer(x, training=True).numpy() for _ in range(2)]
    theirs = [plain(x, training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(ours, theirs)
    assert (ours[0] != ours[1]).any()


@each_form
def test_a_stateful_layer_carries_its_state_on(form):
    args = {"units": 3, "stateful": True}
    layer, plain = FORMS[form](kl.LSTM, args), kl.LSTM(**args)
    x = batch(kl.LSTM)
    layer.build(x.shape), plain.build(x.shape)
    plain.set_weights([w.numpy() for w in weights_of(layer)])
    first, second = layer(x).numpy(), layer(x).numpy()
    np.testing.assert_array_equal([first, second], [plain(x), plain(x)])
    assert (first != second).any()


def test_statistics_inside_are_updated():
    inner = keras.Sequential([kl.Dense(2), kl.BatchNormalization(momentum=0.5)])
    model = keras.Sequential([keras.Input((3,)), Prunable(inner)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(2, 1, (16, 3)).astype("float32")
    mean = inner.layers[0](x).numpy().mean(axis=0)
    model.fit(x, np.zeros((16, 2)), batch_size=16, verbose=0)
    np.testing.assert_allclose(inner.layers[1].moving_mean, mean / 2, rtol=1e-4)


def test_spectral_normalization_inside_reads_the_new_kernel_masked():
    layer, plain = (wrap(kl.SpectralNormalization(kl.Dense(4))) for wrap in (Prunable, lambda layer: layer))
    x = batch(kl.Dense)
    layer(x), plain(x)
    mask = np.arange(12).reshape(3, 4) % 3 > 0
    layer.set_masks([mask])
    kernel = layer.mask_pairs[0][0]
    plain.set_weights([w.numpy() * mask if w is kernel else w.numpy() for w in weights_of(layer)])
    np.testing.assert_allclose(layer(x, training=True), plain(x, training=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kernel.numpy() != 0, mask)


@each_form
def test_losses_of_the_layer_are_kept(form):
    args = {"units": 2, "activity_regularizer": "l2", "kernel_regularizer": "l1"}
    layer, plain = FORMS[form](kl.Dense, args), kl.Dense(**args)
    x = batch(kl.Dense)
    layer(x), plain(x)
    plain.set_weights([w.numpy() for w in weights_of(layer)])
    plain(x), layer(x)
    assert len(plain.losses) == len(layer.losses) == 2
    np.testing.assert_allclose(sorted(map(float, layer.losses)), sorted(map(float, plain.losses)), rtol=1e-6)


@each_form
def test_masks_of_time_steps_pass_through(form):
    embedding = FORMS[form](kl.Embedding, {"input_dim": 10, "output_dim": 3, "mask_zero": True})
    lstm = FORMS[form](kl.LSTM, {"units": 2, "return_sequences": True})
    pool = kl.GlobalAveragePooling1D()
    model = keras.Sequential([keras.Input((4,), dtype="int32"), embedding, lstm, pool])
    short = np.array([[3, 5, 0, 0]])
    steps = lstm(embedding(short[:, :2]))
    np.testing.assert_allclose(model(short), steps.numpy().mean(axis=1), atol=1e-6)


@each_form
def test_shapes_are_those_of_the_plain_layer(form):
    layer, plain = FORMS[form](kl.Conv2D, CASES[kl.Conv2D][0]), kl.Conv2D(**CASES[kl.Conv2D][0])
    assert layer.compute_output_shape((None, 9, 9, 3)) == plain.compute_output_shape((None, 9, 9, 3))
    assert layer(keras.Input((9, 9, 3))).shape == (None, 4, 4, 4)


def test_composites_hold_wrappers():
    layers = [
        kl.TimeDistributed(Prunable(kl.Dense(3))),
        kl.TimeDistributed(kp.PrunableDense(3)),
        kl.Bidirectional(kp.PrunableLSTM(3, return_sequences=True)),
        Prunable(kl.Bidirectional(kl.GRU(3))),
    ]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    targets = Scope().survey(model).targets
    assert len(targets) == 1 + 1 + 4 + 4
    assert all(target.mask.shape == target.variable.shape for target in targets)


def test_a_built_layer_keeps_its_weights():
    dense = kl.Dense(2)
    dense.build((None, 3))
    layer = Prunable(dense)
    assert layer.built
    assert layer.mask_pairs[0][0] is dense.kernel


def test_an_unnamed_variant_is_called_as_the_plain_layer_is():
    assert [kp.PrunableDense(1).name, kl.Dense(1).name] == ["dense", "dense_1"]


def test_a_frozen_layer_comes_back_frozen(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Prunable(kl.Dense(2))])
    model.layers[0].set_masks([np.eye(3)[:, :2]])
    model.trainable = False
    model.save(tmp_path / "frozen.keras")
    loaded = keras.saving.load_model(tmp_path / "frozen.keras")
    assert not loaded.trainable_weights
    assert loaded.layers[0].sparsity == pytest.approx(4 / 6)


def test_an_exception_leaves_nothing_behind():
    class Broken(kl.Dense):
        def call(self, inputs):
            raise RuntimeError("broken")

    layer = Prunable(Broken(2, kernel_initializer="ones"))
    layer.build((None, 3))
    layer.set_masks([np.zeros((3, 2))])
    with pytest.raises(RuntimeError, match=r"broken"):
        layer(ops.ones((1, 3)))
    np.testing.assert_array_equal(layer.layer.kernel, np.ones((3, 2)))
    layer.layer.kernel.assign(2 * np.ones((3, 2)))
    np.testing.assert_array_equal(layer.layer.kernel, 2 * np.ones((3, 2)))


def test_a_custom_layer_that_builds_itself_by_a_call():
    class Two(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = kl.Dense(3), kl.Dense(2)

        def call(self, x, scale):
            return self.second(self.first(x)) * scale

    layer = Prunable(Two())
    x = ops.ones((1, 4))
    layer(x, scale=ops.ones((1, 1)))
    assert [tuple(mask.shape) for _, mask in layer.mask_pairs] == [(4, 3), (3, 2)]
    layer.set_masks([np.ones((4, 3)), np.zeros((3, 2))])
    np.testing.assert_array_equal(layer(x, scale=ops.ones((1, 1))), np.zeros((1, 2)))


def test_refuses_a_layer_without_kernels():
    with pytest.raises(
        ValueError, match=r"Dropout 'dropout' has no kernel to mask.*it has no variables.*Use the layer"
    ):
        Prunable(kl.Dropout(0.5)).build((None, 3))
    norm = kl.BatchNormalization(name="norm")
    norm.build((None, 3))
    with pytest.raises(ValueError, match=r"'norm' has no kernel to mask.*gamma.*prunable_weights"):
        Prunable(norm)


@pytest.mark.parametrize(
    "inner",
    [lambda: Prunable(kl.Dense(1)), lambda: kp.PrunableDense(1), lambda: kl.TimeDistributed(kp.PrunableDense(1))],
)
def test_refuses_masks_under_masks(inner):
    with pytest.raises(
        ValueError, match=r"Prunable wraps a layer without masks. Received.*masks of its own.*plain Keras"
    ):
        Prunable(inner())


def test_refuses_what_is_not_a_layer():
    with pytest.raises(ValueError, match=r"isn't a supported layer type"):
        Prunable("dense")


def test_refuses_lora_and_quantized_layers():
    dense = kl.Dense(2)
    dense.build((None, 3))
    dense.enable_lora(1)
    with pytest.raises(ValueError, match=r"no kernel to mask.*LoRA is enabled"):
        Prunable(dense)
    model = keras.Sequential([keras.Input((3,)), Prunable(kl.Dense(2))])
    with pytest.raises(ValueError, match=r"cannot be quantized.*strip"):
        model.quantize("int8")
    model.layers[0].layer.quantize("int8")
    with pytest.raises(ValueError, match=r"cannot be quantized.*strip"):
        model(np.ones((1, 3)))
    variant = kp.PrunableDense(2)
    variant.build((None, 3))
    with pytest.raises(ValueError, match=r"cannot be quantized.*strip"):
        variant.quantize("int8")


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([], r"one mask for each of its 1 kernels, \['d/kernel'\]. Received: 0 masks"),
        ([np.ones((2, 3))], r"kernel's shape \(3, 2\). Received: shape \(2, 3\)"),
        ([np.full((3, 2), 0.5)], "booleans, or zeros and ones. Received: values of type float64 from 0.5 to 0.5"),
    ],
)
def test_set_masks_checks(masks, message):
    layer = kp.PrunableDense(2, name="d")
    layer.build((None, 3))
    with pytest.raises(ValueError, match=message):
        layer.set_masks(masks)
    assert layer.sparsity == 0.0


def test_masks_need_a_built_layer():
    with pytest.raises(
        ValueError, match=r"sparsity needs the kernels, and the layer is not built.*build\(input_shape\)"
    ):
        _ = Prunable(kl.Dense(2)).sparsity
