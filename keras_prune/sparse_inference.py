"""Whether XNNPACK's sparse inference can switch on in a model, and which layers keep it off.

A look at the Keras graph, before training. It knows what `tflite_export` rewrites exactly (paddings at stride 2, means
over the whole map, heads, squeeze-and-excitation); of layers that it does not know, it expects the best. What becomes
of a model for certain is told by `tflite_export.inspect` of the exported file.

Rules: XNNPACK `src/subgraph.c`, `xnn_check_nchw_compatibility`; LiteRT `tflite/delegates/xnnpack/README.md`, "Sparse
inference". Sparse inference takes a cluster of calls: it begins at a 3x3 convolution of 3 channels at stride 2, goes
through 1x1 convolutions, depthwise ones and what works place by place, and ends in means over all places. Whatever else
reads from the cluster, or feeds it, keeps all of it off.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from enum import Flag, auto
from typing import Any

import keras
from keras import layers as kl
from keras.src.ops.numpy import Sum

from keras_prune.pooling import is_mean_of_map, is_mean_of_places
from keras_prune.windows import Window, same_padding
from keras_prune.wiring import Call, Wiring

__all__ = ["Blocker", "Cluster", "clusters_of", "is_pointwise", "is_stem"]


class Role(Flag):
    """What a call can be in a cluster."""

    NONE = 0
    STEM = auto()
    INSIDE = auto()
    END = auto()


ANY = Role.STEM | Role.INSIDE | Role.END
"""What a call is taken for whose layer is not known."""


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
        blockers: what keeps it off; empty where enough zeros switch it on.
    """

    pointwise: tuple[Any, ...]
    blockers: tuple[Blocker, ...]


# fmt: off
_PLACEWISE = frozenset({
    "Abs", "Absolute", "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "Cast", "Celu", "Ceil",
    "Clip", "Cos", "Dropout", "ELU", "Elu", "Exp", "Floor", "GaussianDropout", "GaussianNoise", "Gelu", "HardSigmoid",
    "HardSilu", "HardTanh", "Identity", "LeakyReLU", "LeakyRelu", "Log", "Multiply", "Negative", "ReLU", "Relu",
    "Relu6", "Rescaling", "Round", "Rsqrt", "Sigmoid", "Silu", "Sin", "SpatialDropout2D", "Sqrt", "Square", "Tanh",
})
"""Classes of layers and operations of Keras that work place by place, and that a cluster takes."""
_VANISHING = frozenset({
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "Identity",
    "SpatialDropout2D",
})
"""Classes that do nothing when a model answers."""
# fmt: on
_CONVOLUTIONS = (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D)
_CURES = {
    "AveragePooling2D": "GlobalAveragePooling2D where it covers the whole map, else a depthwise convolution",
    "Concatenate": "a sum",
    "Conv2DTranspose": "UpSampling2D(interpolation='bilinear') and a 1x1 convolution",
    "Flatten": "GlobalAveragePooling2D before it",
    "GlobalMaxPooling2D": "GlobalAveragePooling2D",
    "MaxPooling2D": "a depthwise convolution of stride 2",
    "PReLU": "ReLU or LeakyReLU",
    "Reshape": "GlobalAveragePooling2D before it",
    "Subtract": "add the negative",
}
"""What to write instead."""


def clusters_of(wiring: Wiring, *, rewritable: bool = True) -> list[Cluster]:
    """Return the clusters of a model that hold 1x1 convolutions.

    Args:
        wiring: of the model.
        rewritable: whether an export can rewrite it: it is functional or sequential, not subclassed.

    Example:
        >>> from keras_prune.wiring import wire
        >>> image = keras.Input((8, 8, 3))
        >>> x = kl.Conv2D(8, 1)(kl.Conv2D(8, 3, strides=2, padding="same")(image))
        >>> tails = kl.GlobalAveragePooling2D()(x), kl.Flatten(name="flat")(x)
        >>> [[b.path for b in clusters_of(wire(keras.Model(image, tail)))[0].blockers] for tail in tails]
        [[], ['flat']]
    """
    return _Joining(wiring, rewritable).clusters()


