"""One update of the masks: weights and statistics -> new masks. Pure: arrays in, arrays out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_prune.allocation import Scored, Share
from keras_prune.arrays.layouts import Layout
from keras_prune.arrays.selection import all_but_smallest, in_pieces
from keras_prune.arrays.splitting import caps_of
from keras_prune.growth import Gains, Growth
from keras_prune.masks.recipe import Recipe
from keras_prune.patterns import Pattern

__all__ = [
    "Recipe",
    "Tensor",
    "check_shape",
    "highest_sparsity",
    "is_single",
    "layout_for",
    "masks_at_sparsity",
    "masks_at_threshold",
    "off_in_units",
]

MaskArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A kernel at the moment of an update.

    Attributes:
        path: for messages.
        weight: the kernel in its own layout; with the hidden values of pruned weights, if these go on learning.
        mask: True where kept, of the same shape; None while nothing is pruned.
        layout: how the axes read as `[..., in, out]`.
        statistics: what the criterion needs, by name, each of the weight's shape or broadcasting to it.
        gains: what the growth needs, likewise.
        seed: a number of the tensor's own.
        curve: pairs of (sparsity, loss increase), where the allocation needs them.
    """

    path: str
    weight: npt.NDArray[np.floating]
    mask: MaskArray | None
    layout: Layout
    statistics: Mapping[str, Any]
    seed: int = 0
    curve: tuple[tuple[float, float], ...] = ()
    gains: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def masks_at_sparsity(
    tensors: Sequence[Tensor],
    recipe: Recipe,
    target: float,
    *,
    final: float | None = None,
    progress: float = 0.0,
    seed: int = 0,
) -> list[MaskArray]:
    """Return the masks, in the kernels' shapes, that bring the tensors to a sparsity of `target` together.

    Without growth a mask only shrinks: what is off stays off, and a target below what is reached changes nothing.

    Args:
        tensors: at least one.
        recipe: the strategies.
        target: the share of weights to be off, a fraction in [0, 1).
        final: the target at the end of the schedule; None when it is `target`.
        progress: where the schedule stands, from 0 to 1, for growth that anneals.
        seed: for growth that draws at random; give another at each update.

    Raises:
        ValueError: a weight is not finite, a pattern does not divide a shape, a tensor would lose every unit, or a
            strategy does not keep its contract; with the path.
    """
    growth = recipe.growth
    scored = [_score(tensor, recipe) for tensor in tensors]
    shares = recipe.allocation([entry for _, _, entry in scored], target, final)
    if len(shares) != len(tensors):
        raise ValueError(
            f"{type(recipe.allocation).__name__} must give one target for each of {len(tensors)} tensors. "
            f"Received: {len(shares)}"
        )
    masks = []
    for tensor, (pattern, score, entry), share in zip(tensors, scored, shares, strict=True):
        count = _count(pattern, tensor, share, score.shape)
        if growth is None:
            kept = _shrink(pattern, tensor, score, entry, count, share.bound if isinstance(share, Share) else None)
        else:
            on = _units_on(tensor, pattern)
            on = np.ones(entry.scores.shape, dtype=bool) if on is None else on
            gains = _gains(tensor, pattern, growth)
            alive = growth(on, entry.scores, gains, off=count, progress=progress, seed=tensor.seed * 1_000_003 + seed)
            kept = pattern.expand(_checked(growth, tensor, alive, on.size, count), score)
        masks.append(_finished(tensor, pattern, kept))
    return masks


