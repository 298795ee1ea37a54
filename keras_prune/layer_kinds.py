"""What the library knows of each kind of layer: one record a kind, which every stage reads.

A record says which variables are kernels, how their axes read and what each reads; whether the layer sums products;
whether it acts in training only; what it holds besides its weights; and, once `keras_prune.structured` is imported, the
rule for its channels. A layer has what the nearest class that says so has, so that a subclass is known by its base.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
from keras import layers as kl

from keras_prune.arrays.layouts import Layout
from keras_prune.keras_seam import IndexLookup, from_keras, is_of_applications, is_operation

__all__ = [
    "KINDS",
    "Held",
    "Kernel",
    "LayerKind",
    "Source",
    "altered",
    "channel_axis",
    "channel_rule",
    "has_adapters",
    "held_by",
    "kernels_of",
    "kinds_where",
    "letters_of",
    "quantization_of",
    "set_channel_rule",
    "states_of",
    "whole_layout",
]


class Source(enum.Enum):
    """What a kernel reads."""

    INPUT = "the first argument of the call"
    STATE = "the hidden state of the step before: the first of the states, the second argument of a cell's call"
    FIRST_STAGE = "what the depthwise kernel of the same layer makes of the input"
    TOKENS = "the input as tokens, of which each stands for a one-hot vector"


class Held(enum.Enum):
    """What a layer holds besides its weights, and a copy made from its configuration has not."""

    STATES = "where a stateful recurrent layer has arrived in its sequences"
    TABLE = "the words of a lookup, and their frequencies"
    BOUNDARIES = "the bins of a discretization, and the summary of the data that they come from"


def whole_layout(layer: Any, rank: int) -> Layout:
    """`[..., in, out]`: the layout of a kernel of which nothing else is known."""
    return Layout.plain(rank)


def _of_convolution(layer: Any, rank: int) -> Layout:
    return Layout.plain(rank) if layer.groups == 1 else Layout.grouped(rank, layer.groups)


def _transposed(layer: Any, rank: int) -> Layout:
    return Layout.transposed(rank)


def _depthwise(layer: Any, rank: int) -> Layout:
    return Layout.depthwise(rank)


def _of_einsum(layer: Any, rank: int) -> Layout:
    """Letters of the output are outputs, the others are summed over and so inputs; those of both count groups."""
    read, letters, output = letters_of(layer)
    inputs = tuple(i for i, letter in enumerate(letters) if letter not in output)
    outputs = tuple(i for i, letter in enumerate(letters) if letter in output)
    return Layout((), inputs, outputs, groups=tuple(i for i in outputs if letters[i] in read))


def channel_axis(layer: Any) -> tuple[int, ...]:
    """Return the axis of a layer's input that counts channels: the last, or the one behind the batch."""
    return (1,) if getattr(layer, "data_format", None) == "channels_first" else (-1,)


def _axes_of_einsum(layer: Any) -> tuple[int, ...]:
    """The axes of the input whose letters the kernel has, in its layout's order; behind an ellipsis from the end."""
    read, letters, _ = letters_of(layer)
    front, _, back = read.partition("...")
    axis = {letter: i for i, letter in enumerate(front)} | {letter: i - len(back) for i, letter in enumerate(back)}
    layout = _of_einsum(layer, len(letters))
    return tuple(axis[letters[i]] for i in (*layout.groups, *layout.inputs))


def letters_of(layer: Any) -> tuple[str, str, str]:
    """Return the letters of an EinsumDense's input, kernel and output."""
    left, output = layer.equation.replace(" ", "").split("->")
    read, letters = left.split(",")
    return read, letters, output


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A variable that is multiplied by what a layer reads.

    Attributes:
        layout: (layer, rank) -> how its axes read as `[..., in, out]`.
        source: what it reads.
        axes: layer -> the axes of what it reads along which inputs are counted, in the order of
            `Layout.by_input`; all others are samples and positions.
    """

    layout: Callable[[Any, int], Layout] = whole_layout
    source: Source = Source.INPUT
    axes: Callable[[Any], tuple[int, ...]] = channel_axis


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What is known of a layer class; of a class name where Keras exports no class.

    Attributes:
        kernels: by the variable's name.
        sums: whether it computes a sum of products over all channels that it reads, then an activation function.
        training_only: whether it hands its input on outside of training.
        held: what it holds besides its weights.
        channel_rule: how the axes of its results relate to those of its inputs and weights; of
            `keras_prune.structured.rules`, which registers it here.
    """

    kernels: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)
    sums: bool = False
    training_only: bool = False
    held: Held | None = None
    channel_rule: Any = None


_DENSE = LayerKind({"kernel": Kernel()}, sums=True)
_CONVOLUTION = LayerKind({"kernel": Kernel(_of_convolution)}, sums=True)
_TRANSPOSED = LayerKind({"kernel": Kernel(_transposed)}, sums=True)
_DEPTHWISE = LayerKind({"kernel": Kernel(_depthwise)})
_SEPARABLE = LayerKind(
    {"depthwise_kernel": Kernel(_depthwise), "pointwise_kernel": Kernel(source=Source.FIRST_STAGE)}, sums=True
)
_CELL = LayerKind({"kernel": Kernel(), "recurrent_kernel": Kernel(source=Source.STATE)})
_NOISE = LayerKind(training_only=True)

