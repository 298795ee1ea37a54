"""The other backends, each in one process; on JAX, masks that are not state of the step would be constants in it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module", params=["jax", "torch"])
def outcome(request):
    """What tests/backend_programs.py measured on a backend."""
    backend = request.param
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = pathlib.Path(__file__).with_name("backend_programs.py")
    root = str(program.parent.parent)
    # Each step runs a few times only, and takes XLA longer to optimise than to run.
    quickly = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, **quickly, "KERAS_BACKEND": backend, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.strip().splitlines()[-1])
    assert outcome["backend"] == backend
    return outcome


def test_callbacks_keep_their_contract(outcome):
    for name, result in outcome["prune_by_callbacks"].items():
        # The step itself keeps what is pruned at zero, from one update to the next.
        assert all(zeros >= told for zeros, told in result["seen"]), name
        changes = 2 if name == "alternating" else 4
        assert len({told for _, told in result["seen"]}) >= changes, f"{name}: the masks changed during training"
        # The proximal step and a soft threshold make zeros of their own, beside those of the masks.
        least, most = (132, 176) if name in ("parts", "soft threshold") else (132, 132)
        assert least <= result["after"] <= most, name
        assert least <= result["later"] <= most, name
        assert result["strip"] == 0.0, name


def test_what_is_dropped_follows_from_the_step_alone_and_weights_are_whole_outside_of_it(outcome):
    dropped = outcome["train_with_dropout"]
    for single, several in zip(*dropped, strict=True):
        np.testing.assert_allclose(several, single, rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(single) > 0
    assert all(np.all(np.array(kernel) != 0) for kernel in dropped[0][::2])


def test_values_that_weights_share_move_by_the_sums_of_their_gradients(outcome):
    """As NumPy has it, by value and by gradient: the groups are state of the step."""
    found = outcome["share_values"]
    x, y, kernel = (np.array(found[name]) for name in ("x", "y", "kernel"))
    gradient = 2 * x.T @ (x @ kernel - y) / y.size
    groups = {"value": [kernel == value for value in (-1.5, 0.25, 2.0)]}
    first = np.array(found["gradient"][0])
    groups["gradient"] = [(first == value) & (kernel != 0) for value in np.unique(first[kernel != 0])]
    low, high = sorted((gradient[group] for group in groups["gradient"]), key=np.max)
    assert low.max() < high.min()
    for group_by, members in groups.items():
        weight = np.zeros_like(kernel)
        for group in members:
            weight[group] = kernel[group].mean()
        for i, seen in enumerate(found[group_by]):
            np.testing.assert_allclose(seen, weight, rtol=1e-5, atol=1e-6)
            assert all(len(np.unique(np.array(seen)[group])) == 1 for group in members)
            rows = slice(8 * (i % 2), 8 * (i % 2) + 8)
            whole = 2 * x[rows].T @ (x[rows] @ weight - y[rows]) / y[rows].size
            for group in members:
                weight[group] -= 2.0**-6 * whole[group].sum()


def test_layers_with_masks_train_only_what_they_keep(outcome):
    result = outcome["train_layers_with_masks"]
    assert result["seeds drawn"]
    assert result["kept and pruned moved"] == [[True, False]] * len(result["kept and pruned moved"])
    assert len(result["kept and pruned moved"]) == 4  # two of the LSTM, one of each Dense
    assert result["from by hand"] <= 1e-5


def test_units_go_in_training_and_stay_gone(outcome):
    """The compiled step sees only state that is handed to it: masks and strengths have to be part of that."""
    left, difference = outcome["prune_units"]["left"], outcome["prune_units"]["difference"]
    assert left == sorted(left, reverse=True)
    assert left[-1] <= 0.5
    assert max(difference) <= 1e-5


def test_gates_follow_their_loss(outcome):
    result = outcome["train_gated_layers"]
    assert result["seeds drawn"]
    assert result["shares"][0] > 0.7
    assert result["shares"][1] < 0.4
    assert result["answers differ"] == 0.0
