"""Gates that follow from the input: accuracy, channels that a sample opens, and what that saves in TensorFlow Lite.

    python -m benchmarks.gating
    python -m benchmarks.gating --samples 2000 --epochs 1 --rounds 50       small, that all of it runs

A small convolutional network on Fashion-MNIST, dense and with `kp.Gated` around its two large layers, is trained with
the same settings. Then these files are timed in turn on the same test pictures, batch 1, one thread, LiteRT:

| file | |
| --- | --- |
| dense | the network without gates |
| gates multiply | what `tflite_export.export` writes of the gated network |
| branches | channels in four groups by how often they open; an IF computes a group where one of its gates is open |
| gathered | the kernels of open channels are gathered, those of the next layer by what it reads as well |
| without closed | the gated network after `kp.gating.remove_closed` on the training pictures |
| fewer for all | a dense network with as many channels as the gated one opens on average, not trained |

Every gated file is compared with the Keras model on the test pictures that are timed.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import layers as kl
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import keras_prune as kp
import tflite_export as tx
from benchmarks.data import fashion_mnist
from benchmarks.timing import interleave, machine, median_ratio, print_table
from keras_prune.gating.opened import gated_layers, opened_gates

WIDTHS = (64, 128)
GROUPS = 4


def network(widths: tuple[int, int] = WIDTHS, gated: dict[str, Any] | None = None) -> keras.Model:
    """A convolution of 32 channels, then two larger ones, with gates where `gated` has their arguments."""

    def layer(filters: int, name: str) -> Any:
        plain = kl.Conv2D(filters, 3, strides=1 if name == "first" else 2, padding="same", activation="relu", name=name)
        return plain if gated is None else kp.Gated(plain, **gated, name=f"gated_{name}")

    stem = kl.Conv2D(32, 3, strides=2, padding="same", activation="relu", name="stem")
    stack = [stem, layer(widths[0], "first"), layer(widths[1], "second"), kl.GlobalAveragePooling2D(), kl.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1), name="image"), *stack])


def train(model: keras.Model, data: Any, epochs: int) -> float:
    """Train a network; return its accuracy on the test pictures."""
    (x, y), test = data
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * -(-len(x) // 128))
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return float(model.evaluate(*test, verbose=0)[1])


# -- files ------------------------------------------------------------------------------------------------------------


def exported(model: keras.Model, folder: Path, x: Any) -> bytes:
    """What `tflite_export.export` writes, compared with the model by itself."""
    path = folder / "model.tflite"
    tx.export(model, path, data=x[:64], batch_size=1)
    return path.read_bytes()


def converted(function: Callable[[Any], Any]) -> bytes:
    """A function of a picture as TensorFlow's converter makes it."""
    traced = tf.function(function, input_signature=[tf.TensorSpec((1, 28, 28, 1), tf.float32, "image")])
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function(), lower_control_flow=False)
    content: bytes = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
    return content


def opened(weights: list[Any], mean: Any) -> Any:
    """The gates of a sample by the means of its input's channels, as 0.0 and 1.0."""
    first, first_bias, second, second_bias = weights
    logits = tf.matmul(tf.nn.relu(tf.matmul(mean, first) + first_bias), second) + second_bias
    return tf.cast(tf.squeeze(logits, 0) > 0, tf.float32)


def convolution(layer: Any, x: Any, kernel: Any, bias: Any) -> Any:
    return tf.nn.relu(tf.nn.conv2d(x, kernel, layer.strides, "SAME") + bias)


