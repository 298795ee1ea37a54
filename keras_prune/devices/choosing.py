"""Which tensors to prune, in which pattern and how much each, so that a device's runtime is faster for it.

A zero makes a file smaller anywhere; it makes a network faster only where the runtime has a kernel that skips it, and
from a share of zeros on. The kernels that a device has, and what they ask for, are the same ones that `tflite_export`
writes files for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import layers as kl

from keras_prune.allocation import Allocation, Explicit, Paying
from keras_prune.arrays.encoding import RECORD_TABLES
from keras_prune.devices.device import Device, Kernel
from keras_prune.devices.sparse_layers import is_pointwise, is_stem
from keras_prune.graph.wiring import Wiring, wire
from keras_prune.keras_seam import layers_in
from keras_prune.models.keys import fits
from keras_prune.patterns import Block, ByPath, NofM, Pattern, Unstructured
from keras_prune.scope import Skipped, Survey, Target

__all__ = ["Choice", "choose"]

MOST_ZEROS = 0.8
"""Share of zeros with which a weight must save flash: a smaller weight would give accuracy for a few bytes."""
SMALL_HEAD = 0.1
"""Share of the weights in scope up to which a head stays dense where zeros save flash: a larger one is worth it."""
NO_TIME = 0.01
"""Share of the multiplications below which it does not matter for the time whether a tensor's kernel pays, as in
squeeze-and-excitation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What is pruned of a model for a device, and how.

    Attributes:
        survey: the tensors whose zeros it skips, and the reason for each of the others.
        pattern: of each tensor.
        allocation: how much each gives.
        device: what the model is for.
        pays_from: path -> share of a tensor's units above which the kernel that skips them pays.
        clustered: paths of the 1x1 convolutions that only XNNPACK's sparse inference makes faster.
        wiring: of the model; None where its graph cannot be traced.
    """

    survey: Survey
    pattern: ByPath
    allocation: Allocation
    device: Device
    pays_from: Mapping[str, float]
    clustered: frozenset[str]
    wiring: Wiring | None


@dataclasses.dataclass(frozen=True)
class _Use:
    """How a tensor's zeros are skipped: in a pattern, by the kernel for matrices, or in sparse inference."""

    pattern: Pattern
    kernel: Kernel | None = None
    clustered: bool = False


def choose(
    device: Device,
    model: keras.Model,
    survey: Survey,
    *,
    include: Iterable[str] = (),
    pattern: Pattern | ByPath | None = None,
    allocation: Allocation | None = None,
    final: float | None = None,
) -> Choice:
    """Choose the tensors whose zeros a device skips, the pattern of each, and how much each gives.

    Layers whose outputs are the model's, and embeddings, are not pruned unless the user names them. What the user
    states replaces the device's choice. An NPU, whose compiler codes weights, takes zeros of every kernel, those of
    the last layers too.

    Args:
        device: what the model is for.
        model: built.
        survey: the tensors in scope.
        include: keys of the tensors that the user names.
        pattern: of all tensors, or of those that it has a key for.
        allocation: in place of the device's.
        final: the sparsity at the end, where it is known: it decides whether a pattern of fixed shares can be reached.

    Raises:
        ValueError: the device skips no zeros at all, or those of no tensor of this model (with the reasons).

    Example:
        >>> from keras_prune.devices import DEVICES
        >>> from keras_prune.scope import Scope
        >>> inputs = keras.Input((32, 32, 3))
        >>> x = kl.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
        >>> x = kl.GlobalAveragePooling2D()(kl.Conv2D(16, 1, name="mix")(x))
        >>> model = keras.Model(inputs, kl.Dense(10, name="head")(kl.Dense(32, name="hidden")(x)))
        >>> choice = choose(DEVICES["web"], model, Scope().survey(model))
        >>> [(t.path, choice.pattern.at(t.path)) for t in choice.survey.targets]
        [('mix/kernel', Unstructured()), ('hidden/kernel', Block(rows=4, cols=1, pooling='mean'))]
    """
    if not (device.skips_zeros or device.packs_zeros):
        raise ValueError(
            f"target={device.name!r}: its runtime has no kernel that skips zeros, so pruning single weights makes "
            f"nothing faster there. Received: {model.name!r} to be pruned for it. Remove whole units by "
            "keras_prune.structured.prune(model, flops=0.5), or leave target out to make the file compress better."
        )
    wiring = wire(model)
    named = [*include, *_keys(pattern), *_keys(allocation)]
    chosen, reasons = _sorted(device, model, survey, wiring, named, final)
    for key in _keys(pattern) | _keys(allocation):
        # A key that fits only tensors which the device leaves out asks for these.
        if not any(fits(key, path) for path in chosen):
            asked = [tensor for tensor in survey.targets if tensor.path in reasons and fits(key, tensor.path)]
            chosen |= {tensor.path: _asked_for(device, tensor) for tensor in asked}
            reasons = {path: reason for path, reason in reasons.items() if path not in chosen}
    if not chosen:
        listed = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        gain = "save no flash" if device.decode else "make nothing faster"
        raise ValueError(f"target={device.name!r}: zeros would {gain} in any tensor of {model.name!r}. {listed}")
    targets = tuple(tensor for tensor in survey.targets if tensor.path in chosen)
    own = _allocation(device, model, targets, chosen, wiring)
    left = tuple(Skipped(path, reason) for path, reason in reasons.items())
    return Choice(
        Survey(targets, (*survey.skipped, *left), left),
        _stated({path: use.pattern for path, use in chosen.items()}, pattern),
        own if allocation is None else allocation,
        device,
        own.pays_from,
        frozenset(path for path, use in chosen.items() if use.clustered),
        wiring,
    )


