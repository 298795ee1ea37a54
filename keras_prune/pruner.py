"""One update of the masks: weights and statistics -> new masks. Pure: arrays in, arrays out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.allocation import Allocation, Scored
from keras_prune.criteria import Criterion
from keras_prune.growth import Growth
from keras_prune.patterns import ByPath, Pattern
from keras_prune.scope import Layout
from keras_prune.selection import all_but_smallest, in_pieces

__all__ = ["Recipe", "Tensor", "masks_at_sparsity", "masks_at_threshold"]

MaskArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A kernel at the moment of an update.

    Attributes:
        path: for messages.
        weight: the kernel in its own layout; with a growth that keeps pruned weights learning, their hidden values too.
        mask: True where kept, of the same shape; None while nothing is pruned.
        layout: how the axes read as `[..., in, out]`.
        statistics: what the criterion and the growth declared, in the kernel's own layout.
        seed: a number of the tensor's own.
        curve: for `allocation.Sensitivity`.
    """

    path: str
    weight: npt.NDArray[np.floating]
    mask: MaskArray | None
    layout: Layout
    statistics: Mapping[str, Any]
    seed: int = 0
    curve: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How masks are found: what counts, where zeros may fall, who gives how much, and what comes back."""

    criterion: Criterion
    pattern: Pattern | ByPath
    allocation: Allocation
    growth: Growth | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Every statistic that an update takes."""
        return self.criterion.needs | (self.growth.needs if self.growth else frozenset())


def masks_at_sparsity(
    tensors: Sequence[Tensor],
    recipe: Recipe,
    target: float,
    *,
    final: float | None = None,
    progress: float = 0.0,
    seed: int = 0,
) -> list[MaskArray]:
    """Return the masks that bring the tensors to a sparsity of `target` together.

    Without growth a mask only shrinks: what is off stays off, and a target below what is reached changes nothing.

    Args:
        tensors: at least one.
        recipe: the strategies.
        target: the share of weights to be off, a fraction in [0, 1).
        final: the target at the end of the schedule.
        progress: where the schedule stands, from 0 to 1, for growth that anneals.
        seed: for growth that draws at random; give another at each update.

    Raises:
        ValueError: a weight is not finite, a pattern does not divide a shape, or a tensor would lose every unit; with
        its path.
    """
    growth = recipe.growth
    scored = [_score(tensor, recipe) for tensor in tensors]
    shares = recipe.allocation([entry for _, _, entry in scored], target, final)
    masks = []
    for tensor, (pattern, score, entry), share in zip(tensors, scored, shares, strict=True):
        count = _count(pattern, tensor, share, score.shape)
        _refuse_collapse(tensor, count, entry)
        if growth is None:
            kept = _shrink(pattern, tensor, score, entry, count, getattr(share, "bound", None))
        else:
            on = _units_on(pattern, tensor, score.shape)
            gain = _gain(tensor, pattern, growth)
            alive = growth(on, entry.scores, gain, off=count, progress=progress, seed=tensor.seed * 1_000_003 + seed)
            kept = pattern.expand(alive, score)
        masks.append(tensor.layout.from_canonical(kept, tensor.weight.shape))
    return masks


def masks_at_threshold(
    tensors: Sequence[Tensor], recipe: Recipe, threshold: float, *, relative_to: str | None = None
) -> list[MaskArray]:
    r"""Return the masks in which every unit with a score $\le \theta$ is off, besides what was off before.

    Args:
        tensors: at least one.
        recipe: the strategies; the allocation has no say.
        threshold: $\theta$, or with `relative_to="std"` its factor of each tensor's standard deviation (of the
            weights on).
        relative_to: None or "std".

    Raises:
        ValueError: as for `masks_at_sparsity`; a threshold that takes a whole tensor is refused with its path.
    """
    masks = []
    for tensor in tensors:
        pattern, score, entry = _score(tensor, recipe)
        bound = threshold
        if relative_to == "std":
            on = tensor.weight if tensor.mask is None else tensor.weight[tensor.mask]
            bound = threshold * float(np.std(on))
        at_or_below = entry.scores <= entry.scores.dtype.type(bound)
        count = int(np.count_nonzero(at_or_below if entry.on is None else at_or_below | ~entry.on))
        _refuse_collapse(tensor, count, entry, f"every score is at or below the threshold {bound:g}")
        kept = _shrink(pattern, tensor, score, entry, count)
        masks.append(tensor.layout.from_canonical(kept, tensor.weight.shape))
    return masks


def _score(tensor: Tensor, recipe: Recipe) -> tuple[Pattern, npt.NDArray[np.floating], Scored]:
    """The tensor's pattern, its scores as `[..., in, out]`, and those of its units.

    Without growth, what is off already comes last whatever its score: single weights are told by the mask; in larger
    units, each weight that is off is at minus infinity.
    """
    pattern = recipe.pattern.at(tensor.path)
    hides, on = False, None
    if recipe.growth is None and tensor.mask is not None:
        mask = tensor.layout.to_canonical(tensor.mask)
        hides = not pattern.fixed_units or pattern.weights_per_unit(mask.shape) != 1
        on = None if hides else mask.reshape(-1)
    scores = _scores(tensor, recipe, pattern, hides=hides)
    entry = Scored(
        tensor.path,
        scores.shape,
        pattern.reduce(scores),
        pattern.weights_per_unit(scores.shape),
        pattern.limit(scores.shape),
        tensor.curve,
        on,
    )
    return pattern, scores, entry


