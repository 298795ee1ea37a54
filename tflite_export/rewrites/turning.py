"""How one layer is made to do on a mirrored map what it does on the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import layers as kl

from keras_prune.graph.windows import Window, same_padding
from keras_prune.layer_kinds import altered
from tflite_export.rewrites.graph import is_map
from tflite_export.rewrites.positions import is_placewise

__all__ = [
    "AXES",
    "NO_PADDING",
    "Edit",
    "Flips",
    "Paddings",
    "apply_edit",
    "changes_layer",
    "folds",
    "in_words",
    "is_pointwise",
    "is_sparse_depthwise",
    "is_stem",
    "plan_edit",
    "turned",
    "turns",
]

Flips = tuple[bool, bool]
"""Whether height, and whether width, is reversed."""
Paddings = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right))."""

NO_PADDING: Paddings = ((0, 0), (0, 0))
AXES = ("height", "width")
_KERNELS = {
    kl.Conv2D: "kernel",
    kl.Conv2DTranspose: "kernel",
    kl.DepthwiseConv2D: "kernel",
    kl.SeparableConv2D: "depthwise_kernel",
}
_PADDINGS = {kl.ZeroPadding2D: "padding", kl.Cropping2D: "cropping"}
_CONVOLUTIONS = (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D)
_POOLINGS = (kl.MaxPooling2D, kl.AveragePooling2D)
_SIZED = (*_CONVOLUTIONS, *_POOLINGS, kl.Conv2DTranspose, kl.ZeroPadding2D, kl.Cropping2D, kl.UpSampling2D, kl.Resizing)


@dataclass(frozen=True)
class Edit:
    """What is done to a layer.

    Args:
        flips: axes in which its kernel, or its own paddings, are reversed.
        padding: zeros to put around its input in place of its own padding and of a ZeroPadding2D before it;
            None where both stay.
        replaced: what that padding was, for the report.
        channels: whether it reads its channels in reverse order too.
    """

    flips: Flips
    padding: Paddings | None = None
    replaced: str = ""
    channels: bool = False


def turns(node: Any) -> bool:
    """Return whether a node takes a map to a map and can be mirrored, sizes permitting."""
    if not any(map(is_map, (*node.input_tensors, *node.outputs))):
        return False
    layer = node.operation
    if type(layer) not in _SIZED:
        return is_placewise(node)
    if layer.data_format != "channels_last" or altered(layer):
        return False
    if type(layer) is kl.UpSampling2D:
        return layer.interpolation in ("nearest", "bilinear")
    if type(layer) is kl.Resizing:
        plain = not (layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias)
        return plain and layer.interpolation == "bilinear" and len(node.input_tensors[0].shape) == 4
    return True


def is_stem(node: Any) -> bool:
    """Return whether XNNPACK's sparse inference can begin here, by all but the padding: 3x3, stride 2, 3 channels."""
    layer = node.operation
    return (
        type(layer) is kl.Conv2D
        and (layer.kernel_size, layer.strides, layer.dilation_rate) == ((3, 3), (2, 2), (1, 1))
        and (layer.groups, node.input_tensors[0].shape[-1]) == (1, 3)
    )


def is_pointwise(node: Any) -> bool:
    """Return whether a layer holds a 1x1 convolution that XNNPACK can run sparse."""
    layer = node.operation
    if type(layer) is kl.SeparableConv2D:
        return True
    return type(layer) is kl.Conv2D and (layer.kernel_size, layer.strides, layer.groups) == ((1, 1), (1, 1), 1)


def is_sparse_depthwise(node: Any) -> bool:
    """Return whether a depthwise convolution may stand in XNNPACK's sparse inference, by all but the padding."""
    layer = node.operation
    return (
        type(layer) in (kl.DepthwiseConv2D, kl.SeparableConv2D)
        and layer.kernel_size in ((3, 3), (5, 5))
        and tuple(layer.strides) in ((1, 1), (2, 2))
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.depth_multiplier == 1
    )


def plan_edit(node: Any, before: Any, flips: Flips) -> Edit | str:
    """Return what a node needs on a map reversed in some axes (or in none), or why it cannot be had exactly.

    Layers that may stand in XNNPACK's sparse inference are to pad half their kernel on each side; the others
    keep their windows.

    Args:
        node: one that `turns`.
        before: the node that its input comes from, or None.
        flips: axes in which the map is reversed.
    """
    layer = node.operation
    if type(layer) in _CONVOLUTIONS:
        return _plan_convolution(node, before, flips)
    for axis in (0, 1):
        if flips[axis]:
            reason = _why_not(node, axis)
            if reason is not None:
                return f"{AXES[axis]}: {reason}"
    return Edit(flips)


def changes_layer(layer: Any, edit: Edit) -> bool:
    """Return whether an edit changes the layer itself."""
    if type(layer) in _KERNELS:
        spatial = _kernel(layer).shape[:2]
        return edit.padding is not None or any(f and n > 1 for f, n in zip(edit.flips, spatial, strict=True))
    name = _PADDINGS.get(type(layer))
    return name is not None and turned(getattr(layer, name), edit.flips) != getattr(layer, name)


