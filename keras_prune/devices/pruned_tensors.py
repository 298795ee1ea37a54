"""The tensors to prune and the recipe for them: those of the scope and the user, or what a device makes of both."""

from __future__ import annotations

import dataclasses
import warnings

import keras

from keras_prune.devices.catalogue import resolve_device
from keras_prune.devices.choosing import choose
from keras_prune.devices.device import Device
from keras_prune.devices.wasted_zeros import wasted_zeros
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.update import check_shape, layout_for
from keras_prune.models.keys import check_keys
from keras_prune.patterns import ByPath
from keras_prune.scope import Scope, Skipped, Survey, check_scope

__all__ = ["choose_tensors"]


def choose_tensors(
    model: keras.Model,
    scope: Scope | None,
    recipe: Recipe,
    target: str | Device | None,
    subject: str,
    final: float | None = None,
) -> tuple[Survey, Recipe]:
    """Return the tensors to prune and the recipe for them: the scope's and the given one, or those of a device.

    Where zeros will make nothing faster on the device, a warning says so, with the reasons.

    Args:
        model: built.
        scope: which tensors; None for all kernels.
        recipe: what the user asked for; the device chooses what is not stated in it.
        target: a device, by its name or as an instance.
        subject: what messages call the caller.
        final: the sparsity at the end, where it is known.

    Raises:
        ValueError: the device is not known, or skips zeros of no tensor of this model.
    """
    check_scope(subject, scope)
    scope = scope if scope is not None else Scope()
    survey = scope.survey(model)
    if isinstance(recipe.pattern, ByPath):
        named = [each.path for each in survey.targets]
        check_keys(f"{subject}: pattern", recipe.pattern.patterns, named, "prunable tensor")
    choice = None
    if target is not None:
        choice = choose(
            resolve_device(target),
            model,
            survey,
            include=scope.include or (),
            pattern=recipe.pattern if "pattern" in recipe.stated else None,
            allocation=recipe.allocation if "allocation" in recipe.stated else None,
            final=final,
        )
        survey = choice.survey
        recipe = dataclasses.replace(recipe, pattern=choice.pattern, allocation=choice.allocation)
    # Before anything is bound to the model.
    for each in survey.targets:
        own = recipe.pattern.at(each.path)
        check_shape(own, each.path, layout_for(each.layout, own).canonical_shape(each.variable.shape))
    survey = _without_single_units(survey, recipe, subject)
    if choice is not None:
        for words in wasted_zeros(model, choice, final):
            warnings.warn(f"{subject}: target={choice.device.name!r}: {words}", stacklevel=2)
    return survey, recipe


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
    return dataclasses.replace(
        survey, targets=tuple(tensor for tensor in survey.targets if tensor.path not in whole), skipped=skipped
    )