def is_stem(layer: Any) -> bool:
    """Whether a layer is a 3x3 convolution of 3 channels at stride 2, where sparse inference may begin."""
    if not isinstance(layer, kl.Conv2D) or not layer.built or layer.groups != 1:
        return False
    return tuple(layer.kernel.shape[:3]) == (3, 3, 3) and tuple(layer.strides) == (2, 2)


def is_pointwise(layer: Any) -> bool:
    """Whether a layer holds a 1x1 convolution of one group without strides."""
    if isinstance(layer, kl.SeparableConv2D):
        return True
    if not isinstance(layer, kl.Conv2D) or isinstance(layer, kl.DepthwiseConv2D):
        return False
    return tuple(layer.kernel_size) == (1, 1) and layer.groups == 1 and set(layer.strides) == {1}


class _Joining:
    """Judges each call by itself, joins them to clusters, and finds what keeps each off."""

    def __init__(self, wiring: Wiring, rewritable: bool) -> None:
        self.wiring, self.rewritable = wiring, rewritable
        self.reasons: dict[int, str] = {}
        self.roles: dict[int, Role] = {id(call): self._judge(call) for call in wiring.calls}
        self._squeezes()
        self.leader = {id(call): id(call) for call in wiring.calls}
        self.blockers: dict[int, list[Blocker]] = defaultdict(list)

    # -- each call ----------------------------------------------------------------------------------------------------

    def _judge(self, call: Call) -> Role:
        operation, given = call.operation, self.wiring.given(call)
        name = type(operation).__name__
        if len(given) != 4 or (given[1:3] == (1, 1) and self.wiring.made(call)[1:3] != given[1:3]):
            return Role.NONE if self._ends_places(call) is None else Role.INSIDE | Role.END
        if is_mean_of_map(operation, given) or _is_sum_of_map(operation):
            return Role.INSIDE | Role.END
        if self._ends_places(call) is not None:
            return Role.INSIDE
        if isinstance(operation, (kl.DepthwiseConv2D, kl.SeparableConv2D)):
            reason = _why_not_depthwise(operation)
        elif isinstance(operation, kl.Conv2D):
            reason = "" if is_stem(operation) else _why_not_convolution(operation)
        elif isinstance(operation, kl.BatchNormalization):
            reason = "" if self._is_folded(call) else "no convolution right before it takes it in"
        elif isinstance(operation, kl.Dense):
            reason = ""
        elif isinstance(operation, kl.ZeroPadding2D):
            reason = self._why_not_padding(call)
        elif isinstance(operation, (kl.UpSampling2D, kl.Resizing)):
            reason = "" if operation.interpolation == "bilinear" else f"interpolation {operation.interpolation!r}"
        elif name in _PLACEWISE:
            reason = ""
        elif not _is_known(operation):
            return ANY
        else:
            reason = "it has no sparse form" + (f"; instead: {_CURES[name]}" if name in _CURES else "")
        reason = reason or _why_not_activation(operation)
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
        while before is not None and type(before.operation).__name__ in _VANISHING:
            before = self.wiring.producers.get(before.inputs[0])
        if before is None:
            return False
        layer = before.operation
        if not isinstance(layer, (*_CONVOLUTIONS, kl.Dense)):
            return not _is_known(layer)
        return layer.activation is None or layer.activation is keras.activations.linear

    def _why_not_padding(self, call: Call) -> str:
        readers = self.wiring.readers.get(call.outputs[0], [])
        folds = len(readers) == 1 and isinstance(readers[0].operation, _CONVOLUTIONS)
        return "" if folds else "no convolution right after it takes it in"

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
            elif _is_known(call.operation) and not _is_placeless_kind(call.operation):
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

    def _find(self, key: int) -> int:
        while self.leader[key] != key:
            self.leader[key] = key = self.leader[self.leader[key]]
        return key

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
                    self.leader[self._find(id(producer))] = self._find(id(call))
                elif producer is not None:
                    blocked.append((call, self._blocker(producer, "stands before it")))
                elif self.roles[id(call)] & Role.STEM == Role.NONE:
                    blocked.append((call, Blocker(call.path, _NO_STEM)))
        for call in members:
            if self.roles[id(call)] == Role.INSIDE or self.roles[id(call)] == Role.STEM:
                blocked += [(call, blocker) for blocker in self._exits(call)]
        for call, blocker in blocked:
            found = self.blockers[self._find(id(call))]
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
                    Blocker(call.path, "its map is an output of the model, and no mean over the places follows")
                )
            exits += [
                self._blocker(reader, "reads its map") for reader in readers if not self.roles[id(reader)] & ~Role.STEM
            ]
        return exits

    def _blocker(self, call: Call, what: str) -> Blocker:
        return Blocker(call.path, self.reasons.get(id(call), f"{type(call.operation).__name__} {what}"))

    def _collect(self, members: list[Call]) -> list[Cluster]:
        groups: defaultdict[int, list[Call]] = defaultdict(list)
        for call in members:
            groups[self._find(id(call))].append(call)
        clusters = []
        for leader, calls in groups.items():
            layers = {id(c.operation): c.operation for c in calls if self._multiplies_places(c)}
            blockers = self.blockers[leader]
            ends = any(self.roles[id(call)] & Role.END for call in calls)
            if layers and not ends and not blockers:
                blockers = [Blocker(calls[-1].path, "no mean over the whole map ends it")]
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
        padded = [call for call in calls if is_stem(call.operation) or _is_depthwise(call.operation)]
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


