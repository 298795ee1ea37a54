"""Whether XNNPACK's sparse inference can switch on in a model, and which layers keep it off.

This is judged on the Keras graph, before training. What `tflite_export` rewrites exactly (paddings at stride 2, means
over the whole feature map, heads, squeeze-and-excitation) is taken into account; layers of unknown classes are assumed
to fit. `tflite_export.inspect` judges the exported file itself.

Rules: XNNPACK `src/subgraph.c`, `xnn_check_nchw_compatibility`; LiteRT `tflite/delegates/xnnpack/README.md`, "Sparse
inference". Sparse inference takes a cluster of calls: it begins at a 3x3 convolution of 3 channels at stride 2, goes
through 1x1 convolutions, depthwise ones and elementwise operations, and ends in means over all positions. Whatever else
reads from the cluster, or feeds it, keeps all of it off.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from enum import Flag, auto
from typing import Any

import keras
from keras import layers as kl

from keras_prune.arrays.union_find import Groups
from keras_prune.devices.sparse_layers import (
    CONVOLUTIONS,
    CURES,
    PLACEWISE,
    VANISHING,
    is_depthwise,
    is_known,
    is_pointwise,
    is_stem,
    is_sum_of_map,
    why_not_activation,
    why_not_convolution,
    why_not_depthwise,
)
from keras_prune.graph.pooling import is_mean_of_map, is_mean_of_places
from keras_prune.graph.windows import Window, same_padding
from keras_prune.graph.wiring import Call, Wiring

__all__ = ["Blocker", "Cluster", "clusters_of"]


class Role(Flag):
    """What a call can be in a cluster."""

    NONE = 0
    STEM = auto()
    INSIDE = auto()
    END = auto()


ANYTHING = Role.STEM | Role.INSIDE | Role.END
"""The role of a call whose layer is of an unknown class."""


@dataclasses.dataclass(frozen=True)
class Blocker:
    """A layer that keeps a cluster off, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Cluster:
    """Calls that sparse inference would take together.

    Attributes:
        pointwise: the layers with 1x1 convolutions in it.
        blockers: what keeps it off; empty if enough zeros switch it on.
    """

    pointwise: tuple[Any, ...]
    blockers: tuple[Blocker, ...]


def clusters_of(wiring: Wiring, *, rewritable: bool = True) -> list[Cluster]:
    """Return the clusters of a model that hold 1x1 convolutions.

    Args:
        wiring: of the model.
        rewritable: whether an export can rewrite it: it is functional or sequential, not subclassed.

    Example:
        >>> from keras_prune.graph.wiring import wire
        >>> image = keras.Input((8, 8, 3))
        >>> x = kl.Conv2D(8, 1)(kl.Conv2D(8, 3, strides=2, padding="same")(image))
        >>> tails = kl.GlobalAveragePooling2D()(x), kl.Flatten(name="flat")(x)
        >>> [[b.path for b in clusters_of(wire(keras.Model(image, tail)))[0].blockers] for tail in tails]
        [[], ['flat']]
    """
    return _Joining(wiring, rewritable).clusters()


