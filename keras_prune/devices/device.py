"""Which tensors to prune, in which pattern and how much each, so that a device's runtime is faster for it.

A zero makes a file smaller anywhere; it makes a network faster only where the runtime has a kernel that skips it, and
from a share of zeros on. The TFLite kernels that do, and what they ask for, are the same ones that `tflite_export`
writes files for.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import keras
from keras import layers as kl
from keras.saving import register_keras_serializable

from keras_prune.allocation import Allocation, Explicit, Paying
from keras_prune.devices.gains import (
    ARM_BLOCKS,
    SWITCHES_ON,
    WEB_BLOCKS,
    X86_BLOCKS,
    ZERO_BLOCKS_ANYWHERE,
    Measured,
    pays_from,
)
from keras_prune.devices.sparse_layers import is_pointwise, is_stem
from keras_prune.graph.wiring import Wiring, wire
from keras_prune.keras_seam import layers_in
from keras_prune.models.keys import fits
from keras_prune.patterns import Block, ByPath, Pattern, Unstructured
from keras_prune.scope import Skipped, Survey, Target
from keras_prune.strategy import Strategy

__all__ = ["DEVICES", "Choice", "Device", "resolve_device"]

BLOCK = 4
"""Inputs in a block of the float FULLY_CONNECTED kernel (LiteRT, `tflite/kernels/internal/reference/sparse_ops`)."""

NO_TIME = 0.01
"""Share of the multiplications below which it does not matter for the time whether a tensor's kernel pays, as in
squeeze-and-excitation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What a device makes of a model.

    Attributes:
        survey: the tensors whose zeros it skips, and the reason for each of the others.
        pattern: of each tensor.
        allocation: how much each gives.
        device: its name.
        pays_from: path -> share of a tensor's units above which the kernel that skips them pays.
        clustered: paths of the 1x1 convolutions that only XNNPACK's sparse inference makes faster.
        wiring: of the model; None where its graph cannot be seen.
    """

    survey: Survey
    pattern: ByPath
    allocation: Allocation
    device: str
    pays_from: Mapping[str, float]
    clustered: frozenset[str]
    wiring: Wiring | None


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Device(Strategy):
    """What a device's TFLite runtime can skip.

    Attributes:
        blocks: FULLY_CONNECTED skips zero blocks of 4 inputs of one output (the kernel that reads 1x4 blocks of
            `[out, in]`), so matrices are pruned in `Block(4, 1)` of `[in, out]`.
        pointwise: XNNPACK skips single zeros of 1x1 convolutions (sparse inference in NCHW), in networks that begin
            with a 3x3 convolution of 3 channels at stride 2.
        gains: what the kernel for blocks was measured to gain, from which follows the share of zero blocks that it
            needs; empty where nothing was measured: then the shares that keep up on any device.

    Source: XNNPACK `src/subgraph.c`; LiteRT `tflite/delegates/xnnpack/README.md`, "Sparse inference".

    Example:
        >>> from keras_prune.scope import Scope
        >>> inputs = keras.Input((32, 32, 3))
        >>> x = kl.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
        >>> x = kl.GlobalAveragePooling2D()(kl.Conv2D(16, 1, name="mix")(x))
        >>> model = keras.Model(inputs, kl.Dense(10, name="head")(kl.Dense(32, name="hidden")(x)))
        >>> choice = DEVICES["web"].choose(model, Scope().survey(model))
        >>> [(t.path, choice.pattern.at(t.path)) for t in choice.survey.targets]
        [('mix/kernel', Unstructured()), ('hidden/kernel', Block(rows=4, cols=1, pooling='mean'))]
    """

    kind: ClassVar[str] = "target"

    name: str
    blocks: bool
    pointwise: bool
    gains: tuple[Measured, ...] = ()

    def choose(
        self,
        model: keras.Model,
        survey: Survey,
        *,
        include: Iterable[str] = (),
        pattern: Pattern | ByPath | None = None,
        allocation: Allocation | None = None,
    ) -> Choice:
        """Choose the tensors whose zeros the device skips, the pattern of each, and how much each gives.

        What gives the model's answers, and what looks up rows, is left alone unless it is named. What the user states
        holds in place of the device's choice.

        Args:
            model: built.
            survey: the tensors in scope.
            include: keys of the tensors that the user names.
            pattern: of all tensors, or of those that it has a key for.
            allocation: in place of the device's.

        Raises:
            ValueError: the device skips no zeros at all, or those of no tensor of this model (with the reasons).
        """
        if not (self.blocks or self.pointwise):
            raise ValueError(
                f"target={self.name!r}: its runtime has no kernel that skips zeros, so masks speed up nothing there. "
                "Received: a model to be pruned for it. Only smaller shapes help: remove whole outputs by "
                "keras_prune.structured.prune(model, flops=0.5), or leave target out to make the file compress better."
            )
        wiring = wire(model)
        named = [*include, *_keys(pattern), *_keys(allocation)]
        chosen, reasons = self._sorted(model, survey, wiring, named)
        for key in _keys(pattern) | _keys(allocation):
            # A pattern or a share that is stated for nothing but tensors left out asks for them.
            if not any(fits(key, path) for path in chosen):
                asked = [path for path in reasons if fits(key, path)]
                chosen.update(dict.fromkeys(asked, Unstructured()))
                reasons = {path: reason for path, reason in reasons.items() if path not in asked}
        if not chosen:
            listed = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
            raise ValueError(f"target={self.name!r} would be faster for zeros in no tensor of {model.name!r}. {listed}")
        targets = tuple(tensor for tensor in survey.targets if tensor.path in chosen)
        clustered = frozenset(t.path for t in targets if chosen[t.path] == Unstructured() and _is_pointwise(t))
        own = self._allocation(model, targets, chosen, clustered, wiring)
        left = tuple(Skipped(path, reason) for path, reason in reasons.items())
        return Choice(
            Survey(targets, (*survey.skipped, *left), left),
            _stated(chosen, pattern),
            own if allocation is None else allocation,
            self.name,
            own.pays_from,
            clustered,
            wiring,
        )

    def _sorted(
        self, model: keras.Model, survey: Survey, wiring: Wiring | None, named: list[str]
    ) -> tuple[dict[str, Pattern], dict[str, str]]:
        """The patterns of the tensors whose zeros the device skips, and the reasons for the others, by path."""
        begins = any(is_stem(layer) for layer in layers_in(model))
        heads = _heads(survey, wiring)
        chosen: dict[str, Pattern] = {}
        reasons: dict[str, str] = {}
        for tensor in survey.targets:
            asked = any(fits(key, tensor.path) for key in named)
            pattern = self._pattern(tensor, begins)
            if isinstance(tensor.layer, kl.Embedding) and asked:
                pattern = Unstructured()
            elif isinstance(pattern, Pattern) and id(tensor.layer) in heads and not asked:
                pattern = _HEAD
            if isinstance(pattern, Pattern):
                chosen[tensor.path] = pattern
            else:
                reasons[tensor.path] = pattern
        return chosen, reasons

    def _pattern(self, tensor: Target, begins: bool) -> Pattern | str:
        """The pattern for a tensor, or the reason why zeros in it gain nothing."""
        layer: Any = tensor.layer
        if isinstance(layer, kl.Embedding):
            return (
                f"target={self.name!r} looks up rows of an embedding: zeros make the file smaller, nothing faster. "
                "To prune it all the same, name it in scope=Scope(include=...)"
            )
        if not tensor.layout.space and tensor.layout.inputs:
            return self._blocks(tensor)
        if not _is_pointwise(tensor):
            return (
                f"target={self.name!r} skips zeros of matrices and 1x1 convolutions only; this is a kernel of shape "
                f"{tuple(tensor.variable.shape)} of {type(layer).__name__}"
            )
        if _is_on_one_point(layer) and isinstance(self._blocks(tensor), Pattern):
            # In a network's head the exporter writes it as a matrix; within it, blocks do as well as any zeros.
            return self._blocks(tensor)
        if not self.pointwise:
            return f"target={self.name!r} has no kernel that skips zeros of convolutions"
        if not begins:
            return (
                "a 1x1 convolution in a network that does not begin with a 3x3 convolution of 3 channels at stride 2, "
                "where XNNPACK's sparse inference starts"
            )
        return Unstructured()

    def _blocks(self, tensor: Target) -> Pattern | str:
        inputs = math.prod(tensor.variable.shape[axis] for axis in tensor.layout.inputs)
        if not self.blocks:
            return f"target={self.name!r} has no kernel that skips zeros of matrices"
        if inputs % BLOCK:
            return f"{inputs} inputs do not divide into the blocks of {BLOCK} that the kernel skips"
        return Block(BLOCK, 1)

    def _allocation(
        self,
        model: keras.Model,
        targets: tuple[Target, ...],
        patterns: dict[str, Pattern],
        clustered: frozenset[str],
        wiring: Wiring | None,
    ) -> Paying:
        rows = _rows(wiring)
        weight_bytes = 4 * sum(math.prod(variable.shape) for variable in model.weights)
        work = {tensor.path: float(rows.get(id(tensor.layer)) or 1) for tensor in targets}
        products = {tensor.path: work[tensor.path] * math.prod(tensor.variable.shape) for tensor in targets}
        shares: dict[str, float] = {}
        for tensor in targets:
            if products[tensor.path] < NO_TIME * sum(products.values()):
                continue
            if tensor.path in clustered:
                shares[tensor.path] = SWITCHES_ON
            elif patterns[tensor.path] == Block(BLOCK, 1):
                shares[tensor.path] = self._blocks_pay_from(rows.get(id(tensor.layer)), weight_bytes)
        cluster = tuple(path for path in shares if path in clustered)
        return Paying(shares, work, (cluster,) if cluster else ())

    def _blocks_pay_from(self, rows: int | None, weight_bytes: int) -> float:
        if not self.gains:
            return ZERO_BLOCKS_ANYWHERE[0 if rows == 1 else 1]
        # Just below the whole percent at which the kernel pays: the share is to be passed.
        return max(0.0, pays_from(self.gains, rows, weight_bytes) - 0.005)


DEVICES = {
    device.name: device
    for device in (
        Device("android", blocks=True, pointwise=True, gains=ARM_BLOCKS),
        Device("ios", blocks=True, pointwise=True, gains=ARM_BLOCKS),
        Device("arm64", blocks=True, pointwise=True, gains=ARM_BLOCKS),
        Device("web", blocks=True, pointwise=True, gains=WEB_BLOCKS),
        # XNNPACK's sparse inference is off wherever AVX is on.
        Device("x86", blocks=True, pointwise=False, gains=X86_BLOCKS),
        Device("mcu", blocks=False, pointwise=False),
    )
}
"""The names that `target=` takes."""


def resolve_device(value: str | Device) -> Device:
    """Return the device that a name or an instance stands for."""
    if isinstance(value, Device):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"target must be one of the names {sorted(DEVICES)}, or a keras_prune.devices.Device. Received: {value!r}"
        )
    if value not in DEVICES:
        near = difflib.get_close_matches(str(value), DEVICES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown target: {value!r}. Known names: {sorted(DEVICES)}.{hint}")
    return DEVICES[value]


_HEAD = (
    "a head, which gives the model's answers: with a target it is left alone, since it takes little of the time and "
    "accuracy suffers most there. To prune it all the same, name it in scope=Scope(include=...) or allocation={...}"
)


def _keys(stated: Any) -> set[str]:
    """The keys of a mapping of patterns or targets; none for what holds for all tensors."""
    if isinstance(stated, ByPath):
        return set(stated.patterns)
    return set(stated.targets) if isinstance(stated, Explicit) else set()


def _stated(chosen: dict[str, Pattern], stated: Pattern | ByPath | None) -> ByPath:
    """The patterns of a device, or those that the user states in their place."""
    if isinstance(stated, Pattern):
        return ByPath(dict.fromkeys(chosen, stated))
    if stated is None:
        return ByPath(chosen)
    by_user = {path: [p for key, p in stated.patterns.items() if fits(key, path)] for path in chosen}
    return ByPath({path: (by_user[path] or [own])[0] for path, own in chosen.items()})


def _heads(survey: Survey, wiring: Wiring | None) -> set[int]:
    """The ids of the layers that give the model's answers; where its graph cannot be seen, the last one is taken."""
    if wiring is not None:
        return wiring.heads()
    return {id(tensor.layer) for tensor in survey.targets[-1:]}


def _rows(wiring: Wiring | None) -> dict[int, int | None]:
    """How many rows each layer multiplies its kernel with, for one sample; None where a size is not known."""
    rows: dict[int, int | None] = {}
    for call in wiring.calls if wiring is not None else ():
        made = wiring.made(call)[1:-1] if wiring is not None else ()
        known = None if None in made else math.prod(size for size in made if size is not None)
        before = rows.get(id(call.operation), 0)
        rows[id(call.operation)] = None if known is None or before is None else before + known
    return rows


def _is_pointwise(tensor: Target) -> bool:
    """Whether a kernel is that of a 1x1 convolution of one group without strides."""
    layer: Any = tensor.layer
    if tuple(tensor.variable.shape[:2]) != (1, 1) or len(tensor.variable.shape) != 4:
        return False
    if isinstance(layer, kl.SeparableConv2D):
        return tensor.variable is layer.pointwise_kernel
    return is_pointwise(layer)


def _is_on_one_point(layer: Any) -> bool:
    """Whether a convolution sees a map of one point, as in the heads of MobileNets and in squeeze-and-excitation."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape is not None and tuple(shape[1:3]) == (1, 1)
