"""Decide -> remove -> retrain, again and again, with what each round cost and what training brought back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
from rich import box
from rich.table import Table

from keras_prune.monitoring.metric import Metric, Score
from keras_prune.strategy import check_fraction
from keras_prune.structured.analysis.groups import analyse
from keras_prune.structured.counting.counting import Count, Counter
from keras_prune.structured.planning.distill import Distillation
from keras_prune.structured.planning.plan import WIDTH, Plan, plan, remove
from keras_prune.structured.planning.unit_choice import check_reachable, limits_of, multiples_for
from keras_prune.text.tables import plain_lines

__all__ = ["PruningHistory", "Round", "iterate"]

Retrain = Callable[[keras.Model], Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """One round.

    Attributes:
        number: counted from 1.
        target: the share of the dense model that may be left after it, a fraction.
        count: parameters and multiplications that are left.
        before: the metric before the round.
        removed: the metric right after units were removed.
        retrained: the metric after training.
        model: the model after the round.
    """

    number: int
    target: float
    count: Count
    before: float
    removed: float
    retrained: float
    model: keras.Model


@dataclasses.dataclass(frozen=True, eq=False)
class PruningHistory:
    """What `iterate` did, round by round; `str()` is a table.

    Attributes:
        metric: name and direction.
        dense: parameters and multiplications of the model as it came.
        baseline: its metric.
        rounds: in order, the one that went too far among them.
        model: after the last round that was within the tolerance; the model as it came, if none was.
        reason: why it ended.
    """

    metric: Metric
    dense: Count
    baseline: float
    rounds: tuple[Round, ...]
    model: keras.Model
    reason: str

    def best(self, within: float = 0.01) -> Round:
        """Return the round with the fewest parameters whose metric is at most `within` worse than the dense model's.

        Raises:
            ValueError: there is none; the message says how near the nearest is.
        """
        lost = {r: self.metric.loss_from(self.baseline, r.retrained) for r in self.rounds}
        good = [r for r in self.rounds if lost[r] <= within + 1e-12]
        if not good:
            raise ValueError(
                f"best: no round is within {within} of the dense model's {self.metric.name} {self.baseline:.4f}. "
                f"The nearest is {min(lost.values()):.4f} worse. Allow more, or remove less in each round."
            )
        return min(good, key=lambda r: (r.count.params, -r.number))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the models as values that JSON knows."""
        return {
            "metric": self.metric.name,
            "rises": self.metric.rises,
            "dense": {"params": self.dense.params, "macs": self.dense.macs, "metric": self.baseline},
            "rounds": [
                {
                    "round": r.number,
                    "target": r.target,
                    "params": r.count.params,
                    "macs": r.count.macs,
                    "before": r.before,
                    "removed": r.removed,
                    "retrained": r.retrained,
                }
                for r in self.rounds
            ],
            "reason": self.reason,
        }

    def __str__(self) -> str:
        table = Table(title=f"{self.metric.name} by round", title_justify="left", box=box.SIMPLE)
        for name in ("round", "may be left", "parameters", "MACs", "before", "removed", "retrained"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row("dense", "", f"{self.dense.params:,}", f"{self.dense.macs:,}", "", "", f"{self.baseline:.4f}")
        for r in self.rounds:
            values = (f"{value:.4f}" for value in (r.before, r.removed, r.retrained))
            table.add_row(str(r.number), f"{r.target:.1%}", f"{r.count.params:,}", f"{r.count.macs:,}", *values)
        return "\n".join([*plain_lines(table, width=WIDTH), f"ended: {self.reason}"]).strip("\n")


def iterate(
    model: keras.Model,
    *,
    rounds: int = 3,
    params: float | None = None,
    flops: float | None = None,
    retrain: Retrain,
    evaluate: Any = None,
    metric: str | None = None,
    mode: str = "auto",
    tolerance: float | None = None,
    distill: Distillation | None = None,
    importance: Any = "l2",
    data: Any = None,
    scope: str = "local",
    reconstruct: Any = None,
    **limits: Any,
) -> PruningHistory:
    r"""Make a model smaller round by round: decide, remove, retrain.

    With a target share s and n rounds, at most $s^{k/n}$ of the model is left after round k: each takes the same share
    of what is left.

    Args:
        model: built. It stays as it is.
        rounds: n, from 1.
        params: the share of parameters that may be left at the end, a fraction in (0, 1).
        flops: the share of floating-point operations, likewise; one of the two.
        retrain: a function that trains the model it is given; or options of `fit`, `{"x": x, "y": y, "epochs": 3}`.
        evaluate: a function model -> number; or data for `model.evaluate`, `(x, y)`; None for the `validation_data` of
            `retrain`.
        metric: which of the compiled metrics; None for the first one beside the loss.
        mode: "max", "min", or "auto" as Keras finds it (of a function: "max").
        tolerance: how much worse than the dense model's the metric may be after retraining; a round that is worse is
            the last, and the model before it is returned. None for no limit.
        distill: the pruned models learn from a larger one, too; without a teacher of its own, from `model`. Then
            `retrain` has to be options of `fit`.
        importance: as for `plan`.
        data: as for `plan`.
        scope: as for `plan`.
        reconstruct: as for `Plan.apply`, in each round before it trains.
        limits: `target`, `round_to`, `min_width`, `max_share`, `frozen`, `exact`, `input_shape`, as for `plan`.

    Raises:
        ValueError: as `plan` does; no or both targets; nothing to evaluate with; a metric that is not among the model's
            (with those that are); the model is not compiled, and `fit` or `evaluate` is asked of it.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> flow = iterate(model, rounds=2, params=0.5, retrain={"x": x, "y": y, "verbose": 0}, evaluate=(x, y))
        >>> [(one.number, one.count.params) for one in flow.rounds], flow.model.layers[0].units
        ([(1, 67), (2, 43)], 7)
    """
    goal = _Goal.of(params, flops, rounds)
    if "frozen" in limits:  # read once, asked for in each round
        limits["frozen"] = [limits["frozen"]] if isinstance(limits["frozen"], str) else list(limits["frozen"])
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"iterate: tolerance must be 0 or more. Received: {tolerance!r}")
    train, evaluate = _trainer(model, retrain, distill), _evaluation(model, retrain, evaluate)
    score = Score("iterate", evaluate, metric, mode)
    dense = goal.check_reachable(model, limits)
    good, before, done = model, score(model), list[Round]()
    assert score.metric is not None
    baseline, reason = before, f"all {rounds} rounds done"
    for number in range(1, rounds + 1):
        left = done[-1].count if done else dense
        made = goal.plan(number, good, dense, left, limits | {"importance": importance, "data": data, "scope": scope})
        smaller = made.apply(reconstruct=reconstruct, verbose=0)
        limits.pop("input_shape", None)  # what comes out is functional
        removed = score(smaller)
        train(smaller)
        done.append(Round(number, goal.share_after(number), made.after, before, removed, score(smaller), smaller))
        too_far = _too_far(score.metric, baseline, done[-1], tolerance)
        if too_far:
            reason = too_far
            break
        good, before = smaller, done[-1].retrained
    return PruningHistory(score.metric, dense, baseline, tuple(done), good, reason)


