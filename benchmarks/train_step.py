r"""The cost of pruning in a training step: pruned / plain, ours on Keras 3 and tfmot's on tf_keras, in one command.

    python -m benchmarks.train_step

Each library has a process of its own, since tfmot needs the environment variable TF_USE_LEGACY_KERAS; the two take
turns, model by model. Within a process the plain model and the pruned ones train at the same time, one epoch each in
turn: every `fit` runs in a thread that works only while it holds the baton, and hands it on between epochs. What is
timed is an epoch of `fit`, callbacks and all, without the first one, which traces; the ratio is the median over epochs
of pruned / plain. The schedule rises until the last epoch, so that every update changes masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import installed, machine, print_table, verdict

FREQUENCIES = (100, 1)

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What a user waits; or, on a machine that is busy with other things, what the processor did for the process."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to train.

    Attributes:
        name: for the table.
        shape: of one sample.
        batch: samples in a step.
        steps: steps in an epoch, a multiple of 100: an epoch at frequency 100 holds as many updates as it should.
        epochs: epochs that are timed.
        asked: the highest ratio at each frequency.
        tfmot: what tfmot was measured to take when the limits were set.
    """

    name: str
    shape: tuple[int, ...]
    batch: int
    steps: int
    epochs: int
    asked: dict[int, float]
    tfmot: dict[int, str]


CASES = (
    Case("LeNet-300-100", (784,), 128, 200, 20, {100: 1.05, 1: 1.5}, {100: "1.4 to 1.8", 1: "7 to 8"}),
    Case("ResNet-8, 32x32", (32, 32, 3), 32, 100, 5, {100: 1.02, 1: 1.10}, {100: "1.02", 1: "1.13"}),
)


def lenet(keras: Any) -> Any:
    """LeNet-300-100 (LeCun et al. 1998): 266,200 kernel weights."""
    layers = keras.layers
    dense = [layers.Dense(300, activation="relu"), layers.Dense(100, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((784,)), *dense])


def resnet(keras: Any) -> Any:
    """ResNet-8 for 32x32 pictures (He et al. 2015, section 4.2, n = 1): 77,000 kernel weights."""
    layers = keras.layers

    def convolve(x: Any, filters: int, stride: int = 1, size: int = 3) -> Any:
        x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    entry = keras.Input((32, 32, 3))
    x = layers.ReLU()(convolve(entry, 16))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = convolve(layers.ReLU()(convolve(x, filters, stride)), filters)
        x = x if stride == 1 else convolve(x, filters, stride, size=1)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(entry, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


MODELS: dict[str, Callable[[Any], Any]] = {CASES[0].name: lenet, CASES[1].name: resnet}


# -- one library's process --------------------------------------------------------------------------------------------


def pruned_by_us(model: Any, frequency: int, steps: int) -> tuple[Any, list[Any]]:
    """Return a model to train and the callbacks that prune it, for our own library."""
    import keras_prune as kp

    schedule = kp.schedules.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=steps, frequency=frequency)
    return model, [kp.Pruning(schedule)]


def pruned_by_tfmot(model: Any, frequency: int, steps: int) -> tuple[Any, list[Any]]:
    """Return the same for tfmot."""
    from tensorflow_model_optimization.sparsity import keras as sparsity

    schedule = sparsity.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=steps, frequency=frequency)
    return sparsity.prune_low_magnitude(model, pruning_schedule=schedule), [sparsity.UpdatePruningStep()]