def branches(model: keras.Model, data: Any) -> Callable[[Any], Any]:
    """The gated network with an IF for each group of channels; those of a group open about as often on the data."""
    steps, read = [], np.arange(32)
    for gated, often in zip(gated_layers("branches", model), opened_gates("branches", model, data)[0], strict=True):
        order = np.argsort(often[0].mean(axis=0), kind="stable")
        kernel, bias = gated.layer.get_weights()
        first, first_bias, second, second_bias = gated.head.get_weights()
        parts = list(
            zip(np.split(kernel[:, :, read][..., order], GROUPS, -1), np.split(bias[order], GROUPS), strict=True)
        )
        steps.append((gated.layer, [first[read], first_bias, second[:, order], second_bias[order]], parts))
        read = order
    last = model.layers[-1].get_weights()[0][read]

    def group(layer: Any, x: Any, kernel: Any, bias: Any, gates: Any) -> Any:
        size = -(-x.shape[1] // layer.strides[0])
        return tf.cond(
            tf.reduce_max(gates) > 0,
            lambda: convolution(layer, x, kernel, bias) * gates,
            lambda: tf.zeros((1, size, size, len(bias))),
        )

    def run(x: Any) -> Any:
        x = model.get_layer("stem")(x)
        for layer, head, parts in steps:
            gates = tf.split(opened(head, tf.reduce_mean(x, (1, 2))), GROUPS)
            x = tf.concat([group(layer, x, *part, own) for part, own in zip(parts, gates, strict=True)], -1)
        return tf.matmul(tf.reduce_mean(x, (1, 2)), last) + model.layers[-1].bias

    return run


def gathered(model: keras.Model) -> Callable[[Any], Any]:
    """The gated network with the kernels of open channels gathered, along what they read and what they give.

    The converter takes no convolution whose channels it does not know, so each is a product of the windows' matrix.
    """

    def windows(x: Any, strides: int) -> Any:
        size = -(-x.shape[1] // strides)
        before = ((size - 1) * strides + 3 - x.shape[1]) // 2
        x = tf.pad(x, ((0, 0), (before, 2), (before, 2), (0, 0)))
        ends = size * strides
        return tf.concat([x[:, i : i + ends : strides, j : j + ends : strides] for i in range(3) for j in range(3)], -1)

    def run(x: Any) -> Any:
        x = model.get_layer("stem")(x)
        read = None
        for gated in gated_layers("gathered", model):
            kernel, bias = (tf.convert_to_tensor(weight) for weight in gated.layer.weights)
            head = [tf.convert_to_tensor(weight) for weight in gated.head.weights]
            kernel = tf.reshape(kernel, (9, *kernel.shape[2:]))
            if read is not None:
                kernel, head[0] = tf.gather(kernel, read, axis=1), tf.gather(head[0], read)
            made = tf.reshape(tf.where(opened(head, tf.reduce_mean(x, (1, 2))) > 0), (-1,))
            kernel = tf.gather(kernel, made, axis=2)
            rows = windows(x, gated.layer.strides[0])
            size, inputs, outputs = rows.shape[1], tf.shape(rows)[-1], tf.size(made)
            rows = tf.reshape(rows, tf.stack([size * size, inputs]))
            x = tf.nn.relu(tf.matmul(rows, tf.reshape(kernel, tf.stack([inputs, outputs]))) + tf.gather(bias, made))
            x = tf.reshape(x, tf.stack([1, size, size, outputs]))
            read = made
        last = model.layers[-1]
        return tf.matmul(tf.reduce_mean(x, (1, 2)), tf.gather(last.kernel, read)) + last.bias

    return run


# -- times ------------------------------------------------------------------------------------------------------------


class Run:
    """A file that is run on one picture after the other."""

    def __init__(self, content: bytes, x: Any) -> None:
        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        self.given = self.interpreter.get_input_details()[0]["index"]
        self.made = self.interpreter.get_output_details()[0]["index"]
        self.x, self.place = x, 0

    def __call__(self) -> Any:
        self.interpreter.set_tensor(self.given, self.x[self.place % len(self.x)][None])
        self.place += 1
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.made)


def files(
    dense: keras.Model, gated: keras.Model, x: Any, folder: Path
) -> tuple[dict[str, bytes], dict[str, str], dict[str, keras.Model]]:
    """The files by name, why one could not be made, and the Keras model that each is to answer as."""
    report = kp.gate_report(gated, x)
    widths = [max(1, round(one.mean * one.channels)) for one in report.layers]
    made: dict[str, Callable[[], bytes]] = {
        "dense": lambda: exported(dense, folder, x),
        "gates multiply": lambda: exported(gated, folder, x),
        "branches": lambda: converted(branches(gated, x)),
        "gathered": lambda: converted(gathered(gated)),
        "without closed": lambda: exported(kp.gating.remove_closed(gated, x), folder, x),
        "fewer for all": lambda: exported(network((widths[0], widths[1])), folder, x),
    }
    found, refused = {}, {}
    for name, make in made.items():
        try:
            found[name] = make()
        except (ValueError, ConverterError) as error:  # no channel is closed, or the converter refuses
            refused[name] = " ".join(str(error).split())[:200]
    return found, refused, {"dense": dense, **dict.fromkeys(("gates multiply", "branches", "gathered"), gated)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="of the training pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.4, help="of the channels that a sample is to open")
    parser.add_argument("--gate", choices=("straight_through", "gumbel"), default="straight_through")
    parser.add_argument("--rounds", type=int, default=400)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*channels that are closed on all samples stay")
    images = fashion_mnist()
    x_train, x_test = (x[..., None].astype("float32") / 255 for x in (images.x_train[: options.samples], images.x_test))
    data = (x_train, images.y_train[: options.samples]), (x_test, images.y_test)
    print(machine("tensorflow", "keras", "ai-edge-litert"))
    keras.utils.set_random_seed(0)
    dense = network()
    accuracies = [train(dense, data, options.epochs)]
    keras.utils.set_random_seed(0)
    gated = network(gated={"share": options.share, "gate": options.gate, "strength": 2.0, "seed": 0})
    accuracies.append(train(gated, data, options.epochs))
    print(f"accuracy: dense {accuracies[0]:.2%}, gated {accuracies[1]:.2%}\n")
    print(kp.gate_report(gated, x_test), "\n")
    with TemporaryDirectory() as folder:
        contents, refused, models = files(dense, gated, x_train, Path(folder))
    timed = x_test[: options.rounds]
    for name, model in models.items():
        if name in contents:
            run = Run(contents[name], timed)
            error = np.abs(np.concatenate([run() for _ in timed]) - model.predict(timed, verbose=0)).max()
            if error > 1e-3:
                refused[name] = f"the file answers otherwise than the Keras model, by {error:.3g}"
                del contents[name]
    seconds = interleave({name: Run(content, timed) for name, content in contents.items()}, options.rounds)
    rows = [
        [
            name,
            f"{len(contents[name]):,}",
            f"{1e6 * float(np.median(own)):.0f}",
            f"{median_ratio(own, seconds['dense']):.2f}",
        ]
        for name, own in seconds.items()
    ]
    print_table("LiteRT, one thread, batch 1", ["file", "bytes", "microseconds", "of dense"], rows, "")
    for name, reason in refused.items():
        print(f"{name}: not made: {reason}")


if __name__ == "__main__":
    main()
