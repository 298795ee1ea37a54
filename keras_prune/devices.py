"""Which tensors to prune, and in which pattern, so that a device's runtime is faster for it.

A zero makes a file smaller anywhere; it makes a network faster only where the runtime has a kernel that skips it. The
TFLite kernels that do, and what they ask for, are the same ones that `tflite_export` writes files for.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import warnings
from typing import Any, ClassVar

import keras
from keras import layers as kl
from keras.saving import register_keras_serializable

from keras_prune.patterns import Block, ByPath, Pattern, Unstructured
from keras_prune.pruner import Recipe, check_shape, layout_for
from keras_prune.scope import Scope, Skipped, Survey, Target, check_scope
from keras_prune.strategy import Strategy

__all__ = ["DEVICES", "Device", "choose_tensors"]

BLOCK = 4
"""Inputs in a block of the float FULLY_CONNECTED kernel (LiteRT, `tflite/kernels/internal/reference/sparse_ops`)."""


@register_keras_serializable(package="keras_prune")
@dataclasses.dataclass(frozen=True)
class Device(Strategy):
    """What a device's TFLite runtime can skip.

    Attributes:
        blocks: FULLY_CONNECTED skips zero blocks of 4 inputs of one output (the kernel that reads 1x4 blocks of
            `[out, in]`), so matrices are pruned in `Block(4, 1)` of `[in, out]`.
        pointwise: XNNPACK skips single zeros of 1x1 convolutions (sparse inference in NCHW), in networks that begin
            with a 3x3 convolution of 3 channels at stride 2.

    Source: XNNPACK `src/subgraph.c`; LiteRT `tflite/delegates/xnnpack/README.md`, "Sparse inference".

    Example:
        >>> inputs = keras.Input((32, 32, 3))
        >>> x = kl.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
        >>> x = kl.Conv2D(16, 1, name="mix")(x)
        >>> model = keras.Model(inputs, kl.Dense(10, name="head")(kl.GlobalAveragePooling2D()(x)))
        >>> survey, pattern = DEVICES["web"].assign(model, Scope().survey(model))
        >>> [(t.path, pattern.at(t.path)) for t in survey.targets]
        [('mix/kernel', Unstructured()), ('head/kernel', Block(rows=4, cols=1, pooling='mean'))]
    """

    kind: ClassVar[str] = "target"

    name: str
    blocks: bool
    pointwise: bool

    def assign(self, model: keras.Model, survey: Survey) -> tuple[Survey, ByPath]:
        """Sort the targets of a survey again: those whose zeros the device skips, with a pattern each, and the rest.

        Raises:
            ValueError: the device skips no zeros at all, or those of no tensor of this model (with the reasons).
        """
        if not (self.blocks or self.pointwise):
            raise ValueError(
                f"target={self.name!r}: its runtime has no kernel that skips zeros, so masks speed up nothing there. "
                "Received: a model to be pruned for it. Only smaller shapes help: prune whole outputs with "
                "pattern='filter', or leave target out to make the file compress better."
            )
        begins = any(_is_stem(layer) for layer in model._flatten_layers())
        chosen: dict[str, Pattern] = {}
        skipped = list(survey.skipped)
        for tensor in survey.targets:
            pattern = self._pattern(tensor, begins)
            if isinstance(pattern, Pattern):
                chosen[tensor.path] = pattern
            else:
                skipped.append(Skipped(tensor.path, pattern))
        if not chosen:
            reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped if s not in survey.skipped)
            raise ValueError(
                f"target={self.name!r} would be faster for zeros in no tensor of {model.name!r}. {reasons}"
            )
        targets = tuple(tensor for tensor in survey.targets if tensor.path in chosen)
        return Survey(targets, tuple(skipped)), ByPath(chosen)

    def _pattern(self, tensor: Target, begins: bool) -> Pattern | str:
        """The pattern for a tensor, or the reason why zeros in it gain nothing."""
        layer: Any = tensor.layer
        if isinstance(layer, kl.Embedding):
            return f"target={self.name!r} looks up rows of an embedding: zeros make the file smaller, nothing faster"
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


DEVICES = {
    device.name: device
    for device in (
        Device("android", blocks=True, pointwise=True),
        Device("ios", blocks=True, pointwise=True),
        Device("arm64", blocks=True, pointwise=True),
        Device("web", blocks=True, pointwise=True),
        # XNNPACK's sparse inference is off wherever AVX is on.
        Device("x86", blocks=True, pointwise=False),
        Device("mcu", blocks=False, pointwise=False),
    )
}
"""The names that `target=` takes."""


def choose_tensors(
    model: keras.Model, scope: Scope | None, recipe: Recipe, target: str | Device | None, subject: str
) -> tuple[Survey, Recipe]:
    """Return the tensors to prune and the recipe for them: the scope's and the given one, or those of a device.

    Args:
        model: built.
        scope: which tensors; None for all kernels.
        recipe: with the pattern for all of them.
        target: a device, by its name or as an instance; it chooses the pattern of each tensor.
        subject: who asks, for messages.

    Raises:
        ValueError: the device is unknown, or both a device and a pattern are given.
    """
    check_scope(subject, scope)
    survey = (scope if scope is not None else Scope()).survey(model)
    if target is None:
        # Before anything is bound to the model.
        for each in survey.targets:
            own = recipe.pattern.at(each.path)
            check_shape(own, each.path, layout_for(each.layout, own).canonical_shape(each.variable.shape))
        return _without_single_units(survey, recipe, subject), recipe
    device = resolve_device(target)
    if recipe.pattern != Unstructured():
        raise ValueError(
            f"{subject}: target={device.name!r} chooses the pattern of each tensor. Received also: "
            f"pattern={recipe.pattern}. Leave one of the two out."
        )
    survey, pattern = device.assign(model, survey)
    recipe = dataclasses.replace(recipe, pattern=pattern)
    return _without_single_units(survey, recipe, subject), recipe


def _without_single_units(survey: Survey, recipe: Recipe, subject: str) -> Survey:
    """Leave out tensors in which the pattern sees one unit only, which always stays: no tensor is emptied.

    Raises:
        ValueError: all are such tensors.
    """
    whole: dict[str, str] = {}
    for tensor in survey.targets:
        pattern = recipe.pattern.at(tensor.path)
        shape = layout_for(tensor.layout, pattern).canonical_shape(tensor.variable.shape)
        if pattern.limit(shape) >= 1.0 and pattern.units(shape) <= 1:
            whole[tensor.path] = (
                f"a kernel of shape {tuple(tensor.variable.shape)} is a single unit of {pattern}, which always stays"
            )
    if not whole:
        return survey
    listed = "; ".join(f"{path}: {reason}" for path, reason in whole.items())
    if len(whole) == len(survey.targets):
        raise ValueError(f"{subject}: nothing can be pruned. {listed}. Take a pattern of smaller units.")
    warnings.warn(
        f"{subject}: {len(whole)} of {len(survey.targets)} tensors stay as they are. {listed}. Give them a pattern of "
        "smaller units, pattern={path: pattern}, or leave them out, scope=Scope(exclude=[path]).",
        stacklevel=4,
    )
    skipped = (*survey.skipped, *(Skipped(path, reason) for path, reason in whole.items()))
    return Survey(tuple(tensor for tensor in survey.targets if tensor.path not in whole), skipped)


def resolve_device(value: str | Device) -> Device:
    """Return the device that a name or an instance stands for."""
    if isinstance(value, Device):
        return value
    if value not in DEVICES:
        near = difflib.get_close_matches(str(value), DEVICES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown target: {value!r}. Known names: {sorted(DEVICES)}.{hint}")
    return DEVICES[value]


def _is_stem(layer: Any) -> bool:
    """Whether a layer is a 3x3 convolution of 3 channels at stride 2, where sparse inference may begin."""
    if not isinstance(layer, kl.Conv2D) or not layer.built:
        return False
    return tuple(layer.kernel.shape[:3]) == (3, 3, 3) and tuple(layer.strides) == (2, 2)


def _is_pointwise(tensor: Target) -> bool:
    """Whether a kernel is that of a 1x1 convolution of one group without strides."""
    layer: Any = tensor.layer
    if tuple(tensor.variable.shape[:2]) != (1, 1) or len(tensor.variable.shape) != 4:
        return False
    if isinstance(layer, kl.SeparableConv2D):
        return tensor.variable is layer.pointwise_kernel
    return isinstance(layer, kl.Conv2D) and layer.groups == 1 and set(layer.strides) == {1}


def _is_on_one_point(layer: Any) -> bool:
    """Whether a convolution sees a map of one point, as in the heads of MobileNets and in squeeze-and-excitation."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape is not None and tuple(shape[1:3]) == (1, 1)
