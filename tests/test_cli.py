"""The command line parses, calls the library, and returns its exit code."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_prune
from keras_prune import cli


@pytest.fixture
def file(tmp_path):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, name="first"), layers.Dense(4, name="last")])
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["keras-prune", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


def test_prune_report_and_strip(file, capsys, monkeypatch):
    pruned, plain = file.with_name("pruned.keras"), file.with_name("plain.keras")
    code, out, _ = run(capsys, monkeypatch, "prune", file, pruned, "--sparsity", 0.75, "--block", 4, 1)
    assert code == 0
    assert "first/kernel" in out
    code, out, _ = run(capsys, monkeypatch, "report", pruned, "--json")
    assert (code, json.loads(out)["prunable"]["nonzero"]) == (0, 48)
    code, _, _ = run(capsys, monkeypatch, "strip", pruned, plain)
    assert code == 0
    kernel = keras.saving.load_model(plain).layers[0].kernel.numpy()
    assert set(np.unique((kernel != 0).reshape(2, 4, 16).sum(axis=1))) <= {0, 4}


def test_pack_and_unpack(file, capsys, monkeypatch):
    packed, back = file.with_name("model.kpz"), file.with_name("back.keras")
    code, out, _ = run(capsys, monkeypatch, "pack", file, packed)
    assert code == 0
    assert [word in out for word in ("first/kernel", "whole file", f"{packed.stat().st_size:,} bytes")] == [True] * 3
    code, out, _ = run(capsys, monkeypatch, "unpack", packed, back)
    assert (code, "first/kernel" in out) == (0, True)
    models = [keras.saving.load_model(path) for path in (file, back)]
    assert [w.tobytes() for w in models[0].get_weights()] == [w.tobytes() for w in models[1].get_weights()]
    assert models[1].loss == "mse"
    code, out, _ = run(capsys, monkeypatch, "pack", back, packed, "--json")
    assert (code, json.loads(out)["total"]) == (0, packed.stat().st_size)
    code, _, err = run(capsys, monkeypatch, "report", packed)
    assert (code, "keras-prune unpack" in err) == (1, True)
    packed.write_bytes(packed.read_bytes()[:-1])
    code, _, err = run(capsys, monkeypatch, "unpack", packed, back)
    assert (code, "where the header says" in err, "Traceback" in err) == (1, True, False)


def test_factorize(file, capsys, monkeypatch):
    small = file.with_name("small.keras")
    code, out, _ = run(capsys, monkeypatch, "factorize", file, small, "--rank", "first=3", "--json")
    assert code == 0
    report = json.loads(out)
    assert [(row["path"], row["form"], row["ranks"]) for row in report["layers"]] == [("first", "svd", [3])]
    assert [skipped["reason"] for skipped in report["skipped"]] == ["ranks= does not name it"]
    models = [keras.saving.load_model(path) for path in (file, small)]
    whole, (left, right) = models[0].layers[0].kernel.numpy(), [models[1].layers[i].kernel.numpy() for i in (0, 1)]
    assert (left.shape, right.shape) == ((8, 3), (3, 16))
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    np.testing.assert_allclose(left @ right, (u[:, :3] * s[:3]) @ v[:3], atol=1e-5)
    assert models[1].loss == "mse"
    np.save(file.with_name("x.npy"), np.random.default_rng(0).normal(size=(32, 8)).astype("float32"))
    options = ["--params", 0.9, "--form", "svd", "--data", file.with_name("x.npy"), "--exclude", "last"]
    code, out, _ = run(capsys, monkeypatch, "factorize", file, small, *options)
    assert code == 0
    assert [word in out for word in ("Factorisation of", "first", "svd", "left alone: last/kernel")] == [True] * 4
    assert keras.saving.load_model(small).count_params() <= 0.9 * models[0].count_params()


def test_sensitivity(file, capsys, monkeypatch):
    x, y = np.ones((4, 8), "float32"), np.ones((4, 4), "float32")
    np.savez(file.with_name("data.npz"), x=x, y=y)
    np.savez(file.with_name("named.npz"), **{keras.saving.load_model(file).inputs[0].name: x}, y=y)
    np.savez(file.with_name("unlabelled.npz"), x=x)
    arguments = ["--points", 0.75, "--points", 0.5, "--plot", file.with_name("curves.svg")]
    code, out, _ = run(capsys, monkeypatch, "sensitivity", file, "--data", file.with_name("data.npz"), *arguments)
    assert code == 0
    assert [word in out for word in ("first/kernel", "last/kernel", "0.75", "loss")] == [True] * 4
    assert file.with_name("curves.svg").read_text().startswith("<?xml")
    code, out, _ = run(capsys, monkeypatch, "sensitivity", file, "--data", file.with_name("named.npz"), "--json")
    assert (code, json.loads(out)["points"]) == (0, [0.25, 0.5, 0.75, 0.9, 0.95])
    code, _, err = run(capsys, monkeypatch, "sensitivity", file, "--data", file.with_name("unlabelled.npz"))
    assert (code, "must hold inputs and their labels y" in err) == (1, True)
    code, _, err = run(capsys, monkeypatch, "sensitivity", file, "--data", file)
    assert (code, "must be a .npy or .npz of numbers" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "missing.keras"], 1, "'missing.keras' is not a whole .keras file"),
        (["prune", "FILE", "OUT", "--sparsity", "90"], 1, "for 90.0 % write 0.9"),
        (["prune", "FILE", "OUT", "--block", "5", "1"], 1, "nearest that does is Block(4, 1)"),
        (["prune", "FILE", "OUT", "--allocation", "globl"], 1, "Did you mean 'global'?"),
        (["prune", "FILE", "/nowhere/at/all.keras"], 1, "its folder must exist"),
        (["prune", "FILE", "OUT", "--target", "androd"], 1, "android"),
        (["prune", "FILE", "out.tflite"], 1, "must end in .keras or .h5 or .hdf5"),
        (["pack", "FILE", "OUT"], 1, "must end in .kpz"),
        (["unpack", "FILE", "OUT"], 1, "as a .keras file does, which keras_prune.load_model reads"),
        (["factorize", "FILE", "OUT"], 1, "which says how much is to stay. Received: none"),
        (
            ["factorize", "FILE", "OUT", "--rank", "3", "--rank", "first=2"],
            1,
            "LAYER=RANK,RANK for each. Received: '3'",
        ),
        (["factorize", "FILE", "OUT", "--rank", "fist=3"], 1, "must name layers that can be factorised"),
        (["factorize", "FILE", "OUT", "--rank", "first=a"], 1, "Received: 'first=a'"),
        (["prun", "FILE"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_and_a_code(file, capsys, monkeypatch, arguments, code, message):
    names = {"FILE": str(file), "OUT": str(file.with_name("out.keras"))}
    got, _, err = run(capsys, monkeypatch, *[names.get(argument, argument) for argument in arguments])
    assert got == code
    assert message in err
    assert "Traceback" not in err
    assert not file.with_name("out.keras").exists()


@pytest.mark.parametrize("command", ["prune", "strip", "factorize"])
@pytest.mark.parametrize("spelling", ["same", "dotted", "linked", "hard"])
def test_no_command_writes_over_its_input(file, capsys, monkeypatch, command, spelling):
    other = file.with_name("other.keras")
    match spelling:
        case "same":
            other = file
        case "dotted":
            other = file.parent / ".." / file.parent.name / file.name
        case "linked":
            other.symlink_to(file)
        case "hard":
            other.hardlink_to(file)
    before = file.read_bytes()
    code, _, err = run(capsys, monkeypatch, command, file, other)
    assert code == 1
    assert "must be another file than the model" in err
    assert file.read_bytes() == before


def test_a_failed_write_leaves_what_stood_there(file, capsys, monkeypatch):
    out = file.with_name("out.keras")
    out.write_text("older")

    def full(self, path, *_, **__):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Sequential, "save", full)
    code, _, err = run(capsys, monkeypatch, "prune", file, out)
    assert code == 1
    assert "No space left on device" in err
    assert out.read_text() == "older"
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.keras", "out.keras"]


def test_the_target_chooses_the_pattern(file, capsys, monkeypatch):
    out = file.with_name("out.keras")
    assert run(capsys, monkeypatch, "prune", file, out, "--sparsity", "0.9", "--target", "x86")[0] == 0
    kernel = keras.saving.load_model(out).layers[0].kernel.numpy()
    assert set(np.unique((kernel != 0).reshape(2, 4, 16).sum(axis=1))) == {0, 4}


def test_reconstruct_and_recalibrate_take_inputs_from_a_file(tmp_path, capsys, monkeypatch):
    file, pruned, again = (tmp_path / name for name in ("model.keras", "pruned.keras", "again.keras"))
    x = np.random.default_rng(0).normal(2.0, 1.0, (64, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", any_name=x)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu"), layers.BatchNormalization()])
    model.save(file)
    options = ["--sparsity", 0.5, "--criterion", "second_order", "--reconstruct", tmp_path / "x.npy"]
    assert run(capsys, monkeypatch, "prune", file, pruned, *options)[0] == 0
    made, dense = keras.saving.load_model(pruned), model.predict(x, verbose=0)
    assert (made.layers[0].kernel.numpy() == 0).sum() == 64
    plain = keras_prune.prune(keras.saving.load_model(file), 0.5).predict(x, verbose=0)
    assert np.linalg.norm(made.predict(x, verbose=0) - dense) < 0.8 * np.linalg.norm(plain - dense)
    assert run(capsys, monkeypatch, "recalibrate", pruned, again, tmp_path / "x.npz")[0] == 0
    mean = keras.saving.load_model(again).layers[1].moving_mean.numpy()
    np.testing.assert_allclose(mean, made.layers[0](x).numpy().mean(axis=0), rtol=1e-4)
    (tmp_path / "x.npy").write_text("text")
    code, _, err = run(capsys, monkeypatch, "recalibrate", pruned, tmp_path / "other.keras", tmp_path / "x.npy")
    assert code == 1
    assert "must be a .npy or .npz of numbers" in err


def test_version(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "--version")
    assert (code, out) == (0, f"keras-prune {keras_prune.__version__}\n")


@pytest.mark.parametrize("command", ["keras_prune", "tflite_export"])
def test_nothing_but_the_help_is_printed(command):
    code = f"import keras_prune_commands, sys; sys.argv = ['it', '--help']; keras_prune_commands.{command}()"
    quiet = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.lstrip().startswith("Usage: ")
