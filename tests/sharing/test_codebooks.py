"""Codebooks as arrays: where k-means begins, what it gives, and what becomes of zeros."""

import dataclasses
import sys

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

import keras_prune as kp
from keras_prune.sharing import codebooks
from keras_prune.sharing.codebooks import codebook_of, most_values, nearest_groups
from keras_prune.sharing.starts import Density, KMeansPlusPlus, Linear, Random, Start
from keras_prune.strategy import resolve

STARTS = [Linear(), Density(), Random(), KMeansPlusPlus()]
ONE = np.zeros((1, 1), np.int32)


def test_starts_by_hand():
    values = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    assert Linear()(values, 3, 0).tolist() == [0.0, 5.0, 10.0]
    assert Linear()(values, 1, 0).tolist() == [5.0]
    # A quarter and three quarters of the way through five values: ranks 1 and 3.
    assert Density()(values, 2, 0).tolist() == [1.0, 3.0]
    for start in (Random(), KMeansPlusPlus()):
        drawn = [start(values, 3, seed).tolist() for seed in (0, 0, 1, 2, 3)]
        assert drawn[0] == drawn[1]
        assert all(len(set(one)) == 3 and set(one) <= set(values) for one in drawn)
    assert len({tuple(Random()(values, 3, seed)) for seed in range(4)}) > 1
    # Each distance counts squared: 100 of 114 to 1 that the far one is the second after 0.
    seconds = [float(KMeansPlusPlus()(np.array([0.0, 0.1, 100.0]), 2, seed).max()) for seed in range(5)]
    assert seconds == [100.0] * 5


def test_starts_are_known_by_their_names():
    names = {"linear": Linear(), "density": Density(), "random": Random(), "k-means++": KMeansPlusPlus()}
    assert {name: resolve(name, Start) for name in names} == names
    for start in STARTS:
        assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(start)) == start


def lowest_cost(values, count):
    """The least sum of squared distances that any `count` groups of neighbours have."""
    values = np.sort(values)
    costs = {(n, 0): 0.0 if n == 0 else np.inf for n in range(len(values) + 1)}
    for groups in range(1, count + 1):
        for end in range(len(values) + 1):
            parts = [costs[begin, groups - 1] + values[begin:end].var() * (end - begin) for begin in range(end)]
            costs[end, groups] = min(parts, default=0.0 if end == 0 else np.inf)
    return costs[len(values), count]


@pytest.mark.parametrize("start", STARTS, ids=lambda start: type(start).__name__)
def test_k_means_comes_near_the_best_groups_there_are(start):
    values = np.random.default_rng(0).standard_normal(60)
    labels = nearest_groups(values, 4, start, 0)
    cost = sum(values[labels == i].var() * (labels == i).sum() for i in range(4))
    assert cost <= 1.5 * lowest_cost(values, 4)  # not the best: it ends where no step makes it better
    order = np.argsort(values)
    assert (np.diff(labels[order]) >= 0).all()


def test_a_large_tensor_goes_to_k_means_in_bins(monkeypatch):
    values = np.random.default_rng(0).standard_normal(5000)
    whole = nearest_groups(values, 8, Linear(), 0)
    monkeypatch.setattr(codebooks, "LARGE", 1000)
    monkeypatch.setattr(codebooks, "BINS", 500)
    binned = nearest_groups(values, 8, Linear(), 0)
    cost, of_bins = (sum(values[one == i].var() * (one == i).sum() for i in range(8)) for one in (whole, binned))
    assert of_bins <= 1.01 * cost
    assert (whole != binned).any()


