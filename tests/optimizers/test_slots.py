"""What an optimizer keeps for each weight: found in every optimizer of Keras, and put back to where it begins."""

import keras
import numpy as np
import pytest
from keras import optimizers as ko

from keras_prune.optimizers.slots import restart, slots_of

# How many variables of a matrix's shape each keeps for it.
OPTIMIZERS = {
    "sgd": (lambda: ko.SGD(0.1), 0),
    "momentum": (lambda: ko.SGD(0.1, momentum=0.9), 1),
    "adam": (lambda: ko.Adam(), 2),
    "amsgrad": (lambda: ko.Adam(amsgrad=True), 3),
    "adamw": (lambda: ko.AdamW(), 2),
    "nadam": (lambda: ko.Nadam(), 2),
    "adamax": (lambda: ko.Adamax(), 2),
    "adadelta": (lambda: ko.Adadelta(), 2),
    "adagrad": (lambda: ko.Adagrad(initial_accumulator_value=0.3), 1),
    "ftrl": (lambda: ko.Ftrl(initial_accumulator_value=0.2), 2),
    "lion": (lambda: ko.Lion(), 1),
    "lamb": (lambda: ko.Lamb(), 2),
    "rmsprop": (lambda: ko.RMSprop(), 1),
    "rmsprop, centred": (lambda: ko.RMSprop(momentum=0.5, centered=True), 3),
    "adafactor": (lambda: ko.Adafactor(), 1),
    "muon": (lambda: ko.Muon(), 1),
    "averaging": (lambda: ko.SGD(0.1, momentum=0.9, use_ema=True), 1),
    "accumulating": (lambda: ko.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2), 2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_of_single_weights_begins_anew(kind):
    make, count = OPTIMIZERS[kind]
    weights = [keras.Variable(np.ones((3, 4)), name="a"), keras.Variable(np.ones((3, 4)), name="b")]
    optimizer = make()
    optimizer.build(weights)
    slots = [slot for slot, _ in slots_of(optimizer, weights[1])]
    assert len(slots) == count
    fresh = [np.array(slot.value) for slot in slots]
    for variable in optimizer.variables:
        if len(variable.shape) == 2:
            variable.assign(np.full(variable.shape, 7.0))
    places = np.arange(12).reshape(3, 4) % 3 == 0
    restart(optimizer, weights[1], places)
    for slot, begins in zip(slots, fresh, strict=True):
        np.testing.assert_array_equal(slot.value, np.where(places, begins, 7.0))
    mine = {id(slot) for slot in slots}
    for variable in optimizer.variables:
        if len(variable.shape) == 2 and id(variable) not in mine:
            assert (np.asarray(variable.value) == 7.0).all(), variable.path
    stranger = keras.Variable(np.ones((3, 4)), name="c")
    assert slots_of(optimizer, stranger) == []


def test_optimizers_that_hand_weights_on_are_looked_through():
    a, b = keras.Variable(np.ones((3, 4)), name="a"), keras.Variable(np.ones((3, 4)), name="b")
    adam, sgd = ko.Adam(), ko.SGD(0.1, momentum=0.9)
    optimizer = ko.MultiOptimizer(lambda variable: adam if "a" in variable.path else sgd)
    optimizer.build([a, b])
    assert [len(slots_of(optimizer, weight)) for weight in (a, b)] == [2, 1]
