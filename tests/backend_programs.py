"""Run by test_backends.py in a process of its own, on the backend that the environment names; prints what it found."""

import json

import keras
import numpy as np
from keras import layers as kl

import keras_prune as kp
from keras_prune import layers as pruned
from keras_prune.structured.fit.callback import StructuredPruning
from keras_prune.structured.fit.regularise import GroupLasso, GrowingRegularisation


def prune_by_callbacks():
    """For each callback: zeros and told sparsity after every step, zeros after both fits, and what strip changes."""
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
        "metric": kp.AdaptivePruning("loss", 100.0, "taylor", step=0.35, speed_up=1.0, max_sparsity=0.75),
    }
    outcome = {}
    for name, callback in cases.items():
        keras.utils.set_random_seed(0)
        seen = []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None, seen=seen):
                getattr(self.model, "jax_state_sync", lambda: None)()
                kernels = [keras.ops.convert_to_numpy(layer.kernel) for layer in self.model.layers]
                seen.append((sum(int((kernel == 0).sum()) for kernel in kernels), round(logs["sparsity"] * 176)))

        model = keras.Sequential([keras.Input((8,)), kl.Dense(16, activation="relu"), kl.Dense(3)])
        model.compile(keras.optimizers.Adam(0.01), "mse")
        epochs = 6 if name == "metric" else 2
        model.fit(x, y, batch_size=12, epochs=epochs, verbose=0, callbacks=[callback, Watch()])
        after = sum(int((w == 0).sum()) for w in model.get_weights()[::2])
        model.fit(x, y, batch_size=12, epochs=1, verbose=0)
        later = sum(int((w == 0).sum()) for w in model.get_weights()[::2])
        change = np.abs(kp.strip(model).predict(x, verbose=0) - model.predict(x, verbose=0)).max()
        outcome[name] = {"seen": seen, "after": after, "later": later, "strip": float(change)}
    return outcome


def train_with_dropout():
    """The weights after a training one step at a time and, on JAX, after one of four steps at a time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 8)).astype("float32")
    y = (x @ rng.standard_normal((8, 3))).astype("float32")
    ends = []
    for several in (1, 4):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), kl.Dense(16, activation="relu"), kl.Dense(3)])
        steps = several if keras.backend.backend() == "jax" else 1
        model.compile(keras.optimizers.Adam(0.01), "mse", steps_per_execution=steps)
        model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0, callbacks=[kp.TargetedDropout(0.75)])
        ends.append([w.tolist() for w in model.get_weights()])
    return ends


def share_values():
    """Of a kernel whose weights share values, by value and by gradient: itself before and after each step."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(-2, 3, (16, 4)).astype("float32"), rng.integers(-2, 3, (16, 3)).astype("float32")
    kernel = rng.choice([0.0, -1.5, 0.25, 2.0], (4, 3)).astype("float32")
    outcome = {"x": x.tolist(), "y": y.tolist(), "kernel": kernel.tolist()}
    for group_by, values in (("value", 4), ("gradient", 3)):
        model = keras.Sequential([keras.Input((4,)), kl.Dense(3, use_bias=False)])
        model.set_weights([kernel])
        model.compile(keras.optimizers.SGD(2.0**-6), "mse")
        seen = []

        class Watch(keras.callbacks.Callback):
            def see(self, batch, logs=None, seen=seen):
                getattr(self.model, "jax_state_sync", lambda: None)()
                seen.append(keras.ops.convert_to_numpy(self.model.layers[0].kernel).tolist())

            on_train_batch_begin = on_train_batch_end = see

        data = (x, y) if group_by == "gradient" else None
        sharing = kp.WeightSharing(values, "linear", group_by=group_by, data=data)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[sharing, Watch()])
        outcome[group_by] = [seen[0], *seen[1::2]]
    return outcome


def train_layers_with_masks():
    """Of layers that carry masks: whether training drew new seeds, moved kept weights, and no others."""
    layers = [pruned.PrunableLSTM(4, dropout=0.2), pruned.Prunable(kl.Dense(4)), pruned.PrunableDense(2)]
    model = keras.Sequential([keras.Input((5, 3)), *layers])
    rng = np.random.default_rng(0)
    for layer in layers:
        layer.set_masks([rng.random(kernel.shape) < 0.5 for kernel, _ in layer.mask_pairs])
    before = [[np.array(kernel) for kernel, _ in layer.mask_pairs] for layer in layers]
    x = rng.normal(size=(8, 5, 3)).astype("float32")
    seed = np.array(layers[0].cell.seed_generator.state)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, np.ones((8, 2)), verbose=0)
    moved = []
    for layer, olds in zip(layers, before, strict=True):
        for (kernel, mask), old in zip(layer.mask_pairs, olds, strict=True):
            changed, mask = np.array(kernel) != old, np.array(mask)
            moved.append([bool(changed[mask].any()), bool(changed[~mask].any())])
    kernel, mask = layers[2].mask_pairs[0]
    hidden = np.array(layers[1](layers[0](x)))
    by_hand = hidden @ np.array(kernel * mask) + np.array(layers[2].bias)
    return {
        "seeds drawn": bool((np.array(layers[0].cell.seed_generator.state) != seed).any()),
        "kept and pruned moved": moved,
        "from by hand": float(np.abs(np.array(model(x)) - by_hand).max()),
    }


def prune_units():
    """What is left after each epoch, and how far the smaller model is off, at once and trained on."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), kl.Dense(8, "tanh"), kl.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    parts = [GrowingRegularisation(0.2, 2, 0.6), GroupLasso(1e-3, proximal=True)]
    pruning = StructuredPruning(params=0.5, end_step=6, frequency=3, parts=parts)
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[pruning]).history
    smaller = pruning.shrink()
    difference = [float(np.abs(model.predict(x, verbose=0) - smaller.predict(x, verbose=0)).max())]
    for one in (model, smaller):
        one.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    difference.append(float(np.abs(model.predict(x, verbose=0) - smaller.predict(x, verbose=0)).max()))
    return {"left": history["params_left"], "difference": difference}


def train_gated_layers():
    """Of layers with gates: whether seeds were drawn, the shares before and after, whether answers are drawn too."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.normal(size=(64, 2)).astype("float32")
    layers = [kp.Gated(kl.Dense(12), 0.25, gate, 4.0, seed=1) for gate in ("straight_through", "gumbel")]
    model = keras.Sequential([keras.Input((6,)), *layers, kl.Dense(2)])
    shares = [kp.gate_report(model, x).share]
    seed = np.array(layers[1].seed_generator.state)
    model.compile(keras.optimizers.Adam(0.02), "mse")
    model.fit(x, y, batch_size=8, epochs=12, verbose=0)
    shares.append(kp.gate_report(model, x).share)
    answers = [model.predict(x, verbose=0) for _ in range(2)]
    return {
        "seeds drawn": bool((np.array(layers[1].seed_generator.state) != seed).any()),
        "shares": shares,
        "answers differ": float(np.abs(answers[0] - answers[1]).max()),
    }


if __name__ == "__main__":
    programs = (
        prune_by_callbacks,
        train_with_dropout,
        share_values,
        train_layers_with_masks,
        prune_units,
        train_gated_layers,
    )
    outcome = {program.__name__: program() for program in programs}
    print(json.dumps({"backend": keras.backend.backend(), **outcome}))
