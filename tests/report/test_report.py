"""Reports and charts: counts by hand, text without colours, files without a screen."""

import itertools
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers as kl

from keras_prune.layers import PrunableDense
from keras_prune.masks.bound import Mask
from keras_prune.report import plots
from keras_prune.report.plots import plot_history
from keras_prune.report.report import Totals, report
from keras_prune.scope import Scope
from keras_prune.structured.counting.counting import Count


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
        ("a/kernel", "PrunableDense", (3, 4), 12, 9, True),
        ("b/kernel", "Dense", (4, 2), 8, 6, False),
    ]
    assert [row.sparsity for row in found.rows] == [0.25, 0.25]
    assert found.prunable == Totals(20, 15)
    assert found.whole == Totals(26, 15)
    assert found.sparsity == 0.25
    assert [skipped.path for skipped in found.skipped] == ["a/bias", "b/bias"]


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
        "written": 0,
        "loose": 0,
        "values": 2,
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
    assert ["PrunableDense", "3x4", "12", "9", "25.0%", "yes", "2"] in [line[1:] for line in lines]
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


def test_layers_are_counted_as_they_are_without_masks():
    found = report(small_model()).counts
    assert found.layers == (
        Count("a", params=16, macs=12, activations=16, peak=4 * (3 + 4)),
        Count("b", params=10, macs=8, activations=8, peak=4 * (4 + 2)),
    )
    assert found.total == Count("small", params=26, macs=20, activations=24, peak=28)
    assert found.total.flops == 40


def test_layers_are_in_the_text_and_in_the_dictionary():
    found = report(small_model())
    lines = [line.split() for line in str(found).splitlines()]
    assert ["a", "16", "12", "16", "28"] in lines
    assert ["all", "2", "layers", "26", "20", "24", "28"] in lines
    assert "FLOPs: 40, two for a MAC" in str(found)
    assert "The peak of 28 bytes is at a." in " ".join(str(found).split())
    written = json.loads(json.dumps(found.to_dict()))
    assert written["layers"][1] == {"path": "b", "params": 10, "macs": 8, "flops": 16, "activations": 8, "peak": 24}
    assert written["total"]["peak"] == 28
    assert (written["not_known"], written["not_counted"]) == ("", [])


def test_a_model_without_weights_has_layers_too():
    found = report(keras.Sequential([keras.Input((4,)), kl.ReLU(name="relu")], name="plain"))
    assert found.counts.total == Count("plain", 0, 0, 16, 32)
    assert "plain: no prunable tensor." in str(found)
    assert ["relu", "0", "0", "16", "32"] in [line.split() for line in str(found).splitlines()]


class Unseen(keras.Model):
    """A model whose `call` goes past Keras."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = kl.Dense(2)

    def call(self, x):
        import tensorflow as tf

        return tf.raw_ops.Relu(features=self.dense(x))


def test_a_graph_that_cannot_be_seen_is_told_and_the_rest_is_reported(tmp_path):
    model = Unseen(name="unseen")
    model(np.ones((1, 3), "float32"))
    found = report(model)
    assert found.prunable == Totals(6, 6)
    assert found.counts is None
    assert "The graph of Unseen 'unseen' cannot be traced" in found.not_known
    text = " ".join(str(found).split())
    assert "Layers, MACs and activation memory: not known: The graph of Unseen 'unseen' cannot be traced" in text
    written = json.loads(json.dumps(found.to_dict()))
    assert (written["layers"], written["total"]) == (None, None)
    assert written["not_known"] == found.not_known
    with pytest.raises(ValueError, match="macs of 'unseen' by layer are not known: The graph of"):
        found.plot(tmp_path / "no.png", "macs")
    layer = kl.Dense(2)
    layer.build((None, 3))
    assert report(layer).not_known.startswith("Dense is a layer")


class Twice(keras.layers.Layer):
    """A layer that no rule knows, whose `call` goes past Keras."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

    def call(self, x):
        import tensorflow as tf

        return tf.matmul(tf.matmul(tf.identity(x), self.w), self.w)


def test_multiplications_that_no_rule_knows_are_named():
    found = report(keras.Sequential([keras.Input((4,)), Twice(name="twice"), kl.Dense(2, name="b")]))
    ((path, reason),) = [(skipped.path, skipped.reason) for skipped in found.counts.not_counted]
    assert path == "twice"
    assert reason.startswith("there is no rule for Twice, and its call() cannot be traced: ")
    assert found.counts.total.params == 16 + 10
    assert found.counts.total.macs == 8
    assert "MACs not known: twice: there is no rule for Twice, and its call()" in " ".join(str(found).split())
    assert found.to_dict()["not_counted"] == [{"path": "twice", "reason": reason}]


@pytest.mark.parametrize("what", ["params", "macs", "peak"])
def test_amounts_are_plotted_by_layer(what, tmp_path):
    report(small_model()).plot(tmp_path / "bars.svg", what)
    assert "<svg" in (tmp_path / "bars.svg").read_text()


@pytest.mark.parametrize("number", [1, 24, 53, 91])
def test_a_chart_of_any_number_of_bars_can_be_read(number, tmp_path, monkeypatch):
    values = {f"model/block_{i}/kernel": i / 400 for i in range(number)}
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.plot_sparsity(values, tmp_path / "bars.png", mean=0.5)
    plots.plot_amounts({name: 1e6 * value + 1 for name, value in values.items()}, tmp_path / "bars.png", label="MACs")
    for figure in drawn:
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        assert height <= 1200
        assert width <= 1920
        assert sum(len(axes.patches) for axes in figure.axes) == number, "every bar is drawn"
        names = [label for axes in figure.axes for label in axes.get_yticklabels()]
        if number <= 90:
            assert [label.get_text() for label in names] == list(values)
        assert {label.get_text() for label in names} <= set(values)
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
            assert all(lower.y1 <= upper.y0 + 1 for upper, lower in itertools.pairwise(boxes)), "no name covers another"
            assert all(box.height >= 9 and box.x0 >= 0 for box in boxes)


def test_what_cannot_be_plotted_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"what must be one of \('sparsity', 'params', 'macs', 'peak'\).*'speed'"):
        report(small_model()).plot(tmp_path / "no.png", "speed")
    with pytest.raises(ValueError, match="'plain' has no macs, so there is nothing to plot"):
        report(keras.Sequential([keras.Input((4,)), kl.ReLU()], name="plain")).plot(tmp_path / "no.png", "macs")
    assert not list(tmp_path.iterdir())


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
