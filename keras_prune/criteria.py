r"""What a weight is worth: weight and statistics -> scores of the weight's shape; larger is kept.

A criterion declares the statistics that it needs; whoever runs it collects them. Gradients g = dL/dw come from one of
two places: from `data` handed to the criterion (each update of the masks then costs a pass forward and back over that
data, with the weights as they are), or, without `data`, from training itself: the optimizer's own gradients are
summed inside the compiled step since the last update. That costs one float per weight in memory, one addition per
weight and step, and no pass.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from keras.saving import register_keras_serializable

from keras_prune.strategy import Measuring, data_field

__all__ = [
    "SNIP",
    "Activation",
    "Criterion",
    "Fisher",
    "GraSP",
    "Gradient",
    "InputActivation",
    "Magnitude",
    "Movement",
    "Random",
    "SecondOrder",
    "SynFlow",
    "Taylor",
]

Array = npt.NDArray[np.floating]
Statistics = Mapping[str, Any]

_register = register_keras_serializable(package="keras_prune")


@dataclasses.dataclass(frozen=True)
class Criterion(Measuring):
    """A score for every weight, from the weight and the statistics that `needs` names (`strategy.Measuring`).

    Example:
        >>> Taylor()(np.array([[2.0, -1.0]]), {"abs_gradient": np.array([[0.5, 0.5]])})
        array([[1. , 0.5]])
    """

    kind: ClassVar[str] = "criterion"
    rounds: ClassVar[int] = 1
    """In how many rounds a one-shot pruning reaches its target, the scores taken anew in each."""

    @abstractmethod
    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        """Return the scores, of the weight's shape; larger is kept.

        Args:
            weight: the kernel, in its own layout.
            statistics: the arrays that `needs` names, of the weight's shape or broadcasting to it.
        """


@_register
@dataclasses.dataclass(frozen=True)
class Magnitude(Criterion, name="magnitude"):
    """$|w|$.

    Source: Han et al. 2015, "Learning both weights and connections", section 3.

    Example:
        >>> Magnitude()(np.array([1.0, -2.0]), {})
        array([1., 2.])
    """

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.abs(weight)


@_register
@dataclasses.dataclass(frozen=True)
class Random(Criterion, name="random"):
    """Uniform noise, the same for a tensor each time: the baseline that every other criterion has to beat.

    Args:
        seed: with the tensor's own number it fixes the noise.

    Example:
        >>> scores = Random(seed=1)(np.zeros((2, 2)), {"seed": 7})
        >>> bool((scores == Random(seed=1)(np.ones((2, 2)), {"seed": 7})).all())
        True
    """

    needs: ClassVar[frozenset[str]] = frozenset({"seed"})

    seed: int = 0

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.random.default_rng((self.seed, statistics["seed"])).random(weight.shape, dtype=np.float32)


@_register
@dataclasses.dataclass(frozen=True)
class Gradient(Criterion, name="gradient"):
    r"""Mean $|g|$ over batches: a weight that the loss does not pull at may go.

    Args:
        data: `(x, y)` or batches of it; None for the gradients of training itself.

    Example:
        >>> Gradient()(np.array([9.0, 9.0]), {"abs_gradient": np.array([0.1, 0.2])})
        array([0.1, 0.2])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"abs_gradient"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(statistics["abs_gradient"])


@_register
@dataclasses.dataclass(frozen=True)
class Taylor(Criterion, name="taylor"):
    r"""Mean $|w g|$ over batches: what the loss changes by, to first order, when the weight goes.

    Args:
        data: `(x, y)` or batches of it; None for the gradients of training itself.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient inference", equation 7.

    Example:
        >>> Taylor()(np.array([2.0, -1.0]), {"abs_gradient": np.array([0.5, 0.5])})
        array([1. , 0.5])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"abs_gradient"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.abs(weight) * statistics["abs_gradient"])


@_register
@dataclasses.dataclass(frozen=True)
class Movement(Criterion, name="movement"):
    r"""$-\sum_t w_t g_t$ over the steps of training: weights that move away from zero stay.

    Comes from training only, and is never reset: it is the history of the weight. Pruned weights (w = 0) gather none.

    Source: Sanh et al. 2020, "Movement pruning", section 3 and equation 4.

    Example:
        >>> Movement()(np.array([1.0]), {"movement": np.array([-0.5])})
        array([-0.5])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"movement"})

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(statistics["movement"])


