"""Damage to a file, by kinds, from a seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def mutants(content: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, damaged copy) ``count`` times."""
    rng = np.random.default_rng(seed)
    kinds = list(DAMAGE)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        copy = bytearray(content)
        yield kind, bytes(DAMAGE[kind](copy, rng))


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(8, len(data), rng.integers(1, 5)):
        data[place] ^= 1 << int(rng.integers(8))
    return data


def overwrite_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(8, len(data), rng.integers(1, 9)):
        data[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return data


def truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: int(rng.integers(0, len(data)))]


def huge_word(data: bytearray, rng: np.random.Generator) -> bytearray:
    place = 4 * int(rng.integers(2, len(data) // 4))
    value = rng.choice([2**31 - 1, 2**32 - 1, 2**31, 2**30, 2**24, len(data), len(data) - 4, 0])
    data[place : place + 4] = int(value).to_bytes(4, "little")
    return data


def small_word(data: bytearray, rng: np.random.Generator) -> bytearray:
    place = 4 * int(rng.integers(2, len(data) // 4))
    old = int.from_bytes(data[place : place + 4], "little")
    data[place : place + 4] = ((old + int(rng.integers(-4, 5))) % 2**32).to_bytes(4, "little")
    return data


def swap_ranges(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, 64))
    a, b = (int(place) for place in rng.integers(8, len(data) - size, 2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def duplicate_range(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, 64))
    a, b = (int(place) for place in rng.integers(8, len(data) - size, 2))
    data[b:b] = data[a : a + size]
    return data


def copy_range(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, 64))
    a, b = (int(place) for place in rng.integers(8, len(data) - size, 2))
    data[b : b + size] = data[a : a + size]
    return data


def zero_range(data: bytearray, rng: np.random.Generator) -> bytearray:
    size = int(rng.integers(1, 64))
    place = int(rng.integers(8, len(data) - size))
    data[place : place + size] = bytes(size)
    return data


DAMAGE = {
    function.__name__: function
    for function in (
        flip_bits,
        overwrite_bytes,
        truncate,
        huge_word,
        small_word,
        swap_ranges,
        duplicate_range,
        copy_range,
        zero_range,
    )
}
