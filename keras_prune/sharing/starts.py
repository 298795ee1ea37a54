"""Where k-means begins: pure functions of the values of one codebook."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.extras import import_extra
from keras_prune.strategy import Strategy

__all__ = ["Density", "KMeansPlusPlus", "Linear", "Random", "Start"]

_register = register_keras_serializable(package="keras_prune.sharing")

Values = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Start(Strategy):
    """Base of what gives k-means its first centroids.

    Example:
        >>> class Ends(Start):
        ...     def __call__(self, values, count, seed):
        ...         return np.sort(values)[np.linspace(0, len(values) - 1, count).astype(int)]
        >>> Ends()(np.array([3.0, 1.0, 2.0]), 2, seed=0)
        array([1., 3.])
    """

    kind: ClassVar[str] = "start"

    @abstractmethod
    def __call__(self, values: Values, count: int, seed: int) -> npt.ArrayLike:
        """Return `count` centroids; two may be equal.

        Args:
            values: [n], what is clustered, more than `count` different numbers; in increasing order, and where there
                are very many, a sample of them at even ranks.
            count: of the centroids, 1 or more.
            seed: for a start that draws at random.
        """


@_register
@dataclasses.dataclass(frozen=True)
class Linear(Start, name="linear"):
    r"""Even steps from the lowest value to the highest: $c_i = min + (max - min)\, i / (k - 1)$.

    Large weights are few and matter, and here they get centroids of their own; Han et al. found it the best.

    Source: Han et al. 2016, "Deep Compression", section 3.2 (linear initialization).

    Example:
        >>> Linear()(np.array([0.0, 0.1, 0.2, 1.0]), 3, seed=0)
        array([0. , 0.5, 1. ])
    """

    def __call__(self, values: Values, count: int, seed: int) -> npt.ArrayLike:
        low, high = float(np.min(values)), float(np.max(values))
        return np.linspace(low, high, count) if count > 1 else np.array([(low + high) / 2])


@_register
@dataclasses.dataclass(frozen=True)
class Density(Start, name="density"):
    r"""Even steps of the share of values that are lower: $c_i = F^{-1}((i + 1/2) / k)$ with the distribution F.

    Source: Han et al. 2016, "Deep Compression", section 3.2 (density-based initialization).

    Example:
        >>> Density()(np.array([0.0, 0.1, 0.2, 1.0]), 2, seed=0).round(3)
        array([0.075, 0.4  ])
    """

    def __call__(self, values: Values, count: int, seed: int) -> npt.ArrayLike:
        return np.quantile(values, (np.arange(count) + 0.5) / count)


@_register
@dataclasses.dataclass(frozen=True)
class Random(Start, name="random"):
    """Values drawn at random, none twice (Forgy).

    Source: Han et al. 2016, "Deep Compression", section 3.2 (Forgy initialization).
    """

    def __call__(self, values: Values, count: int, seed: int) -> npt.ArrayLike:
        return np.random.default_rng(seed).choice(np.unique(values), count, replace=False)


@_register
@dataclasses.dataclass(frozen=True)
class KMeansPlusPlus(Start, name="k-means++"):
    """Values drawn one after another, each with a probability in proportion to its squared distance from those before.

    Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding", section 2.2.
    """

    def __call__(self, values: Values, count: int, seed: int) -> npt.ArrayLike:
        cluster: Any = import_extra("sklearn.cluster", "compression", "weight sharing")
        return cluster.kmeans_plusplus(values.reshape(-1, 1), count, random_state=seed)[0].reshape(-1)
