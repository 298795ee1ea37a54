"""kp.prune: at once, in place, on from what is pruned already."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.masks.bound import mask_of

X = np.random.default_rng(0).standard_normal((64, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 3))).astype("float32")


def make_model(compiled=True):
    first, last = layers.Dense(16, activation="relu", name="first"), layers.Dense(3, name="last")
    model = keras.Sequential([keras.Input((8,)), first, last])
    if compiled:
        model.compile("adam", "mse")
    return model


def zeros(model):
    return [int((w == 0).sum()) for w in model.get_weights()[::2]]


def test_the_smallest_of_the_whole_model_go():
    model = make_model(compiled=False)
    before = np.concatenate([w.ravel() for w in model.get_weights()[::2]])
    assert kp.prune(model, 0.5) is model
    after = np.concatenate([w.ravel() for w in model.get_weights()[::2]])
    np.testing.assert_array_equal(after == 0, np.abs(before) <= np.sort(np.abs(before))[87])
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


def test_masks_hold_in_training_and_pruning_goes_on_from_them():
    model = kp.prune(make_model(), 0.5, allocation="uniform")
    masks = [np.array(mask_of(layer.kernel)) for layer in model.layers]
    model.fit(X, Y, epochs=2, verbose=0)
    assert zeros(model) == [64, 24]
    kp.prune(model, 0.75, allocation="uniform")
    assert zeros(model) == [96, 36]
    for old, layer in zip(masks, model.layers, strict=True):
        assert (mask_of(layer.kernel) <= old).all()
    kp.prune(model, 0.25)
    assert zeros(model) == [96, 36], "nothing comes back"
    ramp = kp.schedules.Linear(0.75, 0.9, begin_step=4, end_step=8, frequency=2)
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[kp.Pruning(ramp)])
    assert sum(zeros(model)) == round(0.9 * 176)


def one_layer(layer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32,)), layer or layers.Dense(20, use_bias=False)])
    model.compile("sgd", "mse")
    return model


def masked(layer):
    """A kernel's mask, of a plain layer or of a wrapper."""
    pairs = getattr(layer, "mask_pairs", None)
    return keras.ops.convert_to_numpy(pairs[0][1].value) if pairs else np.array(mask_of(layer.kernel))


BLOCK = kp.patterns.Block(4, 1)
# Of a kernel [32, 20] under 0.4: 8 outputs; 12.8 inputs; 64 blocks of 4; 128 of 160 groups of 4 with two zeros or more.
UNITS_OFF = {
    "filter": ({"pattern": "filter"}, 8, lambda mask: ~mask.any(axis=0)),
    "channel": ({"pattern": "channel"}, 13, lambda mask: ~mask.any(axis=1)),
    "block": ({"pattern": BLOCK}, 64, lambda mask: ~mask.reshape(8, 4, 20).any(axis=1)),
    "2:4": ({"pattern": kp.patterns.NofM(2, 4)}, 128, lambda mask: mask.reshape(8, 4, 20).sum(axis=1) <= 2),
    "by path": ({"pattern": {".*kernel": BLOCK}}, 64, lambda mask: ~mask.reshape(8, 4, 20).any(axis=1)),
    "target": ({"target": "x86", "scope": kp.Scope(include="*")}, 64, lambda mask: ~mask.reshape(8, 4, 20).any(axis=1)),
}
LAYERS = {
    "plain": lambda: layers.Dense(20, use_bias=False),
    "wrapper": lambda: kp.PrunableDense(20, use_bias=False),
    "straight through": lambda: kp.Prunable(layers.Dense(20, use_bias=False), straight_through=True),
}


@pytest.mark.filterwarnings("ignore:.*the kernel that skips blocks is not faster")
@pytest.mark.parametrize("kind", UNITS_OFF)
@pytest.mark.parametrize("layer", LAYERS)
def test_units_are_counted_whole_over_earlier_single_zeros(layer, kind):
    options, count, off = UNITS_OFF[kind]
    model = one_layer(LAYERS[layer]())
    kp.prune(model, 0.25)
    earlier = masked(model.layers[0])
    kp.prune(model, 0.4, **options)
    mask = masked(model.layers[0])
    assert off(mask).sum() == count
    assert not (mask & ~earlier).any()
    if layer != "plain" and kind != "filter":
        return
    # And in a later training, at a target below the share of single zeros.
    model = one_layer(LAYERS[layer]())
    kp.prune(model, 0.5 if kind != "2:4" else 0.25)
    schedule = kp.schedules.ConstantSparsity(0.4, frequency=1)
    model.fit(np.ones((6, 32)), np.ones((6, 20)), batch_size=2, verbose=0, callbacks=[kp.Pruning(schedule, **options)])
    assert off(masked(model.layers[0])).sum() == count


def test_channels_of_depthwise_and_grouped_convolutions_go_as_asked():
    convolutions = [layers.DepthwiseConv2D(3), layers.Conv2D(12, 3, groups=2), layers.Conv2D(4, 1)]
    model = keras.Sequential([keras.Input((8, 8, 8)), *convolutions])
    kp.prune(model, 0.5, pattern="channel", allocation="uniform")
    depthwise, grouped, pointwise = (np.asarray(layer.kernel) == 0 for layer in convolutions)
    assert depthwise.all(axis=(0, 1, 3)).sum() == 4
    # Inputs 0 to 3 are read by the first six filters, 4 to 7 by the others.
    assert sum(int(part.all(axis=(0, 1, 3)).sum()) for part in np.split(grouped, 2, axis=3)) == 4
    assert pointwise.all(axis=(0, 1, 3)).sum() == 6
    assert [mask.mean() for mask in (depthwise, grouped, pointwise)] == [0.5, 0.5, 0.5]


