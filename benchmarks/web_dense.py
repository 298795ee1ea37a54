r"""What the sparse FULLY_CONNECTED kernels gain in WebAssembly: the table of the target "web".

    tflite-export install web                        once: LiteRT.js, by npm
    python -m benchmarks.web_dense

Three Dense(n) in a row, with zeros of which the kernel can skip each: 1x4 blocks, 1x16 blocks (int8), or single ones.
A figure is the median over the rounds of twin / file, where the twin holds the same zeros stored dense; the two run in
turn under Node with relaxed SIMD, on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np

import tflite_export as tx
from benchmarks.timing import machine, print_table
from keras_prune.devices import Device, Encoding, Kernel
from tflite_export.runtimes.litertjs import VERSION

KERNELS = {
    Encoding.BLOCK: (4, None, (0.6, 0.7, 0.8, 0.9, 0.95)),
    Encoding.CSR: (1, None, (0.8, 0.9, 0.95, 0.98)),
    Encoding.BLOCK16: (16, "int8", (0.7, 0.8, 0.9, 0.95)),
}
"""For each encoding: how long its units are, the number type, and the shares of zero units."""
UNITS = (256, 512, 1024)
ROWS = (1, 16, 196)


def make_model(units: int, rows: int, share: float, block: int) -> keras.Model:
    """Return three Dense layers with a share of the units of each kernel zero; a unit lies along the inputs."""
    rng = np.random.default_rng(0)
    entry = keras.Input((units,) if rows == 1 else (rows, units))
    x = entry
    for _ in range(3):
        layer = keras.layers.Dense(units, use_bias=False)
        x = layer(x)
        kept = rng.permutation(units * units // block) >= round(share * units * units / block)
        weights = rng.normal(size=(units, units)) / np.sqrt(units * (1 - share))
        layer.kernel.assign(weights * np.repeat(kept.reshape(units // block, units), block, axis=0))
    return keras.Model(entry, x)


def gain(encoding: Encoding, units: int, rows: int, share: float, rounds: int) -> float:
    """Return twin / file."""
    block, quantize, _ = KERNELS[encoding]
    model = make_model(units, rows, share, block)
    data = np.random.default_rng(1).normal(size=(4, *model.inputs[0].shape[1:])).astype(np.float32)
    target = Device("own", (Kernel(encoding, "to be measured", pays_from=(0.0, 0.0)),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.tflite"
        report = tx.export(model, path, target=target, quantize=quantize, data=data, batch_size=1)
        stored = {line.encoding for line in report.lines if line.encoding is not Encoding.DENSE}
        if stored != {encoding}:
            raise RuntimeError(f"the file should hold {encoding}, and holds {stored}: {report.lines[0].reason}")
        ratio = tx.benchmark(path, runtime="web", twins=True, rounds=rounds, data=data[:1]).timings[0].twin_ratio
    assert ratio is not None
    return ratio


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.web_dense", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--encoding", choices=[encoding.name for encoding in KERNELS], help="only this one")
    options = parser.parse_args(arguments)
    for encoding, (_, _, shares) in KERNELS.items():
        if options.encoding not in (None, encoding.name):
            continue
        rows = []
        for units in UNITS:
            for count in ROWS:
                found = [gain(encoding, units, count, share, options.rounds) for share in shares]
                rows.append([f"3 x Dense({units}), {count} rows", *(f"{ratio:.2f}" for ratio in found)])
                print(encoding.value, *rows[-1], flush=True)
        headings = [f"{encoding.value}: times as fast as dense", *(f"{share:.0%}" for share in shares)]
        print_table("Sparse FULLY_CONNECTED in WebAssembly", headings, rows, machine("ai-edge-litert") + f"; {VERSION}")


if __name__ == "__main__":
    main()