def _sorted(
    device: Device,
    model: keras.Model,
    survey: Survey,
    wiring: Wiring | None,
    named: list[str],
    final: float | None,
) -> tuple[dict[str, _Use], dict[str, str]]:
    """The use of the tensors whose zeros the device skips, and the reasons for the others, by path."""
    begins = any(is_stem(layer) for layer in layers_in(model))
    heads = _heads(survey, wiring)
    if device.decode:
        total = sum(math.prod(tensor.variable.shape) for tensor in survey.targets)
        large = {id(t.layer) for t in survey.targets if math.prod(t.variable.shape) > SMALL_HEAD * total}
        heads -= large
    chosen: dict[str, _Use] = {}
    reasons: dict[str, str] = {}
    for tensor in survey.targets:
        asked = any(fits(key, tensor.path) for key in named)
        use = _packed(device, tensor, final) if device.npu is not None else _use(device, tensor, begins)
        if isinstance(tensor.layer, kl.Embedding) and asked:
            use = _Use(Unstructured())
        elif isinstance(use, _Use) and id(tensor.layer) in heads and not asked and device.npu is None:
            use = _SMALL_HEAD if device.decode else _HEAD
        if isinstance(use, _Use):
            chosen[tensor.path] = use
        else:
            reasons[tensor.path] = use
    return chosen, reasons


def _use(device: Device, tensor: Target, begins: bool) -> _Use | str:
    """How a device skips a tensor's zeros, or the reason why they gain nothing."""
    layer: Any = tensor.layer
    if isinstance(layer, kl.Embedding):
        return _EMBEDDING
    if device.decode:
        return _as_record(device, tensor)
    if not tensor.layout.space and tensor.layout.inputs:
        return _as_matrix(device, tensor)
    if not _is_pointwise(tensor):
        return (
            "only zeros of matrices and 1x1 convolutions are skipped; this is a kernel of shape "
            f"{tuple(tensor.variable.shape)} of {type(layer).__name__}"
        )
    if _is_on_one_point(layer) and isinstance(use := _as_matrix(device, tensor), _Use):
        # In a network's head the exporter writes it as a matrix; within it, blocks do as well as any zeros.
        return use
    if device.clusters is None:
        return f"target={device.name!r} has no kernel that skips zeros of convolutions"
    if not begins:
        return (
            "a 1x1 convolution in a network that does not begin with a 3x3 convolution of 3 channels at stride 2, "
            "where XNNPACK's sparse inference starts"
        )
    return _Use(Unstructured(), clustered=True)


