import keras
import numpy as np
import pytest
from keras import layers as kl
from keras import ops

from keras_prune.structured import count
from keras_prune.structured.surgery.depth import depth_costs, drop_layers, droppable


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def residual_net():
    inputs = keras.Input((6, 6, 3), name="image")
    x = kl.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for i in (1, 2):
        y = kl.Conv2D(4, 3, padding="same", activation="relu", name=f"b{i}_conv1")(x)
        y = kl.BatchNormalization(name=f"b{i}_bn")(kl.Conv2D(4, 3, padding="same", name=f"b{i}_conv2")(y))
        x = kl.Add(name=f"b{i}_add")([x, y])
    y = kl.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="p_conv1")(x)
    y = kl.Conv2D(6, 3, padding="same", name="p_conv2")(y)
    x = kl.Add(name="p_add")([kl.Conv2D(6, 1, strides=2, name="p_short")(x), y])
    x = kl.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(x), name="net")


def test_residual_branches_are_found_in_the_graph():
    found = {block.name: block for block in droppable(residual_net()) if block.kind != "layer"}
    assert {name: block.kind for name, block in found.items()} == {
        "b1_add": "residual",
        "b2_add": "residual",
        "p_add": "projection",
    }
    assert found["b1_add"].layers == ("b1_conv1", "b1_conv2", "b1_bn", "b1_add")
    assert found["p_add"].layers == ("p_conv1", "p_conv2", "p_add")
    single = [block.name for block in droppable(residual_net()) if block.kind == "layer"]
    assert single == ["b1_conv1", "b1_conv2", "b2_conv1", "b2_conv2", "p_conv2"]


def test_a_branch_that_ends_in_zeros_changes_nothing_when_it_goes():
    model = residual_net()
    for name in ("b1_bn", "b2_bn"):
        layer = model.get_layer(name)
        layer.set_weights([np.zeros(4), np.zeros(4), normal(4), np.abs(normal(4))])
    model.get_layer("p_conv2").set_weights([np.zeros((3, 3, 6, 6)), np.zeros(6)])
    smaller = drop_layers(model, ["b1_add", "b2_add", "p_add"])
    assert [layer.name for layer in smaller.layers] == ["image", "stem", "p_short", "pool", "head"]
    x = normal(3, 6, 6, 3)
    np.testing.assert_array_equal(model(x), smaller(x))


def test_names_weights_settings_and_moments_are_kept():
    model = residual_net()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = normal(8, 6, 6, 3), np.zeros(8)
    model.fit(x, y, epochs=2, verbose=0)
    before = [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]
    smaller = drop_layers(model, ["b1_add"])
    for value, variable in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert smaller.name == "net"
    old = {v.path: np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]}
    for variable in [*smaller.variables, *smaller.optimizer.variables]:
        np.testing.assert_array_equal(variable.numpy(), old[variable.path])
    assert int(smaller.optimizer.iterations) == 2
    assert "accuracy" in smaller.fit(x, y, verbose=0).history
    # the same as the branch left out by hand
    stem = keras.Model(model.inputs, model.get_layer("stem").output)
    rest = keras.Model(model.get_layer("b1_add").output, model.output)
    again = drop_layers(model, [next(b for b in droppable(model) if b.name == "b1_add")])
    np.testing.assert_allclose(again(x), rest(stem(x)), atol=1e-6)


def test_sequential_nested_and_shared():
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="a"), kl.Dense(4, name="b")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kl.Dense(2, name="head")(inner(kl.Dense(4, name="mid")(inner(inputs)))))
    assert [(block.name, block.layers) for block in droppable(model)] == [
        ("inner", ("inner",)),
        ("mid", ("mid",)),
        ("inner/a", ("inner/a",)),
        ("inner/b", ("inner/b",)),
    ]
    smaller = drop_layers(model, ["a", "mid"])
    assert [layer.name for layer in smaller.get_layer("inner").layers] == ["b"]
    assert [layer.name for layer in drop_layers(model, ["inner"]).layers[1:]] == ["mid", "head"]
    x = normal(3, 4)
    b, head = inner.get_layer("b"), model.get_layer("head")
    np.testing.assert_allclose(smaller(x), head(b(b(x))), atol=1e-6)


def transformer():
    inputs = keras.Input((5,), dtype="int32")
    x = kl.Embedding(7, 4, name="words")(inputs)
    for i in (1, 2):
        y = kl.LayerNormalization(name=f"norm{i}")(x)
        x = x + kl.MultiHeadAttention(2, 2, name=f"attend{i}")(y, y)
        y = kl.Dense(8, activation="gelu", name=f"up{i}")(kl.LayerNormalization(name=f"norm{i}b")(x))
        x = x + kl.Dropout(0.1, name=f"drop{i}")(kl.Dense(4, name=f"down{i}")(y))
    return keras.Model(inputs, kl.Dense(2)(ops.mean(x, axis=1)))


