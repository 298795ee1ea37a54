"""Checkpoints of a pruned training: sparse, whole, loadable with and without the library's state, in every format."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import keras_prune as kp

X = np.random.default_rng(0).standard_normal((64, 8)).astype("float32")
Y = (X @ np.random.default_rng(1).standard_normal((8, 3))).astype("float32")
RAMP = kp.schedules.Linear(0.0, 0.6, begin_step=1, end_step=6, frequency=2)
METHODS = {
    "magnitude": lambda: kp.Pruning(RAMP),
    "taylor": lambda: kp.GradientPruning(RAMP),
    "surgery": lambda: kp.DynamicPruning(RAMP, "surgery"),
}


def make_model(optimizer="adam"):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(10, activation="relu"), layers.Dense(3)])
    model.compile(optimizer, "mse")
    return model


class Save(keras.callbacks.Callback):
    """Writes a checkpoint in the middle, between two updates of the masks."""

    def __init__(self, path, at=4):
        super().__init__()
        self.path, self.at = str(path), at

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.at:
            save = self.model.save if self.path.endswith(".keras") else self.model.save_weights
            save(self.path)
            self.weights = self.model.get_weights()
            self.moments = [v.numpy() for v in self.model.optimizer.variables if "pruning_" not in v.name]


def fit(model, *callbacks, epochs=1):
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "optimizer",
    [lambda: "adam", lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01, momentum=0.9))],
    ids=["adam", "scaled"],
)
def test_a_keras_file_of_the_middle_loads_in_plain_keras(tmp_path, recwarn, method, optimizer):
    save = Save(tmp_path / "m.keras")
    fit(make_model(optimizer()), METHODS[method](), save)
    recwarn.clear()
    loaded = keras.saving.load_model(save.path)
    assert not [str(w.message) for w in recwarn if "optimizer" in str(w.message).lower()]
    for ours, theirs in zip(save.weights, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sum(int((w == 0).sum()) for w in loaded.get_weights()[::2]) == round(RAMP(5) * 110)
    theirs = [v.numpy() for v in loaded.optimizer.variables]
    assert len(theirs) == len(save.moments)
    for ours, other in zip(save.moments, theirs, strict=True):
        np.testing.assert_array_equal(ours, other)
    fit(loaded)  # trains on


def test_no_word_of_the_library_is_in_the_configuration(tmp_path):
    save = Save(tmp_path / "m.keras")
    fit(make_model(), kp.Pruning(RAMP), save)
    with zipfile.ZipFile(save.path) as file:
        assert b"keras_prune" not in file.read("config.json")


@pytest.mark.parametrize("method", METHODS)
def test_weights_files_go_both_ways(tmp_path, method):
    save = Save(tmp_path / "m.weights.h5")
    pruned = fit(make_model(), METHODS[method](), save)
    # With masks in the file and none in the model.
    plain = fit(make_model())
    plain.load_weights(save.path)
    for ours, theirs in zip(save.weights, plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Without masks in the file and with some in the model: the weights are the file's, the moments too.
    dense = tmp_path / "dense.weights.h5"
    plain.save_weights(dense)
    pruned.load_weights(dense)
    for ours, theirs in zip(plain.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_mask_in_a_file_comes_back_where_the_model_has_one(tmp_path):
    save = Save(tmp_path / "m.weights.h5", at=2)
    model = fit(make_model(), kp.Pruning(RAMP), save)
    later = kp.report(model).sparsity
    model.load_weights(save.path)
    fit(model)
    assert later == pytest.approx(round(0.6 * 110) / 110)
    assert kp.report(model).sparsity == pytest.approx(round(RAMP(3) * 110) / 110), "the masks of step 3 hold"


def test_state_trees_round_trip():
    """The form in which Orbax checkpoints hold a model."""
    model = fit(make_model(), kp.Pruning(RAMP))
    tree = model.get_state_tree(value_format="numpy_array")
    other = fit(make_model(), kp.Pruning(RAMP))
    names = {a.path: b.path for a, b in zip(model.weights, other.weights, strict=True)}
    assert len(names) == 4
    before = model.get_weights()
    fit(model)
    model.set_state_tree(tree)
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fit(model)
    assert kp.report(model).sparsity == pytest.approx(round(0.6 * 110) / 110)


def test_the_state_of_a_keras_file_goes_on(tmp_path):
    """Sums of gradients and hidden weights are in the file: load_model brings them, Keras's own loading warns."""
    save = Save(tmp_path / "m.keras")
    fit(make_model(), METHODS["surgery"](), save)
    model = kp.load_model(save.path)
    assert any(key.startswith("hidden") for key in model._pruning_state.arrays)
    fit(model, METHODS["surgery"](), epochs=2)
    assert kp.report(model).sparsity == pytest.approx(round(0.6 * 110) / 110)
    lost = keras.saving.load_model(save.path)
    with pytest.warns(UserWarning, match=r"hidden weights, which start from zero.*keras_prune\.load_model"):
        fit(lost, METHODS["surgery"](), epochs=2)