@_register
@dataclasses.dataclass(frozen=True)
class Fisher(Criterion, name="fisher"):
    r"""$w^2 \, \overline{g^2} / 2$: the second-order cost of a weight, by the diagonal of the Fisher information.

    Args:
        data: `(x, y)` or batches of it; None for the gradients of training itself.

    Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", equation 8.

    Example:
        >>> Fisher()(np.array([2.0]), {"squared_gradient": np.array([0.25])})
        array([0.5])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.square(weight) * statistics["squared_gradient"] / 2.0)


@_register
@dataclasses.dataclass(frozen=True)
class Activation(Criterion):
    r"""$|w_{ij}| \cdot \lVert a_i \rVert_2$: a weight counts as much as the input that it multiplies.

    Args:
        data: inputs `x`, `(x, y)` or batches of them. Cost: one pass forward at each update of the masks.

    Source: Sun et al. 2024, "A simple and effective pruning approach for large language models" (Wanda), equation 1.

    Example:
        >>> Activation()(np.array([[1.0], [-1.0]]), {"input_norm": np.array([[3.0], [4.0]])})[:, 0]
        array([3., 4.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"input_norm"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.abs(weight) * statistics["input_norm"])


@_register
@dataclasses.dataclass(frozen=True)
class InputActivation(Criterion):
    r"""Mean $|a_i|$ of the input alone, whatever the weight: the measure of the activation threshold.

    Args:
        data: inputs `x`, `(x, y)` or batches of them. Cost: one pass forward at each update of the masks.

    Example:
        >>> InputActivation()(np.ones((2, 1)), {"input_mean": np.array([[3.0], [4.0]])})[:, 0]
        array([3., 4.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"input_mean"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.broadcast_to(statistics["input_mean"], weight.shape)


@_register
@dataclasses.dataclass(frozen=True)
class SNIP(Criterion, name="snip"):
    r"""$|w \, \bar g|$ at initialisation: how strongly the loss feels a connection that is switched off.

    Args:
        data: `(x, y)` or batches of it, a few per class; the gradient is that of the mean loss. None for the
            gradients of training.

    Source: Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity", equations 5 and 6
    (without the normalisation, which does not change the order).

    Example:
        >>> SNIP()(np.array([2.0, -1.0]), {"gradient": np.array([-0.5, 0.0])})
        array([1., 0.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.abs(weight * statistics["gradient"]))


@_register
@dataclasses.dataclass(frozen=True)
class GraSP(Criterion):
    r"""$w \odot H g$ at initialisation: weights whose removal would lower the flow of gradient stay.

    The paper removes the largest $-w \odot H g$; larger is kept here, so the sign is turned.

    Args:
        data: `(x, y)` or batches of it. Cost: a pass forward and two back, at each update of the masks.

    Source: Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow", equation 8.

    Example:
        >>> GraSP()(np.array([2.0]), {"hessian_gradient": np.array([3.0])})
        array([6.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hessian_gradient"})

    data: Any = data_field()

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(weight * statistics["hessian_gradient"])


@_register
@dataclasses.dataclass(frozen=True)
class SynFlow(Criterion, name="synflow"):
    r"""$|w| \cdot \partial R / \partial |w|$, with $R$ the summed outputs for an input of ones to the net of $|w|$.

    Needs no data; a one-shot pruning reaches its target in 100 rounds, scores taken anew, so that no layer collapses.

    Source: Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow",
    equation 2 and algorithm 1.

    Example:
        >>> SynFlow()(np.array([-2.0]), {"synflow": np.array([3.0])})
        array([6.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"synflow"})
    rounds: ClassVar[int] = 100

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.abs(weight) * statistics["synflow"])


@_register
@dataclasses.dataclass(frozen=True)
class SecondOrder(Criterion, name="second_order"):
    r"""$w_j^2 / [H^{-1}]_{jj}$: what outputs lose without a weight when the others of the layer make up for it.

    H is $X^T X / n$ of the inputs X that the kernel reads. For `prune(model, sparsity, "second_order",
    reconstruct=inputs)`: these scores give each tensor its share; masks are then chosen input by input while the
    weights that stay are solved, so that each choice sees what those before it have moved. Scores of different layers
    are in units of their own outputs: "lamp" shares zeros out by them without comparing these.

    Source: Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon", equation 5;
    input by input as in Frantar, Alistarh 2023, "SparseGPT", algorithm 1.

    Example:
        >>> SecondOrder()(np.array([[2.0], [1.0]]), {"inverse_hessian": np.array([[1.0], [0.2]])})[:, 0]
        array([4., 5.])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"inverse_hessian"})

    def __call__(self, weight: Array, statistics: Statistics) -> Array:
        return np.asarray(np.square(weight) / statistics["inverse_hessian"])
