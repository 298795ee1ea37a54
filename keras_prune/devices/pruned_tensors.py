"""What a pruning works on: the tensors of a scope and a given recipe, or what a device makes of both."""

from __future__ import annotations

import dataclasses
import warnings

import keras

from keras_prune.devices.catalogue import resolve_device
from keras_prune.devices.choosing import choose
from keras_prune.devices.device import Device
from keras_prune.devices.zeros_for_nothing import zeros_for_nothing
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

    A device under which zeros will speed up nothing is warned of, with the reasons.

    Args:
        model: built.
        scope: which tensors; None for all kernels.
        recipe: what it does not state is the device's choice.
        target: a device, by its name or as an instance.
        subject: who asks, for messages.
        final: the sparsity to come, where it is known.

    Raises:
        ValueError: the device is unknown, or skips no zeros of this model.
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
        )
        survey = choice.survey
        recipe = dataclasses.replace(recipe, pattern=choice.pattern, allocation=choice.allocation)
    # Before anything is bound to the model.
    for each in survey.targets:
        own = recipe.pattern.at(each.path)
        check_shape(own, each.path, layout_for(each.layout, own).canonical_shape(each.variable.shape))
    survey = _without_single_units(survey, recipe, subject)
    if choice is not None:
        for words in zeros_for_nothing(model, choice, final):
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