def test_another_optimizer_gets_the_masks_and_a_warning_for_its_moments(tmp_path):
    save = Save(tmp_path / "m.weights.h5")
    fit(make_model("adam"), kp.Pruning(RAMP), save)
    other = make_model("sgd")
    kp.Pruning(RAMP).attach(other)
    with pytest.warns(UserWarning, match=r"'sgd' has 2 variables of its own and the file has 10"):
        other.load_weights(save.path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "m.keras"
    make_model().save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(ValueError, match=r"m\.keras' is not a whole \.keras file"):
        kp.load_model(path)


def _parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def _with_state(folder, change):
    """A sound file whose state of pruning was changed by hand."""
    path = folder / "m.keras"
    kp.prune(make_model(), 0.5).save(path)
    parts = _parts(path)
    weights = folder / "weights.h5"
    weights.write_bytes(parts["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change(file, folder)
    parts["model.weights.h5"] = weights.read_bytes()
    return _write(path, parts)


CHANGES = {
    "external data": lambda f, d: f["_pruning_state/vars"].create_dataset(
        "leak", (16,), "uint8", external=[(str(d / "secret"), 0, h5py.h5f.UNLIMITED)]
    ),
    "SoftLink": lambda f, d: f.__setitem__("_pruning_state/vars/leak", h5py.SoftLink("/layers/dense/vars/0")),
    "ExternalLink": lambda f, d: f.__setitem__("_pruning_state/vars/leak", h5py.ExternalLink(str(d / "o.h5"), "/x")),
    "virtual data": lambda f, d: _virtual(f, d),
    "declares 3,000,000,000 elements": lambda f, d: f.create_dataset(
        "_pruning_state/vars/big", (3_000_000_000,), "float32", chunks=(1000,), compression="gzip"
    ),
    "declares 1,000,000,000 elements": lambda f, d: f.create_dataset(
        "_pruning_state/vars/chunk", (4,), "float32", maxshape=(None,), chunks=(10**9,), compression="gzip"
    ),
    "more than a training": lambda f, d: [
        f.create_dataset(f"_pruning_state/vars/{i}", (60_000,), "float32", compression="gzip") for i in range(3)
    ],
    "is a Dataset where a Group": lambda f, d: _in_its_place(f),
    "is a Group where a Dataset": lambda f, d: f.create_group("_pruning_state/vars/mask"),
    "holds no numbers": lambda f, d: f.create_dataset("_pruning_state/vars/words", data=[b"a", b"b"]),
}


def _virtual(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.arange(4)
    layout = h5py.VirtualLayout((4,), "int64")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (4,))
    file["_pruning_state/vars"].create_virtual_dataset("leak", layout)


def _in_its_place(file):
    del file["_pruning_state/vars"]
    file["_pruning_state/vars"] = np.zeros(3)


@pytest.mark.parametrize("what", CHANGES)
def test_the_state_in_a_file_reads_nothing_but_the_file(what, tmp_path):
    (tmp_path / "secret").write_text("user:topsecret:0")
    path = _with_state(tmp_path, CHANGES[what])
    with pytest.raises(ValueError, match=rf"pruning state in the file is refused: .*{what}"):
        kp.load_model(path)


def _replaced(name, content):
    return lambda path, parts: _write(path, {**parts, name: content})


def _flipped(path, parts):
    content = bytearray(path.read_bytes())
    place = content.index(b"HDF") + 2000
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)


DAMAGES = {
    "no configuration": lambda path, parts: _write(path, {"metadata.json": b"{}"}),
    "no weights": lambda path, parts: _write(path, {n: c for n, c in parts.items() if "weights" not in n}),
    "deep": _replaced("config.json", b"[" * 100_000 + b"]" * 100_000),
    "a list": _replaced("config.json", b"[1, 2]"),
    "no JSON": _replaced("config.json", b"{"),
    "no text": _replaced("config.json", b"\xff\xfe\x00"),
    "no HDF5": _replaced("model.weights.h5", b"nothing" * 9),
    "half of HDF5": lambda path, parts: _write(
        path, {**parts, "model.weights.h5": parts["model.weights.h5"][: len(parts["model.weights.h5"]) // 2]}
    ),
    "checksum": _flipped,
    "bomb": lambda path, parts: _write(path, {**parts, "config.json": b" " * 60_000_000}, zipfile.ZIP_DEFLATED),
    "bomb beside": lambda path, parts: _write(path, {**parts, "assets": bytes(70_000_000)}, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_archives_end_in_one_error(damage, tmp_path):
    path = tmp_path / "m.keras"
    make_model().save(path)
    DAMAGES[damage](path, _parts(path))
    damaged = r"m\.keras' is damaged, or no Keras model: "
    with pytest.raises(ValueError, match="Expected a model.weights.h5" if damage == "no weights" else damaged):
        kp.load_model(path)


def test_a_file_of_keras_2_is_known_as_such(tmp_path):
    path = tmp_path / "m.keras"
    make_model().save(path)
    parts = _parts(path)
    config = b'{"class_name": "Nothing", "config": {}, "module": "keras", "registered_name": "Nothing"}'
    _write(path, {**parts, "metadata.json": b'{"keras_version": "2.15.0"}', "config.json": config})
    with pytest.raises(ValueError, match=r"written by Keras 2 \(tf_keras 2\.15\.0\).*copy the weights"):
        kp.load_model(path)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["keras_version"] = b"2.15.0"
        file.attrs["model_config"] = config
    with pytest.raises(ValueError, match=r"m\.h5' was written by Keras 2 \(tf_keras 2\.15\.0\)"):
        kp.load_model(tmp_path / "m.h5")


def test_hdf5_under_another_ending_is_said(tmp_path):
    make_model().save(tmp_path / "m.h5")
    (tmp_path / "m.h5").rename(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"is not a whole \.keras file, but HDF5 \(which is read by the ending \.h5\)"):
        kp.load_model(tmp_path / "m.keras")
