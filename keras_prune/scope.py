"""Model -> prunable tensors, and the reason for each variable that is left out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl
from keras.saving import register_keras_serializable

from keras_prune.keras_seam import from_keras, layers_in, layers_of, own_variables
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.keys import as_keys, check_keys, fits, key_of
from keras_prune.strategy import Strategy

__all__ = ["Layout", "Scope", "Skipped", "Survey", "Target", "check_scope", "paths_of"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel's axes read as `[..., in, out]`, the layout in which patterns are stated.

    Attributes:
        space: axes of the window; inputs, outputs: axes over which a weight's input and output run, each flattened.
        groups: those of the outputs that count groups which read inputs of their own: a depthwise kernel's channels.
        split: the groups into which the kernel's last axis is cut, before axes are counted: `[..., out]` is
            `[..., split, out / split]`. 0: it is not.

    Example:
        >>> Layout.transposed(4).to_canonical(np.zeros((3, 3, 8, 2))).shape  # Conv2DTranspose: (h, w, out, in)
        (3, 3, 2, 8)
    """

    space: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: tuple[int, ...] = ()
    split: int = 0

    @classmethod
    def plain(cls, rank: int) -> Layout:
        """`[..., in, out]`: Dense, Conv, recurrent kernels, Embedding."""
        if rank == 1:
            return cls((), (), (0,))
        return cls(tuple(range(rank - 2)), (rank - 2,), (rank - 1,))

    @classmethod
    def transposed(cls, rank: int) -> Layout:
        """`[..., out, in]`: transposed convolutions."""
        return cls(tuple(range(rank - 2)), (rank - 1,), (rank - 2,))

    @classmethod
    def depthwise(cls, rank: int) -> Layout:
        """`[..., channel, multiplier]`: each output has an input of its own, so both axes count its outputs."""
        return cls(tuple(range(rank - 2)), (), (rank - 2, rank - 1), groups=(rank - 2,))

    @classmethod
    def grouped(cls, rank: int, groups: int) -> Layout:
        """`[..., in / groups, out]`: convolutions in groups, of which each reads channels of its own."""
        space, inputs = tuple(range(rank - 2)), (rank - 2,)
        return cls(space, inputs, (rank - 1, rank), groups=(rank - 1,), split=groups)

    def by_input(self) -> Layout:
        """Return the layout in which `in` counts every input of the layer, and `out` the outputs that read each.

        Example:
            >>> grouped = Layout.grouped(4, groups=2)
            >>> grouped.canonical_shape((3, 3, 4, 6)), grouped.by_input().canonical_shape((3, 3, 4, 6))
            ((3, 3, 4, 6), (3, 3, 8, 3))
        """
        inputs, outputs = self.groups + self.inputs, tuple(axis for axis in self.outputs if axis not in self.groups)
        return dataclasses.replace(self, inputs=inputs, outputs=outputs, groups=())

    def _shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A kernel's shape, its last axis cut into groups."""
        return (*shape[:-1], self.split, shape[-1] // self.split) if self.split else tuple(shape)

    def to_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return `array` as `[..., in, out]`; a view where the axes stand in order already."""
        moved = array.reshape(self._shape(array.shape)).transpose(self.space + self.inputs + self.outputs)
        return moved.reshape(self.canonical_shape(array.shape))

    def canonical_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape `[..., in, out]` of a kernel of `shape`."""
        shape = self._shape(shape)
        sizes = (math.prod(shape[a] for a in axes) for axes in (self.inputs, self.outputs))
        return (*(shape[a] for a in self.space), *sizes)

    def from_canonical(self, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Undo `to_canonical` for a kernel of `shape`."""
        order = self.space + self.inputs + self.outputs
        cut = self._shape(shape)
        moved = array.reshape([cut[a] for a in order]).transpose(np.argsort(order))
        return moved.reshape(shape) if self.split else moved


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A tensor that is to be pruned.

    Attributes:
        path: the variable's path, unique within the model.
        layer: the layer that owns the variable.
        variable: the kernel.
        layout: how its axes read as `[..., in, out]`.
        mask: the mask weight of a wrapper layer (`keras_prune.layers`), or None.
        straight_through: whether that wrapper lets masked weights go on learning.
        index: the variable's place among the model's weights. Unlike the path, it is the same for a model that is
            built twice, so it names the tensor's state in files and seeds what is random about it.
    """

    path: str
    layer: keras.Layer
    variable: keras.Variable
    layout: Layout
    mask: keras.Variable | None = None
    straight_through: bool = False
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A variable that is left alone, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a scope found: the tensors to prune and those left out; every variable of the model is in one of the two.

    Attributes:
        targets: the tensors to prune.
        skipped: those left out, with the reasons.
        for_target: of those left out, the kernels that a device leaves alone.
    """

    targets: tuple[Target, ...]
    skipped: tuple[Skipped, ...]
    for_target: tuple[Skipped, ...] = ()


def _einsum_layout(layer: Any, rank: int) -> Layout:
    """Axes of an EinsumDense kernel: letters of the output are outputs, the others are summed over and so inputs.

    A letter of the output that the input has too counts groups.
    """
    left, output = layer.equation.replace(" ", "").split("->")
    read, letters = left.split(",")
    inputs = tuple(i for i, letter in enumerate(letters) if letter not in output)
    outputs = tuple(i for i, letter in enumerate(letters) if letter in output)
    return Layout((), inputs, outputs, groups=tuple(i for i in outputs if letters[i] in read))


Rule = Callable[[Any, int], Layout]


def _plain(layer: Any, rank: int) -> Layout:
    return Layout.plain(rank)


def _convolution(layer: Any, rank: int) -> Layout:
    return Layout.plain(rank) if layer.groups == 1 else Layout.grouped(rank, layer.groups)


def _transposed(layer: Any, rank: int) -> Layout:
    return Layout.transposed(rank)


def _depthwise(layer: Any, rank: int) -> Layout:
    return Layout.depthwise(rank)


_RECURRENT: dict[str, Rule] = {"kernel": _plain, "recurrent_kernel": _plain}
_SEPARABLE: dict[str, Rule] = {"depthwise_kernel": _depthwise, "pointwise_kernel": _plain}

RULES: dict[type, dict[str, Rule]] = {
    kl.Dense: {"kernel": _plain},
    kl.EinsumDense: {"kernel": _einsum_layout},
    kl.Conv1D: {"kernel": _convolution},
    kl.Conv2D: {"kernel": _convolution},
    kl.Conv3D: {"kernel": _convolution},
    kl.Conv1DTranspose: {"kernel": _transposed},
    kl.Conv2DTranspose: {"kernel": _transposed},
    kl.Conv3DTranspose: {"kernel": _transposed},
    kl.DepthwiseConv1D: {"kernel": _depthwise},
    kl.DepthwiseConv2D: {"kernel": _depthwise},
    kl.SeparableConv1D: _SEPARABLE,
    kl.SeparableConv2D: _SEPARABLE,
    kl.Embedding: {"embeddings": _plain},
    kl.SimpleRNNCell: _RECURRENT,
    kl.LSTMCell: _RECURRENT,
    kl.GRUCell: _RECURRENT,
}
"""Which variables of Keras's own layers are kernels. Attention, Bidirectional, TimeDistributed and recurrent layers
hold these."""


def _rules(layer: keras.Layer) -> dict[str, Rule] | None:
    """The rules of the nearest class that has some; ConvLSTM's cells are not exported by Keras, so they go by name."""
    for base in type(layer).__mro__:
        if base in RULES:
            return RULES[base]
        if base.__name__ == "ConvLSTMCell" and from_keras(base):
            return _RECURRENT
    return None


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Scope(Strategy):
    """Which tensors of a model are pruned.

    Kernels of Keras's own layers are found by the kind of layer, at any depth of nesting. A custom layer names its
    own by a method `prunable_weights()`, which returns variables; without one, its variables whose name matches
    `names` are taken.

    Args:
        include: a layer, a layer's name, a path, a glob, or a regular expression that matches whole paths, or several
            of these; None for all. What names nothing is an error.
        exclude: likewise, left out even when included.
        names: a regular expression for the names of kernels in custom layers.
        min_size: tensors with fewer weights are left out.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")
        >>> model = keras.Sequential([keras.Input((4,)), a, b])
        >>> survey = Scope(exclude="b").survey(model)
        >>> [target.path for target in survey.targets]
        ['a/kernel']
        >>> {skipped.path: skipped.reason for skipped in survey.skipped}["a/bias"]
        'biases are not pruned: one weight per output'
    """

    kind: ClassVar[str] = "scope"

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    names: str = r"kernel|.*_kernel|weight|weights|embeddings|w"
    min_size: int = 0

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, as_keys(value))
        key_of(self.names)

    def survey(self, model: keras.Layer, *, may_be_empty: bool = False) -> Survey:
        """Sort the variables of a built model into targets and skipped ones.

        Args:
            model: a built model or layer.
            may_be_empty: return a survey without targets, if that is what there is, instead of raising.

        Raises:
            ValueError: the model is not built, a pattern matches no variable, or nothing is left to prune (with the
            reasons).
        """
        refuse_keras2("Scope", model)
        if not isinstance(model, keras.Layer):
            raise TypeError(
                f"The model must be a Keras model or layer. Received: {model!r} of type {type(model).__name__}. "
                "A file is loaded first: keras.saving.load_model(path)."
            )
        if not model.weights and not model.built:
            raise ValueError(
                f"{type(model).__name__} {model.name!r} has no weights yet, so there is nothing to prune. "
                "Build it first: give it an Input, or call it on a batch."
            )
        targets: list[Target] = []
        skipped: list[Skipped] = []
        paths = paths_of(model)
        order = {id(variable): i for i, variable in enumerate(model.weights)}
        masks = _wrapper_masks(model)
        bound = {id(mask) for mask, _ in masks.values()}
        for layer, variable, rule, reason in self.walk(model):
            if id(variable) in bound:
                continue
            path = paths.get(id(variable), variable.path)
            reason = reason or self._left_out(path, variable)
            if reason:
                skipped.append(Skipped(path, reason))
                continue
            mask, straight = masks.get(id(variable), (None, False))
            layout = (rule or _plain)(layer, len(variable.shape))
            targets.append(
                Target(path, layer, variable, layout, mask, straight, order.setdefault(id(variable), len(order)))
            )
        self._check(model, targets, skipped, may_be_empty)
        targets.sort(key=lambda target: target.index)
        return Survey(tuple(targets), tuple(skipped))

    def walk(self, model: keras.Layer) -> Iterator[tuple[keras.Layer, keras.Variable, Rule | None, str | None]]:
        """Give each variable once: the layer that holds it, its rule, and why its kind is no kernel (None: it is one).

        Of two layers that hold a variable, the one that knows it as a kernel counts: spectral normalization holds
        the kernel of the layer inside it.
        """
        found: dict[int, tuple[keras.Layer, keras.Variable, Rule | None, str | None]] = {}
        for layer in layers_in(model):
            for variable, rule, reason in self._own_variables(layer):
                known = found.get(id(variable))
                if known is None or (reason is None and known[3] is not None):
                    found[id(variable)] = (layer, variable, rule, reason)
        yield from found.values()

    def _own_variables(self, layer: keras.Layer) -> Iterator[tuple[keras.Variable, Rule | None, str | None]]:
        """Each variable that the layer itself holds, with its rule or the reason against it."""
        rules = _rules(layer)
        chosen = _prunable_weights(layer)
        frozen = _state_reason(layer)
        own = own_variables(layer)
        for variable in own:
            name = variable.name
            if chosen is not None:
                listed = any(variable is one for one in chosen)
                yield variable, _plain, None if listed else f"{type(layer).__name__}.prunable_weights() leaves it out"
            elif rules is not None and name in rules:
                yield variable, rules[name], frozen
            elif rules is not None or from_keras(type(layer)):
                yield variable, None, _plain_reason(layer, variable)
            elif len(variable.shape) >= 2 and re.fullmatch(self.names, name):
                yield variable, _plain, frozen
            else:
                reason = f"not a kernel by name: a custom layer's match {self.names!r}, or it has prunable_weights()"
                yield variable, None, reason
        if chosen is not None:
            for variable in chosen:
                if not any(variable is one for one in own):
                    yield variable, _plain, None

    def _left_out(self, path: str, variable: keras.Variable) -> str | None:
        if self.include is not None and not _matches(self.include, path):
            return "not included in the scope"
        if _matches(self.exclude, path):
            return "excluded from the scope"
        if not variable.trainable:
            return "frozen (trainable=False)"
        if not str(variable.dtype).startswith(("float", "bfloat")):
            return f"its type is {variable.dtype}, and only floating-point weights are pruned"
        size = math.prod(variable.shape)
        if size < self.min_size:
            return f"{size} weights, fewer than min_size={self.min_size}"
        return None

    def _check(self, model: keras.Layer, targets: list[Target], skipped: list[Skipped], may_be_empty: bool) -> None:
        paths = [t.path for t in targets] + [s.path for s in skipped]
        for field in ("include", "exclude"):
            check_keys(f"Scope: {field}", getattr(self, field) or (), paths, f"variable of {model.name!r}")
        if not targets and not may_be_empty:
            reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped) or "it has no variables"
            raise ValueError(f"{type(model).__name__} {model.name!r} has no prunable tensor. Left out: {reasons}.")


