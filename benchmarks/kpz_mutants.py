"""Containers (`.kpz`) that are damaged or lie: thousands of mutants, each a refusal or a model, in bounded memory.

    python -m benchmarks.kpz_mutants
    python -m benchmarks.kpz_mutants --number 300

Three models are packed: a large pruned and shared one, whose weights are what takes memory; one with vocabularies and
adapted statistics; and a small one. A mutant has bytes changed, cut out, put in, copied or its end cut off; numbers in
headers are set to extremes. In two of three, all checksums and the length in the header are put right, as a hostile
author would. Each is given to `kp.load_kpz`. What is allowed is a `ContainerError` or a model. The peak of memory is
measured for each mutant: what Python and NumPy allocate (tracemalloc), and what the process holds (its resident set, on
Linux). Asked is at most 4 times the bytes that the header declares once unpacked, beside a fixed allowance for the
objects of a model that are no weights.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import re
import struct
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
from keras import layers as kl

import keras_prune as kp
from benchmarks.timing import machine, print_table
from keras_prune.container.errors import ContainerError
from keras_prune.container.records import FILE, RECORD

TIMES = 4
ALLOWANCE = 4 * 2**20
"""Bytes for what is no weight: layers, traced functions, JSON, parts of files."""
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


# -- mutants ----------------------------------------------------------------------------------------------------------


def mutants(content: bytes, number: int, seed: int) -> Iterator[bytes]:
    """Yield mutants of a container; of each three, the checksums of two are right again."""
    draw = random.Random(seed)
    for i in range(number):
        mutant = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            draw.choice((_bits, _bits, _bytes, _extreme, _extreme, _cut, _put, _end))(mutant, draw)
        yield bytes(mutant) if i % 3 == 0 else resealed(bytes(mutant))


def _bits(content: bytearray, draw: random.Random) -> None:
    at = _place(content, draw)
    content[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1])


def _bytes(content: bytearray, draw: random.Random) -> None:
    at = _place(content, draw)
    length = min(draw.choice((1, 2, 4, 16)), len(content) - at)
    content[at : at + length] = draw.randbytes(length)


def _extreme(content: bytearray, draw: random.Random) -> None:
    at, width = _place(content, draw), draw.choice((1, 2, 4, 8))
    content[at : at + width] = (draw.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")


def _cut(content: bytearray, draw: random.Random) -> None:
    at = _place(content, draw)
    del content[at : at + draw.choice((1, 4, 40))]


def _put(content: bytearray, draw: random.Random) -> None:
    at, source = _place(content, draw), _place(content, draw)
    content[at:at] = content[source : source + draw.choice((1, 4, 40))]


def _end(content: bytearray, draw: random.Random) -> None:
    if draw.random() < 0.3:
        del content[_place(content, draw) :]


def _place(content: bytearray, draw: random.Random) -> int:
    """Return a place in the file: half of them in a header or at the begin of a payload, where tables are."""
    if draw.random() < 0.5:
        at = draw.choice(list(_records(content))) + draw.randrange(RECORD.size + 96)
        if at < len(content):
            return at
    return draw.randrange(len(content)) if content else 0


def _records(content: bytes | bytearray) -> Iterator[int]:
    """Yield where the file's header and the records begin, as far as their lengths lead."""
    yield 0
    at = FILE.size
    while at + RECORD.size <= len(content):
        yield at
        _, header, payload, _, _ = RECORD.unpack_from(content, at)
        at += RECORD.size + header + payload


def resealed(content: bytes) -> bytes:
    """Return a container with its length and all checksums put right, as far as the lengths of its records lead."""
    made = bytearray(content)
    for at in list(_records(made))[1:]:
        _, header, payload, _, _ = RECORD.unpack_from(made, at)
        start = at + RECORD.size
        struct.pack_into("<I", made, at + 16, zlib.crc32(made[start + header : start + header + payload]))
        struct.pack_into("<I", made, at + 20, zlib.crc32(made[at : at + 20] + made[start : start + header]))
    if len(made) >= FILE.size:
        struct.pack_into("<Q", made, 16, len(made))
        struct.pack_into("<I", made, FILE.size - 4, zlib.crc32(made[: FILE.size - 4]))
    return bytes(made)


def declared(content: bytes) -> int:
    """Return to how many bytes a container says that it unpacks, if a reader gets so far; 0 otherwise."""
    if len(content) < FILE.size:
        return 0
    return int(FILE.unpack_from(content)[5])


# -- what becomes of them ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        kind: "refused", "a model", or the class of what was raised.
        words: the rule that it breaks, without its numbers and names.
    """

    kind: str
    words: str


def attempt(content: bytes, path: Path) -> Outcome:
    """Load a mutant."""
    path.write_bytes(content)
    try:
        kp.load_kpz(path)
    except ContainerError as error:
        return Outcome("refused", re.sub(r"'[^']*'|\d+", "#", error.rule)[:80])
    except Exception as error:
        return Outcome(type(error).__name__, str(error)[:200])
    return Outcome("a model", "")


def resident(field: str) -> int:
    """Return bytes that the process holds in memory ("VmRSS"), or has held at most ("VmHWM"); 0 where none says so."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


