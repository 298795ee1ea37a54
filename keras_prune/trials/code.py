"""A strategy as Python that makes it again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from keras_prune import allocation, criteria, growth, patterns, schedules
from keras_prune.scope import Scope
from keras_prune.strategy import Strategy

__all__ = ["as_code", "imports_of"]

MODULES = {
    "allocation": allocation,
    "criteria": criteria,
    "growth": growth,
    "patterns": patterns,
    "schedules": schedules,
}
"""Where `import keras_prune as kp` has the strategies."""


def as_code(value: Any) -> str:
    """Return an expression that makes a strategy, or what is in its fields, where `kp` is keras_prune.

    A strategy that a name stands for is that name. Data is not written down: it is `data`, whatever that is there.

    Args:
        value: a strategy, a plain value, or a mapping or tuple of them.

    Example:
        >>> as_code(criteria.Magnitude()), as_code(patterns.Block(4, 1))
        ('"magnitude"', 'kp.patterns.Block(4, 1)')
        >>> as_code(allocation.Explicit({"a": 0.5}))
        '{"a": 0.5}'
    """
    if isinstance(value, allocation.Explicit):
        return as_code(value.targets)
    if isinstance(value, patterns.ByPath):
        return as_code(value.patterns)
    if isinstance(value, Strategy):
        name = next((name for name, kind in value.known_names.items() if _is_named(value, kind)), None)
        return as_code(name) if name is not None else f"{_path_of(type(value))}({', '.join(_arguments(value))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_code(key)}: {as_code(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        inside = ", ".join(map(as_code, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def imports_of(*values: Any) -> list[str]:
    """Return the lines that import the classes of strategies that are not the library's own.

    Args:
        values: strategies; None is skipped.
    """
    kinds = {type(value) for value in values if isinstance(value, Strategy)}
    own = sorted((kind.__module__, kind.__name__) for kind in kinds if _is_foreign(kind))
    return [f"from {module} import {name}" for module, name in own if module != "__main__"]


def _is_named(value: Strategy, kind: Any) -> bool:
    return value == (kind() if isinstance(kind, type) else kind) and getattr(value, "data", None) is None


def _is_foreign(kind: type) -> bool:
    return not kind.__module__.startswith("keras_prune.")


def _path_of(kind: type) -> str:
    """How the class is reached."""
    if _is_foreign(kind):
        return kind.__name__
    if kind is Scope:
        return "kp.Scope"
    module = next(name for name, module in MODULES.items() if getattr(module, kind.__name__, None) is kind)
    return f"kp.{module}.{kind.__name__}"


def _arguments(value: Strategy) -> list[str]:
    """The fields that are not at their defaults; those without a default come first, by place."""
    placed, named = [], []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        is_data = not field.metadata.get("config", True)
        text = field.name if is_data else as_code(given)
        if field.default is field.default_factory is dataclasses.MISSING:
            placed.append(text)
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if given is not None if is_data else given != default:
            named.append(f"{field.name}={text}")
    return placed + named