@hypothesis.given(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.25, 3.0, 7.0, 0.1, -2.0]), min_size=12, max_size=12),
    st.integers(2, 6),
    st.sampled_from(STARTS),
    st.booleans(),
    st.booleans(),
)
def test_what_a_codebook_promises(numbers, count, start, with_zeros, per_channel):
    weight = np.array(numbers, np.float32).reshape(4, 3)
    books = np.arange(3, dtype=np.int32).reshape(1, 3) if per_channel else ONE
    found = codebook_of(weight, books, count, start, with_zeros=with_zeros)
    expanded = found.expand()
    assert expanded.dtype == np.float32
    assert (expanded[weight == 0] == 0).all()
    assert not np.signbit(expanded[weight == 0]).any()
    for j in range(3):
        own, new = (weight[:, j], expanded[:, j]) if per_channel else (weight, expanded)
        room = count - (with_zeros and (own != 0).all())
        assert len(np.unique(new)) <= count
        if len(np.unique(own)) <= room:
            assert (own == new).all()
        for place in np.unique(found.places[:, j]) if per_channel else np.unique(found.places):
            members = own[found.places[:, j] == place] if per_channel else own[found.places == place]
            mean = 0.0 if place == count else np.float32(members.astype(np.float64).mean())
            assert (new[(found.places[:, j] if per_channel else found.places) == place] == mean).all()
    assert most_values(expanded, books) == max(
        len(np.unique(expanded[:, j] if per_channel else expanded)) for j in range(3)
    )


def test_groups_by_gradient_share_the_mean_of_their_weights():
    weight = np.array([[1.0, 5.0, 0.0], [3.0, 7.0, 2.0]])
    gradient = np.array([[0.1, 9.0, 9.0], [9.1, 0.2, 0.0]])
    shared = codebook_of(weight, ONE, 3, Linear(), by=gradient).expand()
    # Beside the zero: gradients 0.1, 0.2 and 0.0 are together, and 9.0 and 9.1.
    low, high = (1.0 + 7.0 + 2.0) / 3, (5.0 + 3.0) / 2
    np.testing.assert_allclose(shared, [[low, high, 0.0], [high, low, low]], rtol=1e-12)
    again = codebook_of(shared, ONE, 3, Linear(), by=gradient[::-1])
    assert (again.expand() == shared).all()


@pytest.mark.parametrize(("count", "kind"), [(16, np.uint8), (255, np.uint8), (256, np.uint16)])
def test_places_take_a_byte_where_they_can(count, kind):
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype("float16")
    found = codebook_of(weight, ONE, count, Density())
    assert found.places.dtype == kind
    assert found.expand().dtype == np.float16
    assert len(np.unique(found.expand())) == count


@dataclasses.dataclass(frozen=True)
class Wrong(Start):
    """A start that gives something else."""

    given: tuple

    def __call__(self, values, count, seed):
        return np.array(self.given)


@pytest.mark.parametrize("given", [(1.0,), (1.0, np.nan), ((1.0, 2.0),)])
def test_a_start_that_breaks_its_contract_is_named(given):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    with pytest.raises(ValueError, match=r"share: 'a/kernel': Wrong must return 2 finite centroids\. Received: .*"):
        kp.share(model, 2, Wrong(given))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_changed(bad):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(8, name="b")])
    weights = model.get_weights()
    weights[2][3, 3] = bad
    model.set_weights(weights)
    with pytest.raises(ValueError, match=r"share: 'b/kernel': Weight sharing needs finite numbers\. Received: from"):
        kp.share(model, 4)
    assert all((a == b).all() for a, b in zip(model.get_weights()[:2], weights[:2], strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"values": 1}, ValueError, r"share: values must be from 2 to 256.*Received: values=1"),
        ({"values": 257}, ValueError, r"Received: values=257"),
        ({"values": 4.5}, ValueError, r"share: values must be a whole number\. Received: 4\.5"),
        ({"start": "linaer"}, ValueError, r"Unknown start: 'linaer'.*Did you mean 'linear'"),
        ({"granularity": "layer"}, ValueError, r"granularity must be one of .*Received: granularity='layer'"),
        ({"group_by": "sign"}, ValueError, r"group_by must be one of .*Received: group_by='sign'"),
        ({"group_by": "gradient"}, ValueError, r"Received: group_by='gradient' without data\. Give data=\(x, y\)"),
        ({"data": 3}, ValueError, r"Received: group_by='value' with data\."),
        ({"scope": "a"}, TypeError, r"share: scope must be a keras_prune\.Scope"),
        ({"seed": "x"}, TypeError, r"share: seed must be a whole number"),
    ],
)
def test_what_is_no_choice_is_refused(arguments, error, message):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(error, match=message):
        kp.share(model, **arguments)


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    with pytest.raises(ImportError, match=r'pip install "keras-prune\[compression\]"'):
        kp.share(model, 4)
