r"""Guest instructions on aarch64 at 90 % zeros: MobileNet by us against the same network dense.

    tflite-export install arm64                      once: LiteRT for aarch64, under qemu
    python -m benchmarks.arm64_instructions

The files are those of `benchmarks.web_models`, ours exported for `target="arm64"`. What is counted are the instructions
of the guest in one run of a file, which repeat to 1e-5; time under an emulator says nothing, and is not given.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tflite_export as tx
from benchmarks import zoo
from benchmarks.timing import machine, print_table

ASKED = {"MobileNet": 3.0}
"""What is asked of a network; of the others nothing is."""


def measure(name: str, size: int, cpu: str) -> list[str]:
    """Return a row of the table."""
    model = zoo.pruned(name, size)
    with tempfile.TemporaryDirectory() as folder:
        dense, stock, ours = (Path(folder) / f"{kind}.tflite" for kind in ("dense", "stock", "ours"))
        zoo.stock_file(model, dense, sparse=False)
        zoo.stock_file(model, stock, sparse=True)
        tx.export(model, ours, target="arm64", data=zoo.images(name, size), batch_size=1)
        report = tx.benchmark(dense, stock, ours, runtime="arm64", twins=True, cpu=cpu, data=zoo.images(name, size, 1))
    base, by_stock, by_us = report.timings
    asked = ASKED.get(name)
    verdict = "" if asked is None else "met" if by_us.ratio >= asked else "MISSED"
    return [
        f"{name}, {cpu}",
        f"{base.median / 1e6:.1f}",
        f"{by_us.median / 1e6:.1f}",
        "" if asked is None else f"{asked:.1f}",
        f"{by_us.ratio:.2f}",
        verdict,
        "not sparse" if by_us.twin_ratio is None else f"{by_us.twin_ratio:.2f}",
        f"{by_stock.ratio:.2f}",
        f"{by_us.max_difference:.1e}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.arm64_instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=zoo.NAMES, default=["MobileNet"])
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--cpus", nargs="+", default=["cortex-a72", "cortex-a76"])
    options = parser.parse_args(arguments)
    rows = []
    for name in options.models:
        for cpu in options.cpus:
            rows.append(measure(name, options.size, cpu))
            print(*rows[-1], sep="  ", flush=True)
    columns = ["network, 90 % zeros", "dense, M", "ours, M", "asked", "ours", "", "to twin", "stock", "error"]
    caption = machine("tensorflow", "keras", "ai-edge-litert")
    print_table("Times fewer guest instructions than dense, batch 1, one thread", columns, rows, caption)


if __name__ == "__main__":
    main()
