r"""Stock networks at 90 % zeros in WebAssembly: ours against the same network dense, and beside the stock converter's.

    tflite-export install web                        once: LiteRT.js, by npm
    python -m benchmarks.web_models

Each network of keras.applications has random weights, 90 % of its 1x1 convolutions' weights zero. It is written three
times: dense by TensorFlow's converter, sparse by that converter, and by `tflite_export.export(target="web")`. These,
and the twin of ours (the same zeros stored dense), run in turn in one process of Node with relaxed SIMD, on one
thread; a ratio is the median over the rounds of dense / this one. A number that is missed says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tflite_export as tx
from benchmarks import zoo
from benchmarks.timing import machine, print_table
from tflite_export.runtimes.litertjs import VERSION

ASKED = {"MobileNet": 2.4, "MobileNetV2": 2.2, "MobileNetV3Small": 1.9, "MobileNetV3Large": 2.0, "EfficientNetB0": 1.8}
ERROR = 1e-5
"""Largest difference of ours from the dense file's outputs, as a share of their scale."""


def measure(name: str, size: int, rounds: int, browser: bool) -> list[str]:
    """Return a row of the table."""
    model = zoo.pruned(name, size)
    with tempfile.TemporaryDirectory() as folder:
        dense, stock, ours = (Path(folder) / f"{kind}.tflite" for kind in ("dense", "stock", "ours"))
        zoo.stock_file(model, dense, sparse=False)
        zoo.stock_file(model, stock, sparse=True)
        tx.export(model, ours, target="web", data=zoo.images(name, size), batch_size=1)
        report = tx.benchmark(
            dense,
            stock,
            ours,
            runtime="web",
            rounds=rounds,
            twins=True,
            browser=browser,
            data=zoo.images(name, size, 1),
        )
    base, by_stock, by_us = report.timings
    twin = "not sparse" if by_us.twin_ratio is None else f"{by_us.twin_ratio:.2f}"
    met = by_us.ratio >= ASKED[name] and by_us.max_difference <= ERROR
    return [
        name,
        f"{base.median:.1f}",
        f"{by_us.median:.1f}",
        f"{ASKED[name]:.1f}",
        f"{by_us.ratio:.2f}",
        "met" if met else "MISSED",
        twin,
        f"{by_stock.ratio:.2f}",
        f"{by_us.max_difference:.1e}",
        f"{by_us.file_bytes / base.file_bytes:.2f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.web_models", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=zoo.NAMES)
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--rounds", type=int, default=60, help="timed runs of each file")
    parser.add_argument("--browser", action="store_true", help="in headless Chromium instead of Node")
    options = parser.parse_args(arguments)
    rows = []
    for name in options.models:
        rows.append(measure(name, options.size, options.rounds, options.browser))
        print(*rows[-1], sep="  ", flush=True)
    columns = ["network, 90 % zeros", "dense, ms", "ours, ms", "asked", "ours", "", "to twin", "stock", "error", "size"]
    where = "Chromium" if options.browser else "Node, relaxed SIMD"
    caption = machine("tensorflow", "keras", "ai-edge-litert") + f"; LiteRT.js {VERSION}"
    print_table(f"Times as fast as dense, {where}, batch 1, one thread, {options.size} pixels", columns, rows, caption)


if __name__ == "__main__":
    main()
