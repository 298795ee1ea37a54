"""Devices: which tensors they choose, in which pattern and how much, and what they say of the rest."""

import dataclasses
import functools
import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from keras_prune.allocation import Paying
from keras_prune.devices import DEVICES, Clusters, Device, Kernel, Measured, resolve_device
from keras_prune.devices.catalogue import X86
from keras_prune.devices.choosing import choose
from keras_prune.patterns import Block, ByPath, Unstructured
from keras_prune.strategy import Strategy


def mobile_net(stem_stride=2):
    """A stem, a depthwise separable block, squeeze-and-excitation, and a head written as a 1x1 convolution."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=stem_stride, padding="same", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(16, 1, name="mix")(x)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(6, 1, activation="relu", name="squeeze")(s)
    x = layers.Multiply()([x, layers.Conv2D(16, 1, activation="hard_sigmoid", name="excite")(s)])
    x = layers.Conv2D(12, 1, name="last")(x)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Flatten()(layers.Conv2D(8, 1, name="neck")(x))
    return keras.Model(inputs, layers.Softmax()(layers.Dense(10, name="scores")(x)))


def dense_net(*widths, inputs=64, answers=4):
    """Hidden matrices, and a head."""
    hidden = [layers.Dense(width, activation="relu", name=f"hidden_{i}") for i, width in enumerate(widths)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(answers, name="scores")])


def chosen(model, target, scope=None):
    scope = scope or kp.Scope()
    choice = choose(resolve_device(target), model, scope.survey(model), include=scope.include or ())
    patterns = {tensor.path.split("/")[0]: choice.pattern.at(tensor.path) for tensor in choice.survey.targets}
    return patterns, {skipped.path: skipped.reason for skipped in choice.survey.skipped}


def zeros(model, name):
    kernel = model.get_layer(name).kernel.numpy()
    return np.count_nonzero(kernel == 0) / kernel.size


@pytest.mark.parametrize("target", ["android", "ios", "arm64", "web"])
def test_devices_with_sparse_convolutions_take_pointwise_kernels_and_matrices(target):
    patterns, reasons = chosen(mobile_net(), target)
    assert patterns == {
        "mix": Unstructured(),
        "squeeze": Block(4, 1),
        # Its 6 inputs do not divide, and need not: within the network any zero is skipped.
        "excite": Unstructured(),
        "last": Unstructured(),
        "neck": Block(4, 1),
    }
    assert "a kernel of shape (3, 3, 3, 8) of Conv2D" in reasons["stem/kernel"]
    assert "a kernel of shape (3, 3, 8, 1) of DepthwiseConv2D" in reasons["depthwise/kernel"]
    assert reasons["scores/kernel"].startswith("a head")
    assert reasons["stem/bias"].startswith("biases")


def test_a_pc_takes_matrices_only():
    patterns, reasons = chosen(mobile_net(), "x86")
    assert patterns == {"squeeze": Block(4, 1), "neck": Block(4, 1)}
    assert reasons["mix/kernel"] == "target='x86' has no kernel that skips zeros of convolutions"


def test_sparse_inference_needs_its_beginning():
    _, reasons = chosen(mobile_net(stem_stride=1), "web")
    assert "does not begin with a 3x3 convolution of 3 channels at stride 2" in reasons["mix/kernel"]


def test_attention_and_recurrent_kernels_are_matrices_and_embeddings_are_not():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="table")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(6, name="memory")(x)))
    patterns, reasons = chosen(model, "android")
    assert set(patterns) == {"attention", "memory"}
    assert set(patterns.values()) == {Block(4, 1)}
    assert "rows of an embedding are looked up" in reasons["table/embeddings"]
    # 6 inputs do not divide by 4.
    assert "6 inputs do not divide" in reasons["memory/lstm_cell/recurrent_kernel"]
    named, _ = chosen(model, "android", kp.Scope(include=("table",)))
    assert named == {"table": Unstructured()}


# -- heads ------------------------------------------------------------------------------------------------------------


def two_heads(x):
    shared = layers.Dense(8, name="shared")(x)
    return {"a": layers.Dense(3, name="one")(shared), "b": layers.Softmax()(layers.Dense(4, name="two")(shared))}


def dropped_and_reshaped(x):
    x = layers.Reshape((2, 2))(layers.Dropout(0.1)(layers.Dense(4, name="one")(layers.Dense(8, name="shared")(x))))
    return layers.Activation("softmax")(x)


def in_a_model(x):
    inner = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="shared"), layers.Dense(4, name="one")])
    return keras.ops.softmax(inner(x))


def summed(x):
    shared = layers.Dense(8, name="shared")(x)
    return layers.Add()([layers.Dense(1, name="one")(shared), layers.Dense(1, name="two")(x)])


def normalised(x):
    return layers.LayerNormalization()(layers.Dense(8, name="shared")(layers.Dense(4, name="early")(x)))


def one_convolution(x):
    x = layers.Conv2D(8, 1, name="shared")(layers.Reshape((1, 1, 16))(x))
    return layers.Flatten()(layers.Conv2D(4, 1, name="one")(x))


@pytest.mark.parametrize(
    ("tail", "heads"),
    [
        (two_heads, {"one", "two"}),
        (dropped_and_reshaped, {"one"}),
        (in_a_model, {"one"}),
        (summed, {"one", "two"}),
        (one_convolution, {"one"}),
        # Features are no answers.
        (normalised, set()),
    ],
)
def test_what_gives_the_answers_is_left_alone_unless_it_is_named(tail, heads):
    inputs = keras.Input((16,))
    model = keras.Model(inputs, tail(inputs))
    _, reasons = chosen(model, "x86")
    found = {path.split("/")[-2] for path, reason in reasons.items() if reason.startswith("a head")}
    assert found == heads
    patterns, _ = chosen(model, "x86", kp.Scope(include=(".*",)))
    _, reasons = chosen(model, "x86", kp.Scope(include=(".*kernel",)))
    assert not any(reason.startswith("a head") for reason in reasons.values())
    assert patterns


@pytest.mark.parametrize("stated", [{"allocation": {"scores": 0.5}}, {"pattern": {"scores": Unstructured()}}])
def test_a_head_is_named_by_a_share_or_a_pattern_of_its_own(stated):
    model = dense_net(32, 32)
    kp.prune(model, 0.75, target="web", **stated)
    assert zeros(model, "scores") == 0.5 if "allocation" in stated else zeros(model, "scores") > 0.6
    assert zeros(model, "hidden_1") > 0.6


def test_the_report_says_what_was_left_alone():
    model = dense_net(32, 32)
    kp.prune(model, 0.8, target="web")
    found = kp.report(model)
    assert [skipped.path for skipped in found.left_alone] == ["scores/kernel"]
    assert "Left alone for the target: scores/kernel: a head, whose output is the model's" in " ".join(
        str(found).split()
    )
    assert found.to_dict()["left_alone"][0]["path"] == "scores/kernel"
    kp.prune(model, 0.85)
    assert kp.report(model).left_alone == ()


def test_a_subclassed_model_whose_graph_cannot_be_seen_keeps_its_last_kernel():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = layers.Dense(16, name="first"), layers.Dense(4, name="last")

        def call(self, x):
            return self.last(self.first(x)) if float(keras.ops.convert_to_numpy(x).sum()) else x

    model = Own()
    model(np.ones((1, 8)))
    kp.prune(model, 0.9, target="x86")
    assert (model.last.kernel.numpy() != 0).all()
    assert np.count_nonzero(model.first.kernel.numpy() == 0) == round(0.9 * 32) * 4


# -- how much each gives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["android", "ios", "arm64", "web"])
def test_each_kernel_of_a_cluster_gets_more_than_two_thirds_and_heads_nothing(target):
    # All but those of squeeze-and-excitation, which takes no time.
    model = mobile_net()
    # Under one bar for all, `last` would give nearly everything.
    model.get_layer("last").kernel.assign(model.get_layer("last").kernel * 1e-3)
    kp.prune(model, 0.8, target=target)
    for name in ("mix", "last"):
        assert zeros(model, name) > 2 / 3
    for name in ("stem", "depthwise", "scores"):
        assert zeros(model, name) == 0
    kernels = [model.get_layer(name).kernel.numpy() for name in ("mix", "squeeze", "excite", "last", "neck")]
    total = sum(kernel.size for kernel in kernels)
    assert abs(sum(np.count_nonzero(kernel == 0) for kernel in kernels) - 0.8 * total) <= 2


def test_the_same_through_a_ramp_in_which_what_each_kernel_needs_rises_in_step():
    model = mobile_net()
    model.compile("sgd", "mse")
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append([zeros(model, name) for name in ("mix", "last", "scores")])

    ramp = kp.schedules.Linear(0.0, 0.8, begin_step=0, end_step=4, frequency=1)
    pruning = kp.Pruning(ramp, target="android")
    model.fit(np.ones((20, 16, 16, 3)), np.ones((20, 10)), batch_size=4, verbose=0, callbacks=[pruning, Watch()])
    for step, (mix, last, scores) in enumerate(seen[:4], start=1):
        assert scores == 0
        # 128 and 192 weights; the share that each kernel needs at the end rises in step.
        assert mix >= int(int(128 * 2 / 3 + 1) * step / 4) / 128
        assert last >= int(int(192 * 2 / 3 + 1) * step / 4) / 192
    assert min(zeros(model, name) for name in ("mix", "last")) > 2 / 3
    assert any(skipped.path == "scores/kernel" and "a head" in skipped.reason for skipped in pruning.skipped)


def test_matrices_get_the_share_from_which_their_kernel_pays_and_the_rest_the_rest():
    # On ARM a kernel of blocks is faster from 88 % at one row: with 80 % in all, two of three matrices can be.
    model = dense_net(64, 64, 64)
    kp.prune(model, 0.8, target="android")
    shares = [zeros(model, f"hidden_{i}") for i in range(3)]
    needed = Paying(choose(DEVICES["android"], model, kp.Scope().survey(model)).pays_from).pays_from["hidden_0/kernel"]
    assert 0.85 < needed < 0.9
    assert sum(share > needed for share in shares) >= 2
    assert sum(shares) == pytest.approx(3 * 0.8, abs=0.01)
    # At 95 % all three can.
    again = dense_net(64, 64, 64)
    kp.prune(again, 0.95, target="android")
    assert all(zeros(again, f"hidden_{i}") > needed for i in range(3))


def test_where_the_multiplications_are_the_kernel_is_switched_on_first():
    # The same matrix on 40 rows and on one: only one of the two can be brought to where it pays.
    tokens, vector = keras.Input((40, 64)), keras.Input((64,))
    many = layers.Flatten()(layers.Dense(64, name="many")(tokens))
    one = layers.Dense(64, name="one")(vector)
    model = keras.Model([tokens, vector], layers.Dense(2)(layers.Concatenate()([many, one])))
    kp.prune(model, 0.5, target="x86")
    assert zeros(model, "many") > 0.8
    assert zeros(model, "one") < 0.2


def test_a_device_without_measurements_takes_the_shares_that_keep_up_anywhere():
    own = Device("board", (Kernel("1x4 blocks"),))
    model = dense_net(64)
    choice = choose(own, model, kp.Scope().survey(model))
    assert dict(choice.pays_from) == {"hidden_0/kernel": 0.79}
    kp.prune(model, 0.8, target=own)
    assert zeros(model, "hidden_0") == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize("allocation", ["global", "lamp"])
def test_an_allocation_that_is_stated_holds(allocation):
    ours, theirs = mobile_net(), mobile_net()
    theirs.set_weights(ours.get_weights())
    kp.prune(ours, 0.9, target="x86", allocation=allocation)
    kp.prune(theirs, 0.9, allocation=allocation, pattern=Block(4, 1), scope=kp.Scope(include=("squeeze", "neck")))
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pattern_that_is_stated_holds_for_all_or_for_the_tensors_that_it_names():
    model = dense_net(32, 32)
    kp.prune(model, 0.75, target="web", pattern="unstructured")
    off = (model.get_layer("hidden_1").kernel.numpy() == 0).reshape(8, 4, 32).sum(axis=1)
    assert set(np.unique(off)) - {0, 4}
    model = dense_net(32, 32)
    kp.prune(model, 0.75, target="web", pattern={"hidden_0": Block(8, 1)})
    assert set(np.unique((model.get_layer("hidden_0").kernel.numpy() == 0).reshape(8, 8, 32).sum(axis=1))) == {0, 8}
    assert set(np.unique((model.get_layer("hidden_1").kernel.numpy() == 0).reshape(8, 4, 32).sum(axis=1))) == {0, 4}


def test_growth_keeps_to_the_shares_of_a_device():
    model = mobile_net()
    model.compile("sgd", "mse")
    steady = kp.schedules.ConstantSparsity(0.8, begin_step=1, end_step=4, frequency=1)
    x, y = np.random.default_rng(0).normal(size=(20, 16, 16, 3)), np.ones((20, 10))
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[kp.DynamicPruning(steady, growth="rigl", target="web")])
    assert min(zeros(model, name) for name in ("mix", "last")) > 2 / 3
    assert zeros(model, "scores") == 0


# -- zeros for nothing ------------------------------------------------------------------------------------------------


def cluster(tail, *, inner=lambda x: x, mix=layers.Conv2D, size=(16, 16)):
    image = keras.Input((*size, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(image)
    x = inner(mix(16, 1, name="mix")(x))
    return keras.Model(image, layers.Dense(4, name="scores")(tail(layers.Conv2D(16, 1, name="more")(x))))


def mean(x):
    return layers.GlobalAveragePooling2D()(x)


def recipe(*arguments, **options):
    """A function that makes a cluster, for a test that runs: to collect tests builds no models."""
    return functools.partial(cluster, *arguments, **options)


ON = {
    "a global mean": recipe(mean),
    "an average pooling of the whole map": recipe(lambda x: layers.Flatten()(layers.AveragePooling2D(8)(x))),
    "a mean over the places": recipe(lambda x: layers.GlobalAveragePooling1D()(layers.Reshape((64, 16))(x))),
    "a mean, then a Reshape": recipe(lambda x: layers.Reshape((16,))(layers.GlobalAveragePooling2D(keepdims=True)(x))),
    "batch normalisation and ReLU6": recipe(mean, inner=lambda x: layers.ReLU(6.0)(layers.BatchNormalization()(x))),
    "a residual": recipe(mean, inner=lambda x: layers.Add()([x, layers.Conv2D(16, 1)(x)])),
    "bilinear": recipe(mean, inner=lambda x: layers.UpSampling2D(interpolation="bilinear")(x)),
    "padding that is taken in": recipe(
        mean, inner=lambda x: layers.DepthwiseConv2D(3, 2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
    ),
}
ON["a sum"] = recipe(lambda x: keras.ops.sum(x, axis=(1, 2)))
ON["a Dense on the map"] = recipe(mean, inner=lambda x: layers.Dense(16)(x))
OFF = {
    "Flatten": (recipe(lambda x: layers.Flatten(name="odd")(x)), "Flatten"),
    "a maximum": (recipe(lambda x: layers.GlobalMaxPooling2D(name="odd")(x)), "GlobalMaxPooling2D"),
    "pooling of a part": (
        recipe(lambda x: layers.Flatten()(layers.AveragePooling2D(4, name="odd")(x))),
        "AveragePooling2D",
    ),
    "max pooling": (recipe(mean, inner=lambda x: layers.MaxPooling2D(name="odd")(x)), "MaxPooling2D"),
    "3x3": (recipe(mean, inner=lambda x: layers.Conv2D(16, 3, name="odd")(x)), "3x3 convolution of 16 channels"),
    "stride": (recipe(mean, inner=lambda x: layers.Conv2D(16, 1, 2, name="odd")(x)), "stride 2"),
    "7x7 depthwise": (
        recipe(mean, inner=lambda x: layers.DepthwiseConv2D(7, padding="same", name="odd")(x)),
        "only 3x3 and 5x5",
    ),
    "concatenation": (
        recipe(mean, inner=lambda x: layers.Concatenate(name="odd")([x, layers.Conv2D(16, 1)(x)])),
        "Concatenate",
    ),
    "normalisation": (
        recipe(mean, inner=lambda x: layers.BatchNormalization(name="odd")(layers.ReLU()(x))),
        "no convolution directly before it",
    ),
    "no padding": (recipe(mean, inner=lambda x: layers.DepthwiseConv2D(3, name="odd")(x)), "padding 'valid'"),
    "selu": (recipe(mean, inner=lambda x: layers.Activation("selu", name="odd")(x)), "selu"),
    "selu inside": (recipe(mean, inner=lambda x: layers.Conv2D(16, 1, activation="selu", name="odd")(x)), "selu"),
    "ReLU3": (recipe(mean, inner=lambda x: layers.ReLU(3.0, name="odd")(x)), "max_value=3"),
    "nearest": (recipe(mean, inner=lambda x: layers.UpSampling2D(name="odd")(x)), "'nearest'"),
}


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_no_warning_where_sparse_inference_will_switch_on(make):
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kp.prune(model, 0.8, target="android")
    assert min(zeros(model, name) for name in ("mix", "more")) > 2 / 3


@pytest.mark.parametrize(("make", "reason"), OFF.values(), ids=OFF)
def test_wasted_zeros_are_warned_of_with_each_layer_and_its_reason(make, reason):
    with pytest.warns(
        UserWarning, match=r"prune: target='web': zeros in .* nothing faster: .*keeps it off: odd \("
    ) as seen:
        kp.prune(make(), 0.8, target="web")
    assert len(seen) == 1
    assert reason in str(seen[0].message)


def test_the_warning_comes_before_training():
    model = OFF["Flatten"][0]()
    model.compile("sgd", "mse")

    class First(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise AssertionError("training has begun")

    pruning = kp.Pruning(kp.schedules.OneShot(0.8, step=1), target="ios")
    words = "Pruning: target='ios': zeros in mix/kernel, more/kernel make the file smaller, but nothing faster"
    with pytest.warns(UserWarning, match=words), pytest.raises(AssertionError, match="training has begun"):
        model.fit(np.ones((4, 16, 16, 3)), np.ones((4, 4)), verbose=0, callbacks=[pruning, First()])


def test_frozen_and_excluded_kernels_that_hold_a_cluster_below_two_thirds_are_named():
    model = cluster(mean)
    model.get_layer("mix").trainable = False
    with pytest.warns(
        UserWarning, match=r"about 60% of the weights.*Left dense: mix/kernel \(frozen \(trainable=Fal"
    ) as seen:
        kp.prune(model, 0.9, target="android")
    assert len(seen) == 1
    model = cluster(mean)
    with pytest.warns(UserWarning, match=r"Left dense: mix/kernel \(excluded from the scope\)"):
        kp.prune(model, 0.9, target="android", scope=kp.Scope(exclude=("mix",)))
    # A frozen kernel that has its zeros already holds nothing up.
    model = cluster(mean)
    kernel = model.get_layer("mix").kernel
    kernel.assign(np.where(np.arange(128).reshape(kernel.shape) % 4, 0.0, 1.0))
    model.get_layer("mix").trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kp.prune(model, 0.9, target="android")


def test_too_low_a_sparsity_is_warned_of():
    with pytest.warns(UserWarning, match=r"about 60% of the weights of the 2 1x1 .*above 67%.*Raise the sparsity"):
        kp.prune(cluster(mean), 0.6, target="android")
    with pytest.warns(
        UserWarning, match=r"at a sparsity of 0.5, the kernel that skips blocks .* for any matrix: hidden_0"
    ):
        kp.prune(dense_net(64), 0.5, target="android")


def test_a_subclassed_model_is_not_rewritten_so_its_paddings_have_to_be_even():
    class Own(keras.Model):
        def __init__(self, padding):
            super().__init__()
            self.body = [layers.Conv2D(8, 3, 2, padding, name="stem"), layers.Conv2D(16, 1), layers.Conv2D(16, 1)]
            self.head = layers.Dense(4)

        def call(self, x):
            x = x if self.body[0].padding == "same" else keras.ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            for layer in self.body:
                x = layer(x)
            return self.head(keras.ops.mean(x, axis=(1, 2)))

    model = Own("same")
    model(np.ones((1, 16, 16, 3), "float32"))
    with pytest.warns(UserWarning, match=r"keeps it off: stem \(padding 'same' at stride 2.*a subclassed model"):
        kp.prune(model, 0.8, target="android")


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_device_that_skips_nothing_says_so():
    device = kp.devices.Device("plain", densify=False)
    with pytest.raises(ValueError, match=r"target='plain': its runtime has no kernel that skips.*structured\.prune"):
        kp.prune(mobile_net(), 0.5, target=device)


def test_for_a_microcontroller_single_zeros_go_where_they_save_flash():
    stack = [keras.Input((16, 16, 3)), layers.Conv2D(16, 3, name="first"), layers.DepthwiseConv2D(3, name="small")]
    stack += [layers.Conv2D(64, 3, name="large"), layers.GlobalAveragePooling2D(), layers.Dense(10, name="scores")]
    model = kp.prune(keras.Sequential(stack), 0.9, target="mcu")
    zeros = {layer.name: (layer.kernel.numpy() == 0).mean() for layer in model.layers if hasattr(layer, "kernel")}
    assert zeros["small"] == zeros["scores"] == 0
    # A bit for each weight and 138 bytes for DECODE: below that share, a record is no smaller.
    assert zeros["first"] > 1 / 8 + 138 / 432
    assert zeros["large"] > 0.89
    reasons = {each.path.split("/")[0]: each.reason for each in kp.report(model).left_alone}
    assert reasons["small"].startswith("144 weights: what decodes them for target='mcu' takes 138 bytes")
    assert "a head" in reasons["scores"]
    assert "less than a tenth" in reasons["scores"]
    # Of an autoencoder, the last layer holds as much as the first.
    coder = keras.Sequential([keras.Input((64,)), layers.Dense(16, name="in"), layers.Dense(64, name="out")])
    kp.prune(coder, 0.8, target="mcu")
    assert (coder.get_layer("out").kernel.numpy() == 0).mean() > 1 / 8 + 138 / 1024
    with pytest.raises(ValueError, match=r"zeros would save no flash in any tensor.*32 weights"):
        kp.prune(keras.Sequential([keras.Input((8,)), layers.Dense(4)]), 0.5, target="mcu")
    with pytest.warns(UserWarning, match=r"at a sparsity of 0\.15, no weight takes less flash as a record of it"):
        kp.prune(keras.Sequential([keras.Input((32,)), layers.Dense(16), layers.Dense(32)]), 0.15, target="mcu")


def test_a_model_that_no_zero_makes_faster_is_refused_with_the_reasons():
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="only")])
    with pytest.raises(ValueError, match=r"target='web': zeros would make nothing faster in any tensor.*only/kernel"):
        kp.prune(model, 0.5, target="web")
    with pytest.raises(ValueError, match=r"in any tensor.*scores/kernel: a head.*scope=Scope\(include="):
        kp.prune(keras.Sequential([keras.Input((8,)), layers.Dense(4, name="scores")]), 0.5, target="web")


def test_what_is_no_target_is_refused():
    schedule = kp.schedules.OneShot(0.5)
    with pytest.raises(ValueError, match=r"Unknown device: 'andriod'.*Did you mean 'android'\?"):
        kp.Pruning(schedule, target="andriod")
    with pytest.raises(TypeError, match=r"A device is one of the names .* or an instance of Device. Received: 7"):
        kp.Pruning(schedule, target=7)


def test_fit_prunes_for_a_device_in_whole_blocks_to_the_exact_count():
    model = mobile_net()
    model.compile("sgd", "mse")
    pruning = kp.Pruning(kp.schedules.OneShot(0.75, step=1), allocation="uniform", target="web")
    model.fit(np.ones((8, 16, 16, 3)), np.ones((8, 10)), batch_size=4, verbose=0, callbacks=[pruning])
    mix = model.get_layer("mix").kernel.numpy()
    assert np.count_nonzero(mix == 0) == 96
    head = model.get_layer("neck").kernel.numpy()[0, 0]
    blocks = head.reshape(3, 4, 8)
    off = (blocks == 0).all(axis=1)
    assert off.sum() == 18
    assert np.count_nonzero(head == 0) == 4 * 18
    assert (model.get_layer("depthwise").kernel.numpy() != 0).all()
    assert any("DepthwiseConv2D" in skipped.reason for skipped in pruning.skipped)


def test_global_allocation_over_two_patterns_meets_the_number_of_weights():
    a, b = layers.Dense(8, name="a", use_bias=False), layers.Dense(4, name="b", use_bias=False)
    model = keras.Sequential([keras.Input((8,)), a, b])
    kp.prune(model, 0.5, pattern={"a/.*": "unstructured", ".*": Block(4, 1)})
    zeros = sum(np.count_nonzero(layer.kernel.numpy() == 0) for layer in (a, b))
    assert abs(zeros - 48) <= 2
    assert ((b.kernel.numpy() == 0).reshape(2, 4, 4).sum(axis=1) % 4 == 0).all()


def test_patterns_by_path_name_the_tensor_that_none_fits():
    pattern = ByPath({"a/.*": Unstructured()})
    with pytest.raises(ValueError, match=r"no key fits the tensor 'b/kernel'\. Received the keys \['a/\.\*'\]"):
        pattern.at("b/kernel")
    again = ByPath.from_config(pattern.get_config())
    assert again == pattern


# -- a device of one's own --------------------------------------------------------------------------------------------

TABLE = (Measured(1, 2**20, ((0.2, 1.0), (0.5, 4.0))),)


def own(**fields):
    return Device("own", **{"kernels": (Kernel("1x4 blocks", "a test", TABLE),), **fields})


def test_what_a_kernel_skips_decides_the_pattern_of_matrices():
    found = {
        kind: chosen(dense_net(32, 32), own(kernels=(Kernel(kind, "a test", TABLE),)))[0]["hidden_0"]
        for kind in ("1x4 blocks", "CSR", "1x16 blocks")
    }
    assert found == {"1x4 blocks": Block(4, 1), "CSR": Unstructured(), "1x16 blocks": Block(16, 1)}
    _, reasons = chosen(mobile_net(), own(kernels=(Kernel("1x16 blocks", "a test", TABLE),)))
    assert reasons["neck/kernel"] == "target='own' has no kernel that skips zeros of convolutions"


def test_the_first_of_several_kernels_decides():
    kernels = X86.kernels
    assert chosen(dense_net(32), own(kernels=kernels))[0]["hidden_0"] == Block(4, 1)
    assert chosen(dense_net(32), own(kernels=kernels[::-1]))[0]["hidden_0"] == Block(16, 1)


def test_gains_of_ones_own_change_the_shares():
    survey = kp.Scope().survey(model := dense_net(64, 64))
    paying = {
        name: choose(device, model, survey).pays_from["hidden_0/kernel"]
        for name, device in {"x86": X86, "own": own(), "slow": own(kernels=(Kernel("CSR", "", STEEP),))}.items()
    }
    # 1 / gain falls from 1 to 1/4 between 20 and 50 %: 1.03 is gained from 21.2 %, so from 22 % in whole percent.
    assert paying["own"] == pytest.approx(0.215)
    assert paying["own"] < paying["x86"] < paying["slow"]


STEEP = (Measured(1, 2**20, ((0.9, 0.5), (0.99, 1.1))),)


def test_sparse_inference_of_ones_own_switches_on_where_it_says():
    clusters = Clusters(zeros_from=0.4)
    survey = kp.Scope().survey(model := mobile_net())
    choice = choose(own(clusters=clusters), model, survey)
    assert choice.clustered == {"mix/kernel", "excite/kernel", "last/kernel"}
    assert choice.pays_from["mix/kernel"] == 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kp.prune(cluster(mean), 0.5, target=own(clusters=clusters))
    with pytest.warns(UserWarning, match=r"switches on above 67% of them"):
        kp.prune(cluster(mean), 0.5, target="web")


@pytest.mark.parametrize("device", [*DEVICES.values(), own(clusters=Clusters(0.5, ((0.6, 1.2), (0.8, 2.0)), "a test"))])
def test_a_device_is_a_value_that_is_saved_whole(device):
    @dataclasses.dataclass(frozen=True)
    class Wish(Strategy):
        target: Device

    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(device)))
    again = keras.saving.deserialize_keras_object(saved)
    assert again == device
    assert hash(again) == hash(device)
    assert resolve_device(saved) == device
    # Within another strategy.
    assert Wish.from_config(json.loads(json.dumps(Wish(device).get_config()))) == Wish(device)
    assert all(getattr(again, field.name) == getattr(device, field.name) for field in dataclasses.fields(Device))
    assert dataclasses.replace(device, name="another") != device


def test_a_device_that_was_saved_before_it_had_kernels_is_loaded():
    former = {
        "class_name": "Device",
        "registered_name": "keras_prune>Device",
        "module": "keras_prune.devices",
        "config": {
            "name": "board",
            "blocks": True,
            "pointwise": True,
            "gains": [keras.saving.serialize_keras_object(measured) for measured in TABLE],
        },
    }
    found = resolve_device(former)
    assert found == Device("board", (Kernel("1x4 blocks", "", TABLE),), Clusters())
    assert Device.from_config({"name": "chip", "blocks": False, "pointwise": False}) == Device("chip")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Device("own", kernels=("CSR",)), r"kernels must be a tuple of Kernel. Received: \('CSR',\)"),
        (lambda: Device("own", quantize="int8"), "quantize must be a tuple of str or None. Received: 'int8'"),
        (lambda: Device("own", runs_on="x86_64"), "runs_on must be a tuple of str. Received: 'x86_64'"),
        (lambda: Device("own", fixed_sizes=True), "fixed_sizes must be a text. Received: True"),
        (lambda: Device("own", stands_in=("toaster",)), r"stands_in takes \['arm64', 'web', 'micro'\].*\['toaster'\]"),
        (lambda: Device("own", clusters=True), "clusters must be a Clusters or None. Received: True"),
        (lambda: Kernel("dense"), r"encoding must be one of \['1x4 blocks', '1x16 blocks', 'CSR'\]. Received: 'dense'"),
        (lambda: Kernel("CSR", "", TABLE, (0.9, 0.9)), r"pays_from stands in place of a table.*a table of 1 settings"),
        (lambda: Kernel("CSR", "", pays_from=(0.9,)), r"two shares .*Received: pays_from=\(0.9,\)"),
        (lambda: Measured(0, 1, ((0.1, 1.0), (0.2, 1.0))), "counted from 1. Received: rows=0"),
        (lambda: Measured(1, 1, ((0.9, 2.0),)), r"at two shares or more.*Received: \(\(0.9, 2.0\),\)"),
        (lambda: Measured(1, 1, ((0.9, 2.0), (0.8, 3.0))), r"shares ascend.*Received: \(\(0.9, 2.0\), \(0.8, 3.0\)\)"),
        (lambda: Measured(1, 1, ((0.8, 2.0), (0.9, 1.0))), "do not fall where the share rises"),
        (lambda: Clusters(gains=((0.7, 0.0), (0.8, 1.0))), "Clusters: gains must be .* positive"),
    ],
)
def test_a_device_of_ones_own_is_checked_when_it_is_made(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_kernel_that_never_pays_is_warned_of():
    never = own(kernels=(Kernel("CSR", "a test", (Measured(1, 2**20, ((0.5, 0.2), (0.9, 0.8))),)),))
    with pytest.warns(
        UserWarning, match=r"skips single zeros is not faster .* for any matrix. By the target's figures"
    ):
        kp.prune(dense_net(64), 0.9, target=never)


@pytest.mark.parametrize("multiple", [0, -8, 2.5])
def test_a_multiple_is_counted_from_one(multiple):
    with pytest.raises((TypeError, ValueError), match=rf"multiple.*{multiple}"):
        Device("board", multiple=multiple)
