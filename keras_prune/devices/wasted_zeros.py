"""Zeros that a device's runtime will not skip: which they are, and what keeps it from skipping them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import keras
import numpy as np

from keras_prune.allocation import Explicit, Paying, Scored
from keras_prune.devices.choosing import Choice
from keras_prune.devices.sparse_inference import Blocker, Cluster, clusters_of
from keras_prune.keras_seam import from_keras
from keras_prune.masks.update import layout_for
from keras_prune.models.variables import read
from keras_prune.scope import paths_of

__all__ = ["wasted_zeros"]

SHOWN = 4
"""Paths of one kind that a warning lists."""


def wasted_zeros(model: keras.Model, choice: Choice, final: float | None) -> list[str]:
    """Return what to warn about: which zeros will make nothing faster, and why.

    Args:
        model: built.
        choice: the tensors, patterns and shares that were chosen for the device.
        final: the sparsity at the end, where it is known.
    """
    if choice.wiring is None and choice.clustered:
        return [
            f"whether XNNPACK's sparse inference can switch on is not known, because the graph of {model.name!r} "
            "cannot be traced. Inspect the exported file with tflite_export.inspect."
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
        said += _no_record(choice, final) if choice.device.decode else _no_matrix(choice, final)
    return said


def _pays(choice: Choice, path: str, share: float) -> bool:
    return path in choice.pays_from and path not in choice.clustered and share > choice.pays_from[path]


def _no_matrix(choice: Choice, final: float | None) -> list[str]:
    """Say that no matrix has enough zeros for the kernel that skips them to be faster."""
    needed = {path: share for path, share in choice.pays_from.items() if path not in choice.clustered}
    kernel = choice.device.matrix_kernel
    if not needed or kernel is None:
        return []
    skipped = "single zeros" if kernel.encoding.block is None else "blocks"
    slow = (
        f"at a sparsity of {final:g}, the kernel that skips {skipped} is not faster than the dense one for any matrix"
    )
    path = min(needed, key=lambda one: needed[one])
    if needed[path] >= 1.0:
        return [f"{slow}. By the target's figures it is at no sparsity. The zeros only make the file smaller."]
    zeros = skipped if kernel.encoding.block is None else "zero blocks"
    return [
        f"{slow}: {path} needs about {needed[path]:.0%} {zeros}, and the others at least as many. Raise the sparsity, "
        "or prune fewer matrices with scope=."
    ]


def _no_record(choice: Choice, final: float | None) -> list[str]:
    """Say that no weight has enough zeros to take less flash."""
    path = min(choice.pays_from, key=lambda one: choice.pays_from[one], default=None)
    if path is None:
        return []
    return [
        f"at a sparsity of {final:g}, no weight takes less flash as a record of its zeros: {path} needs more than "
        f"{choice.pays_from[path]:.0%}, and the others at least as many. Raise the sparsity."
    ]


def _blocked(pruned: Sequence[str], blockers: Sequence[Blocker]) -> str:
    """Say what keeps sparse inference off, layer by layer."""
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for blocker in blockers:
        by_reason[blocker.reason].append(blocker.path)
    reasons = "; ".join(f"{_some(paths)} ({reason})" for reason, paths in by_reason.items())
    return (
        f"zeros in {_some(pruned)} make the file smaller, but nothing faster: XNNPACK's sparse inference cannot switch "
        f"on there. What keeps it off: {reasons}."
    )


def _too_dense(model: keras.Model, choice: Choice, cluster: Cluster, shares: dict[str, float]) -> str:
    """Say that a cluster will have too few zeros, and which of its tensors are dense; empty if it has enough."""
    # A device without sparse inference has nothing in a cluster pruned for it.
    switches_on = choice.device.clusters.zeros_from if choice.device.clusters is not None else 1.0
    paths, reasons = paths_of(model), {skipped.path: skipped.reason for skipped in choice.survey.skipped}
    zeros = weights = 0.0
    dense = []
    for layer in cluster.pointwise:
        kernel = layer.pointwise_kernel if hasattr(layer, "pointwise_kernel") else layer.kernel
        path, size = paths.get(id(kernel), kernel.path), math.prod(kernel.shape)
        own = 1.0 - np.count_nonzero(read(kernel)) / size
        weights += size
        zeros += size * max(own, shares.get(path, 0.0))
        if path not in shares and own <= switches_on:
            dense.append(f"{path} ({reasons.get(path, 'not pruned')})")
    if zeros > switches_on * weights:
        return ""
    what = f"Left dense: {_some(dense)}" if dense else "Raise the sparsity"
    return (
        f"about {zeros / weights:.0%} of the weights of the {len(cluster.pointwise)} 1x1 convolutions from "
        f"{cluster.pointwise[0].name} on will be zero. XNNPACK's sparse inference switches on above "
        f"{switches_on:.0%} of them, so nothing will run faster. {what}."
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
