import platform

import keras
import numpy as np
import pytest
from keras import layers

from tflite_export import Encoding, export
from tflite_export.bench import tune
from tflite_export.runtimes import interleaved
from tflite_export.targets import TARGETS, Target


class Clock:
    """Sessions that take as long as they are said to; the clock is theirs."""

    def __init__(self, monkeypatch):
        self.now = 0
        monkeypatch.setattr(interleaved.time, "perf_counter", lambda: self.now / 1e9)
        monkeypatch.setattr(interleaved.time, "monotonic", lambda: self.now / 1e9)

    def session(self, cost, first=None):
        clock = self

        class Session:
            cold = True

            def invoke(self):
                # What ran before has pushed this one's weights out: its first run in a row is slow.
                clock.now += (first or cost) if self.cold else cost
                self.cold = not self.cold

        return Session()


def test_the_second_of_two_runs_is_what_counts(monkeypatch):
    clock = Clock(monkeypatch)
    found = tune.measure(
        {Encoding.DENSE: clock.session(1000, first=10), Encoding.BLOCK: clock.session(250, first=9_000)}
    )
    assert found == pytest.approx({Encoding.DENSE: 1.0, Encoding.BLOCK: 4.0})


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    x = keras.Input((64,))
    y = layers.Dense(64, name="blocks")(x)
    model = keras.Model(x, layers.Dense(64, name="full")(y))
    kernel = model.get_layer("blocks").kernel
    kept = rng.permutation(1024) >= 900
    kernel.assign(kernel * np.repeat(kept.reshape(16, 64), 4, axis=0))
    return model


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({Encoding.DENSE: 1.0, Encoding.BLOCK: 2.0, Encoding.CSR: 1.5, Encoding.DENSIFY: 1.0}, Encoding.BLOCK),
        ({Encoding.DENSE: 1.0, Encoding.BLOCK: 0.5, Encoding.CSR: 0.2, Encoding.DENSIFY: 0.99}, Encoding.DENSIFY),
        ({Encoding.DENSE: 1.0, Encoding.BLOCK: 0.5, Encoding.CSR: 0.2, Encoding.DENSIFY: 0.9}, Encoding.DENSE),
        ({Encoding.DENSE: 1.0, Encoding.BLOCK: 2.0, Encoding.CSR: 1.97, Encoding.DENSIFY: 1.0}, Encoding.BLOCK),
        ({Encoding.DENSE: 1.0, Encoding.BLOCK: 1.3, Encoding.CSR: 2.5, Encoding.DENSIFY: 1.0}, Encoding.CSR),
    ],
)
def test_the_fastest_is_taken_and_the_smallest_among_equals(ratios, expected, net, tmp_path, monkeypatch):
    here = Target("own", TARGETS["x86"].kernels, runs_on=(platform.machine(),))
    monkeypatch.setattr(tune, "measure", lambda sessions: {encoding: ratios[encoding] for encoding in sessions})
    report = export(net, tmp_path / "model.tflite", data=np.ones((2, 64)), target=here, tune=True)
    lines = {line.name: line for line in report.lines}
    assert lines["blocks/kernel"].encoding is expected
    assert lines["blocks/kernel"].gain == ratios[expected]
    assert lines["blocks/kernel"].reason.startswith("timed here against dense, whole file: 1x4 blocks ")
    assert lines["full/kernel"].reason == "no zeros"


@pytest.mark.parametrize("quantize", [None, "float16"])
def test_what_is_timed_is_what_is_verified(net, tmp_path, quantize):
    here = Target("own", TARGETS["x86"].kernels, runs_on=(platform.machine(),))
    report = export(net, tmp_path / "model.tflite", data=np.ones((2, 64)), target=here, tune=True, quantize=quantize)
    line = next(line for line in report.lines if line.name == "blocks/kernel")
    assert " x" in line.reason
    assert line.gain > 0
    assert report.verification.max_relative < 1e-3
