import numpy as np
import pytest
from keras import tree

from keras_prune.structured import Plan, analyse
from keras_prune.structured.analysis.running import all_graphs, results_of, run_graph


def _randomise(model, rng):
    """Biases and normalisations too, so that an index out of place shows; kernels such that signals keep their size."""
    for variable in model.weights:
        value = rng.normal(0.0, 1.0, variable.shape) / max(1.0, np.prod(variable.shape[:-1]) / 2.0) ** 0.5
        if variable.name in ("gamma", "moving_variance", "scale"):
            value = np.abs(value) + 0.5
        if np.issubdtype(np.dtype(variable.dtype), np.floating):
            variable.assign(value.astype(variable.dtype))


def _zero(analysis, keep):
    for slot in analysis.slots:
        gone = (slot.units >= 0) & ~keep[slot.units]
        if slot.variable is not None and gone.any():
            value = np.array(slot.variable.numpy())
            value[(slice(None),) * slot.axis + (gone,)] = 0.0
            slot.variable.assign(value)


def _flat(outputs):
    return [np.asarray(output) for output in tree.flatten(outputs)]


def _check_zeros(analysis, keep, x):
    """What rules call zero has to be zero; gives the outputs."""
    promised = {}
    for graph in all_graphs(analysis.graph):
        for node in graph.nodes:
            if node.body is None:
                outputs = analysis.effects[id(node)].outputs
                promised.update({(id(graph), i): dims for i, dims in zip(node.outputs, outputs, strict=True)})

    def see(graph, number, value):
        # A nested model's promises are those of its first call.
        for axis, entry in enumerate(promised.pop((id(graph), number), ())):
            if entry is not None and entry.zero and keep.size:
                units = analysis.units_of(entry.labels)
                gone = np.moveaxis(np.asarray(value), axis, 0)[(units >= 0) & ~keep[units]]
                assert not gone.any(), graph.symbols[number]

    return [np.asarray(output) for output in run_graph(analysis.graph, tree.flatten(x), see, results_of)]


def _random_keep(analysis, rng, share=0.5):
    keep = np.ones(analysis.size, bool)
    for group in analysis.groups:
        number = min(group.size - 1, max(1, round(share * group.size)))
        keep[rng.choice(np.arange(group.start, group.stop), number, replace=False)] = False
    return keep


@pytest.fixture(scope="session")
def random_keep():
    """Half of each group's units at random, at least one kept."""
    return _random_keep


@pytest.fixture(scope="session")
def check_removal():
    """Zero random units, remove them, and compare: the smaller model must give the same outputs.

    Returns the analysis and the smaller model.
    """

    def check(model, x, seed=0, share=0.5, exact=True, input_shape=None):
        rng = np.random.default_rng(seed)
        _randomise(model, rng)
        analysis = analyse(model, exact=exact, input_shape=input_shape)
        plan = Plan(analysis, _random_keep(analysis, rng, share))
        _zero(analysis, plan.keep)
        before = [np.array(variable.numpy()) for variable in model.weights]
        smaller = plan.apply()
        for variable, value in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
        assert smaller.count_params() == plan.after.params
        assert model.count_params() == plan.before.params
        wanted, received = _flat(model(x, training=False)), _flat(smaller(x, training=False))
        assert [a.shape for a in wanted] == [a.shape for a in received]
        for a, b in zip(wanted, _check_zeros(analysis, plan.keep, x), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(wanted, received, strict=True):
            # Against what differs from sample to sample, down to what rounding does to the whole.
            spread = np.abs(a - a.mean(axis=0, keepdims=True)).max()
            assert np.abs(a - b).max() <= max(1e-4 * spread, 3e-6 * np.abs(a).max())
        return analysis, smaller

    return check
