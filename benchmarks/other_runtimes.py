"""Pruned models in OpenVINO and in Core ML: what they read, what zeros are worth there, and what becomes of few values.

    python -m benchmarks.other_runtimes
    python -m benchmarks.other_runtimes --networks dense --rounds 5      small, that all of it runs

Random weights with statistics of batch normalisation that are not the identity. For OpenVINO each network is exported
in several forms at a batch of 1, and each file is run by LiteRT and by OpenVINO, one thread, in float32, in turn. "off"
is the largest difference from the Keras model's answers, as a share of the largest answer. "rate" is OpenVINO with
CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=0.5, and "sparse" how many of its layers then run a kernel for sparse weights.
Times are medians over the rounds of time / LiteRT's time for the dense float32 file.

For Core ML each model is converted, and the size of the package is taken, by the code of
docs/deploy/other_runtimes.md. Core ML does not run on Linux, so there are no times; the weights stored are counted
instead, and held against the model's.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl
from numpy.typing import NDArray

import keras_prune as kp
import tflite_export as tx
from benchmarks.timing import interleave, machine, median_ratio, print_table
from keras_prune.extras import import_extra
from keras_prune.patterns import Block
from tflite_export.runtimes.litert import LiteRTSession

ZEROS = 0.8
VALUES = 16
SPARSE_RATE = {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.5}


def dense() -> keras.Model:
    """Return three wide Dense layers and a narrow one."""
    return keras.Sequential(
        [keras.Input((1024,), name="x"), *(kl.Dense(1024, "relu") for _ in range(3)), kl.Dense(10)], name="dense"
    )


def mobilenet() -> keras.Model:
    """Return MobileNet of half the width for 128 x 128 pictures."""
    return keras.applications.MobileNet((128, 128, 3), alpha=0.5, weights=None, classes=100)


NETWORKS: dict[str, Callable[[], keras.Model]] = {"dense": dense, "mobilenet": mobilenet}


def made(name: str, pattern: str | Block | None = None) -> keras.Model:
    """Return a network with its weights drawn, 80 % of each kernel zero in a pattern."""
    keras.utils.set_random_seed(0)
    model, rng = NETWORKS[name](), np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, kl.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    if pattern is None:
        return model
    # The 3x3 windows of the first layer and of depthwise ones do not divide into blocks of four inputs.
    windows = [layer.name for layer in model.layers if getattr(layer, "kernel_size", (1, 1)) != (1, 1)]
    scope = kp.Scope(exclude=windows if isinstance(pattern, Block) else ())
    return kp.strip(kp.prune(model, ZEROS, pattern=pattern, allocation="uniform", scope=scope, verbose=0))


# -- OpenVINO ---------------------------------------------------------------------------------------------------------


def forms(name: str) -> dict[str, tuple[keras.Model, dict[str, Any]]]:
    """Return for each form of a network the model, and how it is exported."""
    single, blocks = made(name, "unstructured"), made(name, Block(4, 1))
    return {
        "no zeros": (made(name), {}),
        "single zeros, smallest": (single, {"optimize": "size"}),
        "single zeros, portable": (single, {"optimize": "portable"}),
        "1x4 blocks": (blocks, {}),
        "1x4 blocks, portable": (blocks, {"optimize": "portable"}),
        "no zeros, int8": (made(name), {"quantize": "int8", "optimize": "portable"}),
        "single zeros, int8 portable": (single, {"quantize": "int8", "optimize": "portable"}),
    }


class InOpenVino:
    """A file compiled by OpenVINO for the processor, one thread, in float32."""

    def __init__(self, path: pathlib.Path, x: NDArray[np.float32], **properties: Any) -> None:
        core = import_extra("openvino", "runtimes", "OpenVINO").Core()
        # Not pinned: the processor that it would be pinned to may be at work.
        asked = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
        properties = {**asked, **properties}
        self.compiled = core.compile_model(str(path), "CPU", properties)
        self.request, self.x = self.compiled.create_infer_request(), x

    def run(self) -> NDArray[Any]:
        return np.asarray(self.request.infer([self.x])[0])

    def sparse_layers(self) -> int:
        """Return how many layers run a kernel for sparse weights."""
        infos = (operation.get_rt_info() for operation in self.compiled.get_runtime_model().get_ops())
        return sum("sparse" in info["primitiveType"].astype(str) for info in infos)


def in_litert(path: pathlib.Path, x: NDArray[np.float32]) -> Callable[[], object]:
    session = LiteRTSession(path.read_bytes(), threads=1)
    session.feed([x], list(session.inputs))
    return session.invoke


def openvino_rows(name: str, rounds: int, folder: pathlib.Path) -> list[tuple[str, ...]]:
    """Return a row for each form of a network."""
    tasks: dict[str, Callable[[], object]] = {}
    found: dict[str, list[str]] = {}
    for number, (form, (model, options)) in enumerate(forms(name).items()):
        path = folder / f"{name}{number}.tflite"
        x = np.random.default_rng(1).normal(size=(32, *model.input_shape[1:])).astype("float32")
        report = tx.export(model, path, data=x, batch_size=1, tolerance=1.0, **options)
        said = next((each.reason for each in report.unreadable_by if each.runtime == "OpenVINO"), None)
        expected = np.asarray(model(x[:1], training=False))
        tasks[f"{form} LiteRT"] = in_litert(path, x[:1])
        try:
            plain, rate = InOpenVino(path, x[:1]), InOpenVino(path, x[:1], **SPARSE_RATE)
        except RuntimeError:
            if said is None:
                raise
            found[form] = ["no", "", ""]
        else:
            if said is not None:
                raise ValueError(f"OpenVINO reads {form}, and the report of its export says that it does not: {said}")
            off = np.abs(plain.run() - expected).max() / np.abs(expected).max()
            found[form] = ["yes", f"{off:.1e}", f"{rate.sparse_layers()}"]
            tasks[f"{form} OpenVINO"], tasks[f"{form} rate"] = plain.run, rate.run
        found[form].append(f"{path.stat().st_size:,}")
    seconds = interleave(tasks, rounds)

    def ratio(form: str, runtime: str) -> str:
        own = seconds.get(f"{form} {runtime}")
        return "" if own is None else f"{median_ratio(own, seconds['no zeros LiteRT']):.2f}"

    return [
        (name, form, size, read, off, ratio(form, "LiteRT"), ratio(form, "OpenVINO"), ratio(form, "rate"), sparse)
        for form, (read, off, sparse, size) in found.items()
    ]


# -- Core ML ----------------------------------------------------------------------------------------------------------


def converted(model: keras.Model, ct: Any) -> Any:
    """Return a model as a Core ML program, at a batch of 1."""
    signature = [tf.TensorSpec((1, *x.shape[1:]), x.dtype, x.name) for x in model.inputs]
    run = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False), autograph=False)
    return ct.convert(
        [run.get_concrete_function(*signature)],
        source="tensorflow",
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
    )


def stored_weights(program: Any) -> int:
    """Return how many weights a program stores as not zero, behind bit masks."""
    operations = program._mil_program.functions["main"].operations
    kinds = ("constexpr_sparse_to_dense", "constexpr_lut_to_sparse")
    sparse = [each for each in operations if each.op_type in kinds]
    masks = {id(each.inputs.get("mask", each.inputs.get("indices_mask"))): each for each in sparse}
    bits = 0
    for each in masks.values():
        mask = each.inputs.get("mask", each.inputs.get("indices_mask")).val
        bits += int(np.unpackbits(np.asarray(mask, np.uint8)).sum() if mask.dtype == np.uint8 else mask.sum())
    return bits


def core_ml_rows(name: str, folder: pathlib.Path) -> list[tuple[str, ...]]:
    """Return a row for each form of a network in Core ML."""
    ct: Any = import_extra("coremltools", "runtimes", "Core ML")
    cto: Any = import_extra("coremltools.optimize.coreml", "runtimes", "Core ML")
    zeros = cto.OptimizationConfig(cto.OpThresholdPrunerConfig(threshold=1e-12, weight_threshold=0))
    by_channel = {"granularity": "per_grouped_channel", "group_size": 1}
    exact = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="unique", **by_channel))
    nearest = cto.OptimizationConfig(cto.OpPalettizerConfig(mode="kmeans", nbits=4))
    pruned = made(name, "unstructured")
    program = converted(pruned, ct)
    sparse = cto.prune_weights(program, zeros)
    few = kp.share(made(name, "unstructured"), VALUES)
    shared = converted(few, ct)
    programs = {
        "no zeros": converted(made(name), ct),
        "80 % zeros, as converted": program,
        "80 % zeros, sparse": sparse,
        "80 % zeros of 16 values, palettes by channel": cto.palettize_weights(shared, exact),
        "80 % zeros, palette of 4 bits by Core ML's k-means": cto.palettize_weights(program, nearest),
        "80 % zeros, sparse, with such a palette": cto.palettize_weights(sparse, nearest, joint_compression=True),
    }
    rows: list[tuple[str, ...]] = []
    for form, each in programs.items():
        path = folder / f"{name}{len(rows)}.mlpackage"
        each.save(str(path))
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append((name, form, f"{size:,}"))
    whole = int(rows[0][2].replace(",", ""))
    left = sum(int(np.count_nonzero(kernel)) for kernel in pruned.get_weights() if kernel.ndim > 1)
    print(f"{name}: {left:,} weights are not zero, the sparse package stores {stored_weights(sparse):,}")
    return [(*row, f"{int(row[2].replace(',', '')) / whole:.2f}") for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        rows = [row for name in options.networks for row in openvino_rows(name, options.rounds, folder)]
        columns = ("network", "form", "bytes", "OpenVINO reads it", "off", "LiteRT", "OpenVINO", "rate", "sparse")
        print_table("OpenVINO", columns, rows, machine("openvino", "ai-edge-litert", "tensorflow", "keras"))
        rows = [row for name in options.networks for row in core_ml_rows(name, folder)]
        print_table("Core ML", ("network", "form", "bytes", "of dense"), rows, machine("coremltools", "tensorflow"))


if __name__ == "__main__":
    main()
