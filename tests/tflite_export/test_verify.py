import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import ExportError, export, verify


@pytest.fixture(scope="module")
def net(make_dense_net):
    return make_dense_net()


@pytest.fixture(scope="module")
def file(tmp_path_factory, net, inputs):
    path = tmp_path_factory.mktemp("verify") / "model.tflite"
    export(net, path, data=inputs(net)[0])
    return path.read_bytes()


@pytest.fixture
def dense_net(net):
    """The model of the file, its weights put back after each test."""
    weights = net.get_weights()
    yield net
    net.set_weights(weights)


@pytest.fixture
def exported(tmp_path, file):
    (tmp_path / "model.tflite").write_bytes(file)
    return tmp_path / "model.tflite"


def test_a_file_agrees_with_its_model(exported, dense_net, inputs):
    verification = verify(exported, dense_net, inputs(dense_net, samples=40)[0], samples=40)
    assert verification.samples == 40
    assert 0 <= verification.max_relative < 1e-5
    assert verification.max_absolute == max(o.max_absolute for run in verification.runs for o in run.outputs)
    assert str(verification).startswith("verified on 40 given inputs, XNNPACK on and off, 1 and 4 threads: max error")


def test_a_model_trained_on_is_told_from_its_file(exported, dense_net, inputs):
    kernel = dense_net.layers[1].kernel
    kernel.assign(kernel.numpy() * 1.001)
    with pytest.raises(
        ExportError, match=r"output 'output_0': must equal the model's to 0\.0001 of its scale .* Received"
    ):
        verify(exported, dense_net, inputs(dense_net)[0])
    assert verify(exported, dense_net, inputs(dense_net)[0], tolerance=0.01).max_relative > 1e-4


def test_another_model_is_told_by_its_outputs(exported):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(3)])
    with pytest.raises(ExportError, match=r"must have the model's shape \(1, 3\)\. Received: \(1, 16\)"):
        verify(exported, model, np.ones((1, 64)))


def test_a_file_that_answers_nan_fails(tmp_path, file, dense_net, inputs):
    data = inputs(dense_net)[0]
    sound = dense_net.layers[1].bias.numpy()
    content = file
    assert content.count(sound.tobytes()) == 1
    broken = content.replace(sound.tobytes(), np.full_like(sound, np.nan).tobytes())
    (tmp_path / "nan.tflite").write_bytes(broken)
    with pytest.raises(ExportError, match=r"output 'output_0': must hold no NaN\. Received: 16 NaN of 16"):
        verify(tmp_path / "nan.tflite", dense_net, data)


def test_classes_have_to_be_equal(tmp_path, inputs):
    x = keras.Input((16,))
    model = keras.Model(x, keras.ops.cast(layers.Dense(8)(x) > 0, "int32"))
    data = inputs(model)[0]
    report = export(model, tmp_path / "model.tflite", data=data)
    assert report.verification.max_absolute == 0
    model.layers[1].kernel.assign(-model.layers[1].kernel)
    with pytest.raises(ExportError, match=r"integers must equal the model's\. Received: \d+ of \d+ differ"):
        verify(tmp_path / "model.tflite", model, data)


def test_a_truncated_file_is_refused(exported, dense_net):
    exported.write_bytes(exported.read_bytes()[:-40])
    with pytest.raises(ExportError, match=rf"{exported.name}: "):
        verify(exported, dense_net, np.ones((1, 64)))


def test_a_missing_file_is_refused(tmp_path, dense_net):
    with pytest.raises(ExportError, match=r"must be a readable file\. Received: No such file or directory"):
        verify(tmp_path / "none.tflite", dense_net, np.ones((1, 64)))