def time_epochs(
    keras: Any, prune: Callable[..., tuple[Any, list[Any]]], case: Case, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Train a plain model and the pruned ones in turn.

    Returns:
        Seconds an epoch, for "plain" and for each frequency.
    """
    rng = np.random.default_rng(0)
    x = rng.random((case.batch * case.steps, *case.shape), dtype=np.float32)
    y = rng.integers(0, 10, len(x))
    runs: list[tuple[str, Any, list[Any]]] = []
    for frequency in (None, *FREQUENCIES):
        model, callbacks = MODELS[case.name](keras), []
        if frequency is not None:
            model, callbacks = prune(model, frequency, case.steps * (case.epochs + 1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(), loss=loss)
        runs.append(("plain" if frequency is None else str(frequency), model, callbacks))
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    batons = [threading.Semaphore(0) for _ in runs]
    failures: list[BaseException] = []

    class InTurn(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        """Waits for the baton before an epoch, times the epoch, and passes the baton on."""

        def __init__(self, i: int, times: list[float]) -> None:
            super().__init__()
            self.i, self.times, self.start = i, times, 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            batons[self.i].acquire()
            self.start = clock()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch:
                self.times.append(clock() - self.start)
            batons[(self.i + 1) % len(batons)].release()

    def train(i: int, name: str, model: Any, callbacks: list[Any]) -> None:
        turn = InTurn(i, seconds[name])
        try:
            model.fit(
                x,
                y,
                batch_size=case.batch,
                epochs=case.epochs + 1,
                shuffle=False,
                verbose=0,
                callbacks=[turn, *callbacks],
            )
        except BaseException as error:
            failures.append(error)
            for baton in batons:
                for _ in range(case.epochs + 1):
                    baton.release()

    threads = [threading.Thread(target=train, args=(i, *run), daemon=True) for i, run in enumerate(runs)]
    for thread in threads:
        thread.start()
    batons[0].release()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return seconds


def serve(library: str, clock: Callable[[], float]) -> None:
    """Answer each case that is named on a line of the standard input by a line of times on the standard output."""
    prune: Callable[..., tuple[Any, list[Any]]]
    if library == "tfmot":
        import tf_keras as keras

        prune = pruned_by_tfmot
    else:
        import keras

        prune = pruned_by_us
    for line in sys.stdin:
        case = next(case for case in CASES if case.name == line.strip())
        keras.utils.set_random_seed(0)
        print(json.dumps(time_epochs(keras, prune, case, clock)), flush=True)


# -- the command ------------------------------------------------------------------------------------------------------


class Library:
    """One library, in a process of its own.

    Args:
        name: "keras_prune" or "tfmot".
        clock: a key of CLOCKS.
    """

    def __init__(self, name: str, clock: str) -> None:
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
        environment.pop("TF_USE_LEGACY_KERAS", None)
        if name == "tfmot":
            environment["TF_USE_LEGACY_KERAS"] = "1"
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.train_step", "--serve", name, "--clock", clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def measure(self, case: Case) -> dict[str, list[float]]:
        """Return seconds an epoch by name."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(case.name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process of {self.name} ended with code {self.process.wait()}; its error is above.")
        times: dict[str, list[float]] = json.loads(answer)
        return times

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def merge(rounds: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Join the times of several rounds."""
    return {name: [seconds for times in rounds for seconds in times[name]] for name in rounds[0]}


def ratio(times: dict[str, list[float]], frequency: int) -> float:
    """Return the median over epochs of pruned / plain."""
    return statistics.median(a / b for a, b in zip(times[str(frequency)], times["plain"], strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.train_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="turns that each library takes at each model")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine that others use too")
    parser.add_argument("--serve", choices=["keras_prune", "tfmot"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, CLOCKS[options.clock])
        return
    has_tfmot = bool(installed("tensorflow-model-optimization") and installed("tf_keras"))
    libraries = [Library(name, options.clock) for name in ("keras_prune", *(["tfmot"] if has_tfmot else []))]
    rows = []
    for case in CASES:
        rounds: dict[str, list[dict[str, list[float]]]] = {library.name: [] for library in libraries}
        for _ in range(options.rounds):
            for library in libraries:
                rounds[library.name].append(library.measure(case))
        times = {name: merge(parts) for name, parts in rounds.items()}
        for frequency in FREQUENCIES:
            ours = ratio(times["keras_prune"], frequency)
            theirs = f"{ratio(times['tfmot'], frequency):.2f}" if has_tfmot else "not installed"
            plain = 1000.0 * statistics.median(times["keras_prune"]["plain"]) / case.steps
            asked = case.asked[frequency]
            name = f"{case.name}, a mask update every {frequency} steps"
            numbers = [f"{plain:.2f}", f"{asked:.2f}", f"{ours:.2f}", verdict(ours, asked), theirs]
            rows.append([name, *numbers, case.tfmot[frequency]])
            print(*rows[-1], sep="  ", flush=True)
    for library in libraries:
        library.close()
    caption = machine("keras", "tensorflow", "tf_keras", "tensorflow-model-optimization", "numpy")
    if not has_tfmot:
        caption += '\ntfmot is not installed, so it is not measured. Install it: pip install "keras-prune[tfmot]"'
    columns = ["training step, pruned / plain", "plain, ms", "asked", "keras-prune", "", "tfmot", "tfmot, expected"]
    print_table(f"Training step, {options.clock} time", columns, rows, caption)


if __name__ == "__main__":
    main()
