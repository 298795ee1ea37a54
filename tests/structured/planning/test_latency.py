"""Targets of measured latency: the search by properties, plans with invented clocks, the way to the default one."""

import itertools
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers as kl

from keras_prune.devices import DEVICES
from keras_prune.structured import plan
from keras_prune.structured.counting.counting import count
from keras_prune.structured.planning import latency as latency_module
from keras_prune.structured.planning.latency_search import MOST, TOLERANCE, search


def net(width=64):
    inputs = keras.Input((16, 16, 3))
    x = kl.Conv2D(width, 3, activation="relu", name="a")(inputs)
    x = kl.Conv2D(width, 3, activation="relu", name="b")(x)
    x = kl.Conv2D(width, 3, activation="relu", name="c")(x)
    return keras.Model(inputs, kl.Dense(4, name="head")(kl.GlobalAveragePooling2D()(x)), name="net")


class Clock:
    """Seconds that follow from multiplications; counts the models that it was given."""

    def __init__(self, seconds=lambda macs: 1e-9 * macs):
        self.seconds = seconds
        self.models = []

    def __call__(self, model):
        self.models.append(model)
        return self.seconds(count(model).total.macs)


def in_steps(macs):
    """Kernels that work on many channels at once: a staircase, with an overhead."""
    return 1e-4 + 1e-9 * 3e5 * math.ceil(macs / 3e5)


