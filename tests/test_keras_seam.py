"""What each function of the seam promises, on the Keras and TensorFlow that are installed."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from keras_prune import keras_seam as seam


def test_every_name_of_the_seam_is_tried_here():
    text = pathlib.Path(__file__).read_text()
    assert [name for name in seam.__all__ if f"seam.{name}" not in text] == []


def nested():
    """A model in a model, and a layer that holds another."""
    inner = keras.Sequential([keras.Input((4,), name="input"), kl.Dense(3, name="a")], name="inner")
    x = keras.Input((5, 4), name="x")
    hidden = kl.TimeDistributed(inner, name="times")(x)
    return keras.Model(x, kl.Dense(1, name="b")(hidden), name="outer")


# -- whose code it is -------------------------------------------------------------------------------------------------


class Mine(kl.Dense):
    def call(self, inputs):
        return super().call(inputs) * 2


def test_keras_own_classes_and_functions_are_known():
    assert [seam.from_keras(one) for one in (kl.Dense, kl.Dense.call, keras.activations.relu)] == [True] * 3
    assert [seam.from_keras(one) for one in (Mine, Mine.call, np.abs, None)] == [False] * 4


class Trained(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class TrainedToo(Trained):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def test_methods_of_ones_own_are_found_in_the_class_and_in_those_it_inherits_from():
    names = ("train_step", "test_step", "compute_loss")
    found = [seam.own_methods(kind(), names) for kind in (keras.Model, Trained, TrainedToo)]
    assert found == [[], ["train_step"], ["train_step", "compute_loss"]]
    assert seam.own_methods(nested(), names) == []
    assert seam.own_methods(TrainedToo(), ("compute_loss",)) == ["compute_loss"]


def test_operations_of_keras_ops_are_known():
    x = keras.KerasTensor((None, 3))
    found = [seam.origin_of(made) for made in (x + 1, keras.ops.mean(x), keras.ops.relu(x), kl.ReLU()(x))]
    assert [seam.is_operation(one) for one in found] == [True, True, True, False]


def test_layers_of_keras_applications_are_known():
    model = keras.applications.ConvNeXtTiny(weights=None, include_top=False)
    scale = next(layer for layer in model.layers if type(layer).__name__ == "LayerScale")
    assert seam.is_of_applications(type(scale))
    assert not seam.is_of_applications(kl.Dense)


# -- layers and variables inside --------------------------------------------------------------------------------------


def test_layers_inside_come_in_order_and_at_any_depth():
    model = nested()
    names = [one.name for one in seam.layers_in(model)]
    assert sorted(names) == ["a", "b", "inner", "input", "outer", "times", "x"]
    assert [one.name for one in seam.layers_in(keras.Model.from_config(model.get_config()))] == names
    assert next(one.name for one in seam.layers_in(model, include_self=False)) == "x"
    assert seam.layers_in(kl.ReLU(), include_self=False) == []


def test_layers_of_tf_keras_come_too():
    tf_keras = pytest.importorskip("tf_keras")
    inner = tf_keras.Sequential([tf_keras.layers.Dense(2, name="a")], name="inner")
    model = tf_keras.Sequential([inner, tf_keras.layers.Dense(1, name="b")], name="outer")
    assert [one.name for one in seam.layers_in(model)] == ["outer", "inner", "a", "b"]
    first = tf_keras.layers.Dense(2, input_shape=(3,))
    assert seam.first_shape(first) == (None, 3)
    assert seam.first_shape(kl.Dense(2)) is None
    assert seam.own_state(first) == []
    assert seam.random_states(first) == []


def test_layers_held_by_a_layer_itself_have_the_input_layer_among_them():
    model = keras.Sequential([keras.Input((4,)), keras.Sequential([keras.Input((4,)), kl.Dense(3)], name="inner")])
    assert [type(one).__name__ for one in seam.layers_of(model)] == ["InputLayer", "Sequential"]


def test_own_variables_are_not_those_of_layers_inside():
    norm = kl.BatchNormalization()
    norm.build((None, 2))
    norm.trainable = False
    assert [v.name for v in seam.own_variables(norm)] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [v.name for v in seam.own_state(norm)] == ["moving_mean", "moving_variance"]
    assert seam.own_variables(nested()) == []


def test_random_states_are_those_that_a_call_moves():
    layer = kl.Dropout(0.5)
    (state,) = seam.random_states(layer)
    before, overall = np.array(state), np.array(seam.global_seed())
    layer(np.ones((1, 4)), training=True)
    assert not np.array_equal(before, np.array(state))
    assert np.array_equal(overall, np.array(seam.global_seed()))
    keras.random.normal((1,))
    assert not np.array_equal(overall, np.array(seam.global_seed()))


def test_built_shapes_are_by_argument():
    class Two(kl.Layer):
        def build(self, first_shape, second_shape):
            self.sizes = first_shape, second_shape

        def call(self, first, second):
            return first

    two, dense = Two(), kl.Dense(2)
    two(np.zeros((1, 2)), np.zeros((1, 3)))
    assert seam.built_shapes(two) == {"first_shape": (1, 2), "second_shape": (1, 3)}
    assert seam.built_shapes(dense) == {}
    dense.build((None, 4))
    assert list(seam.built_shapes(dense).values()) == [(None, 4)]


def test_whether_a_call_is_told_that_it_trains():
    x = keras.KerasTensor((None, 3))
    assert [seam.takes_training(one) for one in (kl.Dropout(0.1), kl.ReLU(), seam.origin_of(x + 1))] == [
        True,
        False,
        False,
    ]


def test_a_name_is_made_as_keras_makes_it():
    first, second = (seam.auto_name("SomeLayer") for _ in range(2))
    assert first == "some_layer"
    assert second == "some_layer_1"


def test_what_callbacks_say_is_printed(capsys):
    seam.print_msg("said")
    assert capsys.readouterr().out == "said\n"


def test_lookups_are_of_one_class():
    assert isinstance(kl.StringLookup(vocabulary=["a"]), seam.IndexLookup)
    assert isinstance(kl.IntegerLookup(vocabulary=[1]), seam.IndexLookup)


def test_one_object_in_two_places_stays_one_where_objects_are_shared():
    layer = kl.Dense(2)
    with seam.ObjectSharingScope():
        config = keras.saving.serialize_keras_object([layer, layer])
    with seam.ObjectSharingScope():
        first, second = keras.saving.deserialize_keras_object(config)
    assert first is second


def test_what_a_model_holds_is_saved_with_it(tmp_path):
    class Counter(seam.Saved):
        value = 3

        def save_own_variables(self, store):
            store["value"] = np.array(self.value)

        def load_own_variables(self, store):
            self.value = int(np.array(store["value"]))

    model = keras.Sequential([keras.Input((2,)), kl.Dense(1)])
    model.counter = Counter()
    model.counter.value = 7
    model.save_weights(tmp_path / "a.weights.h5")
    model.counter.value = 0
    model.load_weights(tmp_path / "a.weights.h5")
    assert model.counter.value == 7


def test_records_of_layers_and_calls_are_attributes_that_they_have():
    model = nested()
    sequential = model.get_layer("times").layer
    model.compile("sgd")
    names = {name for one in (model, sequential, *model.layers) for name in vars(one)}
    assert seam.RECORDS_OF_LAYERS - names <= {"_losses_override", "_loss_ids"} | {
        name for name in seam.RECORDS_OF_LAYERS if name.startswith("_self_")
    }
    operation = seam.origin_of(keras.KerasTensor((None, 3)) + 1)
    assert vars(operation).keys() >= {"_inbound_nodes", "_outbound_nodes"} <= seam.RECORDS_OF_CALLS


def test_names_of_methods_and_attributes_are_those_of_keras():
    assert seam.DTYPE_POLICY in vars(kl.Dense(1))
    assert callable(getattr(kl.RNN, seam.DROPOUT_MASKS))
    assert callable(getattr(kl.Layer, seam.INPUT_CHECK))


# -- Keras's list of them ---------------------------------------------------------------------------------------------


def test_a_built_layer_takes_a_weight_while_it_is_unlocked():
    layer = kl.Dense(2, use_bias=False)
    layer.build((None, 2))
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.add_weight(shape=(1,), name="more")
    with seam.unlocked(layer):
        more = layer.add_weight(shape=(1,), name="more")
    assert [v.name for v in layer.weights] == ["kernel", "more"]
    seam.forget_weight(layer, more)
    assert [v.name for v in layer.weights] == ["kernel"]
    with pytest.raises(ValueError, match="cannot add new elements"):
        layer.add_weight(shape=(1,), name="again")


def test_a_record_is_replaced_in_its_place():
    class Pair(kl.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = kl.ReLU(name="first"), kl.ReLU(name="second")

    pair, other = Pair(), kl.ReLU(name="other")
    seam.replace_record(pair, pair.first, other)
    assert [one.name for one in seam.layers_of(pair)] == ["other", "second"]


# -- attention, losses and metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [kl.MultiHeadAttention(2, 3), kl.GroupQueryAttention(3, 2, 1)])
def test_projections_of_attention(layer):
    x = np.ones((1, 4, 5))
    layer(x, x)
    shapes = [tuple(seam.projection_of(layer, name).kernel.shape) for name in ("query", "output")]
    assert shapes == [(5, 2, 3), (2, 3, 5)]
    assert seam.projection_of(layer, "key").kernel.shape == seam.projection_of(layer, "value").kernel.shape
    assert not seam.has_gate(layer)


def test_gates_and_axes_of_attention():
    gated = [kl.MultiHeadAttention(2, 3, use_gate=True), kl.GroupQueryAttention(3, 2, 1, use_gate=True)]
    x = np.ones((1, 4, 5))
    for layer in gated:
        layer(x, x)
    assert [seam.has_gate(layer) for layer in gated] == [True, True]
    assert [tuple(seam.projection_of(layer, "gate").kernel.shape) for layer in gated] == [(5, 2, 3)] * 2
    assert seam.attention_axes(kl.MultiHeadAttention(1, 2, attention_axes=(2,))) == (2,)
    assert seam.attention_axes(kl.GroupQueryAttention(3, 2, 1)) is None


def test_the_loss_of_a_batch_has_what_layers_add():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1, kernel_regularizer="l2")])
    model.layers[0].set_weights([np.ones((2, 1)), np.zeros(1)])
    model.compile(loss="mse")
    x, y = np.array([[1.0, 1.0]], "float32"), np.array([[1.0]], "float32")
    found = float(seam.loss_of_batch(model, x, y, model(x), None))
    assert found == pytest.approx(1.0 + 0.01 * 2)
    doubled = float(seam.loss_of_batch(model, x, y, model(x), np.array([2.0], "float32")))
    assert doubled == pytest.approx(2.0 + 0.01 * 2)


def test_what_losses_and_metrics_were_given():
    assert seam.loss_arguments(keras.losses.CategoricalCrossentropy(from_logits=True))["from_logits"] is True
    assert seam.loss_arguments(lambda y, p: 0) == {}
    model = keras.Sequential([keras.Input((2,)), kl.Dense(1)])
    assert seam.metrics_given(model) is None
    model.compile(loss="mse", metrics=["mae"])
    assert seam.metrics_given(model) == ["mae"]


# -- graphs -----------------------------------------------------------------------------------------------------------


class WithOwnCall(keras.Model):
    def call(self, x):
        return super().call(x) * 2


def test_the_functional_model_in_a_model():
    model = nested()
    sequential = keras.Sequential([keras.Input((2,)), kl.Dense(1)])
    assert seam.functional_in(model) is model
    assert isinstance(model, seam.Functional)
    assert isinstance(seam.functional_in(sequential), seam.Functional)
    own = WithOwnCall(model.inputs, model.outputs)
    assert [seam.functional_in(one) for one in (own, keras.Sequential([kl.Dense(1)]), kl.Dense(1))] == [None] * 3


def test_calls_come_after_those_that_they_read_and_without_inputs():
    x = keras.Input((4,))
    shared = kl.Dense(4, name="shared")
    model = keras.Model(x, kl.Add(name="sum")([shared(shared(x)), x]))
    calls = seam.calls_in(model)
    assert [call.operation.name for call in calls] == ["shared", "shared", "sum"]
    assert [len(seam.calls_of(one)) for one in (shared, model.get_layer("sum"))] == [2, 1]
    made = [call.outputs[0] for call in calls]
    assert [seam.place_among_calls(tensor) for tensor in made] == [0, 1, 0]
    assert [seam.origin_of(tensor) for tensor in made] == [shared, shared, model.get_layer("sum")]
    assert [seam.producer_of(tensor) for tensor in made] == calls
    assert seam.origin_of(keras.KerasTensor((1,))) is None
    assert seam.producer_of(keras.KerasTensor((1,))) is None
    assert all(call.input_tensors and call.arguments and not call.is_input for call in calls)
    assert calls[1].parent_nodes == [calls[0]]


def test_structures_of_inputs_and_outputs_are_kept_and_run():
    given = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
    dense = kl.Dense(2, name="dense")
    model = keras.Model(given, [dense(given["a"] + given["b"])])
    assert list(seam.input_structure(model)) == ["a", "b"]
    assert len(seam.output_structure(model)) == 1
    assert seam.input_structure(kl.Dense(1)) is None
    assert seam.output_structure(kl.Dense(1)) is None
    values = {name: np.ones((1, 2), "float32") for name in given}
    usual = seam.run_graph(model, values)[0]
    doubled = kl.Dense(2, kernel_initializer="zeros", bias_initializer="ones")
    other = seam.run_graph(model, values, instead=lambda one: doubled if one is dense else one)[0]
    seen = []

    def call(operation, *args, **kwargs):
        seen.append(operation)
        return operation(*args, **kwargs)

    same = seam.run_graph(model, values, call=call)[0]
    np.testing.assert_array_equal(usual, dense(np.full((1, 2), 2.0)))
    np.testing.assert_array_equal(usual, same)
    np.testing.assert_array_equal(other, [[1.0, 1.0]])
    assert seen[-1] is dense


class OfGraph(keras.Model):
    pass


class OfSizes(keras.Model):
    def __init__(self, units):
        x = keras.Input((2,))
        super().__init__(x, kl.Dense(units)(x))


class WithOwnConfig(keras.Model):
    def get_config(self):
        return {}


def test_which_classes_are_made_from_a_graph():
    model = nested()
    kinds = [type(one) for one in (model, OfGraph(model.inputs, model.outputs), OfSizes(3))]
    assert [seam.takes_graph(kind) for kind in kinds] == [True, True, False]
    assert not seam.takes_graph(type(WithOwnConfig(model.inputs, model.outputs)))


def test_a_mask_comes_with_a_tensor():
    tensor, mask = keras.KerasTensor((None, 3)), keras.KerasTensor((None, 3), dtype="bool")
    assert seam.mask_of(tensor) is None
    seam.set_mask(tensor, mask)
    assert seam.mask_of(tensor) is mask
    assert seam.mask_of(kl.Embedding(3, 2, mask_zero=True)(np.array([[1, 0]]))) is not None


def test_calls_within_the_scope_leave_no_record():
    model, inner = nested(), kl.ActivityRegularization(0.1)
    model.extra = inner
    inner(keras.KerasTensor((None, 3)))
    before = [(len(seam.calls_of(one)), len(one.losses)) for one in seam.layers_in(model)]
    with seam.unrecorded(model):
        inner(keras.KerasTensor((None, 3)))
        model(keras.KerasTensor((None, 5, 4)))
        assert [len(seam.calls_of(one)) for one in seam.layers_in(model)] != [calls for calls, _ in before]
    assert [(len(seam.calls_of(one)), len(one.losses)) for one in seam.layers_in(model)] == before


def test_classes_of_operations_are_those_that_calls_record():
    x = keras.KerasTensor((None, 4, 4, 3))
    made = [
        (keras.ops.mean(x, axis=(1, 2)), seam.Mean),
        (keras.ops.sum(x, axis=1), seam.Sum),
        (keras.ops.flip(x, 1), seam.Flip),
        (keras.ops.average_pool(x, 2), seam.AveragePool),
        (keras.ops.adaptive_average_pool(x, (2, 2)), seam.AdaptiveAveragePool),
    ]
    assert [type(seam.origin_of(tensor)) for tensor, _ in made] == [kind for _, kind in made]
    assert seam.origin_of(made[0][0]).axis == (1, 2)
    assert seam.origin_of(made[1][0]).axis == [1]
    assert seam.origin_of(made[0][0]).keepdims is False


# -- optimizers -------------------------------------------------------------------------------------------------------


def stepped(optimizer, times=1):
    """A dense layer that an optimizer has moved."""
    layer = kl.Dense(2)
    layer.build((None, 3))
    optimizer.build(layer.trainable_variables)
    for _ in range(times):
        optimizer.apply([np.ones(v.shape, "float32") for v in layer.trainable_variables])
    return layer


def test_weights_and_variables_of_an_optimizer():
    optimizer = keras.optimizers.Adam()
    assert seam.moved_by(optimizer) == []
    layer = stepped(optimizer)
    assert [id(v) for v in seam.moved_by(optimizer)] == [id(v) for v in layer.trainable_variables]
    assert [v.name for v in seam.variables_of(optimizer)][:2] == ["iteration", "learning_rate"]
    assert len(seam.variables_of(optimizer)) == 2 + 2 * 2


def test_variables_are_hidden_within_the_scope():
    optimizer = keras.optimizers.Adam()
    stepped(optimizer)
    whole = optimizer.variables
    with seam.hidden_variables(optimizer, {id(whole[2])}):
        assert len(optimizer.variables) == len(whole) - 1
    assert [id(v) for v in optimizer.variables] == [id(v) for v in whole]


def test_calls_are_counted_where_several_make_a_step():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    stepped(optimizer, times=5)
    assert int(seam.calls_counted(optimizer)) == 5
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (keras.optimizers.Adam(), ["_momentums", "_velocities"]),
        (keras.optimizers.SGD(), []),
        (keras.optimizers.SGD(momentum=0.9), ["momentums"]),
        (keras.optimizers.Adagrad(), ["_accumulators"]),
    ],
)
def test_slots_have_an_entry_for_each_weight(optimizer, names):
    layer = stepped(optimizer)
    slots = seam.slots_by_weight(optimizer, averages=True)
    assert sorted(slots) == names
    for entries in slots.values():
        assert [tuple(one.shape) for one in entries] == [tuple(v.shape) for v in layer.trainable_variables]


def test_slots_begin_where_the_optimizer_says():
    optimizer = keras.optimizers.Adagrad(initial_accumulator_value=0.25)
    layer = kl.Dense(2)
    layer.build((None, 3))
    optimizer.build(layer.trainable_variables)
    (name,) = seam.slots_by_weight(optimizer, averages=False)
    value = float(np.array(seam.slots_by_weight(optimizer, averages=False)[name][0]).max())
    assert seam.begin_of_slot(optimizer, name) == value == 0.25
    assert seam.begin_of_slot(keras.optimizers.Adam(), "_momentums") == 0.0


def test_averages_of_weights_are_slots_where_they_are_meant():
    optimizer = keras.optimizers.SGD(use_ema=True)
    layer = stepped(optimizer)
    average = seam.average_of(optimizer, layer.bias)
    assert tuple(average.shape) == (2,)
    assert seam.average_of(keras.optimizers.SGD(), layer.bias) is None
    assert seam.average_of(optimizer, keras.Variable(np.zeros(2))) is None
    assert seam.slots_by_weight(optimizer, averages=False) == {}
    (entries,) = seam.slots_by_weight(optimizer, averages=True).values()
    assert entries[1] is average


def test_weight_decay_leaves_out_what_it_left_out():
    old, new = (keras.optimizers.SGD(1.0, weight_decay=0.5) for _ in range(2))
    layers = [kl.Dense(1, use_bias=False, kernel_initializer="ones", name=name) for name in "abc"]
    others = [kl.Dense(1, use_bias=False, kernel_initializer="ones", name=name) for name in "def"]
    for layer in (*layers, *others):
        layer.build((None, 1))
    pairs = [(one.kernel, other.kernel) for one, other in zip(layers, others, strict=True)]
    old.exclude_from_weight_decay([layers[0].kernel], ["f/kernel"])
    seam.keep_decay_from(new, old, pairs)
    new.build([other.kernel for other in others])
    new.apply([np.zeros((1, 1), "float32")] * 3)
    assert [float(np.array(other.kernel)[0, 0]) for other in others] == [1.0, 0.5, 1.0]


def test_the_optimizer_at_work_is_seen_in_a_constraint():
    seen = []

    class Seeing(keras.constraints.Constraint):
        def __call__(self, w):
            seen.append(seam.optimizer_at_work())
            return w

    optimizer = keras.optimizers.SGD()
    layer = kl.Dense(1, use_bias=False, kernel_constraint=Seeing())
    layer.build((None, 2))
    optimizer.build(layer.trainable_variables)
    optimizer.apply([np.ones((2, 1), "float32")])
    assert seen == [optimizer]
    assert seam.optimizer_at_work() is None


# -- values -----------------------------------------------------------------------------------------------------------


def test_values_are_read_and_written_past_scopes():
    variable = keras.Variable(np.array([1.0, 2.0], "float32"))
    assert not seam.in_stateless_scope()
    with keras.StatelessScope([(variable, np.array([5.0, 6.0], "float32"))]):
        assert seam.in_stateless_scope()
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), [5.0, 6.0])
        np.testing.assert_array_equal(np.array(seam.value_held(variable)), [1.0, 2.0])
        seam.set_value_now(variable, np.array([3.0, 4.0], "float32"))
    np.testing.assert_array_equal(np.array(variable), [3.0, 4.0])


def test_a_policy_computes_in_float64():
    layer = kl.Dense(1, use_bias=False)
    layer.build((None, 2))
    setattr(layer, seam.DTYPE_POLICY, seam.float64_policy())
    assert layer.compute_dtype == "float64"
    assert layer.kernel.dtype == "float32"
    assert layer(np.ones((1, 2))).dtype == "float64"


# -- the converter ----------------------------------------------------------------------------------------------------


def test_the_direct_converter_makes_the_file_of_the_public_one(tmp_path):
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    model.export(str(tmp_path), verbose=False)
    public = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    direct = seam.converter_of(str(tmp_path))
    assert type(direct) is not type(public)
    assert type(direct).__mro__[1].__name__ == "TFLiteSavedModelConverterV2"
    public.exclude_conversion_metadata = True
    seam.spare_copies(direct, calibrated=False)
    assert hasattr(public, "_experimental_use_buffer_offset")
    made = []
    for converter in (public, direct):
        interpreter = tf.lite.Interpreter(model_content=converter.convert())
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.ones((1, 4), "float32"))
        interpreter.invoke()
        made.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*made)
    np.testing.assert_allclose(made[0], model(np.ones((1, 4), "float32")), rtol=1e-6)
