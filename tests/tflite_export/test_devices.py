"""Exports for a device, end to end: rewritten where sparse inference takes it, and never where it would be wrong."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from tflite_export import Encoding, ExportError, export, inspect, read_golden
from tflite_export.bench import tune
from tflite_export.edits.metadata import read_metadata
from tflite_export.file import flatbuffer
from tflite_export.verification import sparse_run

SIZE = 16


def mobile_net(*, tail=None, activation="relu"):
    """A stem and two blocks with the asymmetric padding of keras.applications, 90 % of the 1x1 weights zero."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation=activation, name="stem")(image)
    x = layers.Conv2D(32, 1, activation=activation, name="mix_1")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(32, 1, activation=activation, name="mix_2")(x)
    if tail is not None:
        x = tail(x)
    else:
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Flatten()(layers.Conv2D(16, 1, name="head")(x))
    model = keras.Model(image, x)
    model.get_layer("norm").moving_variance.assign(np.linspace(0.5, 2.0, 32))
    return kp.prune(model, 0.9, target="web", allocation="uniform")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).normal(size=(5, SIZE, SIZE, 3)).astype("float32")


@pytest.mark.parametrize("target", ["web", None])
def test_a_pruned_mobile_net_is_mirrored_and_its_cluster_is_on(tmp_path, pictures, target):
    model = mobile_net()
    report = export(model, tmp_path / "model.tflite", target=target, data=pictures, batch_size=1)
    assert {change.rewrite for change in report.changes} == {"heads", "mirror", "unread"}
    found = inspect(tmp_path / "model.tflite", target="web")
    assert found.runs_sparse
    assert not found.dangers
    stored = {line.name: line for line in report.lines}
    # Folded and mirrored, and still known by the names of their author.
    for name in ("mix_1/kernel", "mix_2/kernel"):
        assert stored[name].encoding is Encoding.DENSIFY
        assert "multiplied as a sparse matrix" in stored[name].reason
    assert stored["head/kernel"].shape == (16, 32)
    assert report.verification.max_relative < 1e-5
    assert report.sparse_run is not None
    if sparse_run.sparse_runtime("web") is None:
        assert report.sparse_run.startswith("sparse kernels not executed")
    else:
        assert report.sparse_run.startswith("sparse kernels executed: LiteRT.js")
    assert "rewritten (mirror)" in str(report)
    json.dumps(report.to_dict())


def test_a_pc_gets_the_model_as_it_is(tmp_path, pictures):
    report = export(mobile_net(), tmp_path / "model.tflite", target="x86", data=pictures)
    assert report.changes == ()
    assert report.sparse_run is None


def test_too_few_zeros_leave_the_model_as_it_is(tmp_path, pictures):
    model = mobile_net()
    for name in ("mix_1", "mix_2"):
        kernel = model.get_layer(name).kernel
        kernel.constraint = None
        kernel.assign(np.random.default_rng(1).normal(size=kernel.shape))
    report = export(model, tmp_path / "model.tflite", target="web", data=pictures)
    assert report.changes == ()


def broken_by_a_maximum(x):
    """XNNPACK has no max pooling in channels first: what stands before it would be fed on in the wrong order."""
    x = layers.MaxPooling2D(2, strides=1)(x)
    return layers.Dense(16, name="head")(layers.GlobalAveragePooling2D()(x))


@pytest.mark.filterwarnings("ignore:.*zeros in mix_1/kernel, mix_2/kernel make the file smaller, but nothing faster")
@pytest.mark.parametrize("target", ["android", None])
def test_where_sparse_inference_would_be_wrong_nothing_switches_it_on(tmp_path, pictures, target):
    report = export(mobile_net(tail=broken_by_a_maximum), tmp_path / "model.tflite", target=target, data=pictures)
    found = inspect(tmp_path / "model.tflite", target="web")
    assert not found.runs_sparse
    assert not found.dangers
    assert report.changes == ()
    assert any("would answer wrongly" in note or "would stay off" in note for note in report.notes)


