r"""What a kernel reads: the L2 norm and the mean |a| of each of its inputs, observed while the model runs.

For the time of a pass the `call` of each layer that owns a target is watched, and the model runs eagerly. A
watched call hands its input to the reader of the layer's kind, which says over which axes a weight's input
runs and where they lie in the kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras import ops, tree

from keras_prune.keras_seam import DROPOUT_MASKS, layers_in, own_variables
from keras_prune.layer_kinds import Kernel, Source, kernels_of
from keras_prune.models.attributes import replaced
from keras_prune.models.stand_ins import at_rest
from keras_prune.scope import Target
from keras_prune.statistics.batches import Batches
from keras_prune.statistics.evaluation import forward, to_float64

__all__ = ["Moments", "input_statistics", "moments", "reader_of"]

Array = npt.NDArray[np.float64]
CURES = (
    "Make each kernel a Keras layer of its own (Dense, EinsumDense, ...), leave it out of the scope "
    "(Scope(exclude=...)), or take a criterion that needs no inputs."
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One input as a kernel reads it.

    Attributes:
        tensor: the input.
        axes: its axes over which a weight's input runs, in the order of the kernel's axes; all others are
            samples and positions.
        place: puts an array over `axes` where it broadcasts to the kernel.
    """

    tensor: Any
    axes: tuple[int, ...]
    place: Callable[[Array], Array]

    def add_to(self, sums: Moments) -> None:
        """Add the input to the sums of a kernel."""
        squares, absolutes, count = moments(self.tensor, self.axes)
        sums.add(self.place(squares), self.place(absolutes), count)


@dataclasses.dataclass(frozen=True)
class OneHot:
    """Tokens, which a table of `rows` vectors reads as one-hot vectors: counted, never written out."""

    tokens: Any
    rows: int

    def add_to(self, sums: Moments) -> None:
        """Add the tokens to the sums of a table; a one-hot vector is its own square."""
        tokens = np.asarray(ops.convert_to_numpy(self.tokens)).astype(np.int64).reshape(-1)
        known = tokens[(tokens >= 0) & (tokens < self.rows)]
        counts = np.bincount(known, minlength=self.rows).astype(np.float64)[:, None]
        sums.add(counts, counts, tokens.size)


@dataclasses.dataclass
class Moments:
    r"""Sums over all that a kernel read: $\sum a^2$ and $\sum |a|$, broadcasting to it, and of how many."""

    squares: Array | float = 0.0
    absolutes: Array | float = 0.0
    count: int = 0

    def add(self, squares: Array, absolutes: Array, count: int) -> None:
        """Add what another call read: sums that broadcast to the kernel, and of how many values each."""
        self.squares = self.squares + squares
        self.absolutes = self.absolutes + absolutes
        self.count += count

    def statistics(self) -> dict[str, Array]:
        r"""Return "input_norm" $\sqrt{\sum a^2}$ and "input_mean" $\sum |a| / n$, which broadcast to the kernel."""
        return {"input_norm": np.sqrt(self.squares), "input_mean": np.asarray(self.absolutes / self.count)}


def moments(tensor: Any, axes: tuple[int, ...]) -> tuple[Array, Array, int]:
    """Return the sums of squares and of absolute values over all but `axes`, and of how many values each.

    Example:
        >>> squares, absolutes, count = moments(np.array([[3.0, 0.0], [4.0, -1.0]]), (1,))
        >>> squares, absolutes, count
        (array([25.,  1.]), array([7., 1.]), 2)
    """
    tensor = ops.cast(ops.convert_to_tensor(tensor), "float32")
    axes = tuple(a % len(tensor.shape) for a in axes)
    others = tuple(a for a in range(len(tensor.shape)) if a not in axes)
    left = sorted(axes)
    order = [left.index(a) for a in axes]
    sums = [
        to_float64(ops.sum(values, axis=others)).transpose(order) for values in (ops.square(tensor), ops.abs(tensor))
    ]
    return sums[0], sums[1], int(np.prod([int(tensor.shape[a]) for a in others], dtype=np.int64))


def input_statistics(
    model: keras.Layer, targets: Sequence[Target], needs: frozenset[str], data: Any
) -> list[dict[str, Array]]:
    """Collect "input_norm" and "input_mean", as far as `needs` names them, in one pass in inference mode.

    All positions of an input count: every time step of a sequence (masked ones too), every position of a picture.
    A kernel that is called several times in a pass (shared layers, recurrent cells) sums over its calls. An Embedding
    reads one-hot rows, so the norm of row i is the square root of how often token i occurs. `recurrent_kernel` reads
    the state h of the step before. A model that trains quantization-aware counts as the plain one that it becomes.

    Returns:
        For each target, by the statistic's name, an array that broadcasts to the kernel.

    Raises:
        ValueError: a target whose input cannot be told, or that no call reached, with its path.
    """
    batches = Batches(data, model, labels=False)
    gathered = [Moments() for _ in targets]
    with at_rest(model), _watched(model, targets, gathered):
        for batch in batches:
            forward(model, batch.x)
    for target, sums in zip(targets, gathered, strict=True):
        if not sums.count:
            raise _unseen(
                target,
                "was not called on the data, so its input is not known (is its kernel used without it?)",
            )
    return [{name: sums.statistics()[name] for name in sorted(needs)} for sums in gathered]