KINDS: dict[type | str, LayerKind] = {
    kl.Dense: _DENSE,
    kl.EinsumDense: LayerKind({"kernel": Kernel(_of_einsum, axes=_axes_of_einsum)}, sums=True),
    kl.Conv1D: _CONVOLUTION,
    kl.Conv2D: _CONVOLUTION,
    kl.Conv3D: _CONVOLUTION,
    kl.Conv1DTranspose: _TRANSPOSED,
    kl.Conv2DTranspose: _TRANSPOSED,
    kl.Conv3DTranspose: _TRANSPOSED,
    kl.DepthwiseConv1D: _DEPTHWISE,
    kl.DepthwiseConv2D: _DEPTHWISE,
    kl.SeparableConv1D: _SEPARABLE,
    kl.SeparableConv2D: _SEPARABLE,
    kl.Embedding: LayerKind({"embeddings": Kernel(source=Source.TOKENS)}),
    kl.SimpleRNNCell: _CELL,
    kl.LSTMCell: _CELL,
    kl.GRUCell: _CELL,
    "ConvLSTMCell": _CELL,
    kl.RNN: LayerKind(held=Held.STATES),
    IndexLookup: LayerKind(held=Held.TABLE),
    kl.Discretization: LayerKind(held=Held.BOUNDARIES),
    kl.ActivityRegularization: _NOISE,
    kl.AlphaDropout: _NOISE,
    kl.Dropout: _NOISE,
    kl.GaussianDropout: _NOISE,
    kl.GaussianNoise: _NOISE,
    kl.SpatialDropout1D: _NOISE,
    kl.SpatialDropout2D: _NOISE,
    kl.SpatialDropout3D: _NOISE,
}
"""What is known of each kind. Attention, Bidirectional, TimeDistributed, recurrent layers hold layers that are here."""


def kinds_where(holds: Callable[[LayerKind], bool]) -> tuple[type[Any], ...]:
    """Return the layer classes whose record fulfils a condition.

    Example:
        >>> sums = kinds_where(lambda kind: kind.sums)
        >>> kl.Dense in sums, kl.DepthwiseConv2D in sums
        (True, False)
    """
    return tuple(kind for kind, record in KINDS.items() if isinstance(kind, type) and holds(record))


# -- kernels ----------------------------------------------------------------------------------------------------------


def kernels_of(layer: Any) -> Mapping[str, Kernel] | None:
    """Return the kernels of a layer, by name, as the nearest class that has some says; None where none has.

    Example:
        >>> sorted(kernels_of(kl.SeparableConv2D(2, 3))), kernels_of(kl.BatchNormalization())
        (['depthwise_kernel', 'pointwise_kernel'], None)
    """
    for base in type(layer).__mro__:
        record = KINDS.get(base) or (KINDS.get(base.__name__) if from_keras(base) else None)
        if record is not None and record.kernels:
            return record.kernels
    return None


# -- state ------------------------------------------------------------------------------------------------------------


def held_by(layer: Any) -> Held | None:
    """Return what a layer holds besides its weights; None where there is nothing that the library knows of."""
    for base in type(layer).__mro__:
        if base in KINDS and KINDS[base].held is not None:
            return KINDS[base].held
    return None


def states_of(layer: Any) -> list[Any]:
    """Return the variables from which a stateful recurrent layer goes on; Keras does not count them as weights."""
    if not getattr(layer, "stateful", False):
        return []
    return [state for state in keras.tree.flatten(getattr(layer, "states", None)) if state is not None]


def quantization_of(layer: Any) -> str | None:
    """Return the mode in which Keras has quantized a layer; None where it has not."""
    mode = getattr(layer, "quantization_mode", None)
    return None if mode is None else str(mode)


def has_adapters(layer: Any) -> bool:
    """Return whether LoRA is enabled on a layer, so that its kernel is frozen under adapters."""
    return bool(getattr(layer, "lora_enabled", False))


def altered(layer: Any) -> str:
    """Return why a layer is not what its class computes: it is quantized, or LoRA is enabled on it; empty if it is."""
    mode = quantization_of(layer)
    return f"it is quantized ({mode})" if mode is not None else "LoRA is enabled on it" if has_adapters(layer) else ""


# -- channels ---------------------------------------------------------------------------------------------------------


def set_channel_rule(kinds: Iterable[type | str], rule: Any) -> None:
    """Put a rule for channels into the records of layer classes; of names of classes that Keras does not export."""
    for kind in kinds:
        KINDS[kind] = dataclasses.replace(KINDS.get(kind, LayerKind()), channel_rule=rule)


def channel_rule(operation: Any) -> Any:
    """Return the rule for channels of the nearest class that has one, unless a class in between has its own `call`."""
    if not isinstance(operation, keras.Layer):
        record = KINDS.get(type(operation).__name__) if is_operation(operation) else None
        return None if record is None else record.channel_rule
    for base in type(operation).__mro__:
        record = KINDS.get(base) or (KINDS.get(base.__name__) if is_of_applications(base) else None)
        if record is not None and record.channel_rule is not None:
            return record.channel_rule
        if "call" in vars(base) and not from_keras(base):
            return None
    return None
