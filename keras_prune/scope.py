"""Model -> prunable tensors, and the reason for each variable that is left out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras
from keras.saving import register_keras_serializable

from keras_prune.arrays.layouts import Layout
from keras_prune.keras_seam import from_keras, layers_in, layers_of, own_variables
from keras_prune.layer_kinds import has_adapters, kernels_of, quantization_of, whole_layout
from keras_prune.models.keras2 import refuse_keras2
from keras_prune.models.keys import as_keys, check_keys, fits, key_of
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.strategy import Strategy

__all__ = ["Scope", "Skipped", "Survey", "Target", "check_scope", "paths_of"]


Reads = Callable[[Any, int], Layout]
"""(layer, rank of a variable) -> how the axes of the variable read as `[..., in, out]`."""


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
        for layer, variable, reads, reason in self.walk(model):
            if id(variable) in bound:
                continue
            path = paths.get(id(variable), variable.path)
            reason = reason or self._left_out(path, variable)
            if reason:
                skipped.append(Skipped(path, reason))
                continue
            mask, straight = masks.get(id(variable), (None, False))
            layout = (reads or whole_layout)(layer, len(variable.shape))
            targets.append(
                Target(path, layer, variable, layout, mask, straight, order.setdefault(id(variable), len(order)))
            )
        self._check(model, targets, skipped, may_be_empty)
        targets.sort(key=lambda target: target.index)
        return Survey(tuple(targets), tuple(skipped))

    def walk(self, model: keras.Layer) -> Iterator[tuple[keras.Layer, keras.Variable, Reads | None, str | None]]:
        """Give each variable once: the layer that holds it, how it reads, and why it is no kernel (None: it is one).

        Of two layers that hold a variable, the one that knows it as a kernel counts: spectral normalization holds
        the kernel of the layer inside it.
        """
        found: dict[int, tuple[keras.Layer, keras.Variable, Reads | None, str | None]] = {}
        for layer in layers_in(model):
            for variable, reads, reason in self._own_variables(layer):
                known = found.get(id(variable))
                if known is None or (reason is None and known[3] is not None):
                    found[id(variable)] = (layer, variable, reads, reason)
        yield from found.values()

    def _own_variables(self, layer: keras.Layer) -> Iterator[tuple[keras.Variable, Reads | None, str | None]]:
        """Each variable that the layer itself holds, with how it reads or the reason against it."""
        kernels = kernels_of(layer)
        chosen = _prunable_weights(layer)
        frozen = _state_reason(layer)
        own = own_variables(layer)
        for variable in own:
            name = variable.name
            if chosen is not None:
                listed = any(variable is one for one in chosen)
                yield (
                    variable,
                    whole_layout,
                    None if listed else f"{type(layer).__name__}.prunable_weights() leaves it out",
                )
            elif kernels is not None and name in kernels:
                yield variable, kernels[name].layout, frozen
            elif kernels is not None or from_keras(type(layer)):
                yield variable, None, _plain_reason(layer, variable)
            elif len(variable.shape) >= 2 and re.fullmatch(self.names, name):
                yield variable, whole_layout, frozen
            else:
                reason = f"not a kernel by name: a custom layer's match {self.names!r}, or it has prunable_weights()"
                yield variable, None, reason
        if chosen is not None:
            for variable in chosen:
                if not any(variable is one for one in own):
                    yield variable, whole_layout, None

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
        for kernel, mask in mask_pairs_of(layer):
            found[id(kernel)] = (mask, layer.straight_through)
    return found


def _prunable_weights(layer: keras.Layer) -> list[keras.Variable] | None:
    method = getattr(layer, "prunable_weights", None)
    return list(method()) if callable(method) else None


def _state_reason(layer: Any) -> str | None:
    """Why the kernels of a layer are out of reach in the state that it is in."""
    mode = quantization_of(layer)
    if mode is not None:
        return f"quantized ({mode}): prune before quantize()"
    if has_adapters(layer):
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
