import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.structured.counting.counting import count


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def low_rank(layer, ranks, seed=0):
    """Give a layer a kernel of low rank along its channels, and a bias that shows."""
    rng = np.random.default_rng(seed)
    *window, before, after = layer.kernel.shape
    core = rng.normal(size=(*window, *ranks))
    kernel = rng.normal(size=(before, ranks[0])) @ core @ rng.normal(size=(ranks[1], after))
    layer.set_weights([kernel / np.sqrt(kernel[..., 0].size), rng.normal(size=after)])


def network():
    """A shared layer, a model inside, strides, dilation, a frozen layer, one in a wrapper, one in groups."""
    inputs = keras.Input((12, 12, 6), name="picture")
    shared = kl.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(inputs))
    inner_in = keras.Input((12, 12, 6))
    inner = keras.Model(
        inner_in, kl.Conv2D(16, 3, 2, "same", activation="tanh", name="strided")(inner_in), name="inner"
    )
    x = kl.Conv2D(16, 3, dilation_rate=2, padding="same", name="dilated")(inner(x))
    x = kl.Conv2D(16, 3, groups=4, name="grouped")(x)
    x = kl.Reshape((16, 16))(x)
    x = kl.TimeDistributed(kl.Dense(16, name="each"), name="wrapped")(x)
    x = kl.Conv1D(24, 3, padding="causal", name="causal")(x)
    x = kl.Dense(24, "relu", name="positions")(x)
    frozen = kl.Dense(24, name="frozen")
    x = kl.GlobalAveragePooling1D()(frozen(x))
    x = kl.Dense(32, "gelu", name="wide")(x)
    model = keras.Model(inputs, kl.Dense(10, "softmax", name="head")(x), name="net")
    frozen.trainable = False
    for number, name in enumerate(("shared", "dilated", "causal", "positions", "wide")):
        low_rank(model.get_layer(name), (2, 3), seed=number)
    low_rank(inner.get_layer("strided"), (2, 3))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def exact(net):
    """Without loss, since the kernels have low rank."""
    return kp.factorize(net, energy=1.0)


def test_at_the_rank_of_the_kernels_nothing_changes_but_the_cost(net, exact):
    smaller, report = exact
    x = normal(5, 12, 12, 6)
    np.testing.assert_allclose(smaller(x), net(x), atol=2e-6)
    found = {row.path: row for row in report.layers}
    assert set(found) == {"shared", "inner/strided", "dilated", "causal", "positions", "wide"}
    assert all(row.error < 1e-5 for row in report.layers)
    assert found["wide"].form == "svd"
    assert found["wide"].ranks == found["positions"].ranks == (2,)
    assert found["wide"].params == (24 * 32, 2 * (24 + 32))
    assert found["dilated"].form == "tucker2"
    assert found["dilated"].ranks == (2, 3)
    assert found["shared"].macs[0] == 2 * 144 * 9 * 36  # at both of its calls
    # The counter knows nothing of factorisation.
    before, after = count(net).total, count(smaller).total
    assert report.params == (before.params, after.params)
    assert report.macs == (before.macs, after.macs)


def test_names_activations_and_policies_stay_with_the_last_layer(net, exact):
    smaller, _ = exact
    for name in ("dilated", "causal", "positions", "wide", "head", "frozen"):
        old, new = net.get_layer(name), smaller.get_layer(name)
        assert (type(new), new.activation, new.trainable) == (type(old), old.activation, old.trainable)
        np.testing.assert_array_equal(new.bias, old.bias)
        assert smaller.get_layer(name).output.shape == net.get_layer(name).output.shape
    assert smaller.get_layer("inner").get_layer("strided").activation is keras.activations.tanh
    assert [smaller.get_layer(f"dilated{end}").dilation_rate for end in ("_factor1", "_factor2", "")] == [
        (1, 1),
        (2, 2),
        (1, 1),
    ]