def test_transformers_that_normalise_first():
    model = transformer()
    branches = [block for block in droppable(model) if block.kind == "residual"]
    assert [block.layers[:-1] for block in branches] == [
        ("norm1", "attend1"),
        ("norm1b", "up1", "down1", "drop1"),
        ("norm2", "attend2"),
        ("norm2b", "up2", "down2", "drop2"),
    ]
    for name in ("down1", "down2"):
        model.get_layer(name).set_weights([np.zeros((8, 4)), np.zeros(4)])
    smaller = drop_layers(model, [branches[1], branches[3]])
    x = np.random.default_rng(0).integers(0, 7, (3, 5))
    np.testing.assert_array_equal(model(x), smaller(x))
    assert count(smaller).total.params < count(model).total.params


def test_a_shared_layer_goes_from_everywhere():
    shared = kl.Dense(4, name="shared")
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, kl.Concatenate(axis=1)([shared(inputs), shared(inputs[:, :2])]))
    assert [block.name for block in droppable(model)] == ["shared"]
    smaller = drop_layers(model, ["shared"])
    x = normal(2, 5, 4)
    np.testing.assert_array_equal(smaller(x), np.concatenate([x, x[:, :2]], axis=1))


def test_a_shared_layer_that_keeps_the_shape_of_some_calls_only_stays():
    shared = kl.EinsumDense("abc,cd->abd", (None, 4), name="shared")
    a, b = keras.Input((None, 4)), keras.Input((5, 4))
    model = keras.Model([a, b], [shared(a), shared(b)])
    assert droppable(model) == ()
    with pytest.raises(ValueError, match=r"'shared' cannot be taken out: it is called 2 times, not always so"):
        drop_layers(model, ["shared"])


@pytest.mark.parametrize(("name", "blocks", "last"), [("ResNet50V2", 16, "_out"), ("MobileNetV2", 10, "_add")])
def test_applications(name, blocks, last):
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)
    branches = [block for block in droppable(model) if block.kind != "layer"]
    assert len(branches) == blocks
    assert all(block.name.endswith(last) for block in branches)
    gone = branches[1::2]
    for block in gone:
        end = model.get_layer(block.layers[-2])  # a convolution with a bias, or a normalisation
        end.set_weights([np.zeros(w.shape) if i < 2 else w for i, w in enumerate(end.get_weights())])
    smaller = drop_layers(model, gone)
    x = normal(2, 32, 32, 3)
    np.testing.assert_allclose(model(x), smaller(x), atol=1e-6)
    missing = {layer.name for layer in model.layers} - {layer.name for layer in smaller.layers}
    assert missing == {path for block in gone for path in block.layers}


def test_a_branch_that_something_else_reads_is_none():
    inputs = keras.Input((4,))
    y = kl.Dense(4, name="inside")(inputs)
    x = kl.Add(name="sum")([inputs, y])
    model = keras.Model(inputs, [kl.Dense(2)(x), kl.Dense(2)(y)])
    assert [block.name for block in droppable(model)] == ["inside"]
    with pytest.raises(ValueError, match=r"'sum' cannot be taken out: no branch ends here that nothing else uses"):
        drop_layers(model, ["sum"])


def test_two_inputs_added_are_no_branch():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], kl.Dense(2)(kl.Add()([a, kl.Dense(4, name="d")(b)])))
    assert [block.name for block in droppable(model)] == ["d"]


def test_costs_are_the_change_of_the_loss():
    model = residual_net()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    idle = model.get_layer("b2_bn")
    idle.set_weights([np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4)])
    x, y = normal(40, 6, 6, 3), np.arange(40) % 3
    before = [np.array(v.numpy()) for v in model.variables]
    costs = depth_costs(model, (x, y))
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert [cost.change for cost in costs] == sorted(cost.change for cost in costs)
    assert {cost.block for cost in costs} == set(droppable(model))
    by_name = {cost.block.name: cost for cost in costs}
    assert by_name["b2_add"].change == 0.0
    smaller = drop_layers(model, ["b1_add"])
    wanted = smaller.evaluate(x, y, verbose=0) - model.evaluate(x, y, verbose=0)
    assert by_name["b1_add"].change == pytest.approx(wanted, abs=1e-6)
    assert by_name["b1_add"].params == model.count_params() - smaller.count_params()
    assert by_name["b1_add"].macs == 2 * 36 * 9 * 4 * 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["b1_ad"], r"drop_layers: 'net' has no layer 'b1_ad'\. Near to it are \['b1_add'"),
        (["stem"], r"'stem' cannot be taken out: its input has the shape \(None, 6, 6, 3\), and its output"),
        (["b1_bn"], r"'b1_bn' cannot be taken out: it multiplies by no weights\. What can be: \['b1_conv1'"),
    ],
)
def test_bad_names(names, message):
    with pytest.raises(ValueError, match=message):
        drop_layers(residual_net(), names)


def test_one_name_is_no_list():
    with pytest.raises(TypeError, match=r"a list of names\. Received: 'b1_add'"):
        drop_layers(residual_net(), "b1_add")


def test_costs_need_a_loss():
    with pytest.raises(ValueError, match=r"not compiled"):
        depth_costs(residual_net(), (normal(4, 6, 6, 3), np.zeros(4)))
