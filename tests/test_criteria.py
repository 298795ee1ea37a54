"""Each formula of keras_prune.criteria against numbers worked out by hand."""

import numpy as np
import pytest

from keras_prune import criteria
from keras_prune.criteria import Criterion

W = np.array([[2.0, -1.0], [0.5, -4.0]])

# criterion, statistics, scores
FORMULAS = [
    (criteria.Magnitude(), {}, [[2.0, 1.0], [0.5, 4.0]]),
    (criteria.Gradient(), {"abs_gradient": [[0.1, 0.2], [0.3, 0.0]]}, [[0.1, 0.2], [0.3, 0.0]]),
    (criteria.Taylor(), {"abs_gradient": [[0.1, 0.2], [0.3, 0.0]]}, [[0.2, 0.2], [0.15, 0.0]]),
    (criteria.Movement(), {"movement": [[-0.5, 1.0], [0.0, 2.0]]}, [[-0.5, 1.0], [0.0, 2.0]]),
    # 2² · 0.5 / 2, 1² · 2 / 2, 0.5² · 8 / 2, 4² · 0 / 2
    (criteria.Fisher(), {"squared_gradient": [[0.5, 2.0], [8.0, 0.0]]}, [[1.0, 1.0], [1.0, 0.0]]),
    # Row i of a kernel [in, out] reads input i.
    (criteria.Activation(), {"input_norm": [[3.0], [10.0]]}, [[6.0, 3.0], [5.0, 40.0]]),
    (criteria.InputActivation(), {"input_mean": [[3.0], [10.0]]}, [[3.0, 3.0], [10.0, 10.0]]),
    (criteria.SNIP(), {"gradient": [[-0.5, -1.0], [0.0, 0.25]]}, [[1.0, 1.0], [0.0, 1.0]]),
    # The sign stays: the paper removes the largest -w · Hg first.
    (criteria.GraSP(), {"hessian_gradient": [[3.0, 2.0], [-2.0, 0.5]]}, [[6.0, -2.0], [-1.0, -2.0]]),
    # 2² / 0.5, 1² / 0.5, 0.5² / 0.25, 4² / 0.25: row i reads input i.
    (criteria.SecondOrder(), {"inverse_hessian": [[0.5], [0.25]]}, [[8.0, 2.0], [1.0, 64.0]]),
    (criteria.SynFlow(), {"synflow": [[3.0, 2.0], [1.0, 0.5]]}, [[6.0, 2.0], [0.5, 2.0]]),
]


def arrays(statistics):
    return {name: np.asarray(value) for name, value in statistics.items()}


@pytest.mark.parametrize(("criterion", "statistics", "scores"), FORMULAS, ids=lambda v: type(v).__name__)
def test_formula(criterion, statistics, scores):
    assert criterion.needs == set(statistics)
    np.testing.assert_allclose(criterion(W, arrays(statistics)), scores)


@pytest.mark.parametrize(("criterion", "statistics", "scores"), FORMULAS, ids=lambda v: type(v).__name__)
def test_scores_have_the_shape_of_the_weight_and_leave_it_alone(criterion, statistics, scores):
    weight, before = W.copy(), W.copy()
    assert criterion(weight, arrays(statistics)).shape == weight.shape
    np.testing.assert_array_equal(weight, before)


def test_random_depends_on_both_seeds_and_not_on_the_weight():
    score = criteria.Random(seed=1)(W, {"seed": 7})
    np.testing.assert_array_equal(score, criteria.Random(seed=1)(10 * W, {"seed": 7}))
    assert (score != criteria.Random(seed=2)(W, {"seed": 7})).any()
    assert (score != criteria.Random(seed=1)(W, {"seed": 8})).any()
    assert criteria.Random().needs == {"seed"}
    assert ((score >= 0) & (score < 1)).all()


def test_every_criterion_that_is_public_is_tested_by_its_formula():
    tested = {type(criterion).__name__ for criterion, _, _ in FORMULAS} | {"Criterion", "Random"}
    assert tested == set(criteria.__all__)


@pytest.mark.parametrize("criterion", [c for c, _, _ in FORMULAS if c.takes_data], ids=lambda c: type(c).__name__)
def test_data_is_neither_compared_nor_written_down(criterion):
    with_data = type(criterion)(data=(np.ones(1), np.ones(1)))
    assert with_data == criterion
    assert with_data.get_config() == {}
    assert type(criterion).from_config({}) == criterion


def test_random_round_trip():
    assert criteria.Random.from_config(criteria.Random(seed=5).get_config()) == criteria.Random(seed=5)


def test_from_config_refuses_unknown_arguments():
    with pytest.raises(ValueError, match=r"Random.from_config knows \['seed'\]. Received also: \['sead'\]"):
        criteria.Random.from_config({"sead": 5})


def test_synflow_takes_a_hundred_rounds_and_the_others_one():
    assert criteria.SynFlow.rounds == 100
    assert {type(c).rounds for c, _, _ in FORMULAS if not isinstance(c, criteria.SynFlow)} == {1}


def test_a_criterion_of_the_users_own_needs_no_registration():
    class Cubed(Criterion):
        def __call__(self, weight, statistics):
            return np.abs(weight) ** 3

    np.testing.assert_allclose(Cubed()(W, {}), [[8.0, 1.0], [0.125, 64.0]])
    assert Cubed().needs == frozenset()
