"""The other backends, each in a process; on JAX, masks that are not state of the step would be constants in it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json
import keras, numpy as np
import keras_prune as kp

rng = np.random.default_rng(0)
x = rng.standard_normal((96, 8)).astype("float32")
y = (x @ rng.standard_normal((8, 3))).astype("float32")
ramp = kp.schedules.Linear(0.0, 0.75, begin_step=1, end_step=10, frequency=3)
cases = {
    "magnitude": kp.Pruning(ramp),
    "taylor": kp.GradientPruning(ramp),
    "rigl": kp.DynamicPruning(ramp, "rigl"),
    "surgery": kp.DynamicPruning(ramp, "surgery"),
    "soft threshold": kp.SoftThreshold(ramp),
    "alternating": kp.Alternating(kp.schedules.Phases(0.75, begin=2, end=12, sparse=3, dense=3)),
    "masked momentum": kp.Pruning(ramp, parts=kp.MaskMomentum()),
    "parts": kp.Pruning(ramp, parts=[kp.L1(1e-2, proximal=True, ramp=ramp), kp.ClipGradients(gamma=0.1)]),
    "activation": kp.Pruning(ramp, kp.criteria.Activation(data=x)),
    "data": kp.Pruning(ramp, kp.criteria.Taylor(data=(x, y))),
}

class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        getattr(self.model, "jax_state_sync", lambda: None)()
        kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in self.model.layers]
        zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        seen.append((zeros, round(logs["sparsity"] * 176)))

outcome = {}
for name, callback in cases.items():
    keras.utils.set_random_seed(0)
    seen = []
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, batch_size=12, epochs=2, verbose=0, callbacks=[callback, Watch()])
    after = sum(int((w == 0).sum()) for w in model.get_weights()[::2])
    model.fit(x, y, batch_size=12, epochs=1, verbose=0)
    later = sum(int((w == 0).sum()) for w in model.get_weights()[::2])
    plain = kp.strip(model)
    outcome[name] = {"seen": seen, "after": after, "later": later,
                     "strip": float(np.abs(plain.predict(x, verbose=0) - model.predict(x, verbose=0)).max())}

dropped = []
for several in (1, 4):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=several if SEVERAL else 1)
    model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0, callbacks=[kp.TargetedDropout(0.75)])
    dropped.append([w.tolist() for w in model.get_weights()])
print(json.dumps([outcome, dropped]))
""".replace("SEVERAL", "keras.backend.backend() == 'jax'")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_contract_holds(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    root = str(pathlib.Path(__file__).parent.parent)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome, dropped = json.loads(done.stdout.strip().splitlines()[-1])
    # What is dropped follows from the step alone, and weights are whole outside of it.
    for single, several in zip(*dropped, strict=True):
        np.testing.assert_allclose(several, single, rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(single) > 0
    assert all(np.all(np.array(kernel) != 0) for kernel in dropped[0][::2])
    for name, result in outcome.items():
        # The step itself keeps what is pruned at zero, from one update to the next.
        assert all(zeros >= told for zeros, told in result["seen"]), name
        changes = 2 if name == "alternating" else 4
        assert len({told for _, told in result["seen"]}) >= changes, f"{name}: the masks changed during training"
        # The proximal step and a soft threshold make zeros of their own, beside those of the masks.
        least, most = (132, 176) if name in ("parts", "soft threshold") else (132, 132)
        assert least <= result["after"] <= most, name
        assert least <= result["later"] <= most, name
        assert result["strip"] == 0.0, name
