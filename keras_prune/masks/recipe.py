"""How masks are found: a criterion, a pattern, an allocation and perhaps a growth, from names or instances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_prune.allocation import Allocation, Explicit
from keras_prune.criteria import Criterion
from keras_prune.growth import Growth
from keras_prune.patterns import ByPath, Pattern
from keras_prune.strategy import STATISTICS, check_needs, resolve

__all__ = ["Recipe", "resolve_allocation", "resolve_pattern", "resolve_recipe"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How masks are found: what counts, where zeros may fall, who gives how much, and what comes back.

    Attributes:
        stated: which of "pattern" and "allocation" the user chose; a device chooses the others.

    Raises:
        ValueError: the criterion or the growth needs a statistic that nobody measures.
    """

    criterion: Criterion
    pattern: Pattern | ByPath
    allocation: Allocation
    growth: Growth | None = None
    stated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_needs(self.criterion)
        if self.growth is not None:
            check_needs(self.growth, STATISTICS - {"seed"})


def resolve_pattern(value: Any) -> Pattern | ByPath:
    """Return the pattern that a name or an instance stands for; a mapping of paths to patterns is `patterns.ByPath`."""
    if isinstance(value, ByPath):
        return value
    if isinstance(value, Mapping) and "class_name" not in value:
        return ByPath({path: resolve(one, Pattern) for path, one in value.items()})  # type: ignore[type-abstract]
    return resolve(value, Pattern)  # type: ignore[type-abstract]


def resolve_allocation(value: Any) -> Allocation:
    """Return the allocation that a name or an instance stands for; a mapping of paths to targets is an `Explicit`."""
    if isinstance(value, Mapping) and "class_name" not in value:
        return Explicit(dict(value))
    return resolve(value, Allocation)  # type: ignore[type-abstract]


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
        resolve(criterion, Criterion),  # type: ignore[type-abstract]
        resolve_pattern("unstructured" if pattern is None else pattern),
        resolve_allocation(default if allocation is None else allocation),
        None if growth is None else resolve(growth, Growth),  # type: ignore[type-abstract]
        frozenset(stated),
    )