def test_what_is_left_has_a_reason(exact):
    reasons = {skipped.path: skipped.reason for skipped in exact[1].skipped}
    assert reasons["frozen/kernel"] == "frozen (trainable=False)"
    assert "4 groups" in reasons["grouped/kernel"]
    assert "'wrapped' calls it in its own call()" in reasons["wrapped/each/kernel"]
    assert "fewer weights and multiplications" in reasons["head/kernel"]
    assert len(reasons) == 4


def test_each_target_holds(net):
    _, at_most = kp.factorize(net, error=0.3)
    assert all(row.error <= 0.3 for row in at_most.layers)
    for by in ("params", "macs"):
        smaller, report = kp.factorize(net, **{by: 0.6})
        whole, left = getattr(report, by)
        assert left <= 0.6 * whole
        assert getattr(count(smaller).total, by) == left
    with pytest.raises(ValueError, match=r"macs=0.01 cannot be met: at rank 1 everywhere 0\.\d+ of the model is left"):
        kp.factorize(net, macs=0.01)
    dense = keras.Sequential([keras.Input((64,)), kl.Dense(64), kl.Dense(64)])  # of full rank
    for by in ("params", "macs"):
        (whole, left), shares = getattr(kp.factorize(dense, **{by: 0.5})[1], by), (0.48, 0.5)
        assert shares[0] * whole < left <= shares[1] * whole
    _, by_hand = kp.factorize(net, ranks={"wide": 1, "inner/strided": (3, 4), "head": 9}, forms=("svd", "tucker2"))
    assert {row.path: row.ranks for row in by_hand.layers} == {"inner/strided": (3, 4), "wide": (1,)}
    assert any(s.path == "head/kernel" and "rank 9" in s.reason for s in by_hand.skipped)
    assert "inner/strided" in str(by_hand)
    assert by_hand.to_dict()["layers"][0]["form"] == "tucker2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "factorize takes one of energy, error, .* Received: none"),
        ({"energy": 0.9, "error": 0.1}, "Received: energy=0.9, error=0.1"),
        ({"energy": 90}, "for 90 % write 0.9"),
        ({"params": 0.0}, "params is a share that stays, so it is above 0. Received: 0.0"),
        ({"energy": 0.9, "forms": "cp"}, r"forms must be among .* Received: \['cp'\]"),
        ({"ranks": {"hed": 1}}, r"Received: \['hed'\]"),
    ],
)
def test_wrong_arguments_are_refused(net, options, message):
    with pytest.raises(ValueError, match=message):
        kp.factorize(net, **options)


def test_states_that_factors_would_lose_are_left_or_refused():
    def dense(**options):
        layer = kl.Dense(16, **options)
        return keras.Sequential([keras.Input((16,)), layer, kl.Dense(16, name="next")]), layer

    model, layer = dense()
    layer.quantize("int8")
    assert "quantized (int8)" in kp.factorize(model, ranks={"next": 2})[1].skipped[0].reason
    model, layer = dense()
    layer.enable_lora(2)
    assert "LoRA" in kp.factorize(model, ranks={"next": 2})[1].skipped[0].reason
    model, layer = dense(kernel_constraint="non_neg")
    assert "NonNeg is on the kernel" in kp.factorize(model, ranks={"next": 2})[1].skipped[0].reason
    model, layer = dense()
    kp.prune(model, 0.5)
    with pytest.raises(ValueError, match=r"Take the masks off first: kp.factorize\(kp.strip\(model\)"):
        kp.factorize(model, ranks=2)
    smaller, _ = kp.factorize(kp.strip(model), ranks=2)
    assert [one.units for one in smaller.layers] == [2, 16, 2, 16]


