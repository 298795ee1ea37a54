"""The names that stand for strategies; with `strategy.resolve`, the one place where strings become objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_prune import allocation, criteria, growth, patterns
from keras_prune.masks.update import Recipe
from keras_prune.strategy import resolve

__all__ = ["resolve_allocation", "resolve_criterion", "resolve_growth", "resolve_pattern", "resolve_recipe"]

CRITERIA: dict[str, type[criteria.Criterion]] = {
    "magnitude": criteria.Magnitude,
    "random": criteria.Random,
    "gradient": criteria.Gradient,
    "taylor": criteria.Taylor,
    "movement": criteria.Movement,
    "fisher": criteria.Fisher,
    "snip": criteria.SNIP,
    "synflow": criteria.SynFlow,
}
PATTERNS: dict[str, type[patterns.Pattern]] = {
    "unstructured": patterns.Unstructured,
    "filter": patterns.Filter,
    "channel": patterns.Channel,
}
ALLOCATIONS: dict[str, type[allocation.Allocation]] = {
    "uniform": allocation.Uniform,
    "global": allocation.Global,
    "erk": allocation.ERK,
    "lamp": allocation.LAMP,
}
GROWTHS: dict[str, type[growth.Growth]] = {
    "surgery": growth.Surgery,
    "set": growth.SET,
    "rigl": growth.RigL,
}


def resolve_criterion(value: Any) -> criteria.Criterion:
    """Return the criterion that a name or an instance stands for."""
    return resolve(value, criteria.Criterion, CRITERIA)  # type: ignore[type-abstract]


def resolve_pattern(value: Any) -> patterns.Pattern | patterns.ByPath:
    """Return the pattern that a name or an instance stands for; a mapping of paths to patterns is `patterns.ByPath`."""
    if isinstance(value, patterns.ByPath):
        return value
    if isinstance(value, Mapping) and "class_name" not in value:
        return patterns.ByPath({path: resolve(one, patterns.Pattern, PATTERNS) for path, one in value.items()})  # type: ignore[type-abstract]
    return resolve(value, patterns.Pattern, PATTERNS)  # type: ignore[type-abstract]


def resolve_allocation(value: Any) -> allocation.Allocation:
    """Return the allocation; a mapping of paths to targets is `allocation.Explicit`."""
    if isinstance(value, Mapping) and "class_name" not in value:
        return allocation.Explicit(dict(value))
    return resolve(value, allocation.Allocation, ALLOCATIONS)  # type: ignore[type-abstract]


def resolve_growth(value: Any) -> growth.Growth:
    """Return the growth that a name or an instance stands for."""
    return resolve(value, growth.Growth, GROWTHS)  # type: ignore[type-abstract]


def resolve_recipe(criterion: Any, pattern: Any, allocation: Any, growth: Any = None, *, default: str) -> Recipe:
    """Return the recipe of names and instances; it notes which of pattern and allocation are stated.

    Args:
        criterion: what counts.
        pattern: where zeros may fall; None for single weights, or what a device chooses.
        allocation: who gives how much; None for `default`, or what a device chooses.
        growth: what comes back; None for nothing.
        default: the name of an allocation.
    """
    stated = {name for name, value in (("pattern", pattern), ("allocation", allocation)) if value is not None}
    return Recipe(
        resolve_criterion(criterion),
        resolve_pattern("unstructured" if pattern is None else pattern),
        resolve_allocation(default if allocation is None else allocation),
        None if growth is None else resolve_growth(growth),
        frozenset(stated),
    )