def _scores(tensor: Tensor, recipe: Recipe, pattern: Pattern, *, hides: bool) -> npt.NDArray[np.floating]:
    """Scores as `[..., in, out]`; with `hides`, minus infinity where a weight is off."""
    raw = recipe.criterion(tensor.weight, tensor.statistics)
    if raw.dtype not in (np.float32, np.float64):
        raw = raw.astype(np.float32)
    given = raw is tensor.weight or any(raw is array for array in tensor.statistics.values())
    if hides and (given or not raw.flags.owndata):
        raw = raw.copy()
    if not _is_finite(raw, tensor.mask if hides else None):
        kind = type(recipe.criterion).__name__
        if not np.isfinite(tensor.weight).all():
            raise ValueError(
                f"{tensor.path!r} holds NaN or infinite weights, which have no rank. "
                "Training has diverged: lower the learning rate, clip gradients, or go back to a checkpoint."
            )
        raise ValueError(
            f"{kind} gives scores for {tensor.path!r} that are NaN or infinite; received data may hold some."
        )
    scores = tensor.layout.to_canonical(raw)
    check_shape(pattern, tensor.path, scores.shape)
    return scores


def _is_finite(raw: npt.NDArray[np.floating], mask: MaskArray | None) -> bool:
    """Say whether all scores are finite, and put those that the mask hides at minus infinity, in one pass."""
    if raw.size == 0:
        return True
    if not raw.flags.c_contiguous:
        finite = bool(np.isfinite(raw.max()))
        if mask is not None:
            raw[~mask] = -np.inf
        return finite
    flat, half = raw.reshape(-1), raw.dtype.type(0.5)
    on = None if mask is None else mask.reshape(-1)

    def pass_over(_: int, part: slice) -> np.floating:
        piece = flat[part]
        # Not-a-number and infinity both show in the maximum.
        top: np.floating = piece.max()
        if on is not None:
            # Infinity where the mask is on, minus infinity where it is off. A masked copy takes six times as long.
            ceiling = on[part].astype(piece.dtype)
            ceiling -= half
            ceiling *= np.inf
            np.minimum(piece, ceiling, out=piece)
        return top

    return bool(np.isfinite(in_pieces([flat.size], pass_over)).all())


def check_shape(pattern: Pattern, path: str, shape: tuple[int, ...]) -> None:
    """Let the pattern refuse a shape, and say which tensor it is."""
    try:
        pattern.check(shape)
    except ValueError as error:
        raise ValueError(
            f"{path!r}: {error} Take that, or leave the tensor out: scope=keras_prune.Scope(exclude=[{path!r}])."
        ) from error


def _count(pattern: Pattern, tensor: Tensor, share: float, shape: tuple[int, ...]) -> int:
    try:
        return pattern.count(share, shape)
    except ValueError as error:
        raise ValueError(f"{tensor.path!r}: {error}") from error


def _refuse_collapse(tensor: Tensor, count: int, entry: Scored, why: str = "") -> None:
    if entry.limit >= 1.0 and count >= entry.units:
        raise ValueError(
            f"Layer collapse: all {tensor.weight.size} weights of {tensor.path!r} would be pruned"
            f"{': ' + why if why else ''}. Lower the target or the threshold, or give the allocation a floor."
        )


def _shrink(
    pattern: Pattern,
    tensor: Tensor,
    scores: npt.NDArray[np.floating],
    entry: Scored,
    count: int,
    bound: float | None = None,
) -> MaskArray:
    """The mask with `count` units off, or as many as are off already; `bound` may be the highest score to go."""
    unit = entry.scores
    if tensor.mask is None or entry.on is not None:
        return pattern.expand(all_but_smallest(unit, count, bound, entry.on), scores)
    gone = int(np.count_nonzero(np.isneginf(unit)))
    kept = pattern.expand(all_but_smallest(unit, max(count, gone), bound), scores)
    # A unit that was part off under another pattern does not come back in the rest of it.
    return np.logical_and(kept, tensor.layout.to_canonical(tensor.mask), out=kept if kept.flags.writeable else None)


def _units_on(pattern: Pattern, tensor: Tensor, shape: tuple[int, ...]) -> MaskArray:
    if not pattern.fixed_units:
        raise ValueError(
            f"{pattern} has no fixed units, so nothing can grow back in it. Take Unstructured, Block or Filter."
        )
    if tensor.mask is None:
        return np.ones(round(pattern.units(shape)), dtype=bool)
    return pattern.reduce(tensor.layout.to_canonical(tensor.mask).astype(np.float32)) > 0


def _gain(tensor: Tensor, pattern: Pattern, growth: Growth) -> npt.NDArray[np.floating] | None:
    """What bringing a unit back promises: the size of the statistic that the growth declared."""
    for name in growth.needs:
        return pattern.reduce(tensor.layout.to_canonical(np.abs(tensor.statistics[name])))
    return None
