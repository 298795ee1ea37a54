"""The other backends, each in a process; on JAX, masks that are not state of the step would be constants in it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

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
print(json.dumps(outcome))
"""


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
    for name, result in json.loads(done.stdout.strip().splitlines()[-1]).items():
        # The step itself keeps what is pruned at zero, from one update to the next.
        assert all(zeros >= told for zeros, told in result["seen"]), name
        assert len({told for _, told in result["seen"]}) >= 4, f"{name}: the masks changed during training"
        # The proximal step makes zeros of its own, beside those of the masks.
        least, most = (132, 176) if name == "parts" else (132, 132)
        assert least <= result["after"] <= most, name
        assert least <= result["later"] <= most, name
        assert result["strip"] == 0.0, name