@dataclasses.dataclass
class Peaks:
    """The largest figures over all mutants of a file, in bytes, and how many broke the limit."""

    traced: int = 0
    held: int = 0
    over: int = 0

    def measure(self, content: bytes, path: Path, unpacked: int) -> Outcome:
        """Load a mutant, and measure what it takes."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        tracemalloc.start()
        outcome = attempt(content, path)
        _, traced = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        held = max(0, resident("VmHWM") - before)
        self.traced, self.held = max(self.traced, traced), max(self.held, held)
        self.over += max(traced, held) > TIMES * unpacked + ALLOWANCE
        return outcome


# -- models -----------------------------------------------------------------------------------------------------------


def large() -> keras.Model:
    """Two million weights, 96 % of them zero, the others 16 values."""
    model = keras.Sequential([keras.Input((2000,)), kl.Dense(1000, "relu"), kl.Dense(10)])
    draw = np.random.default_rng(0)
    for variable in model.trainable_variables[::2]:
        values = draw.integers(-8, 8, variable.shape) * (draw.random(variable.shape) < 0.04)
        variable.assign(values.astype(np.float32) / 8)
    return model


def with_state() -> keras.Model:
    """A vocabulary, adapted statistics, and a recurrent layer."""
    number, word = keras.Input((4,), name="number"), keras.Input((1,), name="word", dtype="string")
    normal, words = kl.Normalization(), kl.StringLookup()
    normal.adapt(np.random.default_rng(0).normal(3, 2, (32, 4)))
    words.adapt(["apple", "pear", "plum"])
    x = kl.LSTM(6)(kl.Reshape((2, 2))(normal(number)))
    return keras.Model([number, word], kl.Concatenate()([x, kl.Flatten()(kl.Embedding(5, 3)(words(word)))]))


def small() -> keras.Model:
    """A convolution whose kernel is pruned, and a dense layer."""
    model = keras.Sequential([keras.Input((8, 8, 1)), kl.Conv2D(16, 5), kl.Flatten(), kl.Dense(4)])
    return kp.strip(kp.prune(model, 0.9))


MODELS: dict[str, Callable[[], keras.Model]] = {"large": large, "with state": with_state, "small": small}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.kpz_mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--number", type=int, default=5000, help="of mutants, shared evenly among the models")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rows, others, over = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutant.kpz")
        for place, (name, make) in enumerate(MODELS.items()):
            keras.utils.set_random_seed(0)
            kp.save_kpz(make(), path)
            content = path.read_bytes()
            kp.load_kpz(path)  # what is imported and traced once is no mutant's
            number = options.number // len(MODELS) + (place < options.number % len(MODELS))
            start, peaks, outcomes = time.perf_counter(), Peaks(), collections.Counter[str]()
            rules = set()
            for mutant in mutants(content, number, options.seed + place):
                outcome = peaks.measure(mutant, path, max(declared(content), _counted(mutant)))
                outcomes[outcome.kind] += 1
                rules.add(outcome.words)
                if outcome.kind not in ("refused", "a model"):
                    print(f"{name}: {outcome.kind}: {outcome.words}", flush=True)
            others += number - outcomes["refused"] - outcomes["a model"]
            over += peaks.over
            unpacked = declared(content)
            rows.append(
                [
                    name,
                    *(f"{n:,}" for n in (len(content), unpacked, number, outcomes["refused"], outcomes["a model"])),
                    str(len(rules)),
                    *(f"{n / 2**20:.1f}" for n in (peaks.traced, peaks.held)),
                    f"{peaks.traced / unpacked:.2f}, {peaks.held / unpacked:.2f}",
                    f"{time.perf_counter() - start:.0f} s",
                ]
            )
            print(*rows[-1], sep="  ", flush=True)
    columns = ["model", "bytes", "declared", "mutants", "refused", "loaded", "rules", "traced, MiB", "held, MiB"]
    columns += ["of declared", "took"]
    caption = (
        f"{others} ended otherwise; {over} took more than {TIMES} times the declared bytes and {ALLOWANCE >> 20} MiB.\n"
    )
    print_table("Mutants of containers", columns, rows, caption + machine("keras", "tensorflow", "numpy", "bitarray"))
    return 1 if others or over else 0


def _counted(mutant: bytes) -> int:
    """Return the bytes that a mutant declares, where a reader believes them: within what its length allows."""
    return min(declared(mutant), max(64 * 2**20, 1000 * len(mutant))) if mutant == resealed(mutant) else 0


if __name__ == "__main__":
    sys.exit(main())