def _why_not_convolution(layer: Any) -> str:
    kernel = "x".join(map(str, layer.kernel_size))
    channels = layer.kernel.shape[2] * layer.groups
    if set(layer.dilation_rate) != {1}:
        return "it is dilated"
    if layer.groups != 1:
        return "it has groups; instead: a depthwise and a 1x1 convolution"
    if tuple(layer.kernel_size) == (1, 1):
        return "" if set(layer.strides) == {1} else f"a 1x1 convolution of stride {layer.strides[0]}"
    if tuple(layer.kernel_size) == (3, 3) and channels == 3:
        return f"the first convolution has stride {layer.strides[0]}, and only 2 is taken"
    return f"a {kernel} convolution of {channels} channels; instead: a depthwise and a 1x1 convolution"


def _why_not_depthwise(layer: Any) -> str:
    if tuple(layer.kernel_size) not in ((3, 3), (5, 5)):
        return f"a {'x'.join(map(str, layer.kernel_size))} depthwise kernel, and only 3x3 and 5x5 are taken"
    if tuple(layer.strides) not in ((1, 1), (2, 2)):
        return f"stride {tuple(layer.strides)}, and only 1 and 2 are taken"
    if set(layer.dilation_rate) != {1}:
        return "it is dilated"
    if layer.depth_multiplier != 1:
        return f"depth_multiplier={layer.depth_multiplier}, and only 1 is taken"
    return ""


def _why_not_activation(operation: Any) -> str:
    """Why what a layer does to its result has no sparse form; empty where it has."""
    if isinstance(operation, kl.ReLU) and operation.max_value not in (None, 6):
        return f"max_value={operation.max_value:g}, and only 6 is taken"
    if isinstance(operation, kl.ReLU) and operation.threshold:
        return f"threshold={operation.threshold:g}, and only 0 is taken"
    function = getattr(operation, "activation", None)
    if function in (keras.activations.softmax, keras.activations.selu):
        return f"{function.__name__} has no sparse form"
    return ""


def _is_sum_of_map(operation: Any) -> bool:
    return isinstance(operation, Sum) and operation.axis is not None and sorted(a % 4 for a in operation.axis) == [1, 2]


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, (kl.DepthwiseConv2D, kl.SeparableConv2D))


def _is_placeless_kind(operation: Any) -> bool:
    kinds = (kl.BatchNormalization, kl.Conv2D, kl.Dense, kl.Flatten, kl.Reshape)
    if isinstance(operation, kinds) and not isinstance(operation, kl.DepthwiseConv2D):
        return not isinstance(operation, kl.Conv2D) or is_pointwise(operation)
    return type(operation).__name__ in _PLACEWISE


def _is_known(operation: Any) -> bool:
    """Whether a layer or operation is Keras's own."""
    return type(operation).__module__.startswith("keras.")