@pytest.mark.parametrize("target", ["web", "x86", None])
def test_a_cluster_that_would_be_fed_on_in_the_wrong_order_is_never_switched_on(tmp_path, pictures, target):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(image))
    x = layers.MaxPooling2D(2, strides=1)(layers.Conv2D(32, 1, activation="relu", name="mix")(x))
    x = layers.Conv2D(32, 1, activation="relu", name="later")(x)
    model = keras.Model(image, layers.Dense(16)(layers.GlobalAveragePooling2D()(x)))
    kp.prune(model, 0.9, scope=kp.Scope(include=".*(mix|later)/kernel"), allocation="uniform")
    assert inspect(model, target="web").dangers
    report = export(model, tmp_path / "model.tflite", target=target, data=pictures)
    found = inspect(tmp_path / "model.tflite", target="web")
    assert not found.runs_sparse
    assert not found.dangers
    (line,) = (line for line in report.lines if line.name == "mix/kernel")
    assert line.encoding is Encoding.DENSE
    assert line.reason.startswith("behind a DENSIFY, ARM and WebAssembly would answer wrongly: ")


def test_tuning_does_not_bring_back_what_was_taken_out_as_wrong_elsewhere(tmp_path, pictures, monkeypatch):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(image))
    x = layers.MaxPooling2D(2, strides=1)(layers.Conv2D(32, 1, activation="relu", name="mix")(x))
    x = layers.Conv2D(32, 1, activation="relu", name="later")(x)
    model = keras.Model(image, layers.Dense(64, name="head")(layers.GlobalAveragePooling2D()(x)))
    kp.prune(model, 0.9, allocation="uniform", scope=kp.Scope(include=".*(mix|later|head)/kernel"))
    # A PC finds a DENSIFY in front of the head as fast as anything, and it takes the fewest bytes.
    monkeypatch.setattr(tune, "measure", lambda sessions: dict.fromkeys(sessions, 1.0))
    export(model, tmp_path / "model.tflite", data=pictures, tune=True)
    found = inspect(tmp_path / "model.tflite", target="web")
    assert not found.runs_sparse
    assert not found.dangers


def test_what_is_beside_the_file_is_written_with_it(tmp_path, pictures):
    model = mobile_net()
    export(
        model,
        tmp_path / "model.tflite",
        target="android",
        data=pictures,
        golden=tmp_path / "golden.npz",
        c_array=tmp_path / "model",
    )
    golden = read_golden(tmp_path / "golden.npz")
    np.testing.assert_allclose(next(iter(golden.outputs.values())), model(pictures), rtol=0, atol=1e-6)
    content = (tmp_path / "model.tflite").read_bytes()
    assert f"{len(content)}" in (tmp_path / "model.cc").read_text() + (tmp_path / "model.h").read_text()
    summary = read_metadata(flatbuffer.read(content))
    assert summary["target"] == "android"
    assert 0.4 < summary["sparsity"] < 0.9


def test_a_file_for_microcontrollers_runs_there(tmp_path, pictures):
    pytest.importorskip("tflite_micro")
    net = [keras.Input((SIZE, SIZE, 3)), layers.Conv2D(4, 3, strides=2, activation="relu"), layers.Flatten()]
    model = keras.Sequential([*net, layers.Dense(3)])
    with pytest.raises(ExportError, match=r"target 'mcu': takes quantize='int8'\. Received: None"):
        export(model, tmp_path / "model.tflite", target="mcu", data=pictures)
    report = export(model, tmp_path / "model.tflite", target="mcu", quantize="int8", data=pictures)
    assert report.micro.arena_bytes > 0
    assert "arena" in str(report)


def test_a_model_is_exported_and_verified_by_its_path(tmp_path, pictures):
    from tflite_export import verify

    model = mobile_net()
    model.save(tmp_path / "model.keras")
    export(tmp_path / "model.keras", tmp_path / "model.tflite", target="web", data=pictures)
    assert verify(tmp_path / "model.tflite", tmp_path / "model.keras", pictures).max_relative < 1e-5
