"""`prune(..., reconstruct=data)` and `recalibrate`, on whole models, against what they promise."""

import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from keras_prune.masks.bound import mask_of
from keras_prune.reconstruction import layer_by_layer, side_by_side
from keras_prune.reconstruction.store import Store


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(size=(96, 8, 8, 3)).astype(np.float32)


def images(*layers):
    return keras.Sequential([keras.Input((8, 8, 3)), *layers, kl.GlobalAveragePooling2D(), kl.Dense(5)])


class Branching(keras.Model):
    """Its graph cannot be traced: what it calls depends on the values."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = kl.Conv2D(6, 3), kl.Conv2D(6, 3), kl.Dense(5)

    def call(self, x):
        x = self.two(keras.ops.relu(self.one(x)))
        return self.head(keras.ops.mean(x, (1, 2))) if float(keras.ops.sum(x)) > -1e9 else x


def shared():
    layer = kl.Conv2D(3, 3, padding="same")
    return images(layer, kl.ReLU(), layer)


def attention():
    inputs = keras.Input((8, 8, 3))
    x = kl.Dense(8)(kl.Reshape((64, 3))(inputs))
    x = kl.Add()([x, kl.MultiHeadAttention(2, 4)(x, x)])
    return keras.Model(inputs, kl.Dense(5)(kl.GlobalAveragePooling1D()(x)))


MODELS = {
    "convolutions": lambda: images(kl.Conv2D(8, 3, activation="relu"), kl.Conv2D(8, 3, groups=2), kl.ReLU()),
    "depthwise": lambda: images(kl.Conv2D(8, 1), kl.DepthwiseConv2D(3), kl.BatchNormalization(), kl.Conv2D(8, 1)),
    "nested": lambda: images(keras.Sequential([keras.Input((8, 8, 3)), kl.Conv2D(8, 3), kl.ReLU(), kl.Conv2D(6, 3)])),
    "shared": shared,
    "attention": attention,
    "wrapped": lambda: images(kp.Prunable(kl.Conv2D(8, 3)), kl.ReLU(), kp.PrunableConv2D(8, 3)),
    "not seen": Branching,
}


def errors(model, dense, data):
    return float(np.linalg.norm(np.asarray(model(data)) - dense) / np.linalg.norm(dense))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_nearer_to_the_dense_one_and_its_zeros_stay(name, data):
    found = []
    for given in (None, data):
        keras.utils.set_random_seed(3)
        model = MODELS[name]()
        dense = np.asarray(model(data))
        kp.prune(model, 0.6, allocation="uniform", reconstruct=given)
        found.append((errors(model, dense, data), [mask_of(t.variable) for t in kp.Scope().survey(model).targets]))
        for target, mask in zip(kp.Scope().survey(model).targets, found[-1][1], strict=True):
            assert not np.asarray(target.variable)[~mask].any()
    (before, plain), (after, again) = found
    assert after < 0.75 * before
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))


def test_what_the_weights_that_stay_can_do_they_do():
    x = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    x = np.concatenate([x, 2 * x], axis=1)  # three inputs, and each of them doubled
    model = keras.Sequential([keras.Input((6,)), kl.Dense(4, name="a"), kl.ReLU(), kl.Dense(2, name="b")])
    model.layers[0].bias.assign([0.5, -0.5, 1.0, 0.0])
    kernel = np.asarray(model.layers[0].kernel).copy()
    kernel[:3] += np.sign(kernel[:3])  # so that the doubled inputs go first
    model.layers[0].kernel.assign(kernel)
    dense = model.predict(x, verbose=0)
    kp.prune(model, 0.5, allocation={"a": 0.5}, scope=kp.Scope(include="a"), reconstruct=x)
    assert not np.asarray(model.layers[0].kernel)[3:].any()
    np.testing.assert_allclose(model.predict(x, verbose=0), dense, atol=0.01 * np.abs(dense).max())


CHOICES = {
    "uniform": ({"allocation": "uniform"}, 0.6),
    "erk": ({"allocation": "erk"}, 0.6),
    "lamp": ({"allocation": "lamp"}, 0.6),
    "global": ({}, 0.6),
    "blocks": ({"pattern": kp.patterns.Block(1, 2), "allocation": "uniform"}, 0.6),
    "2:4": ({"pattern": kp.patterns.NofM(2, 4), "allocation": "uniform"}, 0.5),
    "filters": ({"pattern": "filter", "allocation": "uniform"}, 0.5),
    "channels": ({"pattern": "channel", "allocation": "uniform"}, 0.5),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_masks_chosen_while_solving_are_nearer_to_the_dense_model(choice, data):
    """Inputs that depend on each other: what one weight did another can do. The same shares, chosen by magnitude."""
    options, sparsity = CHOICES[choice]
    mixed = data @ np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    mixed += 0.2 * np.random.default_rng(2).normal(size=mixed.shape).astype(np.float32)
    found = []
    for criterion in ("magnitude", "second_order"):
        keras.utils.set_random_seed(4)
        middle = [kl.Conv2D(8, 3, activation="relu"), kl.Conv2D(8, 3, groups=2), kl.GlobalAveragePooling2D()]
        model = keras.Sequential([keras.Input((8, 8, 8)), *middle, kl.Dense(4)])
        dense = np.asarray(model(mixed))
        kp.prune(model, sparsity, criterion, reconstruct=mixed, **options)
        targets = kp.Scope().survey(model).targets
        masks = [mask_of(target.variable) for target in targets]
        assert not any(np.asarray(t.variable)[~mask].any() for t, mask in zip(targets, masks, strict=True))
        size = sum(mask.size for mask in masks)
        assert sum(mask.size - mask.sum() for mask in masks) == pytest.approx(sparsity * size, abs=0.03 * size)
        found.append(errors(model, dense, mixed))
    # Scores of different layers are in units of their own outputs; of a filter nothing stays that could make up for it.
    assert found[1] < (1.1 if choice in ("global", "filters") else 1.0) * found[0]


def test_masks_chosen_while_solving_need_inputs_and_kernels_that_multiply_them(data):
    model = MODELS["convolutions"]()
    before = model.get_weights()
    way = r"Write keras_prune\.prune\(model, sparsity, criteria\.SecondOrder\(\), reconstruct=x\)"
    with pytest.raises(ValueError, match=rf"prune: SecondOrder chooses masks while .* Received: none\. {way}"):
        kp.prune(model, 0.5, "second_order")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=way):
        model.fit(data, np.zeros((96, 5)), verbose=0, callbacks=[kp.Pruning(0.5, "second_order")])
    with pytest.raises(ValueError, match=r"must be 'auto', 0 or 1\. Received: verbose=2"):
        kp.prune(model, 0.5, reconstruct=data, verbose=2)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    model = keras.Sequential([keras.Input((8, 3)), kl.LSTM(3, name="lstm"), kl.Dense(2)])
    with pytest.raises(ValueError, match=r"linear in the kernel\. Received: lstm.*LSTMCell is not.*Leave these out"):
        kp.prune(model, 0.5, "second_order", reconstruct=data[:, 0])


def test_what_was_pruned_before_stays_off_and_a_bar_shows_each_tensor(data, capsys):
    model = MODELS["convolutions"]()
    kp.prune(model, 0.4, reconstruct=data)
    assert capsys.readouterr().err == ""
    targets = kp.Scope().survey(model).targets
    before = [mask_of(target.variable) for target in targets]
    kp.prune(model, 0.7, "second_order", "unstructured", "uniform", reconstruct=data, verbose=1)
    assert f"{2 * len(targets)}/{2 * len(targets)}" in capsys.readouterr().err
    for target, earlier in zip(targets, before, strict=True):
        mask = mask_of(target.variable)
        assert not (mask & ~earlier).any()
        assert mask.size - mask.sum() == pytest.approx(0.7 * mask.size, abs=0.51)


def test_recurrent_kernels_are_named_as_left():
    model = keras.Sequential([keras.Input((5, 4)), kl.LSTM(3), kl.Dense(2)])
    x = np.random.default_rng(0).normal(size=(16, 5, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"as they were: lstm\w*/lstm_cell/kernel: LSTMCell is not known to multiply"):
        kp.prune(model, 0.5, reconstruct=x)


def test_an_interruption_gives_the_model_back_as_it_was(data, monkeypatch):
    model = MODELS["convolutions"]()
    before = model.get_weights()
    solve, calls = layer_by_layer.solve, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return solve(*args, **kwargs)

    monkeypatch.setattr(layer_by_layer, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kp.prune(model, 0.5, reconstruct=data)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    assert all(mask_of(v) is None for v in model.weights)


def test_data_of_another_shape_is_refused_and_nothing_has_changed(data):
    model = MODELS["convolutions"]()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"Data must fit the inputs of .* Received: x of shape \(96, 8, 8\)"):
        kp.prune(model, 0.5, reconstruct=data[..., 0])
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_tensors_beyond_the_memory_lie_on_the_disk_and_give_the_same(data, monkeypatch):
    results = []
    for memory in (2**30, 0):
        monkeypatch.setattr(side_by_side, "Store", lambda memory=memory: Store(memory))
        keras.utils.set_random_seed(3)
        results.append(kp.prune(MODELS["nested"](), 0.5, reconstruct=data).get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_a_file_is_gone_once_nobody_holds_its_tensor():
    with Store(memory=16) as store:
        batches = [[(keras.ops.ones(4), keras.ops.zeros(4)), (keras.ops.ones(2),) * 2] for _ in range(3)]
        first, second = store.keep(batches)
        assert [float(keras.ops.sum(one)) for one in first.pair(2)] == [4.0, 0.0]
        assert second.pair(1)[0] is second.pair(1)[1]
        folder = Path(store._folder.name)
        assert len(list(folder.iterdir())) == 6 + 1  # two of eight bytes each fit in
        del first
        assert len(list(folder.iterdir())) == 1
    assert not folder.exists()


class Counted(kl.Dense):
    calls = 0

    def call(self, inputs, training=None):
        Counted.calls += 1
        return super().call(inputs, training)


def test_one_kernel_s_sums_are_in_memory_at_a_time_and_each_layer_runs_a_fixed_number_of_times():
    width, square = 320, 320 * 320 * 8
    x = np.random.default_rng(0).normal(size=(300, width)).astype(np.float32)
    peaks, calls = [], []
    for depth in (2, 10):
        inputs = keras.Input((width,))
        model = keras.Model(inputs, kl.Concatenate()([Counted(2)(inputs) for _ in range(depth)]))
        Counted.calls = 0
        tracemalloc.start()
        kp.prune(model, 0.5, "second_order", reconstruct=x)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        calls.append(Counted.calls / depth)
    assert peaks[0] > 2 * square
    assert peaks[1] - peaks[0] < 2 * square  # kept for eight more, they would be sixteen
    assert calls[0] == calls[1]


def test_recalibrated_statistics_are_the_means_over_the_batches(data):
    model = images(
        kl.Dropout(0.5), kl.BatchNormalization(name="one"), kl.BatchNormalization(name="two", trainable=False)
    )
    kp.recalibrate(model, data)
    batches = data.reshape(3, 32 * 64, 3)  # an array is cut into batches of 32
    one, two = model.get_layer("one"), model.get_layer("two")
    np.testing.assert_allclose(one.moving_mean, batches.mean(axis=1).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(one.moving_variance, batches.var(axis=1).mean(axis=0), rtol=1e-4)
    assert np.array_equal(two.moving_mean, np.zeros(3))
    assert one.momentum == 0.99


def test_recalibration_in_an_error_leaves_the_statistics(data):
    model = images(kl.BatchNormalization())

    def broken():
        yield data[:32]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        kp.recalibrate(model, broken())
    assert np.array_equal(model.layers[0].moving_mean, np.zeros(3))
