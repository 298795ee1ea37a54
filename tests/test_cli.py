"""The command line parses, calls the library, and returns its exit code."""

import json
import sys

import keras
import numpy as np
import pytest
from keras import layers

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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "missing.keras"], 1, "'missing.keras' is not a whole .keras file"),
        (["prune", "FILE", "OUT", "--sparsity", "90"], 1, "for 90.0 % write 0.9"),
        (["prune", "FILE", "OUT", "--block", "5", "1"], 1, "nearest that does is Block(4, 1)"),
        (["prune", "FILE", "OUT", "--allocation", "globl"], 1, "Did you mean 'global'?"),
        (["prune", "FILE", "/nowhere/at/all.keras"], 1, "keras-prune: "),
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
