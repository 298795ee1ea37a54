"""Models go into a container and come back bit for bit; files that are damaged or lie are refused, with the place."""

import importlib.util
import json
import pathlib
import random
import struct
import tracemalloc
import warnings
import zlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp
from benchmarks import kpz_mutants
from keras_prune.container import container
from keras_prune.container.archives import CONFIG, METADATA
from keras_prune.container.errors import ContainerError
from keras_prune.container.records import Member, Record, pack_member, read_records, unpack_member, write_records
from keras_prune.container.tensors import Tensor, pack

spec = importlib.util.spec_from_file_location("kpz_reader", pathlib.Path(__file__).with_name("reader.py"))
reader = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reader)


def shared(model, values=16):
    """Prunes a model's kernels, and makes what stays few values, by hand."""
    model = kp.strip(kp.prune(model, 0.9))
    for variable in model.trainable_variables:
        if variable.name == "kernel":
            weights = variable.numpy()
            bars = np.quantile(weights[weights != 0], np.linspace(0, 1, values + 1)[1:-1])
            variable.assign(np.where(weights, np.r_[bars, 2 * bars[-1]][np.searchsorted(bars, weights)], 0))
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((40,)), layers.Dense(60, "relu", name="a"), layers.Dense(3, name="b")])
    made.compile("adam", "mse", metrics=["mae"])
    return shared(made)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """The model's container: its path, its bytes, and the report."""
    path = tmp_path_factory.mktemp("kpz") / "model.kpz"
    return path, kp.save_kpz(model, path), path.read_bytes()


def equal(model, other):
    pairs = list(zip(model.weights, other.weights, strict=True))
    return all(a.name == b.name and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs)


def test_a_pruned_and_shared_model_comes_back_bit_for_bit(model, written):
    path, report, content = written
    back = kp.load_kpz(path)
    assert equal(model, back)
    x, y = np.random.default_rng(0).normal(size=(8, 40)).astype("float32"), np.zeros((8, 3), "float32")
    assert np.array_equal(model.predict(x, verbose=0), back.predict(x, verbose=0))
    assert back.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    assert not kp.load_kpz(path, compile=False).compiled
    back.fit(x, y, verbose=0)
    assert np.array_equal(back.layers[0].kernel.numpy() == 0, model.layers[0].kernel.numpy() == 0)
    # What is written does not depend on what was written before, or on where objects lie in memory.
    again = path.with_name("again.kpz")
    kp.save_kpz(model, again)
    assert again.read_bytes() == content
    assert report.total == len(content)


def test_the_report_adds_up(model, written):
    _, report, content = written
    kernel = {tensor.path: tensor for tensor in report.tensors}["a/kernel"]
    weights = model.layers[0].kernel.numpy()
    places = np.flatnonzero(weights)
    assert (kernel.shape, kernel.form, kernel.stored, kernel.distinct) == ((40, 60), "sparse, coded", len(places), 17)
    assert kernel.float32 == 9600
    # Huffman's codes take no less than the entropy, and less than a bit more for each symbol.
    for symbols, table, taken in [
        (weights.flat[places], 0, kernel.values),
        (np.diff(places, prepend=-1), 1 + 2 * 8 + 256, kernel.indices),
    ]:
        _, counts = np.unique(symbols, return_counts=True)
        bits = float(-(counts * np.log2(counts / counts.sum())).sum())
        assert bits / 8 <= taken <= (bits + len(places)) / 8 + 1 + table
    assert 4 + 16 * 4 + 1 + 2 * 4 <= kernel.codebook <= 4 + 16 * 4 + 1 + 2 * 6
    assert report.float32 == 4 * sum(w.size for w in model.get_weights())
    assert report.rest + sum(t.total for t in report.tensors) == report.total == len(content)
    entries = json.loads(json.dumps(report.to_dict()))
    assert (entries["total"], entries["tensors"][0]["shape"]) == (len(content), list(report.tensors[0].shape))
    assert entries["factor"] == pytest.approx(report.float32 / len(content))
    assert [word in str(report) for word in ("a/kernel", "40x60", "whole file", f"{len(content):,}")] == [True] * 4


