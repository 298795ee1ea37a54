import json
import sys

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from tflite_export.cli import app, main
from tflite_export.runtimes.litertjs import VERSION


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command as the console script does: exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tflite-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def saved(tmp_path, dense_net, inputs):
    dense_net.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", inputs(dense_net)[0])
    return tmp_path / "model.keras"


def test_export_verify_and_bench(saved, tmp_path, run):
    out, data = tmp_path / "model.tflite", tmp_path / "x.npy"
    code, text, _ = run("export", saved, out, "--data", data)
    assert code == 0
    assert "1x4 blocks" in text
    code, text, _ = run("verify", out, saved, "--data", data, "--json")
    assert code == 0
    assert json.loads(text)["samples"] == 5
    code, text, _ = run("bench", out, out, "--rounds", 2, "--json")
    assert code == 0
    assert [timing["max_difference"] for timing in json.loads(text)["files"]] == [0.0, 0.0]


def test_inputs_by_name_come_from_a_npz(saved, tmp_path, run, dense_net, inputs):
    np.savez(tmp_path / "x.npz", **{dense_net.inputs[0].name: inputs(dense_net)[0]})
    assert run("export", saved, tmp_path / "model.tflite", "--data", tmp_path / "x.npz", "--batch-size", 2)[0] == 0


def test_an_error_is_one_line_and_code_1(saved, tmp_path, run):
    code, out, err = run("export", saved, tmp_path / "none" / "model.tflite")
    assert (code, out) == (1, "")
    assert err.startswith("error: path '")
    assert "its folder must exist" in err


def test_a_runtime_is_installed_once_and_found(tmp_path, run, monkeypatch):
    monkeypatch.setenv("KERAS_PRUNE_CACHE", str(tmp_path))
    installed = tmp_path / f"litertjs-{VERSION}"
    (installed / "node_modules" / "@litertjs" / "core").mkdir(parents=True)
    (installed / "node_modules" / "@litertjs" / "core" / "package.json").write_text(f'{{"version": "{VERSION}"}}')
    assert run("install", "web")[:2] == (0, f"{installed}\n")
    code, out, err = run("install", "wab")
    assert (code, out) == (1, "")
    assert err == "error: runtime: must be one of ('web', 'arm64'). Received: 'wab'. Choose one of these.\n"


def test_a_missing_extra_is_one_line_and_leaves_no_folder(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ethosu", None)
    model, data = tmp_path / "small.keras", tmp_path / "data.npz"
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    small.compile("sgd", "mse", metrics=["mae"])
    small.save(model)
    np.savez(data, x=np.zeros((4, 2)), y=np.zeros(4))
    options = ("--data", data, "--validation", data, "--target", "ethos-u55", "--epochs", 0, "--quiet")
    code, out, err = run("compress", model, tmp_path / "m.tflite", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: files for an Arm Ethos-U: ethos-u-vela is needed, and not installed. Install it: pip")
    assert not (tmp_path / "m-search").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.keras", b"PK\x03\x04", "must be a .keras file"),
        ("none.keras", None, "must exist"),
        ("model.h5", b"", "must load in safe mode"),
        ("model.bin", b"", "must be a .keras file, a .h5 file, or the folder of a SavedModel"),
    ],
)
def test_a_model_that_does_not_load_is_code_1(tmp_path, run, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("export", tmp_path / name, tmp_path / "model.tflite")
    assert code == 1
    assert message in err


def test_code_in_a_model_is_not_run(tmp_path, run):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "model.keras")
    code, _, err = run("export", tmp_path / "model.keras", tmp_path / "model.tflite")
    assert code == 1
    assert "must load in safe mode" in err


def test_pickled_data_is_refused(saved, tmp_path, run):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}]), allow_pickle=True)
    code, _, err = run("verify", tmp_path / "model.tflite", saved, "--data", tmp_path / "x.npy")
    assert code == 1
    assert "must be a .npy or .npz of numbers" in err


@pytest.mark.parametrize("arguments", [["export"], ["bench", "a", "--threads", "0"], ["paint"], ["bench", "--loud"]])
def test_wrong_arguments_are_code_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_help_names_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("export", "verify", "bench"):
        assert command in result.output


@pytest.mark.parametrize(
    ("out", "options", "lost"),
    [
        ("model.keras", (), "the model"),
        ("model.tflite", ("--golden", "x.npy"), "the data"),
        ("model.tflite", ("--golden", "model.tflite"), "path"),
        ("model.cc", ("--c-array", "model"), "path"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_written(saved, tmp_path, run, out, options, lost):
    places = [tmp_path / option if not option.startswith("-") else option for option in options]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run("export", saved, tmp_path / out, "--data", tmp_path / "x.npy", *places)
    assert code == 1
    assert f"must be another file than {lost}, or one is lost" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", ["export", "bench"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04xxx", "must be a .npy or .npz of numbers"),
        (np.float32(1.0), "must be readable"),
        (np.zeros((3, 5), "f4"), "must have the shape ('samples', "),
        (np.zeros((0, 64), "f4"), "at least one sample is needed"),
        (np.full((2, 64), np.nan, "f4"), "must hold no NaN"),
        (np.full((2, 64), "a"), "must convert to float32 without loss"),
    ],
    ids=["damaged", "scalar", "shape", "empty", "nan", "text"],
)
def test_wrong_data_are_one_line_and_code_1(saved, tmp_path, run, command, data, message):
    file = tmp_path / ("data.npz" if isinstance(data, bytes) else "data.npy")
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        np.save(file, data)
    if command == "export":
        code, _, err = run("export", saved, tmp_path / "out.tflite", "--data", file)
    else:
        assert run("export", saved, tmp_path / "model.tflite", "--data", tmp_path / "x.npy")[0] == 0
        code, _, err = run("bench", tmp_path / "model.tflite", "--data", file)
    assert code == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert message in err


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_is_none_is_refused_before_work_begins(saved, tmp_path, run, tolerance):
    code, _, err = run("export", saved, tmp_path / "out.tflite", f"--tolerance={tolerance}")
    assert code == 1
    assert "tolerance: must be a finite share of an output's scale, at least 0" in err


def test_compress_searches_and_goes_on(tmp_path, run):
    import keras

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=x, y=x[:, :1])
    np.savez(tmp_path / "no_labels.npz", x=x)
    out, data = tmp_path / "out.tflite", tmp_path / "data.npz"
    asked = ["compress", tmp_path / "model.keras", out, "--data", data, "--validation", data, "--minimize", "size"]
    asked += ["--max-drop", 1, "--trials", 0, "--epochs", 0, "--target", "x86", "--plot", tmp_path / "front.png"]
    code, text, _ = run(*asked, "--json", "--recipe", tmp_path / "recipe.py")
    assert code == 0
    found = json.loads(text)
    assert found["metric"] == "mae"
    assert not found["rises"]
    assert found["chosen"]["bytes"] == out.stat().st_size < found["rows"][0]["bytes"]
    assert (tmp_path / "front.png").stat().st_size > 1000
    assert (tmp_path / "recipe.py").read_text() == found["recipe"]
    code, text, _ = run(*asked, "--quiet")
    assert code == 0
    assert "plain float32" in text
    code, _, err = run(*asked[:4], tmp_path / "no_labels.npz", *asked[5:])
    assert code == 1
    assert "--data: must hold inputs and their labels y. Received: the arrays ['x']" in err
    code, _, err = run(*asked, "--seed", 1)
    assert code == 1
    assert "seed: 0 there, 1 now" in err