def _matches(keys: tuple[str, ...], path: str) -> bool:
    return any(fits(key, path) for key in keys)


def paths_of(model: keras.Layer) -> dict[int, str]:
    """Return the path of each variable of a model, by the variable's id.

    It is made of the names of the layers around the variable, from the outermost below the model to the one that holds
    it, and its own name: the same for a model that was just made and for one that was loaded, which differ in Keras's
    `variable.path`. A path that two variables share gets a number, in the model's own order.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")], name="inner")
        >>> list(paths_of(keras.Sequential([keras.Input((4,)), inner])).values())
        ['inner/a/kernel', 'inner/a/bias']
    """
    owned: dict[int, str] = {}
    # The shortest way to a layer counts, so breadth comes first.
    waiting: deque[tuple[Any, str]] = deque([(model, "")])
    seen: set[int] = set()
    while waiting:
        layer, prefix = waiting.popleft()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        for variable in own_variables(layer):
            owned.setdefault(id(variable), prefix + variable.name)
        waiting.extend((one, f"{prefix}{one.name}/") for one in layers_of(layer))
    paths: dict[int, str] = {}
    used: dict[str, int] = {}
    for variable in model.weights:
        path = owned.get(id(variable), variable.path)
        number = used.get(path, 0)
        used[path] = number + 1
        paths[id(variable)] = path if number == 0 else f"{path}#{number}"
    return paths


