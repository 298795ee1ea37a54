import itertools

import numpy as np
import pytest
import tensorly
from tensorly.decomposition import partial_tucker, tensor_train

from keras_prune.factorization.chains import Split, Tucker2
from keras_prune.factorization.choosing import Choices, cheapest, steps, within
from keras_prune.factorization.costs import Cost, Places
from keras_prune.factorization.tensor_train import TrainOfConvolution, TrainOfDense

ONE = Places(((1, (6, 6), (6, 6)),))
VECTOR = Places(((1, (), ()),))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(a)


@pytest.mark.parametrize(
    ("shape", "first", "places"),
    [((12, 9), (), VECTOR), ((3, 5, 4, 7), (0,), ONE), ((3, 3, 4, 7), (), ONE), ((3, 3, 4, 7), (0, 1), ONE)],
)
def test_a_split_loses_what_eckart_and_young_say_and_at_full_rank_nothing(shape, first, places):
    kernel = normal(*shape)
    split = Split("form", kernel, first, places, 1e-16)
    order = [*first, len(shape) - 2, *(a for a in range(len(shape) - 2) if a not in first), len(shape) - 1]
    rows = int(np.prod([shape[axis] for axis in order[: len(first) + 1]]))
    singular = np.linalg.svd(kernel.transpose(order).reshape(rows, -1), compute_uv=False)
    assert len(split.ranks) == len(singular)
    for rank in (1, 2, len(singular) - 1, len(singular)):
        error = relative(kernel, split.approximation([rank]))
        expected = np.sqrt((singular[rank:] ** 2).sum() / (singular**2).sum())
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert np.sqrt(split.lost[rank - 1]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert sum(k.size for k in split.kernels([rank])) == split.params[rank - 1]


def test_no_other_factors_lose_less_on_what_the_kernel_reads():
    kernel, x = normal(8, 6), normal(50, 8, seed=1) * np.array([9.0, 5.0, 3.0, 1.0, 1.0, 0.1, 0.1, 0.0])
    plain, fitted = (Split("svd", kernel, (), VECTOR, 1e-16, gram) for gram in (None, x.T @ x))
    for rank in (1, 3):
        # The least error of outputs is that of the outputs' own decomposition.
        singular = np.linalg.svd(x @ kernel, compute_uv=False)
        least = np.sqrt((singular[rank:] ** 2).sum() / (singular**2).sum())
        errors = [relative(x @ kernel, x @ one.approximation([rank])) for one in (fitted, plain)]
        assert errors[0] == pytest.approx(least, rel=1e-6) == np.sqrt(fitted.lost[rank - 1])
        assert errors[1] > 1.05 * least


@pytest.mark.parametrize("window", [(3, 3), (5,)])
def test_tucker_2_is_the_higher_order_svd_of_tensorly(window):
    kernel = normal(*window, 6, 8)
    places = Places(((1, window, window),))
    ours = Tucker2(kernel, places, 1e-16)
    for ranks in ((2, 3), (5, 8), (6, 8)):
        modes = [len(window), len(window) + 1]
        # One round of tensorly's iteration would go beyond the decomposition that it begins with.
        (core, factors), _ = partial_tucker(kernel, rank=list(ranks), modes=modes, init="svd", n_iter_max=0)
        core = tensorly.tenalg.multi_mode_dot(kernel, factors, modes=modes, transpose=True)
        theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=modes)
        np.testing.assert_allclose(ours.approximation(ranks), theirs, atol=1e-12)
        row = next(i for i, one in enumerate(ours.ranks) if tuple(one) == ranks)
        assert np.sqrt(ours.lost[row]) == pytest.approx(relative(kernel, theirs), abs=1e-9)
        assert ours.params[row] == sum(k.size for k in ours.kernels(ranks))


def test_a_train_of_a_convolution_is_the_train_of_tensorly_as_layers():
    kernel = normal(3, 5, 4, 6)
    train = TrainOfConvolution(kernel, ONE)
    for row in (0, len(train.ranks) // 2, len(train.ranks) - 1):
        ranks = train.ranks[row].tolist()
        cores = tensor_train(kernel.transpose(2, 0, 1, 3), rank=[1, *ranks, 1])
        theirs = tensorly.tt_to_tensor(cores).transpose(1, 2, 0, 3)
        np.testing.assert_allclose(train.approximation(ranks), theirs, atol=1e-12)
        assert np.sqrt(train.lost[row]) == pytest.approx(relative(kernel, theirs), abs=1e-6)
        assert train.params[row] == sum(core.size for core in cores)
    assert train.lost[-1] == 0.0  # at full rank


@pytest.mark.parametrize(("shape", "ranks"), [((24, 60), 2), ((6, 10), 1)])
def test_a_train_of_a_dense_layer_sorts_modes_and_ranks(shape, ranks):
    kernel = normal(*shape)
    train = TrainOfDense(kernel)
    assert train.ranks.shape[1] == ranks
    assert train.lost[-1] == 0.0
    for row, chosen in enumerate(train.ranks.tolist()):
        assert np.sqrt(train.lost[row]) == pytest.approx(relative(kernel, train.approximation(chosen)), abs=1e-6)
        assert train.params[row] == sum(k.size for k in train.kernels(chosen))
    # Rank 1 with two cores is the nearest Kronecker product.
    if ranks == 1:
        blocks = kernel.reshape(2, 3, 2, 5).transpose(0, 3, 1, 2).reshape(10, 6)
        singular = np.linalg.svd(blocks, compute_uv=False)
        assert train.lost[0] == pytest.approx(1 - singular[0] ** 2 / (singular**2).sum())


def test_multiplications_count_where_the_window_has_moved():
    strided = Places(((1, (8, 8), (4, 4)),))
    kernel = normal(3, 3, 4, 6)
    # 1 x 1 on 64 places, then 3 x 3 on 16; 3 x 1 on 4 x 8 places, then 1 x 3 on 16.
    assert Split("channel", kernel, (), strided, 0.0).macs[1] == 4 * 2 * 64 + 9 * 2 * 6 * 16
    assert Split("spatial", kernel, (0,), strided, 0.0).macs[1] == 3 * 4 * 2 * 32 + 3 * 2 * 6 * 16


def test_a_budget_is_met_at_the_least_loss_of_all_choices():
    rng = np.random.default_rng(3)
    layers = []
    for _ in range(3):
        costs = np.sort(rng.choice(np.arange(1, 100), 6, replace=False))
        layers.append(Choices(Cost(100, 100), costs, costs, np.sort(rng.random(6))[::-1].copy()))
    options = [[(100, 0.0), *zip(one.params.tolist(), one.lost.tolist(), strict=True)] for one in layers]
    every = [(sum(c for c, _ in pick), sum(lost for _, lost in pick)) for pick in itertools.product(*options)]
    # What the way goes through is the best of all that cost no more.
    way, cost, lost = steps(layers, "params"), 300, 0.0
    for step in way:
        cost, lost = cost - step.saved, lost + step.saved * step.price
        assert lost == pytest.approx(min(other for total, other in every if total <= cost))
    for to_save in (1, 90, 200, 250):
        chosen = within(layers, "params", to_save)
        assert sum(100 - int(layers[i].params[choice]) for i, choice in chosen.items()) >= to_save
    assert within(layers, "params", 300) is None
    assert cheapest(layers[0], most=-1.0) is None