def test_the_result_is_plain_layers_that_train_save_and_export(tmp_path):
    import tflite_export as tx

    inputs = keras.Input((8, 8, 6))
    x = kl.Conv2D(12, 3, 2, "same", activation="relu", name="train")(inputs)
    x = kl.Conv2D(12, 3, padding="same", activation="relu", name="core")(x)
    x = kl.Dense(24, "softmax", name="dense")(kl.Flatten()(x))  # not elementwise
    outputs = kl.Dense(20, name="matrix")(kl.Dense(60, use_bias=False, name="bare")(x))
    model = keras.Model(inputs, outputs)
    model.get_layer("dense").bias.assign(normal(24))
    model.compile("adam", "mse")
    # A model that answers otherwise than with the approximated kernels would not be handed over.
    trains, report = kp.factorize(model, ranks={"train": 4, "dense": 4, "bare": 2}, forms="tensor_train")
    assert {row.path: row.ranks for row in report.layers} == {"train": (4, 4, 4), "dense": (4, 4), "bare": (2, 2)}
    assert report.macs[1] == count(trains).total.macs
    assert report.params[1] == count(trains).total.params
    smaller, _ = kp.factorize(trains, ranks={"core": (3, 4), "matrix": 2})
    assert {type(layer).__module__.split(".")[0] for layer in smaller.layers} == {"keras"}
    data = normal(4, 8, 8, 6)
    before = [np.array(w) for w in smaller.trainable_weights]
    smaller.fit(data, normal(4, 20), verbose=0)
    assert all(np.abs(np.array(w) - b).max() > 0 for w, b in zip(smaller.trainable_weights, before, strict=True))
    smaller.save(tmp_path / "smaller.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "smaller.keras")(data), smaller(data))
    tx.export(smaller, tmp_path / "smaller.tflite", data=data)
    _, left = kp.factorize(keras.Sequential([keras.Input((5, 24)), kl.Dense(24)]), ranks=1, forms="tensor_train")
    assert "is for vectors whose sizes are no primes" in left.skipped[0].reason


def test_on_data_errors_are_those_of_what_layers_give():
    inputs = keras.Input((8, 8, 16))
    x = kl.Conv2D(16, 3, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, kl.Dense(16, name="dense")(kl.GlobalAveragePooling2D()(x)))
    data = normal(16, 8, 8, 16) @ (normal(16, 16, seed=3) * 0.6 ** np.arange(16))
    for forms in ("channel", "svd", "tucker2", "spatial"):
        _, report = kp.factorize(model, error=0.6, forms=forms, data=data)
        assert all(row.error <= 0.6 for row in report.layers)
        assert report.layers, forms
    # Inputs have directions that hardly occur, so fewer ranks do for them than for the weights.
    plain, fitted = (kp.factorize(model, error=0.3, forms=("svd", "channel"), data=d)[1].macs[1] for d in (None, data))
    assert fitted < plain
    first = kp.factorize(model, error=0.3, forms="channel", data=data)
    convolution = kl.Conv2D(16, 3, padding="same", use_bias=False)
    convolution.build((None, 8, 8, 16))
    convolution.kernel.assign(model.get_layer("conv").kernel)
    wanted = np.array(convolution(data))
    found = np.array(keras.Model(first[0].inputs, first[0].get_layer("conv").output)(data))
    gone = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)  # its bias is 0
    assert gone == pytest.approx(first[1].layers[0].error, rel=0.01)


def test_latency_is_met_as_measured_and_slower_layers_are_left():
    model = keras.Sequential([keras.Input((64,)), kl.Dense(64, name="a"), kl.Dense(64, name="b")])
    measured = []

    def by_multiplications(model):
        measured.append(count(model).total.macs)
        return 1e-6 + 1e-9 * measured[-1]

    _, report = kp.factorize(model, latency=0.6, measure=by_multiplications)
    before, after = report.latency
    assert after <= 0.6 * before
    assert after > 0.5 * before
    assert all(row.speed > 1.0 for row in report.layers)
    assert measured[0] == 2 * 64 * 64

    def calls_cost(model):
        return 1e-6 * len(model.layers)

    same, report = kp.factorize(model, energy=0.5, measure=calls_cost)
    assert report.layers == ()
    assert [layer.name for layer in same.layers] == ["a", "b"]
    assert "times as fast, so no faster" in report.skipped[0].reason
    with pytest.raises(ValueError, match=r"latency=0\.5 cannot be met"):
        kp.factorize(model, latency=0.5, measure=lambda model: 1.0)