def test_a_reader_of_ones_own_finds_the_same(model, written):
    files, tensors = reader.read(written[2])
    assert set(tensors) == {f"layers/{layer}/vars/{i}" for layer in ("dense", "dense_1") for i in (0, 1)}
    kind, shape, words = tensors["layers/dense/vars/0"]
    assert (kind, shape, b"".join(words)) == ("f", (40, 60), model.layers[0].kernel.numpy().tobytes())
    assert json.loads(files["config.json"])["config"]["layers"][1]["config"]["units"] == 60
    assert json.loads(files["metadata.json"]) == {"keras_version": keras.version()}


def everything():
    """A model with state outside its weights, every type of it, and one layer in two places."""
    number, word = keras.Input((4,), name="number"), keras.Input((1,), name="word", dtype="string")
    text = keras.Input((), name="text", dtype="string")
    normal = layers.Normalization()
    normal.adapt(np.random.default_rng(0).normal(3, 2, (32, 4)))
    words, texts = layers.StringLookup(), layers.TextVectorization(output_mode="tf_idf")
    words.adapt(["apple", "apple", "größe"])
    texts.adapt(["a b", "b c", "c c d"])
    twice = layers.Dense(4, dtype="bfloat16")
    x = layers.BatchNormalization()(twice(twice(normal(number))))
    inner = keras.Sequential([keras.Input((2, 2)), layers.LSTM(3), layers.Dropout(0.1)], name="inner")
    y = layers.Flatten()(layers.Embedding(5, 2)(words(word)))
    z = inner(layers.Reshape((2, 2))(x))
    return keras.Model([number, word, text], layers.Concatenate()([z, y, texts(text)]))


def test_state_outside_the_weights_comes_back(tmp_path):
    model = everything()
    report = kp.save_kpz(model, tmp_path / "m.kpz")
    back = kp.load_kpz(tmp_path / "m.kpz")
    assert equal(model, back)
    inputs = {
        "number": np.random.default_rng(1).normal(3, 2, (6, 4)).astype("float32"),
        "word": np.array([["apple"], ["größe"], ["?"]] * 2),
        "text": np.array(["a b", "c c", "d e"] * 2),
    }
    inputs = {name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()}
    assert np.array_equal(np.array(model(inputs)), np.array(back(inputs)))
    assert {"bfloat16", "float32"} <= {str(getattr(r.what, "dtype", "")) for r in read_records(tmp_path / "m.kpz")}
    assert "inner/lstm/lstm_cell/kernel" in {tensor.path for tensor in report.tensors}


def test_what_a_training_needs_is_left_out_and_the_rest_is_kept(model, tmp_path):
    trained = keras.models.clone_model(model)
    trained.compile("adam", "mse")
    trained.fit(np.ones((8, 40)), np.ones((8, 3)), verbose=0, callbacks=[kp.Pruning(0.5)])
    report = kp.save_kpz(trained, tmp_path / "m.kpz")
    assert len(report.tensors) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = kp.load_kpz(tmp_path / "m.kpz")
    assert equal(trained, back)
    assert int(back.optimizer.iterations) == 0


