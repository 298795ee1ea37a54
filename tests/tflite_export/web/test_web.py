"""LiteRT.js under Node and in Chromium: what it answers, and that what it gets wrong is refused."""

import json
import os
import signal
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_prune.arrays.distance import largest_difference
from tests.tflite_export.graphs import fill
from tests.tflite_export.installed import missing
from tflite_export import ExportError, benchmark
from tflite_export.file import flatbuffer
from tflite_export.file.encoding import encode_csr
from tflite_export.runtimes import litertjs
from tflite_export.runtimes.cache import cache_folder
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import LiteRTSession
from tflite_export.runtimes.opening import open_foreign
from tflite_export.verification.sparse_run import sparse_runtime, verify_where_sparse, why_not_executed
from tflite_export.web.chromium import find_chromium
from tflite_export.web.limitations import web_refusal, with_fixed_sizes
from tflite_export.web.node import NodeHost, find_node, node_command
from tflite_export.web.page_files import web_files
from tflite_export.web.web_session import WebSession, open_web

WITHOUT_NODE = missing(litertjs.find_web_runtime, find_node)
WITHOUT_CHROMIUM = missing(litertjs.find_web_runtime, find_chromium)
node = pytest.mark.skipif(bool(WITHOUT_NODE), reason=WITHOUT_NODE)
chromium = pytest.mark.skipif(bool(WITHOUT_CHROMIUM), reason=WITHOUT_CHROMIUM)


def convert(model):
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def sparse_pointwise(content):
    """Return the file with its mostly zero convolution weights stored sparse, whatever becomes of it."""
    model = flatbuffer.read(content)
    (graph,) = model.subgraphs
    for index, tensor in enumerate(list(graph.tensors)):
        values = flatbuffer.constant(model, tensor)
        if values is not None and values.ndim == 4 and np.mean(values == 0) > 0.7:
            sparse = encode_csr(values)
            tensor.buffer = flatbuffer.add_buffer(model, sparse.values)
            tensor.sparsity = flatbuffer.sparsity_parameters(sparse)
            flatbuffer.densify(model, graph, index)
    return flatbuffer.write(model)


@pytest.fixture(scope="module")
def make_pointwise(zero_out):
    """A function that makes a net that XNNPACK runs sparse, 90 % zeros in its 1x1 convolutions; or with a tail that
    it cannot allocate: a pruned convolution behind the mean."""

    def make(good=True, batch=1):
        keras.utils.set_random_seed(0)
        image = keras.Input((16, 16, 3), batch_size=batch, name="image")
        x = layers.Conv2D(8, 3, 2, activation="relu")(layers.ZeroPadding2D(1)(image))
        x = layers.Conv2D(32, 1, activation="relu")(x)
        x = layers.Conv2D(64, 1, activation="relu")(x)
        if good:
            x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
        else:
            x = layers.Reshape((32,))(layers.Conv2D(32, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x)))
        model = keras.Model(image, x)
        keep = {layer.name: layer.get_weights() for layer in (model.layers[2], model.layers[-1])}
        zero_out(model)
        if good:  # dense at both ends, as pruning leaves them
            for name, weights in keep.items():
                model.get_layer(name).set_weights(weights)
        return model

    return make


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(size=(3, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="module")
def pointwise(make_pointwise):
    return sparse_pointwise(convert(make_pointwise()))


@pytest.fixture(scope="module")
def host():
    with NodeHost() as opened:
        yield opened


# -- the package -------------------------------------------------------------------------------------------------------


def test_what_is_not_installed_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    with pytest.raises(ExportError, match=r"must be installed.* Run: tflite-export install web") as caught:
        litertjs.find_web_runtime()
    assert caught.value.received == f"nothing of that version in '{tmp_path / 'litertjs-2.5.3'}'"
    assert [sparse_runtime(target) for target in ("web", "android", "x86")] == [None, None, None]
    assert why_not_executed(b"", "web").startswith("sparse kernels not executed: neither LiteRT.js nor")
    assert not list(tmp_path.iterdir())  # looking installs nothing


def test_another_version_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    package = litertjs.web_runtime_folder() / "node_modules" / "@litertjs" / "core"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "2.5.2"}')
    with pytest.raises(ExportError, match="must be installed"):
        litertjs.find_web_runtime()
    (package / "package.json").write_text('{"version": "2.5.3"}')
    with pytest.raises(ExportError, match=r"LiteRT\.js in .* must be whole"):
        web_files(litertjs.find_web_runtime())


