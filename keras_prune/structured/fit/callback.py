"""Structured pruning while `fit` trains: gates close unit by unit, and the model shrinks at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_prune.devices import Device
from keras_prune.in_step.parts import TrainingPart, check_parts
from keras_prune.schedules import PolynomialDecay, Schedule
from keras_prune.scope import Skipped
from keras_prune.strategy import check_fraction
from keras_prune.structured.fit.gates import Gates
from keras_prune.structured.fit.regularise import GrowingRegularisation
from keras_prune.structured.fit.structured_run import Goal, StructuredRun
from keras_prune.structured.importances.importance import Importance
from keras_prune.structured.importances.names import resolve_importance
from keras_prune.structured.planning.unit_choice import OPTIONS, multiples_for
from keras_prune.training.stepped_callback import SteppedCallback

__all__ = ["StructuredPruning"]


class StructuredPruning(SteppedCallback[StructuredRun]):
    r"""Removes units to a schedule while `fit` trains: first by gates, at the end for good by `shrink()`.

    Units that go are put at exactly 0 and held there (`keras_prune.structured.fit.gates`), so the model that trains
    keeps its shapes and computes what the smaller one would; validation sees the smaller one. `shrink()` gives it: its
    outputs are those of the gated model up to rounding, with the moments of the optimizer, so that training goes on.
    Logs hold `params_left`, `flops_left` and `memory_left`, the shares that are left.

    Steps are the optimizer's iterations. What is closed is saved and restored with the model, as masks are; where a
    file was loaded without this library's state, it is found by its zeros. In a custom training loop there are no
    hooks; then call `attach(model)` before the step function is traced, `on_step()` after each step and `detach()`
    at the end.

    Args:
        params: the share of parameters that may be left at the end, a fraction in (0, 1); or a schedule of the share
            that is **removed**: `kp.schedules.Cosine(0.0, 0.5, ...)` leaves half of them at the end.
        flops: likewise of floating-point operations. With several numbers, all are met.
        memory: likewise of peak activation memory (`kp.structured.Count.peak`).
        begin_step: the first step at which units are closed, with a number; None for 0, or without `end_step` for a
            tenth of the training's steps.
        end_step: the step at which the target is reached; the share removed grows as in `PolynomialDecay`. None for
            seven tenths of the training's steps.
        frequency: steps between two choices; None for 100, or without `end_step` for a hundredth of the training.
        importance: as for `kp.structured.plan`; of gradients and activations, it is taken on `data` at each choice.
            Closed units do not count: they are not chosen again, and are left out when a group is normalised.
        data: `(x, y)` or batches of it, for an importance that takes data and has none of its own.
        scope: "local" takes the same share of units in each group, "global" the lowest of the whole model.
        target: the device that the model is for, as for `kp.structured.plan`.
        round_to: groups that shrink keep a multiple of this many units, if they have as many; or numbers by layer.
            None: the multiple of the `target` (8 for XNNPACK and the Ethos-U), else 1.
        min_width: units that each group keeps at least; or numbers by layer (name or path).
        max_share: the share of units that may go in each group; or shares by layer (name or path), 0 to keep all.
        frozen: layers or nested models that stay as they are: names, paths or regular expressions.
        parts: what else acts in the step: `kp.structured.GroupLasso`, `Slimming`, `GrowingRegularisation`,
            `keras_prune.ClipGradients`, `keras_prune.L1`.
        input_shape: for a subclassed model, see `kp.structured.analyse`.

    Raises:
        ValueError: an argument is out of its range; when attached: the model is not built or not compiled, its graph
            cannot be traced, the target cannot be met (with the nearest that can), or another callback prunes the same
            variable.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> pruning = StructuredPruning(params=0.5, end_step=6, frequency=2)
        >>> _ = model.fit(np.ones((80, 8)), np.ones((80, 1)), batch_size=10, verbose=0, callbacks=[pruning])
        >>> round(pruning.left["params"], 3)
        0.441
        >>> pruning.shrink().layers[0].units
        7
    """

    def __init__(
        self,
        *,
        params: float | Schedule | None = None,
        flops: float | Schedule | None = None,
        memory: float | Schedule | None = None,
        begin_step: int | None = None,
        end_step: int | None = None,
        frequency: int | None = None,
        importance: str | Importance = "l2",
        data: Any = None,
        scope: str = "local",
        target: str | Device | Mapping[str, Any] | None = None,
        round_to: int | Mapping[str, int] | None = None,
        min_width: int | Mapping[str, int] = 1,
        max_share: float | Mapping[str, float] = 1.0,
        frozen: Iterable[str] = (),
        parts: Sequence[TrainingPart] = (),
        input_shape: Any = None,
    ) -> None:
        super().__init__()
        shares, schedule = _target(
            {"params": params, "flops": flops, "memory": memory}, begin_step, end_step, frequency
        )
        if scope not in ("local", "global"):
            raise ValueError(f"StructuredPruning: scope must be 'local' or 'global'. Received: {scope!r}")
        round_to = multiples_for(round_to, target)
        for name, number in (("round_to", round_to), ("min_width", min_width)):
            if not isinstance(number, Mapping) and (not isinstance(number, int) or number < 1):
                raise ValueError(f"StructuredPruning: {name} must be a whole number from 1. Received: {number!r}")
        chosen = resolve_importance(importance, data)
        chosen.check_data("StructuredPruning")
        parts = check_parts("StructuredPruning", parts)
        if sum(isinstance(part, GrowingRegularisation) for part in parts) > 1:
            raise ValueError(f"StructuredPruning: one GrowingRegularisation at most. Received: parts={list(parts)}")
        kept = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        self._shares = shares
        fields = {name: field for field, name in OPTIONS.items()}
        self.goal = Goal(
            {fields[name]: share for name, share in shares.items()},
            schedule,
            chosen,
            scope,
            round_to,
            min_width,
            max_share,
            kept,
        )
        self.parts = parts
        self.input_shape = input_shape

    def __repr__(self) -> str:
        return f"StructuredPruning({self._shares}, {self.goal.schedule}, {self.goal.importance})"

    # -- what the user can ask ----------------------------------------------------------------------------------------

    @property
    def left(self) -> dict[str, float]:
        """The share of "params", "flops" and "memory" that is left without the closed units."""
        return self._running().left

    @property
    def gates(self) -> Gates:
        """The gates on the model: `gates.keep` says for each unit whether it is open."""
        return self._running().gates

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What stays although its layer makes units, and each call without a rule, with the reasons."""
        return self._running().analysis.skipped

    def shrink(self) -> keras.Model:
        """Return the model without the closed units, compiled as it was, to be used and trained on without callback.

        The model that was trained stays as it is, gates and all. For a model from a file, `kp.structured.shrink(model)`
        does the same.
        """
        return self._running().gates.shrink()

    # -- what a run needs ---------------------------------------------------------------------------------------------

    def _begin(self, model: keras.Model, run: Any) -> StructuredRun:
        return StructuredRun(model, self.goal, parts=self.parts, input_shape=self.input_shape, owner=self, run=run)

    def _shown(self, run: StructuredRun) -> dict[str, float]:
        return {f"{name}_left": share for name, share in run.left.items()}

    def _too_late(self, run: StructuredRun, total: int, end: str) -> str:
        return (
            f"the last units go at step {run.last_step}, and training ends at step {end}: the target "
            f"{self._shares} will not be reached. Let the schedule end {run.last_step - total} steps earlier, or "
            "train longer."
        )

    def _fell_short(self, run: StructuredRun) -> str:
        left = ", ".join(f"{share:.3g} of {name}" for name, share in run.left.items() if name in self._shares)
        return (
            f"training ended at step {run.now}, and the last units go at step {run.last_step}: the target "
            f"{self._shares} was not reached, {left} are left. Let the schedule end earlier, or train longer."
        )

    def _written(self, number: int) -> str:
        return (
            f"something wrote to {number} weights of closed units (did a callback restore the best weights of an epoch "
            "in which less was closed?). They are zero again, so the model is not the one that was best. Let that "
            "callback look at epochs after the schedule's end only, EarlyStopping(start_from_epoch=...)."
        )


