"""Run by test_workers.py in a process of its own: two forked workers on one study, of which one is killed in a trial.

Keras is imported once and TensorFlow runs nothing before the forks.
"""

import json
import os
import signal
import sys
import time

import keras
import numpy as np
import optuna

import keras_prune as kp

X = np.random.default_rng(0).standard_normal((32, 6)).astype("float32")


def work(url, marks, hang_at):
    """Take part in the study; hang in the given trial of this worker, and say so by a file."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(10, "relu"), keras.layers.Dense(4)])
    dense, calls = np.array(model(X)), []

    def nearness(pruned):
        calls.append(0)
        if len(calls) == hang_at + 3:  # the dense model is measured twice before the trials
            open(os.path.join(marks, "hangs"), "w").close()
            time.sleep(600)
        return -float(np.mean(np.square(np.array(pruned(X)) - dense)))

    storage = optuna.storages.RDBStorage(
        url, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=1, grace_period=2
    )
    options = {"sparsity": 0.5, "sampler": "genetic", "trials": 12, "name": "shared", "verbose": 0}
    result = kp.search.study(model, X, nearness, storage=storage, **options)
    with open(os.path.join(marks, f"done{hang_at}"), "w") as file:
        json.dump(result.to_dict(), file)


def fork(*arguments):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


if __name__ == "__main__":
    url, marks = sys.argv[1:]
    dies = fork(url, marks, 1)
    while not os.path.exists(os.path.join(marks, "hangs")):
        time.sleep(0.05)
    lives = fork(url, marks, -100)
    time.sleep(0.5)
    os.kill(dies, signal.SIGKILL)
    os.waitpid(dies, 0)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(lives, 0)[1]))
