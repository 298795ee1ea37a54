r"""Kernels as tensor trains, by `tensorly`: a chain of small cores, of which neighbours share a rank.

A convolution's kernel as a tensor $[in, window..., out]$ has one core for each axis, and each core is a layer. A Dense
kernel has two axes only: both are cut into modes, $in = m_1 \dots m_d$ and $out = n_d \dots n_1$, and core k holds
$[r_{k-1}, m_k, n_k, r_k]$.

Sources: Oseledets 2011, "Tensor-train decomposition", algorithm 1; Novikov et al. 2015, "Tensorizing neural networks",
equation 4 (Dense).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.extras import import_extra
from keras_prune.factorization.chains import Array, Decomposition
from keras_prune.factorization.costs import Places, chain_costs
from keras_prune.factorization.stages import NameGiver, given_weights
from keras_prune.models.variables import assign, read

__all__ = ["TrainOfConvolution", "TrainOfDense", "modes_of", "splits"]

LEVELS = (1e-13, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Shares of energy for which ranks are found, beside equal ranks that double."""
Integers = npt.NDArray[np.int64]


def _train(tensor: Array, ranks: Sequence[int]) -> list[Array]:
    """The cores of a tensor, `[r, size, r']` each."""
    decomposition = import_extra("tensorly.decomposition", "compression", "factorize: tensor trains")
    return [np.asarray(core) for core in decomposition.tensor_train(tensor, rank=[1, *ranks, 1])]


def _contracted(cores: Sequence[Array]) -> Array:
    """The tensor that cores stand for."""
    result = cores[0]
    for core in cores[1:]:
        result = np.tensordot(result, core, axes=1)
    return result[0, ..., 0]


