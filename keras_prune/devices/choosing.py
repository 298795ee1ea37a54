"""What a pruning works on: the tensors of a scope and a given recipe, or what a device makes of both."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence

import keras
import numpy as np

from keras_prune.allocation import Explicit, Paying, Scored
from keras_prune.devices import Choice, Device, resolve_device
from keras_prune.devices.gains import SWITCHES_ON
from keras_prune.devices.sparse_inference import Blocker, Cluster, clusters_of
from keras_prune.keras_seam import from_keras
from keras_prune.masks.recipe import Recipe
from keras_prune.masks.update import check_shape, layout_for
from keras_prune.models.keys import check_keys
from keras_prune.models.variables import read
from keras_prune.patterns import ByPath
from keras_prune.scope import Scope, Skipped, Survey, check_scope, paths_of

__all__ = ["choose_tensors"]

SHOWN = 4
"""Paths of one kind that a warning lists."""


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
        choice = resolve_device(target).choose(
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
        for words in _for_nothing(model, choice, final):
            warnings.warn(f"{subject}: target={choice.device!r}: {words}", stacklevel=2)
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


def _for_nothing(model: keras.Model, choice: Choice, final: float | None) -> list[str]:
    """Say which zeros will speed up nothing, and why."""
    if choice.wiring is None and choice.clustered:
        return [
            f"whether XNNPACK's sparse inference can switch on in {model.name!r} is not known, since its graph cannot "
            "be seen. tflite_export.inspect tells it of the exported file."
        ]
    said, running = [], False
    shares = None if final is None else _shares(choice, final)
    clusters = [] if choice.wiring is None else clusters_of(choice.wiring, rewritable=_is_rewritable(model))
    stopped: dict[str, None] = {}
    blockers: dict[Blocker, None] = {}
    for cluster in clusters:
        inside = {id(layer) for layer in cluster.pointwise}
        pruned = [t.path for t in choice.survey.targets if t.path in choice.clustered and id(t.layer) in inside]
        if pruned and cluster.blockers:
            stopped.update(dict.fromkeys(pruned))
            blockers.update(dict.fromkeys(cluster.blockers))
        elif pruned:
            words = "" if shares is None else _too_dense(model, choice, cluster, shares)
            said += [words] if words else []
            running = running or not words
    if stopped:
        said.append(_blocked(list(stopped), list(blockers)))
    if shares is not None and not running and not any(_pays(choice, path, shares[path]) for path in shares):
        said += _no_blocks(choice, final)
    return said


def _pays(choice: Choice, path: str, share: float) -> bool:
    return path in choice.pays_from and path not in choice.clustered and share > choice.pays_from[path]


def _no_blocks(choice: Choice, final: float | None) -> list[str]:
    """Say that no matrix has so many zero blocks that the kernel for them is faster."""
    needed = {path: share for path, share in choice.pays_from.items() if path not in choice.clustered}
    if not needed:
        return []
    path = min(needed, key=lambda one: needed[one])
    return [
        f"at a sparsity of {final:g} the kernel that skips blocks is faster than the dense one for no matrix: "
        f"{path} needs about {needed[path]:.0%} of zero blocks, the others as many or more. Raise the sparsity, or "
        "prune fewer matrices by scope=."
    ]


def _blocked(pruned: Sequence[str], blockers: Sequence[Blocker]) -> str:
    """Say what keeps sparse inference off, layer by layer."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for blocker in blockers:
        by_reason[blocker.reason].append(blocker.path)
    reasons = "; ".join(f"{_some(paths)} ({reason})" for reason, paths in by_reason.items())
    return (
        f"zeros in {_some(pruned)} speed up nothing, since XNNPACK's sparse inference cannot switch on there. What "
        f"keeps it off: {reasons}. The zeros make the file smaller only."
    )


def _too_dense(model: keras.Model, choice: Choice, cluster: Cluster, shares: dict[str, float]) -> str:
    """Say that a cluster will have too few zeros, and which of its tensors hold it there; empty if it has enough."""
    paths, reasons = paths_of(model), {skipped.path: skipped.reason for skipped in choice.survey.skipped}
    zeros = weights = 0.0
    dense = []
    for layer in cluster.pointwise:
        kernel = layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel
        path, size = paths.get(id(kernel), kernel.path), math.prod(kernel.shape)
        own = 1.0 - np.count_nonzero(read(kernel)) / size
        weights += size
        zeros += size * max(own, shares.get(path, 0.0))
        if path not in shares and own <= SWITCHES_ON:
            dense.append(f"{path} ({reasons.get(path, 'not pruned')})")
    if zeros > SWITCHES_ON * weights:
        return ""
    what = f"Left dense: {_some(dense)}" if dense else "Raise the sparsity"
    return (
        f"about {zeros / weights:.0%} of the weights of the {len(cluster.pointwise)} 1x1 convolutions from "
        f"{cluster.pointwise[0].name} on will be zero. XNNPACK's sparse inference switches on above 2/3 of them, so "
        f"nothing will be faster. {what}."
    )


def _shares(choice: Choice, final: float) -> dict[str, float]:
    """The share that each tensor has at the end, as far as it does not depend on the weights; else that of all."""
    targets, allocation = choice.survey.targets, choice.allocation
    shares = dict.fromkeys((target.path for target in targets), final)
    tensors = []
    for target in targets:
        pattern = choice.pattern.at(target.path)
        shape = layout_for(target.layout, pattern).canonical_shape(target.variable.shape)
        unit, limit = pattern.weights_per_unit(shape), pattern.limit(shape)
        tensors.append(Scored(target.path, shape, np.zeros(0), unit, limit))
    if isinstance(allocation, Explicit):
        shares = dict(zip(shares, allocation(tensors, final, final), strict=True))
    elif isinstance(allocation, Paying):
        needed = zip(tensors, allocation.needed(tensors, final), strict=True)
        shares.update({tensor.path: max(final, units / tensor.units) for tensor, units in needed if units})
    return shares


def _is_rewritable(model: keras.Model) -> bool:
    """Whether an export can rewrite a model: its graph is not in the code of its `call`."""
    return from_keras(type(model).call)


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