def apply_edit(layer: Any, edit: Edit) -> str | None:
    """Change a layer in place; return what was changed, or None where nothing had to be."""
    if not changes_layer(layer, edit):
        return None
    if type(layer) in _PADDINGS:
        name = _PADDINGS[type(layer)]
        was, now = getattr(layer, name), turned(getattr(layer, name), edit.flips)
        setattr(layer, name, now)
        return f"{name} {was} -> {now}"
    done = []
    axes = tuple(axis for axis in (0, 1) if edit.flips[axis])
    kernel = _kernel(layer)
    if any(kernel.shape[axis] > 1 for axis in axes) or edit.channels:
        reversed_axes = (*axes, 2) if edit.channels else axes
        kernel.assign(np.ascontiguousarray(np.flip(kernel.numpy(), reversed_axes)))
        done.append(f"kernel reversed in {in_words(edit.flips, channels=edit.channels)}")
    if edit.padding is not None:
        done.append(f"padding {edit.replaced} -> {edit.padding}")
        layer.padding = "valid"
    return "; ".join(done)


def _kernel(layer: Any) -> Any:
    return getattr(layer, _KERNELS[type(layer)])


def in_words(flips: Flips, *, channels: bool = False) -> str:
    """Return the reversed axes as words: `height and width`, or `height, width and channels`."""
    names = [name for name, flip in zip((*AXES, "channels"), (*flips, channels), strict=True) if flip]
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def turned(paddings: Sequence[Sequence[int]], flips: Flips) -> Paddings:
    """Return ((top, bottom), (left, right)) as seen on a map reversed in some axes.

    Example:
        >>> turned(((0, 1), (0, 2)), (False, True))
        ((0, 1), (2, 0))
    """
    (top, bottom), (left, right) = paddings
    return (bottom, top) if flips[0] else (top, bottom), (right, left) if flips[1] else (left, right)


def _plan_convolution(node: Any, before: Any, flips: Flips) -> Edit | str:
    layer = node.operation
    folded = before.operation.padding if folds(node, before) else NO_PADDING
    source = before.input_tensors[0] if folds(node, before) else node.input_tensors[0]
    wanted = tuple(size // 2 for size in layer.kernel_size) if is_stem(node) or is_sparse_depthwise(node) else None
    paddings, kept = [], []
    for axis in (0, 1):
        size, stride, flip = source.shape[1 + axis], layer.strides[axis], flips[axis]
        reach = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
        known = size if size is not None else reach  # at stride 1 the size does not matter
        own = same_padding(known + sum(folded[axis]), reach, stride) if layer.padding == "same" else (0, 0)
        left, right = folded[axis][0] + own[0], folded[axis][1] + own[1]
        if size is None and stride > 1:
            if flip or layer.padding == "same" or (wanted and (left, right) != (wanted[axis],) * 2):
                return f"{AXES[axis]} is unknown where the stride is {stride}: give keras.Input its size"
            new = (left, right)
        else:
            window = Window(known, reach, stride, left, right)
            target = None if wanted is None else wanted[axis]
            chosen = _choose(window, flip, target)
            if isinstance(chosen, str):
                return f"{AXES[axis]} {size}, {chosen}"
            new = chosen
        front = turned(folded, flips)[axis]
        paddings.append(new)
        kept.append(new == (front[0] + own[0], front[1] + own[1]))
    # XNNPACK turns 'same' into paddings at stride 1 only.
    spelled = layer.padding == "valid" or wanted is None or max(layer.strides) == 1
    if all(kept) and spelled:
        return Edit(flips)
    was = f"'{layer.padding}'" if folded == NO_PADDING else str(folded) + " and 'same'" * (layer.padding == "same")
    return Edit(flips, (paddings[0], paddings[1]), was)


def _choose(window: Window, flip: bool, wanted: int | None) -> tuple[int, int] | str:
    """Return (left, right) for a window, the wanted one on each side if there is one, or why not."""
    left, least, most = window.paddings(flip)
    if wanted is not None and not window.allows(wanted, wanted, flip):
        after = str(least) if least == most else f"{least} to {most}"
        return f"its windows need {left} before and {after} after, where {wanted} on each side is wanted"
    if wanted is not None:
        return wanted, wanted
    if not flip:
        return window.left, window.right
    if left < 0 or most < 0:
        return f"stride {window.stride}: no window reads the last {-min(left, most)}"
    return left, min(max(left, least), most)


def folds(node: Any, before: Any) -> bool:
    """Return whether a convolution takes in the ZeroPadding2D before it: XNNPACK makes the two one."""
    if before is None or type(node.operation) not in _CONVOLUTIONS or type(before.operation) is not kl.ZeroPadding2D:
        return False
    return turns(before)


def _why_not(node: Any, axis: int) -> str | None:
    """Return why a layer that is no convolution is not the same on a reversed axis, or None where it is."""
    layer, size = node.operation, node.input_tensors[0].shape[1 + axis]
    if type(layer) in _POOLINGS:
        reach, stride = layer.pool_size[axis], layer.strides[axis]
        if size is None and stride > 1:
            return "its size is unknown: give keras.Input its size"
        known = reach if size is None else size
        left, right = same_padding(known, reach, stride) if layer.padding == "same" else (0, 0)
        if Window(known, reach, stride, left, right).paddings(mirrored=True)[0] != left:
            return f"pooling {reach} by {stride} of {size} places is not the same from both ends"
    if type(layer) is kl.Conv2DTranspose:
        kernel, stride = layer.kernel_size[axis], layer.strides[axis]
        even = layer.padding == "valid" or (kernel >= stride and (kernel - stride) % 2 == 0)
        if not even or layer.output_padding is not None or tuple(layer.dilation_rate) != (1, 1):
            return f"transposed convolution {kernel} by {stride} crops unevenly: kernel - stride must be even"
    return None