def _unseen(target: Target, why: str) -> ValueError:
    layer = target.layer
    return ValueError(
        f"Inputs of {target.path!r}: the layer {layer.name!r} of type {type(layer).__name__} {why}. {CURES}"
    )


@contextlib.contextmanager
def _watched(model: keras.Layer, targets: Sequence[Target], gathered: Sequence[Moments]) -> Iterator[None]:
    """Watch the calls of every layer that owns a target; undone at the end, whatever happened."""
    undo = contextlib.ExitStack()
    with undo:
        for layer in layers_in(model):
            if isinstance(layer, kl.RNN):
                # Unrolled, every backend calls the cell step by step, with values and not with symbols.
                undo.enter_context(replaced(layer, "unroll", True))
                # This one would call stacked cells once more than there are steps; it only serves dropout in training.
                undo.enter_context(replaced(layer, DROPOUT_MASKS, lambda *args: None))
            own = own_variables(layer)
            watchers = [
                (target, sums, reader_of(layer, target))
                for target, sums in zip(targets, gathered, strict=True)
                if any(target.variable is v for v in own)
            ]
            if watchers:
                undo.enter_context(replaced(layer, "call", _watching(layer, watchers)))
        yield


def _watching(layer: Any, watchers: Sequence[tuple[Target, Moments, Reader]]) -> Callable[..., Any]:
    call = layer.call
    signature = inspect.signature(call)

    def watched(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for target, sums, reader in watchers:
            try:
                reader(arguments).add_to(sums)
            except (NotImplementedError, TypeError) as error:
                why = f"is called in a compiled function, where inputs have no value ({type(error).__name__})"
                raise _unseen(target, why) from error
        return call(*args, **kwargs)

    return watched


# -- what a kernel reads ----------------------------------------------------------------------------------------------

Reader = Callable[[Mapping[str, Any]], "Reading | OneHot"]
"""The arguments of a layer's call, by name -> what a kernel of it reads."""


def reader_of(layer: Any, target: Target) -> Reader:
    """Return how a target is read: as the record of the layer's kind says; of a custom layer, where there is no doubt.

    Raises:
        ValueError: a custom layer holds several variables that may be kernels.
    """
    kernel = (kernels_of(layer) or {}).get(target.variable.name)
    if kernel is not None:
        return lambda arguments: _read(layer, kernel, target, arguments)
    own = [v for v in own_variables(layer) if len(v.shape) >= 2]
    if len(own) > 1:
        names = [v.name for v in own]
        raise _unseen(
            target,
            f"holds {len(own)} variables of rank 2 or more, {names}: which input each one reads is not known",
        )
    return lambda arguments: _read_custom(target, arguments)


def _read(layer: Any, kernel: Kernel, target: Target, arguments: Mapping[str, Any]) -> Reading | OneHot:
    shape = tuple(target.variable.shape)
    given = ops.convert_to_tensor(next(iter(arguments.values())))
    if kernel.source is Source.TOKENS:
        # A ReversibleEmbedding that runs in reverse reads vectors, by the columns of its table.
        return Reading(given, (-1,), lambda sums: sums[None]) if arguments.get("reverse") else OneHot(given, shape[0])
    if kernel.source is Source.STATE:
        given = ops.convert_to_tensor(tree.flatten(list(arguments.values())[1])[0])
    if kernel.source is Source.FIRST_STAGE:
        given = ops.depthwise_conv(
            given,
            layer.depthwise_kernel,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )
    layout = kernel.layout(layer, len(shape))
    return Reading(given, kernel.axes(layer), lambda sums: layout.over_inputs(sums.reshape(-1), shape))


def _read_custom(target: Target, arguments: Mapping[str, Any]) -> Reading:
    """A custom layer with one kernel [in, out] and one input [..., in] leaves no doubt; all else does."""
    tensors = [leaf for leaf in tree.flatten(list(arguments.values())) if keras.ops.is_tensor(leaf)]
    shape = tuple(target.variable.shape)
    if len(tensors) != 1 or len(shape) != 2 or int(tensors[0].shape[-1]) != shape[0]:
        shapes = [tuple(t.shape) for t in tensors]
        raise _unseen(
            target,
            f"has a kernel of shape {shape} and received inputs of shape {shapes}: which it reads is not known",
        )
    return Reading(tensors[0], (-1,), lambda sums: sums[:, None])
