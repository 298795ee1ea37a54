"""Stopwatch of exported files, as plans measure it. No time is held against a number: only what is run, and how."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import keras_prune as kp
from tflite_export import latency as latency_module
from tflite_export.errors import ExportError
from tflite_export.latency import Stopwatch


def net(width=32):
    inputs = keras.Input((16,), name="x")
    return keras.Model(inputs, kl.Dense(3)(kl.Dense(width, activation="relu", name="wide")(inputs)), name="net")


@pytest.fixture
def short(monkeypatch):
    """A few rounds, and the sessions that are run in each."""
    monkeypatch.setattr(latency_module, "SECONDS", 0.0)
    monkeypatch.setattr(latency_module, "FEWEST", 3)
    measured = []
    times = Stopwatch._times

    def watched(self, sessions):
        measured.append([session.subject for session in sessions])
        return times(self, sessions)

    monkeypatch.setattr(Stopwatch, "_times", watched)
    return measured


def test_models_are_measured_beside_the_first(short):
    measure = Stopwatch()
    assert measure(net()) > 0
    assert measure(keras.Sequential([keras.Input((16,)), kl.Dense(3)], name="other")) > 0
    assert [[subject.split("'")[1] for subject in subjects] for subjects in short] == [["net"], ["net", "other"]]


def test_a_slow_spell_meets_both(monkeypatch):
    measure = Stopwatch()
    spells = iter([[2.0], [6.0, 3.0]])
    monkeypatch.setattr(Stopwatch, "_times", lambda self, sessions: next(spells))
    assert measure(net()) == 2.0
    assert measure(net(8)) == 1.0


def test_a_plan_measures_with_it(short):
    x = np.random.default_rng(0).normal(size=(8, 16)).astype("float32")
    made = kp.structured.plan(net(), latency=0.999, params=0.5, measure=Stopwatch(x), min_width=4)
    assert made.latency.after <= 0.999 * made.latency.before
    assert len(short) == 1 + len(made.latency.trials)


def test_what_cannot_be_exported_is_refused():
    with pytest.raises(ExportError, match="target"):
        Stopwatch(target="toaster")(net())
    with pytest.raises(ExportError, match="its shape must be known for inputs to be drawn"):
        Stopwatch()(keras.Sequential([keras.Input((None, 4)), kl.Dense(2)]))


def test_a_batch_and_open_lengths_come_from_the_data(short):
    model = keras.Sequential([keras.Input((None, 4)), kl.LSTM(3), kl.Dense(2)])
    assert Stopwatch(np.zeros((2, 5, 4), "float32"))(model) > 0