def _packed(device: Device, tensor: Target, final: float | None) -> _Use | str:
    """How a device that stores any zero in less flash takes a tensor's: single ones, or those that it is faster for."""
    if isinstance(tensor.layer, kl.Embedding):
        return _EMBEDDING
    if device.npu is not None and device.npu.fast_zeros is not None and final is not None and tensor.layout.inputs:
        kept, of = device.npu.fast_zeros
        # Groups lie along the input channels, and do not reach from one place of a window into the next.
        inputs = math.prod(tensor.variable.shape[axis] for axis in tensor.layout.inputs)
        if final <= 1 - kept / of and inputs % of == 0:
            return _Use(NofM(kept, of))
    return _Use(Unstructured())


def _as_matrix(device: Device, tensor: Target) -> _Use | str:
    """The use of a matrix: in the units that the device's kernel for matrices skips."""
    kernel = device.matrix_kernel
    if kernel is None:
        return f"target={device.name!r} has no kernel that skips zeros of matrices"
    block = kernel.encoding.block
    if block is None:
        return _Use(Unstructured(), kernel)
    inputs = math.prod(tensor.variable.shape[axis] for axis in tensor.layout.inputs)
    if inputs % block:
        return f"{inputs} inputs do not divide into the blocks of {block} that the kernel skips"
    return _Use(Block(block, 1), kernel)


def _as_record(device: Device, tensor: Target) -> _Use | str:
    """The use of a weight that is decoded: single zeros, where it is large enough for a record to be smaller."""
    least = _flash_from(tensor)
    if least > MOST_ZEROS:
        return (
            f"{math.prod(tensor.variable.shape)} weights: what decodes them for target={device.name!r} takes "
            f"{RECORD_TABLES} bytes, more than their zeros save"
        )
    return _Use(Unstructured())


def _flash_from(tensor: Target) -> float:
    """The share of zeros above which an int8 weight takes less flash: a bit for each, and the bytes of its DECODE."""
    return 1 / 8 + RECORD_TABLES / math.prod(tensor.variable.shape)


def _asked_for(device: Device, tensor: Target) -> _Use:
    """The use of a tensor that is pruned only because the user names it."""
    return _Use(Unstructured(), clustered=device.clusters is not None and _is_pointwise(tensor))


def _allocation(
    device: Device,
    model: keras.Model,
    targets: tuple[Target, ...],
    chosen: Mapping[str, _Use],
    wiring: Wiring | None,
) -> Paying:
    rows = _rows(wiring)
    weight_bytes = 4 * sum(math.prod(variable.shape) for variable in model.weights)
    work = {tensor.path: float(rows.get(id(tensor.layer)) or 1) for tensor in targets}
    products = {tensor.path: work[tensor.path] * math.prod(tensor.variable.shape) for tensor in targets}
    if device.decode:
        return Paying({tensor.path: _flash_from(tensor) for tensor in targets})
    shares: dict[str, float] = {}
    for tensor in targets:
        if products[tensor.path] < NO_TIME * sum(products.values()):
            continue
        use = chosen[tensor.path]
        if use.clustered and device.clusters is not None:
            shares[tensor.path] = device.clusters.zeros_from
        elif use.kernel is not None:
            shares[tensor.path] = _pays_above(use.kernel, rows.get(id(tensor.layer)), weight_bytes)
    cluster = tuple(path for path in shares if chosen[path].clustered)
    return Paying(shares, work, (cluster,) if cluster else ())


def _pays_above(kernel: Kernel, rows: int | None, weight_bytes: int) -> float:
    """The share of zero units that is to be passed for a kernel to be faster than the dense one."""
    threshold = kernel.threshold(rows, weight_bytes)
    # The threshold of a table is the whole percent at which the kernel pays, and so reached, not passed.
    return max(0.0, threshold - 0.005) if kernel.table else threshold


_EMBEDDING = (
    "rows of an embedding are looked up, not multiplied: zeros make the file smaller, but nothing faster. To "
    "prune it anyway, name it in scope=Scope(include=...)"
)
_HEAD = (
    "a head, whose output is the model's: with a target, heads are not pruned, because they take little time and "
    "pruning them costs the most accuracy. To prune it anyway, name it in scope=Scope(include=...) or allocation={...}"
)


_SMALL_HEAD = (
    "a head, whose output is the model's: pruning it costs the most accuracy, and it holds less than a tenth of the "
    "weights. To prune it anyway, name it in scope=Scope(include=...) or allocation={...}"
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
    """The ids of the layers that give the model's answers; where its graph cannot be traced, the last one is taken."""
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