class _Joining:
    """Judges each call by itself, joins them to clusters, and finds what keeps each off."""

    def __init__(self, wiring: Wiring, rewritable: bool) -> None:
        self.wiring, self.rewritable = wiring, rewritable
        self.reasons: dict[int, str] = {}
        self.roles: dict[int, Role] = {id(call): self._judge(call) for call in wiring.calls}
        self._squeezes()
        self.groups: Groups[int] = Groups()
        self.blockers: dict[int, list[Blocker]] = defaultdict(list)

    # -- each call ----------------------------------------------------------------------------------------------------

    def _judge(self, call: Call) -> Role:
        operation, given = call.operation, self.wiring.given(call)
        name = type(operation).__name__
        if len(given) != 4 or (given[1:3] == (1, 1) and self.wiring.made(call)[1:3] != given[1:3]):
            return Role.NONE if self._ends_places(call) is None else Role.INSIDE | Role.END
        if is_mean_of_map(operation, given) or is_sum_of_map(operation):
            return Role.INSIDE | Role.END
        if self._ends_places(call) is not None:
            return Role.INSIDE
        if isinstance(operation, (kl.DepthwiseConv2D, kl.SeparableConv2D)):
            reason = why_not_depthwise(operation)
        elif isinstance(operation, kl.Conv2D):
            reason = "" if is_stem(operation) else why_not_convolution(operation)
        elif isinstance(operation, kl.BatchNormalization):
            reason = "" if self._is_folded(call) else "no convolution directly before it into which it can be folded"
        elif isinstance(operation, kl.Dense):
            reason = ""
        elif isinstance(operation, kl.ZeroPadding2D):
            reason = self._why_not_padding(call)
        elif isinstance(operation, (kl.UpSampling2D, kl.Resizing)):
            reason = "" if operation.interpolation == "bilinear" else f"interpolation {operation.interpolation!r}"
        elif name in PLACEWISE:
            reason = ""
        elif not is_known(operation):
            return ANYTHING
        else:
            reason = "it has no sparse form" + (f"; instead: {CURES[name]}" if name in CURES else "")
        reason = reason or why_not_activation(operation)
        if reason:
            self.reasons[id(call)] = f"{name}: {reason}"
            return Role.NONE
        return Role.STEM if is_stem(operation) else Role.INSIDE

    def _ends_places(self, call: Call) -> Call | None:
        """The partner of a call that is, together with it, the mean over all places: a Reshape, or what reads it."""
        wiring = self.wiring
        readers = wiring.readers.get(call.outputs[0], []) if call.outputs else []
        before = wiring.producers.get(call.inputs[0]) if call.inputs else None
        pairs = [(call, reader) for reader in readers if len(readers) == 1]
        if before is not None and len(wiring.readers[call.inputs[0]]) == 1:
            pairs.append((before, call))
        for first, second in pairs:
            if is_mean_of_places(first.operation, wiring.given(first), wiring.made(first), second.operation):
                return second if first is call else first
        return None

    def _is_folded(self, call: Call) -> bool:
        before = self.wiring.producers.get(call.inputs[0])
        while before is not None and type(before.operation).__name__ in VANISHING:
            before = self.wiring.producers.get(before.inputs[0])
        if before is None:
            return False
        layer = before.operation
        if not isinstance(layer, (*CONVOLUTIONS, kl.Dense)):
            return not is_known(layer)
        return layer.activation is None or layer.activation is keras.activations.linear

    def _why_not_padding(self, call: Call) -> str:
        readers = self.wiring.readers.get(call.outputs[0], [])
        folds = len(readers) == 1 and isinstance(readers[0].operation, CONVOLUTIONS)
        return "" if folds else "no convolution directly after it into which it can be folded"

    def _squeezes(self) -> None:
        """Take what stands between a mean and the map that it scales: squeeze-and-excitation."""
        wiring = self.wiring
        flat = [call for call in wiring.calls if self._is_placeless(call)]
        members = {id(call) for call in flat}
        scales: set[int] = set()
        for call in reversed(flat):
            readers = [reader for tensor in call.outputs for reader in wiring.readers.get(tensor, [])]
            onto = [id(r) in scales if id(r) in members else self._is_scaling(r) for r in readers]
            if onto and all(onto):
                scales.add(id(call))
        for call in flat:
            if id(call) not in scales:
                self.roles[id(call)] = Role.NONE
            elif is_known(call.operation) and not _is_placeless_kind(call.operation):
                self.roles[id(call)] = Role.NONE
                self.reasons[id(call)] = f"{type(call.operation).__name__}: it has no sparse form"
            else:
                self.roles[id(call)] = Role.INSIDE

    def _is_placeless(self, call: Call) -> bool:
        shapes = [self.wiring.shapes[tensor] for tensor in (*call.inputs, *call.outputs)]
        return bool(call.inputs) and all(len(s) == 2 or (len(s) == 4 and s[1:3] == (1, 1)) for s in shapes)

    def _is_scaling(self, call: Call) -> bool:
        shapes = [self.wiring.shapes[tensor] for tensor in call.inputs]
        return len(shapes) > 1 and any(len(s) == 4 and s[1:3] != (1, 1) for s in shapes)

    # -- together -----------------------------------------------------------------------------------------------------

    def clusters(self) -> list[Cluster]:
        wiring, joins = self.wiring, Role.INSIDE | Role.END
        members = [call for call in wiring.calls if self.roles[id(call)]]
        blocked: list[tuple[Call, Blocker]] = []
        for call in members:
            if not self.roles[id(call)] & joins:
                continue
            for tensor in dict.fromkeys(call.inputs):
                producer = wiring.producers.get(tensor)
                if producer is not None and self.roles[id(producer)] & (Role.STEM | Role.INSIDE):
                    self.groups.join(id(producer), id(call))
                elif producer is not None:
                    blocked.append((call, self._blocker(producer, "stands before it")))
                elif self.roles[id(call)] & Role.STEM == Role.NONE:
                    blocked.append((call, Blocker(call.path, _NO_STEM)))
        for call in members:
            if self.roles[id(call)] == Role.INSIDE or self.roles[id(call)] == Role.STEM:
                blocked += [(call, blocker) for blocker in self._exits(call)]
        for call, blocker in blocked:
            found = self.blockers[self.groups.find(id(call))]
            if blocker not in found:
                found.append(blocker)
        return self._collect(members)

    def _exits(self, call: Call) -> list[Blocker]:
        """What reads a map of a cluster from outside of it."""
        exits = []
        for tensor in call.outputs:
            readers = self.wiring.readers.get(tensor, [])
            if tensor in self.wiring.outputs:
                exits.append(
                    Blocker(
                        call.path,
                        "its feature map is an output of the model, without a mean over all positions before it",
                    )
                )
            exits += [
                self._blocker(reader, "reads the feature map")
                for reader in readers
                if not self.roles[id(reader)] & ~Role.STEM
            ]
        return exits

    def _blocker(self, call: Call, what: str) -> Blocker:
        return Blocker(call.path, self.reasons.get(id(call), f"{type(call.operation).__name__} {what}"))

    def _collect(self, members: list[Call]) -> list[Cluster]:
        by_id = {id(call): call for call in members}
        clusters = []
        for group in self.groups.of(by_id):
            calls = [by_id[key] for key in group]
            layers = {id(c.operation): c.operation for c in calls if self._multiplies_places(c)}
            blockers = self.blockers[self.groups.find(group[0])]
            ends = any(self.roles[id(call)] & Role.END for call in calls)
            if layers and not ends and not blockers:
                blockers = [Blocker(calls[-1].path, "no global mean over its feature map follows")]
            if layers and not blockers:
                blockers = self._uneven(calls)
            if layers:
                clusters.append(Cluster(tuple(layers.values()), tuple(blockers)))
        return clusters

    def _multiplies_places(self, call: Call) -> bool:
        """Whether a call is a 1x1 convolution, or a Dense on a map, which is one."""
        on_map = isinstance(call.operation, kl.Dense) and len(self.wiring.given(call)) == 4
        return on_map or is_pointwise(call.operation)

    # -- paddings -----------------------------------------------------------------------------------------------------

    def _uneven(self, calls: list[Call]) -> list[Blocker]:
        """The layers that cannot pad half their kernel on each side, upright or mirrored, as all of a cluster must."""
        padded = [call for call in calls if is_stem(call.operation) or is_depthwise(call.operation)]
        for axis in (0, 1):
            common = {False, True}
            for call in padded:
                common &= self._orientations(call, axis)
                if not common:
                    layer, size = call.operation, self.wiring.given(call)[1 + axis]
                    what = f"padding {layer.padding!r} at stride {layer.strides[axis]} and size {size or 'unknown'}"
                    return [Blocker(call.path, f"{what}: {self._cure()}")]
        return []

    def _cure(self) -> str:
        if not self.rewritable:
            return "a subclassed model is exported as it is; make it functional, or write ZeroPadding2D and 'valid'"
        return (
            "it has to be half the kernel on each side, in all layers; images of another size (a multiple of 32) may do"
        )

    def _orientations(self, call: Call, axis: int) -> set[bool]:
        """Whether a layer pads evenly as it is (False), and on a mirrored map (True)."""
        layer, before = call.operation, self.wiring.producers.get(call.inputs[0])
        folded, size = (0, 0), self.wiring.given(call)[1 + axis]
        if before is not None and isinstance(before.operation, kl.ZeroPadding2D):
            folded, size = before.operation.padding[axis], self.wiring.given(before)[1 + axis]
        reach, stride = layer.kernel_size[axis], layer.strides[axis]
        wanted, same = reach // 2, layer.padding == "same"
        if size is None or not self.rewritable:
            own = (wanted, wanted) if same and stride == 1 else (0, 0)
            even = (folded[0] + own[0], folded[1] + own[1]) == (wanted, wanted)
            return ({False, True} if stride == 1 else {False}) if even and not (same and stride > 1) else set()
        own = same_padding(size + sum(folded), reach, stride) if same else (0, 0)
        window = Window(size, reach, stride, folded[0] + own[0], folded[1] + own[1])
        return {mirrored for mirrored in (False, True) if window.allows(wanted, wanted, mirrored)}


_NO_STEM = "it reads an input of the model: a 3x3 convolution of 3 channels at stride 2 has to stand before it"


def _is_placeless_kind(operation: Any) -> bool:
    kinds = (kl.BatchNormalization, kl.Conv2D, kl.Dense, kl.Flatten, kl.Reshape)
    if isinstance(operation, kinds) and not isinstance(operation, kl.DepthwiseConv2D):
        return not isinstance(operation, kl.Conv2D) or is_pointwise(operation)
    return type(operation).__name__ in PLACEWISE
