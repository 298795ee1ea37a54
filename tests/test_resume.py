"""A training that is killed and resumed ends with the weights of one that was not, to the bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_prune as kp


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """A function that trains methods with kills and without, in one process that all tests ask."""
    program = pathlib.Path(__file__).with_name("resume_server.py")
    root, log = str(program.parent.parent), tmp_path_factory.mktemp("resume") / "log"
    environment = {**os.environ, "PYTHONPATH": root}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=root,
            env=environment,
        ) as server,
    ):

        def ask(methods, kills, through):
            try:
                server.stdin.write(json.dumps([methods, kills, through]) + "\n")
                server.stdin.flush()
            except BrokenPipeError:
                pytest.fail(f"the process has ended: {log.read_text()[-4000:]}")
            answer = server.stdout.readline()
            assert answer, log.read_text()[-4000:]
            return json.loads(answer)

        yield ask
        server.stdin.close()
    assert server.returncode == 0, log.read_text()[-4000:]


def _check(outcome, kills):
    for method, result in outcome.items():
        assert result["signals"] == [signal.SIGKILL] * kills, (method, result)
        assert result["equal"], f"{method}, killed at {result['steps']}, ended with other weights"
        assert sum(result["zeros"]) > 100, f"{method} pruned nothing"


@pytest.mark.parametrize(("method", "kills"), [("magnitude", 6), ("gradient", 5), ("rigl", 5), ("surgery", 5)])
def test_many_kills_with_backup_and_restore(trainings, method, kills):
    _check(trainings([method], kills, "backup"), kills)


def test_a_kill_with_other_methods(trainings):
    methods = ["movement", "set", "rewinding", "structured", "soft", "alternating", "steered"]
    _check(trainings(methods, 1, "backup"), 1)


def test_going_on_from_a_keras_file(trainings):
    _check(trainings(["magnitude", "gradient", "rigl", "surgery", "rewinding", "soft"], 1, "file"), 1)


S = kp.schedules
X = np.random.default_rng(0).standard_normal((80, 12)).astype("float32")
Y = np.random.default_rng(1).integers(0, 4, 80)
HALF = S.PolynomialDecay(0.0, 0.5, begin_step=3, end_step=17, frequency=4)
RAMP = S.Linear(0.0, 0.9, begin_step=1, end_step=18, frequency=7)  # 10 lies between two changes
LONG = S.Linear(0.0, 0.9, begin_step=0, end_step=1000, frequency=300)
STOPPED = {
    "L1": lambda: kp.Pruning(HALF, parts=[kp.L1(1e-2, ramp=RAMP)]),
    "L1 with a far change": lambda: kp.Pruning(HALF, parts=[kp.L1(1.0, ramp=LONG)]),
    "proximal": lambda: kp.GradientPruning(HALF, parts=[kp.L1(1e-1, proximal=True, ramp=RAMP)]),
    "group lasso": lambda: kp.StructuredPruning(
        params=0.6, begin_step=3, end_step=17, frequency=4, parts=[kp.structured.GroupLasso(1e-1, ramp=RAMP)]
    ),
    "std": lambda: kp.ThresholdPruning(S.Threshold(0.5, begin_step=10, end_step=20, frequency=10, relative_to="std")),
    "std of blocks": lambda: kp.ThresholdPruning(
        S.Threshold(0.5, begin_step=5, end_step=20, frequency=5, relative_to="std"), pattern=kp.patterns.Block(4, 1)
    ),
    "gradients from data": lambda: kp.ThresholdPruning(
        S.Threshold(0.002, final_value=0.02, begin_step=5, end_step=20, frequency=5), on="gradient", data=(X, Y)
    ),
    "adjustment": lambda: kp.structured.StructureAdjustment("loss", tolerance=0.05, step=0.2),
}


def _fit(make, *ends, folder):
    """One training of the same script, stopped after so many epochs and started again, by the last of `ends`."""
    for epochs in ends:
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(4)])
        model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        callback = make()
        backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
        model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback, backup])
    return callback, [np.array(v.value) for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize("case", STOPPED)
def test_an_epoch_may_end_anywhere_in_a_schedule(case, tmp_path):
    callback, whole = _fit(STOPPED[case], 2, folder=tmp_path / "whole")
    other, parts = _fit(STOPPED[case], 1, 2, folder=tmp_path / "parts")
    assert [value.tobytes() for value in parts] == [value.tobytes() for value in whole]
    if isinstance(callback, kp.PruningCallback):
        assert other.sparsity == callback.sparsity > 0


def test_a_finished_training_started_once_more_says_what_it_came_to(tmp_path):
    for case, told in (("L1", "sparsity"), ("group lasso", "left")):
        first, _ = _fit(STOPPED[case], 2, folder=tmp_path / case)
        again, _ = _fit(STOPPED[case], 2, folder=tmp_path / case)
        assert getattr(again, told) == getattr(first, told)
        assert getattr(first, told) not in (0, {})


def test_another_recipe_acts_at_the_step_at_which_the_last_one_did():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(4)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for sparsity in (0.25, 0.75):
        pruning = kp.Pruning(S.OneShot(sparsity, step=10))
        pruning.attach(model)
        if sparsity == 0.25:
            model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
        pruning.on_step(0)
        pruning.detach()
        assert pruning.sparsity == sparsity