def test_without_npm_nothing_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="npm: must be on the PATH"):
        litertjs.install_web_runtime()
    monkeypatch.delenv("NODE", raising=False)
    with pytest.raises(ExportError, match=r"Node\.js: must be on the PATH or named by \$NODE"):
        find_node()
    monkeypatch.delenv("CHROME", raising=False)
    with pytest.raises(ExportError, match=r"Chromium: must be on the PATH or named by \$CHROME"):
        find_chromium()


def test_an_installation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path / "cache"))
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho checksum is wrong >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ExportError, match=r"must install by 'ci --ignore-scripts.* Received: checksum is wrong"):
        litertjs.install_web_runtime()
    assert not list((tmp_path / "cache").iterdir())


def test_every_package_is_pinned_by_a_checksum():
    lock = json.loads((litertjs.ASSETS / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"]["@litertjs/core"] == litertjs.VERSION
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert set(packages) == {"node_modules/@litertjs/core", "node_modules/@litertjs/wasm-utils"}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())


# -- what goes there ---------------------------------------------------------------------------------------------------


def test_a_free_batch_is_fixed(make_pointwise, image):
    free = convert(make_pointwise(batch=None))
    fixed = with_fixed_sizes(free, 3)
    session = LiteRTSession(fixed)
    assert (LiteRTSession(free).batch_size, session.batch_size) == (None, 3)
    names, outputs = list(session.inputs), list(session.outputs)
    here = LiteRTSession(free).run([image], names, outputs)
    assert largest_difference(here, session.run([image], names, outputs)) < 1e-6
    assert with_fixed_sizes(fixed, 1) is fixed


def test_another_free_dimension_is_refused():
    sequence = keras.Input((None, 4), batch_size=1, name="sequence")
    content = convert(keras.Model(sequence, layers.Dense(2)(sequence)))
    with pytest.raises(ExportError, match=r"only its batch may be free.* Received: \[1, -1, 4\]"):
        with_fixed_sizes(content)


def test_free_sizes_are_fixed_by_a_run_in_the_place_that_the_file_is_due():
    sequence = keras.Input((None, 4), batch_size=1, name="sequence")
    content = convert(keras.Model(sequence, layers.Dense(2)(sequence)))
    opened = []

    def open_file(*arguments, **options):
        opened.append(open_foreign(*arguments, **options))
        return opened[0]

    (name,) = LiteRTSession(content).inputs
    fixed = with_fixed_sizes(content, 1, feeds={name: np.ones((1, 6, 4), "float32")}, open_file=open_file)
    assert LiteRTSession(fixed).inputs[name]["shape_signature"].tolist() == [1, 6, 4]
    assert [type(session).__name__ for session in opened] == ["IsolatedSession"]


def test_types_that_litert_js_lacks_are_named():
    flag = keras.Input((4,), batch_size=1, dtype="bool", name="flag")
    content = convert(keras.Model(flag, layers.Lambda(lambda x: keras.ops.cast(x, "float32"))(flag)))
    assert "is bool" in web_refusal(content)


def test_a_kind_of_simd_that_does_not_exist_is_refused():
    with pytest.raises(ExportError, match=r"simd: must be one of \('relaxed', 'plain'\)\. Received: 'fast'"):
        open_web(simd="fast")


# -- under Node --------------------------------------------------------------------------------------------------------


@node
def test_the_sparse_file_answers_as_here_in_both_kinds_of_simd(pointwise, image):
    here = LiteRTSession(pointwise)
    names, outputs = list(here.inputs), list(here.outputs)
    wanted = here.run([image], names, outputs)
    for simd in ("relaxed", "plain"):
        opened = open_web(simd=simd)
        try:
            session = WebSession(opened, pointwise)
            assert session.batch_size == 1
            assert largest_difference(wanted, session.run([image], names, outputs)) < 1e-5
            assert session.time_beside([], 3, warm_up=1).shape == (3, 1)
            assert f"{simd} SIMD" in opened.description
        finally:
            opened.close()


@node
def test_several_inputs_go_by_name(host):
    left = keras.Input((3,), batch_size=1, name="left")
    right = keras.Input((3,), batch_size=1, name="right", dtype="int32")
    content = convert(keras.Model([left, right], left - 10 * keras.ops.cast(right, "float32")))
    session = WebSession(host, content)
    feeds = [np.array([[1, 2, 3]], dtype="int32"), np.array([[0.5, 0.5, 0.5]], dtype="float32")]
    (answer,) = session.run(feeds, ["right", "left"], list(session.outputs))
    assert answer.tolist() == [[-9.5, -19.5, -29.5]]
    with pytest.raises(ExportError, match=r"knows the names \['left', 'right'\]\. Received: \['up'\]"):
        session.feed(feeds[:1], ["up"])
    with pytest.raises(ExportError, match=r"input 'right'.*must be given with the shape \(1, 3\)\. Received: nothing"):
        session.feed(feeds[1:], ["left"])
    with pytest.raises(ExportError, match=r"input 'left'.*must be given with the shape \(1, 3\)\. Received: \(2, 3\)"):
        session.feed([feeds[0], np.ones((2, 3))], ["right", "left"])
    session.close()
    with pytest.raises(ExportError, match=r"LiteRT\.js must invoke it"):
        session.invoke()


@node
def test_garbage_is_refused_with_what_the_runtime_printed(host, make_pointwise, image):
    content = sparse_pointwise(convert(make_pointwise(good=False)))
    here = LiteRTSession(content)  # right on a PC
    names, outputs = list(here.inputs), list(here.outputs)
    wanted = here.run([image], names, outputs)
    with pytest.raises(ExportError, match=r"must equal the model's outputs to 0\.0001.*Failed to allocate tensors"):
        verify_where_sparse(content, [image], wanted, names, outputs, tolerance=1e-4, host=host)


@node
def test_a_file_is_verified_where_its_kernels_are_sparse(host, make_pointwise, pointwise, image):
    names, outputs = list(LiteRTSession(pointwise).inputs), list(LiteRTSession(pointwise).outputs)
    wanted = [np.concatenate([np.asarray(make_pointwise()(row[None])) for row in image])]
    run = verify_where_sparse(pointwise, [image], wanted, names, outputs, tolerance=1e-4, host=host)
    assert (run.samples, run.tolerance) == (3, 1e-4)
    assert 0 < run.max_relative < 1e-5
    assert str(run).startswith("sparse kernels executed: LiteRT.js under Node")
    assert json.loads(json.dumps(run.to_dict()))["runtime"] == host.description
    wanted[0][2] += 1.0
    with pytest.raises(ExportError, match="must equal the model's outputs"):
        verify_where_sparse(pointwise, [image], wanted, names, outputs, tolerance=1e-4, host=host)


@node
def test_a_benchmark_runs_there_and_compares(tmp_path, make_pointwise, pointwise):
    (tmp_path / "dense.tflite").write_bytes(convert(make_pointwise()))
    (tmp_path / "sparse.tflite").write_bytes(pointwise)
    report = benchmark(tmp_path / "dense.tflite", tmp_path / "sparse.tflite", runtime="wasm", rounds=3, twins=True)
    assert (report.runtime, report.unit, report.rounds, report.warm_up) == ("web", "ms", 3, 5)
    dense, sparse = report.timings
    assert dense.twin_ratio is None
    assert sparse.twin_ratio > 0
    assert 0 < sparse.max_difference < 1e-5  # other kernels: sums in another order
    (tmp_path / "bad.tflite").write_bytes(sparse_pointwise(convert(make_pointwise(good=False))))
    with pytest.raises(ExportError, match="must equal LiteRT's outputs"):
        benchmark(tmp_path / "bad.tflite", runtime="web", rounds=1)


@node
def test_a_process_that_ends_is_an_error(pointwise):
    opened = NodeHost()
    try:
        session = WebSession(opened, pointwise)
        opened._process._process.kill()
        with pytest.raises(ExportError, match=r"must answer\. Received: SIGKILL"):
            session.invoke()
    finally:
        opened.close()


@node
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a limit of memory")
def test_memory_of_files_of_unknown_origin_is_limited(host):
    with open_web(limits=Limits(memory=2**29)) as limited:
        for opened, elements in ((limited, 2**20), (host, 2**26)):
            session = WebSession(opened, fill(elements))
            session.feed([np.float32(3)], ["x"])
            session.invoke()
            assert session.fetch(["y"])[0][:2].tolist() == [3.0, 3.0]
            session.close()
        session = WebSession(limited, fill(2**27))
        session.feed([np.float32(3)], ["x"])
        with pytest.raises(ExportError, match=r"more than its limits, 120 s for a step and 0\.5 GiB of memory"):
            session.invoke()


@node
def test_a_request_that_takes_too_long_is_ended(pointwise):
    with open_web(limits=Limits(seconds=60)) as opened:
        session = WebSession(opened, pointwise)
        opened.limits = Limits(seconds=0.3)
        os.kill(opened._process._process.pid, signal.SIGSTOP)
        with pytest.raises(ExportError, match=r"must answer\. Received: no answer within 0\.3 s.*--seconds"):
            session.invoke()


@node
def test_a_node_that_does_not_start_is_an_error(tmp_path):
    program = tmp_path / "node"
    program.write_text("#!/bin/sh\necho too old >&2\nexit 9\n")
    program.chmod(0o755)
    assert node_command(str(program), "plain") == [str(program)]
    with pytest.raises(ExportError, match=r"must have WebAssembly's relaxed SIMD\. Received: too old"):
        node_command(str(program), "relaxed")


# -- in Chromium -------------------------------------------------------------------------------------------------------


@chromium
def test_chromium_answers_as_here(pointwise, image):
    here = LiteRTSession(pointwise)
    names, outputs = list(here.inputs), list(here.outputs)
    opened = open_web(browser=True)
    try:
        session = WebSession(opened, pointwise)
        assert largest_difference(here.run([image], names, outputs), session.run([image], names, outputs)) < 1e-5
        assert session.time_beside([], 2, warm_up=0).shape == (2, 1)
        assert "Chrome/" in opened.description
    finally:
        opened.close()


@chromium
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a limit of memory")
def test_a_page_keeps_the_limits_and_one_that_ends_is_an_error():
    with open_web(browser=True, limits=Limits(memory=2**29)) as opened:
        for elements, fits in ((2**20, True), (2**27, False)):
            session = WebSession(opened, fill(elements))
            session.feed([np.float32(3)], ["x"])
            if fits:
                session.invoke()
                assert session.fetch(["y"])[0][:2].tolist() == [3.0, 3.0]
                session.close()
            else:
                with pytest.raises(ExportError, match=r"more than its limits, 120 s for a step and 0\.5 GiB of memory"):
                    session.invoke()
        for number in opened._renderers:
            os.kill(number, signal.SIGKILL)
        with pytest.raises(ExportError, match=r"must answer\. Received: its page ended"):
            session.invoke()