def _ranks_of(tensor: Array) -> Integers:
    """Ranks to choose from, `[choices, axes - 1]`: at levels of energy lost at each cut, and equal ones that double."""
    cuts = [math.prod(tensor.shape[:place]) for place in range(1, tensor.ndim)]
    most = [min(cut, tensor.size // cut) for cut in cuts]
    tails = [_tails(tensor.reshape(cut, -1)) for cut in cuts]
    found = [[int(np.argmax(tail <= level / len(cuts))) + 1 for tail in tails] for level in LEVELS]
    found += [[2**power] * len(cuts) for power in range(max(most).bit_length())]
    fitting = {tuple(_fitting(tensor.shape, [min(*pair) for pair in zip(one, most, strict=True)])) for one in found}
    return np.array(sorted(fitting), np.int64)


def _fitting(sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Ranks of which none is more than its neighbours and the axis between them allow."""
    fitting = [1, *ranks, 1]
    for place in range(1, len(ranks) + 1):
        fitting[place] = min(fitting[place], fitting[place - 1] * sizes[place - 1])
    for place in range(len(ranks), 0, -1):
        fitting[place] = min(fitting[place], fitting[place + 1] * sizes[place])
    return fitting[1:-1]


def _tails(matrix: Array) -> Array:
    """The share of energy beyond each rank of a matrix, from rank 1 on."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    energy = np.maximum(np.linalg.eigvalsh(wide @ wide.T)[::-1], 0.0)
    return np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0) / energy.sum()


def _lost(tensor: Array, ranks: Integers) -> Array:
    total = (tensor**2).sum()
    lost = np.array([((tensor - _contracted(_train(tensor, row.tolist()))) ** 2).sum() for row in ranks]) / total
    return np.where(lost > 1e-13, lost, 0.0)


class TrainOfConvolution(Decomposition):
    """Convolutions in a row: 1 x 1, one along each axis of the window, 1 x 1.

    Args:
        kernel: `[window..., in, out]`.
        places: where the kernel is applied.
    """

    form = "tensor_train"

    def __init__(self, kernel: Array, places: Places) -> None:
        window = kernel.ndim - 2
        self.moves = ((), *((axis,) for axis in range(window)), ())
        self._tensor = np.moveaxis(kernel, -2, 0)
        self.ranks = _ranks_of(self._tensor)
        self.lost = _lost(self._tensor, self.ranks)
        self.params, self.macs = chain_costs(kernel.shape, self.moves, self.ranks, places)

    def kernels(self, ranks: Sequence[int]) -> list[Array]:
        window = self._tensor.ndim - 2
        first, *along, last = _train(self._tensor, ranks)
        ones = (1,) * window
        found = [first.reshape(*ones, *first.shape[1:])]
        for axis, core in enumerate(along):
            sizes = [core.shape[1] if axis == one else 1 for one in range(window)]
            found.append(np.moveaxis(core, 1, 0).reshape(*sizes, core.shape[0], core.shape[2]))
        return [*found, last.reshape(*ones, *last.shape[:2])]


def modes_of(size: int, number: int) -> tuple[int, ...]:
    """Return factors of a size, as near to each other as its divisors allow, rising.

    Example:
        >>> modes_of(2048, 3), modes_of(300, 2), modes_of(7, 2)
        ((8, 16, 16), (15, 20), (1, 7))
    """
    if number == 1:
        return (size,)
    aim = size ** (1 / number)
    first = max(divisor for divisor in range(1, int(aim + 1e-9) + 1) if size % divisor == 0)
    return (first, *modes_of(size // first, number - 1))


def splits(kernel: Array) -> bool:
    """Return whether both sides of a Dense kernel can be cut into modes."""
    return min(modes_of(kernel.shape[0], 2)[0], modes_of(kernel.shape[1], 2)[0]) > 1


class TrainOfDense(Decomposition):
    """A Dense kernel on vectors as three cores, or two: Dense layers on modes of the input, between reshapes.

    Args:
        kernel: `[in, out]`.
    """

    form = "tensor_train"
    moves = ()

    def __init__(self, kernel: Array) -> None:
        number = 3 if min(min(modes_of(size, 3)) for size in kernel.shape) > 1 else 2
        self._m = modes_of(kernel.shape[0], number)
        self._n = modes_of(kernel.shape[1], number)[::-1]
        # The last mode of the input is contracted first, so the modes of the output come out from the last on.
        apart = kernel.reshape(*self._m, *self._n[::-1])
        pairs = [axis for k in range(number) for axis in (k, 2 * number - 1 - k)]
        self._tensor = apart.transpose(pairs).reshape([m * n for m, n in zip(self._m, self._n, strict=True)])
        self.ranks = _ranks_of(self._tensor)
        self.lost = _lost(self._tensor, self.ranks)
        ends = np.ones((len(self.ranks), 1), np.int64)
        r = np.concatenate([ends, self.ranks, ends], axis=1)
        sizes = [r[:, k] * m * n * r[:, k + 1] for k, (m, n) in enumerate(zip(self._m, self._n, strict=True))]
        self.params = np.sum(sizes, axis=0)
        self.macs = np.sum([size * self._rows(k) for k, size in enumerate(sizes)], axis=0)

    def _rows(self, core: int) -> int:
        """How many vectors a core is multiplied by: modes of the input that wait, and of the output that are done."""
        return math.prod(self._m[:core]) * math.prod(self._n[core + 1 :])

    def kernels(self, ranks: Sequence[int]) -> list[Array]:
        """Return the kernels of the Dense layers in the order in which they are called, `[m r, n r']`."""
        found = []
        for core, m, n in zip(_train(self._tensor, ranks), self._m, self._n, strict=True):
            before, after = core.shape[0], core.shape[-1]
            parts = core.reshape(before, m, n, after)
            found.append(parts.transpose(1, 3, 2, 0).reshape(m * after, n * before))
        return found[::-1]

    def approximation(self, ranks: Sequence[int]) -> Array:
        pairs = [size for pair in zip(self._m, self._n, strict=True) for size in pair]
        number = len(self._m)
        apart = _contracted(_train(self._tensor, ranks)).reshape(pairs)
        order = [*range(0, 2 * number, 2), *range(2 * number - 1, 0, -2)]
        return apart.transpose(order).reshape(math.prod(self._m), math.prod(self._n))

    def layers(self, layer: Any, ranks: Sequence[int], name: NameGiver) -> list[Any]:
        """Return built layers in the place of a Dense layer; the last has its name and gives what it gave.

        Args:
            layer: the Dense layer.
            ranks: between the cores.
            name: makes names of layers.
        """
        made: list[Any] = []

        def add(kind: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
            label = name(f"{layer.name}_{what}{len(made) + 1}")
            made.append(kind(*args, name=label, dtype=layer.dtype_policy, **kwargs))
            return made[-1]

        kernels, inner = self.kernels(ranks), [1, *ranks, 1]
        for kernel, k in zip(kernels, reversed(range(len(kernels))), strict=True):
            rows, m, r = self._rows(k), self._m[k], inner[k + 1]
            if k < len(kernels) - 1:
                done = math.prod(self._n[k + 1 :])
                add(kl.Reshape, "modes", (rows // done, m, done, r))
                add(kl.Permute, "modes", (1, 3, 2, 4))
            add(kl.Reshape, "modes", (rows, m * r))
            options = {"kernel_regularizer": layer.kernel_regularizer}
            if k or not layer.use_bias:
                given_weights(add(kl.Dense, "core", kernel.shape[1], use_bias=False, **options), kernel)
                continue
            # Of a Dense layer the bias would be one for all rows.
            options["bias_regularizer"] = layer.bias_regularizer
            shape = (rows, kernel.shape[1])
            core = add(kl.EinsumDense, "core", "bpi,io->bpo", output_shape=shape, bias_axes="po", **options)
            core.build((None, rows, kernel.shape[0]))
            assign(core.kernel, kernel.astype(read(core.kernel).dtype))
            assign(core.bias, np.array(read(layer.bias)).reshape(shape))
        whole = (math.prod(self._n),)
        if layer.activation is not None and layer.activation.__name__ != "linear":
            add(kl.Reshape, "modes", whole)
            last = kl.Activation(layer.activation, activity_regularizer=layer.activity_regularizer, **_as_old(layer))
        else:
            last = kl.Reshape(whole, activity_regularizer=layer.activity_regularizer, **_as_old(layer))
        return [*made, last]


def _as_old(layer: Any) -> dict[str, Any]:
    return {"name": layer.name, "dtype": layer.dtype_policy}