def masks_at_threshold(
    tensors: Sequence[Tensor], recipe: Recipe, threshold: float, *, relative_to: str | None = None
) -> list[MaskArray]:
    r"""Return the masks, in the kernels' shapes, with every unit off that scores $\le \theta$ or was off before.

    Args:
        tensors: at least one.
        recipe: the strategies; the allocation does not matter.
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
        kept = _shrink(pattern, tensor, score, entry, count)
        masks.append(_finished(tensor, pattern, kept, f"every score is at or below the threshold {bound:g}"))
    return masks


def off_in_units(path: str, mask: MaskArray, layout: Layout, recipe: Recipe) -> int:
    """Return how many weights of a tensor are off in whole units of its pattern.

    A schedule's target counts these. Where the mask is finer than the pattern, more weights are off.

    Args:
        path: of the tensor.
        mask: True where kept, of the kernel's shape.
        layout: of the kernel.
        recipe: has the pattern.
    """
    pattern = recipe.pattern.at(path)
    canonical = layout_for(layout, pattern).to_canonical(mask)
    on = pattern.units_on(canonical)
    return (on.size - int(np.count_nonzero(on))) * pattern.weights_per_unit(canonical.shape)


def highest_sparsity(tensor: Tensor, recipe: Recipe, floor: float = 0.0) -> float:
    """Return the highest sparsity that a tensor can have, a fraction in [0, 1]: at its pattern's limit, or one unit on.

    Args:
        tensor: its scores do not matter.
        recipe: has the pattern.
        floor: the share of its units that it keeps.
    """
    pattern = recipe.pattern.at(tensor.path)
    shape = layout_for(tensor.layout, pattern).canonical_shape(tensor.weight.shape)
    entry = Scored(tensor.path, shape, np.zeros(0), pattern.weights_per_unit(shape), pattern.limit(shape))
    return caps_of([entry], floor)[0] / entry.units


def layout_for(layout: Layout, pattern: Pattern) -> Layout:
    """Return the layout in which a pattern reads a kernel."""
    return layout.by_input() if pattern.by_input else layout


def _score(tensor: Tensor, recipe: Recipe) -> tuple[Pattern, npt.NDArray[np.floating], Scored]:
    """Return the tensor's pattern, its scores `[..., in, out]`, and those of its units.

    Without growth, `Scored.on` says which units are off already, and a single weight that is off in a larger unit
    costs nothing any more, whatever its own score.
    """
    pattern = recipe.pattern.at(tensor.path)
    scores = _scores(tensor, recipe, pattern)
    if recipe.growth is not None and not pattern.fixed_units:
        raise ValueError(
            f"{pattern} has no fixed units, so nothing can grow back in it. Take Unstructured, Block or Filter."
        )
    entry = Scored(
        tensor.path,
        scores.shape,
        pattern.reduce(scores),
        pattern.weights_per_unit(scores.shape),
        pattern.limit(scores.shape),
        tensor.curve,
        _units_on(tensor, pattern) if recipe.growth is None else None,
    )
    return pattern, scores, entry


def _units_on(tensor: Tensor, pattern: Pattern) -> MaskArray | None:
    """Return which units have a weight on, `[units]`; None for all."""
    if tensor.mask is None:
        return None
    return pattern.units_on(layout_for(tensor.layout, pattern).to_canonical(tensor.mask))


def _scores(tensor: Tensor, recipe: Recipe, pattern: Pattern) -> npt.NDArray[np.floating]:
    """Return the scores of single weights, `[..., in, out]`; in larger units, a weight that is off costs nothing."""
    raw = np.asarray(recipe.criterion(tensor.weight, tensor.statistics))
    if raw.shape != tensor.weight.shape:
        raise ValueError(
            f"{type(recipe.criterion).__name__} must give a score for each weight of {tensor.path!r}, of shape "
            f"{tensor.weight.shape}. Received: scores of shape {raw.shape}. numpy.broadcast_to brings them there."
        )
    if raw.dtype not in (np.float32, np.float64):
        raw = raw.astype(np.float32)
    layout = layout_for(tensor.layout, pattern)
    hides = recipe.growth is None and tensor.mask is not None and not is_single(pattern, layout, raw.shape)
    given = raw is tensor.weight or any(raw is array for array in tensor.statistics.values())
    if hides and (given or not raw.flags.owndata):
        raw = raw.copy()
    if not _is_finite(raw, tensor.mask if hides else None, lowest=not pattern.fixed_units):
        kind = type(recipe.criterion).__name__
        if not np.isfinite(tensor.weight).all():
            raise ValueError(
                f"{tensor.path!r} holds NaN or infinite weights, which have no rank. "
                "Training has diverged: lower the learning rate, clip gradients, or go back to a checkpoint."
            )
        raise ValueError(
            f"{kind} gives scores for {tensor.path!r} that are NaN or infinite. Look for such values in its data."
        )
    scores = layout.to_canonical(raw)
    check_shape(pattern, tensor.path, scores.shape)
    return scores


def is_single(pattern: Pattern, layout: Layout, shape: tuple[int, ...]) -> bool:
    """Return whether each unit of a pattern is a single weight, in a kernel of this shape."""
    return pattern.fixed_units and pattern.weights_per_unit(layout.canonical_shape(shape)) == 1


def _is_finite(raw: npt.NDArray[np.floating], mask: MaskArray | None, *, lowest: bool) -> bool:
    """Say whether all scores are finite, and in one pass put those that a mask has off at 0, or at minus infinity."""
    if raw.size == 0:
        return True
    if not raw.flags.c_contiguous:
        finite = bool(np.isfinite(raw.max()))
        if mask is not None:
            raw[~mask] = -np.inf if lowest else 0.0
        return finite
    flat, half = raw.reshape(-1), raw.dtype.type(0.5)
    integer = np.dtype(f"u{raw.itemsize}")
    on = None if mask is None else mask.reshape(-1)

    def pass_over(_: int, part: slice) -> np.floating:
        piece = flat[part]
        # Not-a-number and infinity both show in the maximum.
        top: np.floating = piece.max()
        # A masked copy takes six times as long as either way.
        if on is not None and not lowest:
            # All bits where the mask is on, none where it is off.
            bits = on[part].astype(integer)
            np.negative(bits, out=bits)
            np.bitwise_and(piece.view(integer), bits, out=piece.view(integer))
        elif on is not None:
            # Infinity where the mask is on, minus infinity where it is off.
            ceiling = on[part].astype(piece.dtype)
            ceiling -= half
            ceiling *= np.inf
            np.minimum(piece, ceiling, out=piece)
        return top

    return bool(np.isfinite(in_pieces([flat.size], pass_over)).all())


def check_shape(pattern: Pattern, path: str, shape: tuple[int, ...]) -> None:
    """Let the pattern refuse a shape, and name the tensor.

    Args:
        pattern: of the tensor.
        path: for the message.
        shape: `[..., in, out]`.

    Raises:
        ValueError: the pattern does not divide the shape.
    """
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


def _shrink(
    pattern: Pattern,
    tensor: Tensor,
    scores: npt.NDArray[np.floating],
    entry: Scored,
    count: int,
    bound: float | None = None,
) -> MaskArray:
    """The mask with `count` units off, or as many as are off already; `bound` may be the highest score to go."""
    kept = pattern.expand(all_but_smallest(entry.scores, count, bound, entry.on), scores)
    if tensor.mask is None or entry.scores.size == scores.size:
        return kept
    # A single weight that is off in a unit that is on does not come back.
    earlier = layout_for(tensor.layout, pattern).to_canonical(tensor.mask)
    return np.logical_and(kept, earlier, out=kept if kept.flags.writeable else None)


def _finished(tensor: Tensor, pattern: Pattern, kept: MaskArray, why: str = "") -> MaskArray:
    """The mask in the tensor's own layout.

    Raises:
        ValueError: it takes everything that is left of the tensor.
    """
    before = tensor.weight.size if tensor.mask is None else int(np.count_nonzero(tensor.mask))
    if before and not kept.any():
        raise ValueError(
            f"Layer collapse: all {tensor.weight.size} weights of {tensor.path!r} would be pruned"
            f"{': ' + why if why else ''}. Lower the target or the threshold, or give the allocation a floor."
        )
    return layout_for(tensor.layout, pattern).from_canonical(kept, tensor.weight.shape)


def _checked(growth: Growth, tensor: Tensor, alive: MaskArray, units: int, off: int) -> MaskArray:
    """Return what a growth gave; refuse it if it is no mask of the units with exactly `off` off."""
    alive = np.asarray(alive)
    if alive.dtype.kind != "b" or alive.shape != (units,) or units - int(np.count_nonzero(alive)) != off:
        raise ValueError(
            f"{type(growth).__name__} must return booleans for {tensor.path!r}, of shape ({units},) with {off} of them "
            f"False. Received: {alive.dtype} of shape {alive.shape}, {alive.size - np.count_nonzero(alive)} of them 0."
        )
    return alive


def _gains(tensor: Tensor, pattern: Pattern, growth: Growth) -> Gains:
    """The size of each statistic that the growth needs, in the units of the pattern."""
    layout, shape = layout_for(tensor.layout, pattern), tensor.weight.shape
    sizes = {name: np.broadcast_to(np.abs(tensor.gains[name]), shape) for name in sorted(growth.needs)}
    return {name: pattern.reduce(layout.to_canonical(size)) for name, size in sizes.items()}
