"""How a user names tensors: by a layer, a layer's name, a path, a glob or a regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import keras

__all__ = ["as_keys", "check_keys", "fits", "key_of", "keyed"]

V = TypeVar("V")


def fits(key: str, path: str) -> bool:
    r"""Say whether a key names a tensor.

    A key is the tensor's path; the name of a layer that holds it, at any depth; a part of the path that begins with
    such a name; a glob of one of these (`*`, `?`, `[...]`); or a regular expression that matches the whole path.

    Args:
        key: what the user wrote.
        path: of a tensor or of a layer, names joined by "/".

    Example:
        >>> keys = "block_1", "encoder", "block_*", r".*_\d/kernel", "block"
        >>> [fits(key, "encoder/block_1/kernel") for key in keys]
        [True, True, True, True, False]
    """
    if key == path or any(key == part or fnmatchcase(part, key) for part in _parts(path)):
        return True
    try:
        return re.fullmatch(key, path) is not None
    except re.error:
        return False


def _parts(path: str) -> Iterator[str]:
    """The path, and each run of names in it; a tensor's own name counts only behind that of a layer."""
    names = path.split("/")
    for start in range(max(len(names) - 1, 1)):
        for end in range(start + 1, len(names) + 1):
            yield "/".join(names[start:end])


def key_of(value: Any) -> str:
    """Return the key for what a user wrote; a layer is named by its name.

    Raises:
        TypeError: it is neither a string nor a layer.
        ValueError: a string that is no name, no glob and, with a mistake in it, no regular expression.
    """
    if isinstance(value, keras.Layer):
        return str(value.name)
    if not isinstance(value, str):
        raise TypeError(
            "Tensors are named by a layer, a layer's name, a path, a glob or a regular expression. "
            f"Received: {value!r} of type {type(value).__name__}"
        )
    try:
        re.compile(value)
    except re.error as error:
        if not set("*?") & set(value):
            raise ValueError(
                f"{value!r} must be a name, a path, a glob, or a regular expression that matches whole paths. Received "
                f"one with a mistake: {error}. Escape a literal dot or bracket with a backslash."
            ) from error
    return value


def as_keys(value: Any) -> tuple[str, ...]:
    """Return the keys of one layer or string, or of several.

    Example:
        >>> as_keys("a"), as_keys(["a", keras.layers.Dense(2, name="b")])
        (('a',), ('a', 'b'))
    """
    several = isinstance(value, Iterable) and not isinstance(value, (str, keras.Layer))
    return tuple(key_of(one) for one in value) if several else (key_of(value),)


def keyed(mapping: Mapping[Any, V]) -> dict[str, V]:
    """Return a mapping with a key for each layer and string in it."""
    return {key_of(key): value for key, value in mapping.items()}


def check_keys(subject: str, keys: Iterable[str], paths: Sequence[str], what: str = "tensor") -> None:
    """Refuse keys that name nothing.

    Args:
        subject: who asks, for the message.
        keys: what the user wrote.
        paths: what there is to be named.
        what: what a path stands for.

    Raises:
        ValueError: with the names that are near.
    """
    unused = [key for key in keys if not any(fits(key, path) for path in paths)]
    if unused:
        near = list(dict.fromkeys(name for key in unused for name in _near(key, paths)))
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        shown = ", ".join(paths[:12]) + (f" and {len(paths) - 12} more" if len(paths) > 12 else "")
        raise ValueError(f"{subject}: no {what} matches {unused}.{hint} There are: {shown}")


def _near(key: str, paths: Sequence[str]) -> list[str]:
    names = dict.fromkeys(part for path in paths for part in (*path.split("/")[:-1], path))
    found = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    return found or [name for name in names if key.lower() in name.lower()][:3]
