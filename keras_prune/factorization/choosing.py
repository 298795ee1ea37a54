"""Which rank each layer gets: pure functions of what every choice costs and loses."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keras_prune.factorization.costs import Cost

__all__ = ["Choices", "Step", "cheapest", "steps", "within"]

Array = npt.NDArray[np.float64]
Chosen = dict[int, int]
"""Layer -> which of its choices; layers that stay as they are have none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choices:
    """What there is to choose from for one layer; only choices that are neither larger nor slower than the layer.

    Attributes:
        whole: what the layer costs as it is.
        params, macs: of each choice.
        lost: the share of energy that each loses.
    """

    whole: Cost
    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]
    lost: Array

    def costs(self, by: str) -> npt.NDArray[np.int64]:
        """Return "params" or "macs" of each choice."""
        found: npt.NDArray[np.int64] = getattr(self, by)
        return found


@dataclasses.dataclass(frozen=True)
class Step:
    """One layer goes to a cheaper choice.

    Attributes:
        layer: its number.
        choice: which choice it goes to.
        saved: what it saves, of the amount that was asked for.
        price: the share of energy that is lost for each unit saved.
    """

    layer: int
    choice: int
    saved: int
    price: float


def cheapest(choices: Choices, most: float) -> int | None:
    """Return the choice with the fewest multiplications, then weights, that loses no more than a share of energy.

    Args:
        choices: of a layer.
        most: the share of energy that may be lost.

    Returns:
        None where no choice is as good.

    Example:
        >>> numbers = np.array([10, 20, 30])
        >>> cheapest(Choices(Cost(50, 50), numbers, numbers, np.array([0.5, 0.1, 0.0])), most=0.2)
        1
    """
    good = np.flatnonzero(choices.lost <= most)
    if not good.size:
        return None
    order = np.lexsort((choices.lost[good], choices.params[good], choices.macs[good]))
    return int(good[order[0]])


def steps(layers: Sequence[Choices], by: str) -> list[Step]:
    """Return the way from the whole model to the smallest, in the order of the energy that is lost for what is saved.

    For each layer only choices on the lower convex hull of cost and loss are on the way, so any first part of it loses
    the least energy, all layers together, of all choices that cost as little.

    Args:
        layers: choices by layer.
        by: "params" or "macs".

    Example:
        >>> numbers = np.array([10, 20])
        >>> flat, steep = ([0.10, 0.05], [0.80, 0.40])
        >>> layers = [Choices(Cost(30, 30), numbers, numbers, np.array(lost)) for lost in (steep, flat)]
        >>> [(step.layer, step.choice) for step in steps(layers, "params")]
        [(1, 0), (0, 0)]
    """
    found = [step for number, choices in enumerate(layers) for step in _hull(number, choices, by)]
    return sorted(found, key=lambda step: (step.price, step.layer, -step.saved))


def _hull(number: int, choices: Choices, by: str) -> list[Step]:
    """The steps of one layer, from the whole layer on, each dearer than the one before."""
    costs = choices.costs(by)
    path: list[tuple[int, float, int]] = [(choices.whole.of(by), 0.0, -1)]
    for one in np.lexsort((choices.lost, -costs)):
        cost, lost = int(costs[one]), float(choices.lost[one])
        if cost >= path[-1][0]:
            continue
        while len(path) > 1 and _price(path[-2], path[-1]) >= _price(path[-1], (cost, lost, 0)):
            path.pop()
        path.append((cost, lost, int(one)))
    return [Step(number, b[2], a[0] - b[0], _price(a, b)) for a, b in itertools.pairwise(path)]


def _price(a: tuple[int, float, int], b: tuple[int, float, int]) -> float:
    return (b[1] - a[1]) / (a[0] - b[0])


def within(layers: Sequence[Choices], by: str, to_save: int) -> Chosen | None:
    """Return choices that save at least so much, at the least loss of energy; None where none do.

    The layer of the last step gets the best of its choices that still saves enough.

    Args:
        layers: choices by layer.
        by: "params" or "macs".
        to_save: of these, all layers together.
    """
    chosen: Chosen = {}
    saved = 0
    for step in steps(layers, by):
        if saved >= to_save:
            break
        before = saved - _saved_by(layers[step.layer], chosen.get(step.layer), by)
        saved += step.saved
        chosen[step.layer] = step.choice
        if saved >= to_save:
            chosen[step.layer] = _best(layers[step.layer], by, to_save - before)
    return chosen if saved >= to_save else None


def _saved_by(choices: Choices, choice: int | None, by: str) -> int:
    whole = choices.whole.params if by == "params" else choices.whole.macs
    return 0 if choice is None else whole - int(choices.costs(by)[choice])


def _best(choices: Choices, by: str, to_save: int) -> int:
    whole = choices.whole.params if by == "params" else choices.whole.macs
    enough = np.flatnonzero(choices.costs(by) <= whole - math.ceil(to_save))
    order = np.lexsort((choices.costs(by)[enough], choices.lost[enough]))
    return int(enough[order[0]])