@keras.saving.register_keras_serializable("tests")
class Scaled(layers.Layer):
    """Saves what is no weight; has a tensor of its own name in the file."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = np.full(50, factor, "float64")

    def call(self, x):
        return x * keras.ops.cast(self.factor[0], x.dtype)

    def save_own_variables(self, store):
        store["factor"] = self.factor

    def load_own_variables(self, store):
        self.factor = np.array(store["factor"])


def test_what_a_layer_saves_by_itself_comes_back(tmp_path):
    model = keras.Sequential([keras.Input((2,)), Scaled()])
    model.layers[0].factor[:] = 3.5
    report = kp.save_kpz(model, tmp_path / "m.kpz")
    assert kp.load_kpz(tmp_path / "m.kpz").layers[0].factor.tolist() == [3.5] * 50
    assert [(t.path, t.form, t.values) for t in report.tensors] == [("layers/scaled/vars/factor", "coded", 0)]


def test_arguments_that_are_no_built_model_are_refused(tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=r"takes a keras\.Model\. Received: 3"):
        kp.save_kpz(3, tmp_path / "m.kpz")
    with pytest.raises(ValueError, match="takes a built model"):
        kp.save_kpz(keras.Sequential([layers.Dense(1)]), tmp_path / "m.kpz")
    with pytest.raises(ValueError, match="its folder must exist"):
        kp.save_kpz(keras.Sequential([keras.Input((1,)), layers.Dense(1)]), tmp_path / "none" / "m.kpz")
    monkeypatch.setitem(__import__("sys").modules, "bitarray.util", None)
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[compression\]"'):
        kp.load_kpz(tmp_path / "m.kpz")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()])
def test_what_stops_halfway_leaves_the_previous_file(model, written, tmp_path, monkeypatch, failure):
    path = tmp_path / "m.kpz"
    path.write_bytes(b"before")

    def some(archive, seen):
        yield from list(read_records(written[0]))[:3]
        raise failure

    monkeypatch.setattr(container, "pack_archive", some)
    with pytest.raises(type(failure)):
        kp.save_kpz(model, path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("m.kpz", b"before")]


def test_a_report_on_a_larger_file_says_so(tmp_path):
    report = kp.save_kpz(keras.Sequential([keras.Input((1,)), layers.Dense(1)]), tmp_path / "m.kpz")
    assert str(report).startswith(f"{report.total:,} bytes, no fewer than 8 of float32")


# -- files that are damaged, or lie -----------------------------------------------------------------------------------


def refused(path, message):
    with pytest.raises(ContainerError, match=message) as refusal:
        kp.load_kpz(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return refusal.value


def test_a_truncated_file_is_refused_wherever_it_ends(written, tmp_path):
    content, path = written[2], tmp_path / "m.kpz"
    for length in [*range(80), *range(80, len(content), 29), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path, "where the header says|cut off|begins with")
    path.write_bytes(content + b"\0")
    refused(path, f"byte 0, the file's header: {len(content) + 1} bytes, where the header says {len(content)}")


def test_every_byte_is_covered_by_a_checksum(written, tmp_path):
    content, path = written[2], tmp_path / "m.kpz"
    for at in [*range(90), *random.Random(0).sample(range(90, len(content)), 150)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(ContainerError):
            list(read_records(path))


def test_an_error_names_the_record(written, tmp_path):
    content, path = bytearray(written[2]), tmp_path / "m.kpz"
    content[content.index(b"layers/dense/vars/0") + 30] ^= 1
    path.write_bytes(content)
    refused(path, r"byte \d+, tensor 'layers/dense/vars/0': the checksum of its content does not match")


def written_with(path, written, replace, also=()):
    """Writes a container anew, its checksums right, its records changed by a function of their names."""
    records = [replace(record) for record in read_records(written[0])]
    with open(path, "xb") as stream:
        write_records(stream, [record for record in records if record is not None] + list(also))
    return path


def config_of(written):
    record = next(record for record in read_records(written[0]) if record.what.name == CONFIG)
    return json.loads(unpack_member(record.what, record.payload))


def with_config(written, path, change):
    """Writes a container with another architecture."""
    config = change(config_of(written))
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    return written_with(path, written, lambda r: pack_member(CONFIG, content) if r.what.name == CONFIG else r)


def units(config, number):
    config["config"]["layers"][1]["config"]["units"] = number
    for layer in config["config"]["layers"]:
        layer["build_config"] = None
    return config


def lambda_layer(config):
    code = {"class_name": "__lambda__", "config": {"value": "AAAA", "defaults": None, "closure": None}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}, "registered_name": None}
    config["config"]["layers"].append(layer)
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: units(config, 10**7), r"asks for .* weights, and the file holds 2,643"),
        (lambda config: units(config, 59), "no model can be made from it"),
        (lambda config: units(config, "many"), "no model can be made from it"),
        (lambda_layer, "lambda"),
        (lambda config: {**config, "class_name": "Unheard"}, "Unheard"),
        (
            lambda config: {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2}},
            "no model, but Dense",
        ),
        (lambda config: b"[" * 200_000 + b"]" * 200_000, "no JSON that can be read|times as many"),
        (lambda config: b'{"class_name": ' * 3000 + b"1" + b"}" * 3000, "no JSON that can be read"),
        (lambda config: b"[]", "JSON that describes no model"),
        (lambda config: b"\xff", "no JSON"),
        (lambda config: {**config, "compile_config": {"optimizer": "unheard"}}, "With compile=False"),
    ],
)
def test_an_architecture_that_makes_no_such_model_is_refused(written, tmp_path, change, message):
    refused(with_config(written, tmp_path / "m.kpz", change), message)


def test_sizes_that_lie_are_refused_before_anything_is_allocated(written, tmp_path):
    dtype = np.dtype("<f4")
    empty = pack("x", np.zeros(3, dtype))
    zeros = Tensor("x", dtype, (10**9,), True, False, 0, 0, 0)
    many = [Tensor(f"x{i}", dtype, (10**7,), True, False, 0, 0, 0) for i in range(9)]
    cases = {
        "zeros": ([Record(zeros, b"")], "4000.* bytes unpacked, where"),
        "many": ([Record(each, b"") for each in many], "bytes unpacked, where"),
        "bomb": ([Record(Member("assets/a", True, 10**6), zlib.compress(bytes(10**7), 9))], "does not unpack to the"),
        "packed": ([Record(Member("assets/a", True, 10**9), b"..")], "bytes unpacked, where|100 times"),
        "twice": ([Record(empty.tensor, empty.payload)] * 2, "a name that is there already"),
    }
    for name, (also, message) in cases.items():
        path = written_with(tmp_path / name, written, lambda record: record, also)
        tracemalloc.start()
        refused(path, message)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 * 2**20, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("assets/../../x", "outside of its folder"),
        ("/etc/x", "outside of its folder"),
        ("assets\\x", "outside of its folder"),
        ("model.weights.h5", "where config.json, metadata.json and assets/ may be"),
        (CONFIG, "there already"),
    ],
)
def test_files_lie_where_they_belong(written, tmp_path, name, message):
    refused(written_with(tmp_path / "m.kpz", written, lambda record: record, [pack_member(name, b"x")]), message)


def test_names_of_tensors_make_one_tree(written, tmp_path):
    for i, name in enumerate(["layers/dense", "layers/dense/vars/0/1", "a//b", "", "a\0b", "./a"]):
        packed = pack(name, np.ones(1, "float32"))
        path = written_with(tmp_path / str(i), written, lambda r: r, [Record(packed.tensor, packed.payload)])
        refused(path, "there already, or is a folder of another|that is no path")


def test_a_missing_record_is_refused(written, tmp_path):
    def without(name):
        return written_with(tmp_path / name.replace("/", "-"), written, lambda r: None if r.what.name == name else r)

    refused(without(CONFIG), "there is no config.json")
    refused(without(METADATA), "there is no metadata.json")
    refused(without("layers/dense/vars/1"), "no model can be made from it")


def test_a_later_version_says_so(written, tmp_path):
    content = bytearray(written[2])
    content[8:10] = struct.pack("<H", 2)
    content[32:36] = struct.pack("<I", zlib.crc32(content[:32]))
    (tmp_path / "m.kpz").write_bytes(content)
    refused(tmp_path / "m.kpz", "version 2.0 of the format, where 1.0 is known: a later keras-prune")


def test_mutants_end_in_an_error_of_ours_or_a_model(written, tmp_path):
    outcomes = [kpz_mutants.attempt(each, tmp_path / "m.kpz") for each in kpz_mutants.mutants(written[2], 150, seed=1)]
    assert {outcome.kind for outcome in outcomes} <= {"refused", "a model"}
    # Mutants whose checksums were put right reach the readers of headers, tables and codes.
    assert len({outcome.words for outcome in outcomes}) > 25