def saw(macs):
    """Some narrower models are slower than wider ones."""
    return 1e-9 * macs * (1.15 if (macs // 2e5) % 2 else 1.0)


@pytest.mark.parametrize("seconds", [lambda macs: 1e-9 * macs, lambda macs: 1e-3 + 1e-9 * macs, in_steps, saw])
@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_plan_that_meets_the_target_is_one_that_was_measured(seconds, share, scope):
    clock, model = Clock(seconds), net()
    made = plan(model, latency=share, measure=clock, scope=scope)
    assert clock.models[0] is model
    assert made.latency.before == clock.seconds(made.before.macs)
    smaller = [one for one in clock.models[1:] if one.count_params() == made.after.params]
    assert smaller
    assert made.latency.after == pytest.approx(seconds(made.after.macs))
    assert made.latency.after <= share * made.latency.before
    assert len(made.latency.trials) == len(clock.models) - 1 <= MOST
    assert min(abs(t.share - made.latency.after / made.latency.before) for t in made.latency.trials) < 1e-9


def test_a_straight_line_takes_three_models_at_most():
    for overhead, share in itertools.product((0.0, 1e-3, 5e-3), (0.5, 0.8)):
        clock = Clock(lambda macs, overhead=overhead: overhead + 1e-9 * macs)
        made = plan(net(), latency=share, measure=clock)
        assert len(made.latency.trials) <= 3
        assert share - TOLERANCE <= made.latency.after / made.latency.before <= share


def test_noise_does_not_lead_astray():
    rng = np.random.default_rng(0)
    for _ in range(5):
        clock = Clock(lambda macs: 1e-9 * macs * rng.normal(1.0, 0.02))
        made = plan(net(32), latency=0.5, measure=clock)
        assert 0.4 < made.after.macs / made.before.macs < 0.6


def test_other_targets_hold_beside_it():
    made = plan(net(), params=0.3, latency=0.9, measure=Clock())
    assert made.after.params <= 0.3 * made.before.params
    assert len(made.latency.trials) == 1
    made = plan(net(), params=0.9, latency=0.3, round_to=8, measure=Clock())
    assert made.latency.after <= 0.3 * made.latency.before
    assert (made.kept % 8 == 0).all()


def test_out_of_reach_says_the_nearest_that_was_measured():
    message = (
        r"latency=0.2 cannot be met: of 4 smaller models measured, the fastest takes 0\.\d{4} of the whole one's "
        r"\d+\.\d{3} ms, with 0\.0\d{3} of its multiplications left\. Ask for a larger share.*head/kernel"
    )
    with pytest.raises(ValueError, match=message):
        plan(net(), latency=0.2, measure=Clock(lambda macs: 5e-3 + 1e-9 * macs))


def test_it_is_printed_and_written_down():
    made = plan(net(), latency=0.5, measure=Clock())
    assert f"latency {1e3 * made.latency.before:.3f} ms -> {1e3 * made.latency.after:.3f} ms" in str(made)
    assert f"{len(made.latency.trials)} smaller models measured" in str(made)
    found = json.loads(json.dumps(made.to_dict()))["latency"]
    assert found["after"] == made.latency.after
    assert len(found["trials"]) == len(made.latency.trials)
    assert plan(net(), flops=0.5).to_dict()["latency"] is None


def test_an_estimate_is_called_one():
    clock = Clock()
    clock.estimate = "by a table"
    made = plan(net(), latency=0.5, measure=clock)
    assert f"left, an estimate: by a table; {len(made.latency.trials)} smaller models estimated)" in str(made)
    assert made.to_dict()["latency"]["estimate"] == "by a table"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": 2}, r"latency must be a fraction in \[0, 1\). Received: 2"),
        ({"latency": 0.0}, "latency is the share that may be left, so it is above 0. Received: 0.0"),
        ({"params": 0.5, "measure": Clock()}, "Received: measure without latency"),
        ({"latency": 0.5, "threshold": 0.1, "measure": Clock()}, "one kind of target.*latency=0.5, threshold=0.1"),
        ({"latency": 0.5, "measure": lambda model: 0.0}, "measure must give the seconds of a run.*Received: 0.0"),
        ({"latency": 0.5, "measure": lambda model: math.nan}, "measure must give the seconds.*Received: nan"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        plan(net(), **options)


class Entry:
    name = "invented"

    def __init__(self, make):
        self.make = make

    def load(self):
        return self.make


def test_the_default_measure_is_found_by_its_entry_point(monkeypatch):
    given_data = []

    def make(data):
        given_data.append(data)
        return Clock()

    monkeypatch.setattr(
        latency_module, "entry_points", lambda group: [Entry(make)] if group == "keras_prune.latency" else []
    )

    def make_for(data, *, target):
        given_data.append(target)
        return make(data)

    x = np.random.default_rng(0).normal(size=(40, 16, 16, 3)).astype("float32")
    assert plan(net(), latency=0.5, data=(x, np.zeros(40))).latency.after > 0
    np.testing.assert_array_equal(given_data[0], x[:32])
    plan(net(), latency=0.5)
    assert given_data[1] is None
    monkeypatch.setattr(latency_module, "entry_points", lambda group: [Entry(make_for)])
    made = plan(net(), latency=0.5, target="ethos-u65")
    assert given_data[2:] == [DEVICES["ethos-u65"], None]
    assert (made.kept % 8 == 0).all()


def test_without_a_package_that_measures_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr(latency_module, "entry_points", lambda group: [])
    with pytest.raises(ImportError, match=r"none is installed.*pip install keras-prune.*measure="):
        plan(net(), latency=0.5)


@given(
    target=st.floats(0.05, 0.95),
    shares=st.lists(st.floats(0.01, 1.2), min_size=2, max_size=40),
    low=st.integers(0, 5),
)
def test_whatever_is_measured_the_number_found_meets_the_target(target, shares, low):
    high = len(shares)
    low = min(low, high - 1)
    asked = []

    def share(number):
        asked.append(number)
        return 1.0 if number == 0 else shares[number - 1]

    found = search(share, lambda number: 1 - number / high, low, high, target)
    assert len(set(asked)) <= MOST + 1
    assert all(low <= number <= high for number in asked)
    if found is None:
        assert min(map(share, asked[:])) > target
        assert high in asked
    else:
        assert share(found) <= target
        assert found == min(number for number in set(asked[:-1]) if share(number) <= target)


@given(target=st.floats(0.1, 0.9), overhead=st.floats(0.0, 0.5), size=st.integers(50, 5000))
def test_falling_times_are_met_closely(target, overhead, size):
    def share(number):
        return overhead + (1 - overhead) * (1 - number / size)

    found = search(share, lambda number: 1 - number / size, 0, size, target)
    if found is None:
        assert overhead > target
    else:
        assert target - TOLERANCE - 1 / size <= share(found) <= target