def _target(
    given: Mapping[str, float | Schedule | None], begin_step: int | None, end_step: int | None, frequency: int | None
) -> tuple[dict[str, float], Schedule]:
    """Shares that may be left at the end, and the schedule of what is removed on the way there."""
    asked = {name: value for name, value in given.items() if value is not None}
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    if not asked:
        raise ValueError(
            "StructuredPruning needs a target: params=0.5 or flops=0.5 leaves at most half. "
            f"Received: {shown}. Name one, and the step at which it is reached: end_step=..."
        )
    schedules = {name: value for name, value in asked.items() if isinstance(value, Schedule)}
    if schedules:
        name, schedule = next(iter(schedules.items()))
        if len(asked) > 1 or end_step is not None:
            raise ValueError(
                "StructuredPruning: a schedule says all of one target. "
                f"Received: {shown}, end_step={end_step}. Take numbers for two targets, and end_step for numbers."
            )
        if schedule.gives != "sparsity" or schedule.rewinds or not 0.0 < schedule.final < 1.0:
            raise ValueError(
                f"StructuredPruning: {name} takes a schedule of the share removed, without rewinding, that ends "
                f"in (0, 1). Received: {schedule}"
            )
        return {name: 1.0 - schedule.final}, schedule
    shares = {}
    for name, value in asked.items():
        check_fraction(f"StructuredPruning: {name}", value)  # type: ignore[arg-type]
        if value == 0.0:
            raise ValueError(
                f"StructuredPruning: {name} is the share that may be left, so it is above 0. Received: {value}"
            )
        shares[name] = float(value)  # type: ignore[arg-type]
    final = 1.0 - min(shares.values())
    if end_step is not None:
        begin_step = begin_step or 0
    return shares, PolynomialDecay(
        0.0,
        final,
        begin_step=begin_step,
        begin="10%" if begin_step is None else None,
        end_step=end_step,
        end="70%" if end_step is None else None,
        frequency=frequency,
    )
