import keras
import numpy as np
import pytest
from keras import layers

from keras_prune.arrays.distance import scale_of
from tflite_export import ExportError, Verification, export, verify
from tflite_export.convert.number_types import FLOAT32
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.source.loading import open_source
from tflite_export.verification.compare import OutputError, compare_output, worst_of
from tflite_export.verification.verify import Run


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
    assert str(verification).startswith(
        "verified on 40 given inputs, XNNPACK on and off, 1 and 4 threads: output 'output_0': error "
    )


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


# -- what a report says of a loss --------------------------------------------------------------------------------------


def landmarks(spread=32.0, at=32.0):
    """A net whose 10 outputs lie around `at`; a few inputs are far larger, so that int8 is coarse for the others."""
    keras.utils.set_random_seed(5)
    x = keras.Input((24,), name="x")
    h = layers.Dense(48, activation="relu")(x)
    y = layers.Dense(10, name="points")(h)
    model = keras.Model(x, layers.Rescaling(spread, at)(layers.Activation("tanh")(y)))
    data = np.random.default_rng(6).normal(size=(64, 24)).astype("float32")
    data[::16] *= 10
    return model, data


def test_a_loss_is_said_in_the_units_of_the_output_and_warned_about(tmp_path):
    model, data = landmarks()
    with pytest.warns(UserWarning, match=r"output 'output_0' is far from the model's: values are off by up to"):
        report = export(model, tmp_path / "m.tflite", data=data, quantize="int8", samples=64)
    session = LiteRTSession((tmp_path / "m.tflite").read_bytes())
    (got,) = session.run([data], list(session.inputs), list(session.outputs))
    off = np.abs(got.astype("f8") - np.asarray(model(data), "f8"))
    (output,) = report.verification.outputs
    assert output.max_absolute == pytest.approx(off.max(), rel=0.05)  # threads and XNNPACK round otherwise
    assert output.mean_absolute == pytest.approx(off.mean(), rel=0.05)
    assert output.max_absolute > 0.05 * 64
    assert output.top1 is None
    text = str(report)
    assert f"error {output.mean_absolute:.2g} on average, {output.max_absolute:.2g} at most, of values up to" in text
    assert "top-1" not in text
    assert text.count("warning: output 'output_0' is far from the model's") == 1
    assert "no weight is stored sparse: the error is what int8 costs by itself" in text
    assert report.to_dict()["verification"]["warnings"] == list(report.verification.warnings)
    with pytest.warns(UserWarning, match="is far from the model's"):
        verify(tmp_path / "m.tflite", model, data, samples=64)


def test_beside_a_quantized_file_stands_what_its_number_type_costs(tmp_path, net, inputs):
    data = inputs(net, samples=64)[0]
    report = export(net, tmp_path / "m.tflite", data=data, quantize="int8", optimize="size")
    (output,) = report.verification.outputs
    assert report.verification.encoding is not None
    assert 0 < output.dense_mean_absolute <= output.dense_max_absolute
    assert output.max_absolute <= output.dense_max_absolute + report.verification.encoding * output.scale
    assert "stored dense in the same number type, " in str(report.verification)


def error(**fields):
    given = {"max_absolute": 0.0, "max_relative": 0.0, "scale": 1.0, "span": 1.0} | fields
    return OutputError("y", **given)


@pytest.mark.parametrize(
    ("found", "notable"),
    [
        (error(max_absolute=0.051, max_relative=0.051), True),
        (error(max_absolute=0.049, max_relative=0.049), False),
        # 300 kelvin, which vary by 10: 1 is a tenth of what they tell.
        (error(max_absolute=1.0, max_relative=1 / 300, scale=300.0, span=10.0), True),
        # An output that hardly varies: rounding is no loss.
        (error(max_absolute=1e-7, max_relative=1e-7, span=1e-7), False),
        (error(max_absolute=0.2, max_relative=0.2, span=0.0), True),
        (error(max_absolute=0.2, max_relative=0.2, top1=0.96), False),
        (error(max_absolute=0.01, max_relative=0.01, top1=0.94), True),
    ],
)
def test_from_when_on_a_reader_is_warned(found, notable):
    assert found.is_notable is notable
    verification = Verification((Run(True, 1, (found,)),), 3, False, 0.15)
    assert len(verification.warnings) == notable


def test_each_of_several_outputs_is_said_by_name(tmp_path):
    x = keras.Input((6,), name="x")
    outputs = {"label": layers.Dense(3, activation="softmax")(x), "box\x1b[2J": layers.Dense(4)(x)}
    model = keras.Model(x, outputs)
    data = np.random.default_rng(0).normal(size=(9, 6)).astype("float32")
    report = verify_made(model, data)
    text = str(report)
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(r"  output 'box\x1b[2J': error ")
    assert "top-1" not in lines[1]
    assert lines[2].startswith("  output 'label': error ")
    assert lines[2].endswith("top-1 agreement 100.0%")
    assert [output.name for output in report.outputs] == ["box\x1b[2J", "label"]


def verify_made(model, data):
    """The report of runs that answer as the model, but for the last digit."""
    source = open_source(model)
    signature = source.signature(data)
    reference = source.answer(signature, source.inputs(signature, data))
    errors = tuple(
        compare_output(name, wanted * np.float32(1.00001), wanted, scale_of(wanted), 1e-4, FLOAT32, None, "file", one)
        for name, wanted, one in zip(reference.output_names, reference.outputs, reference.has_classes(), strict=True)
    )
    return Verification((Run(True, 1, errors), Run(False, 4, errors)), len(data), False, 1e-4)


def test_the_worst_run_of_an_output_is_what_is_said():
    runs = [
        error(max_absolute=1.0, max_relative=0.1, mean_absolute=0.5, top1=0.9, encoding=0.1, dense_max_absolute=1.0),
        error(max_absolute=2.0, max_relative=0.2, mean_absolute=0.4, top1=0.8, encoding=0.2, dense_max_absolute=0.5),
    ]
    found = worst_of(runs)
    assert (found.max_absolute, found.max_relative, found.mean_absolute) == (2.0, 0.2, 0.5)
    assert (found.top1, found.encoding, found.dense_max_absolute, found.dense_mean_absolute) == (0.8, 0.2, 1.0, None)
