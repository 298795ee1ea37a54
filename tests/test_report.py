"""Reports and charts: counts by hand, text without colours, files without a screen."""

import json
import sys

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.layers import PrunableDense
from keras_prune.masks import Mask
from keras_prune.plots import plot_history
from keras_prune.report import Totals, report
from keras_prune.scope import Scope


def small_model():
    """12 weights of which 9 are kept by a wrapper's mask, 8 of which 2 are zero, 4 + 2 biases that are zero."""
    model = keras.Sequential([keras.Input((3,)), PrunableDense(4, name="a"), kl.Dense(2, name="b")], name="small")
    first, second = model.layers
    first.kernel.assign(np.ones((3, 4)))
    mask = np.ones((3, 4))
    mask[0, :3] = 0
    first.set_masks([mask])
    second.kernel.assign([[0, 1], [1, 1], [1, -0.0], [1, 1]])
    return model


def test_counts_by_hand():
    found = report(small_model())
    assert [(row.path, row.kind, row.shape, row.weights, row.nonzero, row.masked) for row in found.rows] == [
        ("small/a/kernel", "PrunableDense", (3, 4), 12, 9, True),
        ("small/b/kernel", "Dense", (4, 2), 8, 6, False),
    ]
    assert [row.sparsity for row in found.rows] == [0.25, 0.25]
    assert found.prunable == Totals(20, 15)
    assert found.whole == Totals(26, 15)
    assert found.sparsity == 0.25
    assert [skipped.path for skipped in found.skipped] == ["small/a/bias", "small/b/bias"]


def test_a_constraint_counts_as_a_mask():
    model = keras.Sequential([keras.Input((2,)), kl.Dense(2)])
    Mask(Scope().survey(model).targets[0], keras.Variable(np.eye(2, dtype=bool))).apply()
    (row,) = report(model).rows
    assert (row.masked, row.nonzero) == (True, 2)


def test_to_dict_is_json_and_complete():
    found = report(small_model())
    read_back = json.loads(json.dumps(found.to_dict()))
    assert read_back["model"] == "small"
    assert read_back["rows"][0] == {
        "path": found.rows[0].path,
        "kind": "PrunableDense",
        "shape": [3, 4],
        "weights": 12,
        "nonzero": 9,
        "sparsity": 0.25,
        "masked": True,
    }
    assert read_back["prunable"] == {"weights": 20, "nonzero": 15, "sparsity": 0.25}
    assert read_back["whole"]["weights"] == 26
    assert len(read_back["skipped"]) == 2
    assert "biases" in read_back["skipped"][0]["reason"]


def test_text_is_a_table_for_100_columns():
    model = keras.Sequential(
        [keras.Input((8,)), *[kl.Dense(8, name="a_rather_long_name_" * 6 + str(i)) for i in range(9)]]
    )
    text = str(report(model))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert "and 5 more: biases are not pruned" in text.replace("\n", " ")


def test_text_has_the_numbers():
    lines = [line.split() for line in str(report(small_model())).splitlines()]
    assert ["PrunableDense", "3x4", "12", "9", "25.0%", "yes"] in [line[1:] for line in lines]
    assert ["2", "prunable", "20", "15", "25.0%"] in lines
    assert ["whole", "model", "26", "15", "42.3%"] in lines


def test_the_scope_decides():
    found = report(small_model(), scope=Scope(min_size=10))
    assert len(found.rows) == 1
    assert any("fewer than min_size=10" in skipped.reason for skipped in found.skipped)
    assert found.whole == Totals(26, 15)


def test_a_model_without_prunable_tensors_has_a_report_that_says_so(tmp_path):
    model = keras.Sequential([keras.Input((3,)), kl.BatchNormalization()], name="norm")
    found = report(model)
    assert found.rows == ()
    assert found.sparsity == 0.0
    assert str(found).startswith("norm: no prunable tensor.")
    assert "BatchNormalization has no kernel of this name" in str(found).replace("\n", " ")
    with pytest.raises(ValueError, match="'norm' has no prunable tensor, so there is nothing to plot"):
        found.plot(tmp_path / "none.png")


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="Build it first"):
        report(keras.Sequential([kl.Dense(1)]))


def test_plots_are_written_and_pyplot_is_left_alone(tmp_path):
    from matplotlib import pyplot

    settings = dict(pyplot.rcParams)
    report(small_model()).plot(tmp_path / "bars.png")
    plot_history([0, 5], {"sparsity": [0, 0.5], "accuracy": [None, 0.9]}, tmp_path / "run.svg", title="Run")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "run.svg").read_text()
    assert "<svg" in text
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == settings


def test_series_have_one_value_a_step(tmp_path):
    with pytest.raises(ValueError, match="2 values of 'sparsity' for 3 steps"):
        plot_history([0, 1, 2], {"sparsity": [0, 1]}, tmp_path / "no.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["matplotlib.figure", "matplotlib.backends.backend_agg"])
def test_without_matplotlib_the_error_names_the_command(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[viz\]"'):
        plot_history([0], {"a": [0]}, tmp_path / "no.png")