def test_a_tensor_that_is_one_unit_is_named_and_left_out():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(10, name="hidden"), layers.Dense(1, name="head")])
    with pytest.warns(UserWarning, match=r"1 of 2 tensors stay.*head/kernel: .* \(10, 1\) is a single unit of Filter"):
        kp.prune(model, 0.5, pattern="filter", allocation="uniform")
    assert (np.asarray(model.layers[0].kernel) == 0).all(axis=0).sum() == 5
    assert (np.asarray(model.layers[1].kernel) != 0).all()
    model.compile("sgd", "mse")
    pruning = kp.Pruning(kp.schedules.OneShot(0.6), pattern="filter")
    with pytest.warns(UserWarning, match="head/kernel"):
        pruning.attach(model)
    assert any("head/kernel" in one.path and "single unit" in one.reason for one in pruning.skipped)
    with pytest.raises(ValueError, match=r"prune: nothing can be pruned.*head/kernel.*smaller units"):
        kp.prune(model, 0.5, pattern="filter", scope=kp.Scope(include=".*head/kernel"))


def test_single_zeros_over_units_are_counted_singly():
    model = one_layer()
    kp.prune(model, 0.4, pattern="filter")
    kp.prune(model, 0.5)
    assert (~masked(model.layers[0])).sum() == 320


@pytest.mark.parametrize(
    "criterion",
    [
        "random",
        kp.criteria.Taylor(data=(X, Y)),
        kp.criteria.Gradient(data=(X, Y)),
        kp.criteria.Fisher(data=(X, Y)),
        kp.criteria.SNIP(data=(X, Y)),
        kp.criteria.GraSP(data=(X, Y)),
        kp.criteria.Activation(data=X),
        "synflow",
    ],
    ids=lambda c: c if isinstance(c, str) else type(c).__name__,
)
def test_criteria_at_initialisation(criterion):
    assert sum(zeros(kp.prune(make_model(), 0.8, criterion))) == round(0.8 * 176)


def test_synflow_does_not_collapse_where_one_round_would():
    """Tanaka et al. 2020: at extreme sparsity every layer keeps a path."""
    model = keras.Sequential([keras.Input((16,)), *[layers.Dense(16) for _ in range(4)], layers.Dense(2)])
    kp.prune(model, 0.97, "synflow", kp.patterns.Unstructured(), kp.allocation.Global(floor=0.0))
    for layer in model.layers:
        assert (layer.kernel.numpy() != 0).any()
    ones = np.ones((1, 16), dtype=np.float32)
    for layer in model.layers:
        ones = ones @ np.abs(layer.kernel.numpy())
    assert ones.sum() > 0, "a path leads from the input to the output"


def test_sensitivity_gives_more_where_the_loss_does_not_mind():
    model = make_model()
    # The second layer reads the first eight units only, so the others may all go.
    last = model.layers[1].kernel.numpy()
    last[8:] = 0.0
    model.layers[1].kernel.assign(last)
    kp.prune(model, 0.4, allocation=kp.allocation.Sensitivity(data=(X, Y)))
    first, second = zeros(model)
    assert first + second == round(0.4 * 176)
    assert second / 48 >= 24 / 48


def test_layers_by_name():
    model = kp.prune(make_model(), 0.25, allocation={r"first/.*|.*/first/.*": 0.75})
    assert zeros(model) == [96, 12]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: kp.prune(m, 50), ValueError, r"prune: sparsity must be a fraction in \[0, 1\).*Received: 50.*0\.5"),
        (lambda m: kp.prune(m, 0.5, "magnitud"), ValueError, r"Did you mean 'magnitude'"),
        (lambda m: kp.prune(m, 0.5, "taylor"), ValueError, r"Taylor takes \['abs_gradient'\] from data"),
        (
            lambda m: kp.prune(m, 0.5, pattern=kp.patterns.Block(5, 1)),
            ValueError,
            r"first/kernel.*nearest.*Block\(4, 1\)",
        ),
        (
            lambda m: kp.prune(m, 0.5, pattern=kp.patterns.NofM(2, 6)),
            ValueError,
            r"first/kernel.*nearest m that does is 4",
        ),
        (
            lambda m: kp.prune(m, 0.5, allocation={"frist": 0.5}),
            ValueError,
            r"no prunable tensor matches \['frist'\]",
        ),
        (lambda m: kp.prune(m, 0.5, allocation={".*": 0.999}), ValueError, r"would empty"),
        (
            lambda m: kp.prune(m, 0.5, scope=kp.Scope(include="frist")),
            ValueError,
            r"include: no variable.*frist.*mean 'first'",
        ),
        (lambda m: kp.prune(m, 0.999), ValueError, r"at most a sparsity of 0\.98.*target=0\.999"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(make_model())


def test_weights_that_are_not_numbers_are_refused():
    model = make_model()
    model.layers[0].kernel.assign(np.full((8, 16), np.nan))
    with pytest.raises(ValueError, match=r"first/kernel' holds NaN or infinite weights"):
        kp.prune(model, 0.5)
