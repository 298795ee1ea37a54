"""How masks are found: a criterion, a pattern, an allocation and perhaps a growth, given by name or as instances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_prune.allocation import Allocation, Explicit
from keras_prune.criteria import Criterion
from keras_prune.growth import Growth
from keras_prune.patterns import ByPath, Pattern
from keras_prune.statistics import INPUTS, WITHOUT_DATA
from keras_prune.strategy import IN_RECONSTRUCTION, ONLY_FROM_TRAINING, STATISTICS, Measuring, check_needs, resolve

__all__ = ["Recipe", "resolve_allocation", "resolve_pattern", "resolve_recipe"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How masks are found.

    Attributes:
        criterion: scores every weight.
        pattern: says where zeros may fall.
        allocation: says how much of each tensor is pruned.
        growth: says which pruned weights come back; None if none do.
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
        check_needs(self.criterion, STATISTICS | IN_RECONSTRUCTION)
        if self.growth is not None:
            check_needs(self.growth, STATISTICS - {"seed"})

    @property
    def while_solving(self) -> bool:
        """Whether masks are chosen while the weights that stay are solved."""
        return bool(IN_RECONSTRUCTION & self.criterion.needs)

    def check_data(self, owner: str, *, training: bool = True, reconstruction: bool = False) -> None:
        """Refuse a criterion or a growth with statistics that nobody can give: neither training, data nor the tensor.

        Args:
            owner: who asks, for messages.
            training: whether there is a training that can give some.
            reconstruction: whether weights are solved again, which gives some, too.

        Raises:
            ValueError: with the way out.
        """
        if self.while_solving:
            _check_solving(owner, self.criterion, reconstruction)
            return
        _check_data(owner, self.criterion, training)
        if self.growth is not None:
            _check_data(owner, self.growth, training)


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
        criterion: a name or an instance; likewise the others.
        pattern: or a mapping of paths to patterns; None for single weights, or what a device chooses.
        allocation: or a mapping of paths to targets; None for `default`, or what a device chooses.
        growth: None if nothing comes back.
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


def _check_solving(name: str, criterion: Criterion, reconstruction: bool) -> None:
    kind = type(criterion).__name__
    if criterion.needs - IN_RECONSTRUCTION:
        raise ValueError(
            f"{name}: a criterion that takes {sorted(IN_RECONSTRUCTION)} takes nothing else, as it is asked again for "
            f"parts of a kernel. Received: {kind} with needs={sorted(criterion.needs)}."
        )
    if not reconstruction:
        place = "criteria." if type(criterion).__module__ == Criterion.__module__ else ""
        raise ValueError(
            f"{name}: {kind} chooses masks while the weights that stay are solved, on inputs. Received: none. "
            f"Write keras_prune.prune(model, sparsity, {place}{kind}(), reconstruct=x) with a thousand samples."
        )


def _check_data(name: str, strategy: Measuring, training: bool) -> None:
    served = WITHOUT_DATA | (strategy.from_training if training else frozenset())
    served |= frozenset() if strategy.data is None else strategy.from_data
    missing = sorted(strategy.needs - served)
    if not missing:
        return
    kind = type(strategy).__name__
    if not training and (ONLY_FROM_TRAINING.intersection(missing) or not strategy.takes_data):
        raise ValueError(
            f"{name}: {kind} takes {missing} from training. Received: no training. "
            f"Use a callback: model.fit(..., callbacks=[keras_prune.GradientPruning(schedule, {kind}())])."
        )
    if not strategy.takes_data:
        raise ValueError(
            f"{name}: {kind} takes {missing} from data. Received: a {strategy.kind} without data. Give the class a "
            "field `data: Any = keras_prune.strategy.data_field()`."
        )
    place = "criteria." if type(strategy).__module__ == Criterion.__module__ else ""
    example = "x" if strategy.needs <= INPUTS | WITHOUT_DATA else "(x, y)"
    raise ValueError(
        f"{name}: {kind} takes {missing} from data. Received: data=None. "
        f"Write {place}{kind}(data={example}) with a few hundred samples."
    )
