"""Run by test_resume.py in a process of its own: trains in forked children, kills some of them, compares the weights.

It answers one line of JSON for each that it reads: methods, the number of kills, and the way in which a training is
resumed. Keras is imported once for all of them, and TensorFlow runs nothing before the forks, so that a training
costs a second and not ten.
"""

import json
import os
import signal
import sys
import tempfile
import traceback

import keras
import numpy as np

import keras_prune as kp

EPOCHS, STEPS, BATCH = 6, 8, 16
RAMP = kp.schedules.PolynomialDecay(0.0, 0.8, begin_step=3, end_step=40, frequency=3)
STEADY = kp.schedules.ConstantSparsity(0.7, begin_step=3, end_step=44, frequency=3)
PHASES = kp.schedules.Phases(0.8, begin=5, end=36, sparse=6, dense=5)
ROUNDS = kp.schedules.Iterative(0.8, rounds=3, interval=12, begin_step=11, rewind_to=5)
METHODS = {
    "magnitude": lambda: kp.Pruning(RAMP),
    "gradient": lambda: kp.GradientPruning(RAMP, "taylor"),
    "movement": lambda: kp.GradientPruning(RAMP, "movement"),
    "rigl": lambda: kp.DynamicPruning(STEADY, "rigl"),
    "set": lambda: kp.DynamicPruning(STEADY, "set"),
    "surgery": lambda: kp.DynamicPruning(RAMP, "surgery"),
    "rewinding": lambda: kp.Pruning(ROUNDS),
    "soft": lambda: [kp.SoftThreshold(RAMP), kp.TargetedDropout(STEADY, 0.5)],
    "alternating": lambda: kp.Alternating(PHASES, parts=kp.MaskMomentum()),
    # Rolled back after epoch 3.
    "steered": lambda: kp.AdaptivePruning("loss", 0.0, "taylor", step=0.5, patience=1, baseline_epochs=2),
    "structured": lambda: kp.StructuredPruning(params=0.5, begin_step=3, end_step=40, frequency=3),
}


def make_model():
    """A network with state besides its weights. (No dropout: Keras's own checkpoints do not hold its random state.)"""
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(24, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(5),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def train(method, folder, die_at=None, through="backup"):
    """Train from the start or from the backup, and leave the final weights behind; killed at a step if asked."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(7)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((STEPS * BATCH, 12)).astype("float32"), rng.integers(0, 5, STEPS * BATCH)

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if die_at is not None and int(self.model.optimizer.iterations) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    model, start, saved = make_model(), 0, os.path.join(folder, "model.keras")
    made = METHODS[method]()
    callbacks = [*(made if isinstance(made, list) else [made]), Kill()]
    if through == "backup":
        # Once before and once after: the order of callbacks must not matter (but to one that follows the logs).
        backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"), delete_checkpoint=False)
        callbacks.insert(len(method) % 2, backup)
    else:
        callbacks.append(keras.callbacks.ModelCheckpoint(saved))
        if os.path.exists(saved):
            model = kp.load_model(saved)
            start = int(model.optimizer.iterations) // STEPS
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks, initial_epoch=start)
    np.savez(os.path.join(folder, "final.npz"), *model.get_weights(), *[v.numpy() for v in model.optimizer.variables])


def in_child(*arguments, **options):
    """Run `train` in a fork and return the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            train(*arguments, **options)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a training failed: {arguments}, {options}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def weights(folder):
    """Return the final weights and optimizer state as bytes, so that even the sign of a zero counts."""
    with np.load(os.path.join(folder, "final.npz")) as file:
        return [file[name].tobytes() for name in file.files], [int((file[name] == 0).sum()) for name in file.files[:2]]


def answer(methods, kills, through):
    """Train each method once in peace and once killed at random steps."""
    outcome = {}
    for method in methods:
        rng = np.random.default_rng(sum(map(ord, method)))
        with tempfile.TemporaryDirectory() as peace, tempfile.TemporaryDirectory() as war:
            in_child(method, peace, through=through)
            # Each kill comes later than the last, so that each finds work to destroy.
            steps = np.sort(rng.choice(np.arange(2, EPOCHS * STEPS), kills, replace=False)).tolist()
            signals = [in_child(method, war, die_at=step, through=through) for step in steps]
            in_child(method, war, through=through)
            (left, zeros), (right, _) = weights(peace), weights(war)
            outcome[method] = {"steps": steps, "signals": signals, "equal": left == right, "zeros": zeros}
    return outcome


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)
