import json

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import ExportError, benchmark, export


@pytest.fixture(scope="module")
def net(make_dense_net):
    return make_dense_net()


@pytest.fixture(scope="module")
def files(tmp_path_factory, net, inputs):
    folder, data = tmp_path_factory.mktemp("files"), inputs(net)[0]
    export(net, folder / "sparse.tflite", data=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tflite_export.eligibility.SMALLEST", 10**9)
        export(net, folder / "dense.tflite", data=data)
    return folder / "dense.tflite", folder / "sparse.tflite"


def test_files_are_timed_against_the_first_and_their_outputs_compared(files):
    report = benchmark(*files, rounds=7, warm_up=1)
    first, second = report.timings
    assert (first.ratio, first.max_difference) == (1.0, 0.0)
    assert second.max_difference < 1e-5
    assert second.file_bytes < first.file_bytes
    assert first.low_ms <= first.median_ms <= first.high_ms
    assert report.rounds == 7
    assert "dense.tflite" in str(report)
    assert "ratio: median over the rounds of first file's time / this file's" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["files"][1]["ratio"] == second.ratio


def test_a_file_that_answers_otherwise_shows_it(files, tmp_path, dense_net, inputs):
    dense_net.layers[1].bias.assign_add(np.ones(16))
    export(dense_net, tmp_path / "other.tflite", data=inputs(dense_net)[0])
    report = benchmark(files[0], tmp_path / "other.tflite", rounds=1, batch=4, data=inputs(dense_net, samples=4)[0])
    assert report.batch == 4
    assert report.timings[1].max_difference > 0.1


def test_what_cannot_be_compared_is_refused(files, tmp_path, inputs):
    model = keras.Sequential([keras.Input((5, 8), name="other"), layers.GRU(4)])
    export(model, tmp_path / "other.tflite", data=inputs(model)[0])
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    two = keras.Model([left, right], layers.Dense(2)(layers.Add()([left, right])))
    export(two, tmp_path / "two.tflite", data=inputs(two))
    with pytest.raises(ExportError, match=r"must have the inputs of the first file.* Received: \['left', 'right'\]"):
        benchmark(files[0], tmp_path / "two.tflite")
    with pytest.raises(ExportError, match=r"must take the inputs"):
        benchmark(files[0], tmp_path / "other.tflite")
    with pytest.raises(ExportError, match=r"must take a batch of 2\. Received: 1"):
        benchmark(tmp_path / "other.tflite", data=np.ones((2, 5, 8)))
    with pytest.raises(ExportError, match=r"runtime: must be one of \('litert',\)\. Received: 'toaster'"):
        benchmark(files[0], runtime="toaster")
    with pytest.raises(ExportError, match=r"needs a file, and rounds, batch and threads of 1 or more"):
        benchmark(files[0], rounds=0)
    with pytest.raises(ExportError, match=r"needs a file"):
        benchmark()