@dataclasses.dataclass(frozen=True)
class _Goal:
    """What is to be left in the end, and how many rounds lead there.

    Attributes:
        field: of a `Count`, "params" or "macs".
        share: what may be left of it.
        rounds: how many.
    """

    field: str
    share: float
    rounds: int

    @classmethod
    def of(cls, params: float | None, flops: float | None, rounds: int) -> _Goal:
        """Check the arguments of `iterate`."""
        if (params is None) == (flops is None):
            raise ValueError(
                "iterate needs one target: params=0.5 or flops=0.5 leaves at most half. "
                f"Received: params={params}, flops={flops}"
            )
        given, value = ("params", params) if params is not None else ("flops", flops)
        assert value is not None
        check_fraction(f"iterate: {given}", value)
        if value == 0.0:
            raise ValueError(f"iterate: {given} is the share that may be left, so it is above 0. Received: {value}")
        if not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"iterate: rounds must be a whole number from 1. Received: {rounds!r}")
        return cls("params" if given == "params" else "macs", value, rounds)

    def share_after(self, number: int) -> float:
        """The share of the dense model that may be left after a round."""
        return float(self.share ** (number / self.rounds))

    def check_reachable(self, model: keras.Model, limits: Mapping[str, Any]) -> Count:
        """Refuse a target that the last round would miss before the first one trains; give the dense model's count."""
        known = {key: limits[key] for key in ("exact", "frozen", "input_shape") if key in limits}
        analysis = analyse(model, **known)
        counter = Counter(analysis)
        most = limits.get("max_share", 1.0)  # of each round
        most = {k: self._in_all(v) for k, v in most.items()} if isinstance(most, Mapping) else self._in_all(most)
        multiples = multiples_for(limits.get("round_to"), limits.get("target"))
        least = limits_of(analysis, most, limits.get("min_width", 1), multiples).least
        check_reachable(analysis, counter, {self.field: self.share}, least)
        return counter.total(counter.sizes)

    def _in_all(self, share: float) -> float:
        """What may go in all rounds when this share may go in each."""
        check_fraction("iterate: max_share", share, below_one=False)
        return 1.0 - (1.0 - share) ** self.rounds

    def plan(self, number: int, model: keras.Model, dense: Count, left: Count, options: Mapping[str, Any]) -> Plan:
        """What a round removes from the model that the one before it left."""
        part = self.share_after(number) * getattr(dense, self.field) / getattr(left, self.field)
        if part >= 1:  # units are whole, so the round before may have reached this one's share
            return remove(model, {}, exact=options.get("exact", True))
        return plan(model, **{"params" if self.field == "params" else "flops": part}, **options)