def _wrapper_masks(model: keras.Layer) -> dict[int, tuple[keras.Variable, bool]]:
    """Kernel -> (mask weight, straight-through) for kernels under one of the library's wrapper layers."""
    found: dict[int, tuple[keras.Variable, bool]] = {}
    for layer in layers_in(model):
        for kernel, mask in getattr(layer, "mask_pairs", ()):
            found[id(kernel)] = (mask, layer.straight_through)
    return found


def _prunable_weights(layer: keras.Layer) -> list[keras.Variable] | None:
    method = getattr(layer, "prunable_weights", None)
    return list(method()) if callable(method) else None


def _state_reason(layer: Any) -> str | None:
    """Why the kernels of a layer are out of reach in the state that it is in."""
    if getattr(layer, "quantization_mode", None):
        return f"quantized ({layer.quantization_mode}): prune before quantize()"
    if getattr(layer, "lora_enabled", False):
        return (
            "LoRA is enabled: the kernel is frozen under its adapters; prune before enable_lora(), or merge them first"
        )
    return None


def _plain_reason(layer: Any, variable: keras.Variable) -> str:
    kind = type(layer).__name__
    if "bias" in variable.name:
        return "biases are not pruned: one weight per output"
    state = _state_reason(layer)
    if state and ("lora" in variable.name or "scale" in variable.name):
        return state
    return f"{kind} has no kernel of this name"


def check_scope(name: str, scope: Any) -> None:
    """Refuse what is no scope."""
    if scope is not None and not isinstance(scope, Scope):
        raise TypeError(
            f"{name}: scope must be a keras_prune.Scope, or None. Received: {scope!r}. "
            f"For tensors by path write Scope(include={scope!r})."
        )