def _too_far(metric: Metric, baseline: float, done: Round, tolerance: float | None) -> str:
    """Why a round is the last one, if it made the metric worse than is allowed; else empty."""
    lost = metric.loss_from(baseline, done.retrained)
    if tolerance is None or lost <= tolerance:
        return ""
    return (
        f"{metric.name} is {done.retrained:.4f} after round {done.number}, {lost:.4f} worse than the dense "
        f"model's {baseline:.4f}, where {tolerance} is allowed; the model is the one before it"
    )


def _trainer(model: keras.Model, retrain: Retrain, distill: Distillation | None) -> Callable[[keras.Model], Any]:
    if callable(retrain):
        if distill is not None:
            raise ValueError(
                "iterate: with distill, retrain must be options of fit, {'x': x, 'y': y}. Received a function. "
                "Call Distillation(...).fit(model, ...) in it instead."
            )
        return retrain
    if not isinstance(retrain, Mapping):
        raise TypeError(f"iterate: retrain must be a function, or options of fit. Received: {retrain!r}")
    _check_compiled(model)
    options = {"verbose": 0, **retrain}
    if distill is None:
        return lambda smaller: smaller.fit(**options)
    chosen = distill if distill.teacher is not None else dataclasses.replace(distill, teacher=model)
    return lambda smaller: chosen.fit(smaller, **options)


def _evaluation(model: keras.Model, retrain: Retrain, evaluate: Any) -> Any:
    if evaluate is None and isinstance(retrain, Mapping):
        evaluate = retrain.get("validation_data")
    if evaluate is None:
        raise ValueError(
            "iterate: there is nothing to measure the metric with. Received: evaluate=None, and no validation_data in "
            "retrain. Give evaluate=(x, y), or a function model -> number."
        )
    if not callable(evaluate):
        _check_compiled(model)
    return evaluate


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled:
        raise ValueError(
            f"iterate: {model.name!r} must be compiled, to be trained by fit and measured by evaluate. Call "
            "compile(...) on it, or give functions as retrain and evaluate."
        )
