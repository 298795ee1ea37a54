"""One training in which units go: brings schedule, importance, gates and the parts of the step together.

What `StructuredPruning` drives from the hooks of `fit`, and what a custom training loop drives by hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_prune.in_step.parts import TrainingPart
from keras_prune.masks.state import strategy_scope
from keras_prune.models.variables import assign, read
from keras_prune.optimizers.clock import optimizers_for, synchronise
from keras_prune.schedules import Schedule
from keras_prune.schedules.spans import Span
from keras_prune.scope import Scope
from keras_prune.structured.analysis.groups import Analysis, Keep, analyse
from keras_prune.structured.counting.counting import Count, Counter
from keras_prune.structured.fit.gates import Gates
from keras_prune.structured.fit.regularise import GrowingPenalty, GrowingRegularisation, UnitPart, UnitSlices
from keras_prune.structured.importances.importance import NORMALISATIONS, Importance, Scores
from keras_prune.structured.planning.unit_choice import OPTIONS, Ranking, check_reachable, limits_of
from keras_prune.structured.surgery.shrink import zero_units
from keras_prune.training.stepped_run import SteppedRun

__all__ = ["Goal", "StructuredRun"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is to be left, and by which choice.

    Attributes:
        shares: of "params", "macs" and "peak", the share that may be left at the end, a fraction in (0, 1).
        schedule: the share that is removed by step, relative to its final value.
        importance, scope, round_to, min_width, max_share, frozen: as for `plan`.
    """

    shares: Mapping[str, float]
    schedule: Schedule
    importance: Importance
    scope: str = "local"
    round_to: int | Mapping[str, int] = 1
    min_width: int | Mapping[str, int] = 1
    max_share: float | Mapping[str, float] = 1.0
    frozen: tuple[str, ...] = ()

    def targets(self, step: int) -> dict[str, float | None]:
        """Return the shares that may be left at a step.

        Example:
            >>> from keras_prune.schedules import Linear
            >>> from keras_prune.structured.importances.of_weights import L2
            >>> Goal({"params": 0.5}, Linear(0.0, 0.5, begin_step=0, end_step=10), L2()).targets(5)
            {'params': 0.75}
        """
        progress = self.schedule(step) / self.schedule.final if self.schedule.final else 1.0
        return {
            name: share if progress == 1.0 else 1.0 - (1.0 - share) * progress for name, share in self.shares.items()
        }


class StructuredRun(SteppedRun):
    """The state and the hands of one `StructuredPruning`.

    Args:
        model: built and compiled.
        goal: what is to be left.
        parts: what else acts in the step.
        input_shape: for a subclassed model, see `trace`.
        owner: who is named in messages and holds the variables.
        run: which training this is.

    Attributes:
        gates: on the model.
        analysis: of the model.
    """

    def __init__(
        self,
        model: keras.Model,
        goal: Goal,
        *,
        parts: Sequence[TrainingPart] = (),
        input_shape: Any = None,
        owner: Any = None,
        run: Any = None,
    ) -> None:
        self._name = type(owner if owner is not None else self).__name__
        _check_built(model, self._name)
        instead = "to remove units without training, use kp.structured.plan(model, ...)."
        optimizers = optimizers_for(model, self._name, instead)
        self.goal = goal
        self._asked = goal.schedule
        self.analysis: Analysis = analyse(model, frozen=goal.frozen, input_shape=input_shape)
        self._counter = Counter(self.analysis)
        self._whole = self._counter.total(self._counter.sizes)
        with _renamed(self._name):
            self._limits = limits_of(self.analysis, goal.max_share, goal.min_width, goal.round_to)
            check_reachable(self.analysis, self._counter, dict(goal.shares), self._limits.least)
        self.gates = Gates(model, self.analysis, remember=False, owner=owner, run=run)
        super().__init__(model, optimizers, self.gates.state, self.gates.variables, parts, run)
        self._counted: Keep | None = None
        self._left: dict[str, float] = {}
        with strategy_scope(model):
            self._attach_parts()
        self._enlist()

    def _attach_parts(self) -> None:
        self._growing: GrowingRegularisation | None = None
        self._strengths: keras.Variable | None = None
        targets = Scope().survey(self.model, may_be_empty=True).targets
        kernels = [id(target.variable) for target in targets]
        biases = [id(v) for v in self.model.trainable_variables if "bias" in v.name]
        for i, part in enumerate(self.parts):
            level = self._level_of(part, f"unit_level:{i}")
            if isinstance(part, GrowingRegularisation):
                self._growing = part
                self._strengths = self._state.variable("unit_strengths", (self.analysis.size + 1,), "float32", 0.0)
                penalty = GrowingPenalty(UnitSlices(self.analysis), self._strengths)
                self._install(lambda _, penalty=penalty: penalty)  # type: ignore[misc]
            elif isinstance(part, UnitPart):
                self._install(functools.partial(part.on_units, self.analysis, level))
            else:
                weights = kernels + (biases if part.on_biases else [])
                self._install(functools.partial(part.bind, self.model, weights, level))

    # -- what can be asked --------------------------------------------------------------------------------------------

    @property
    def left(self) -> dict[str, float]:
        """The share of "params", "flops" and "memory" that is left without the closed units."""
        keep = self.gates.keep
        if self._counted is None or not np.array_equal(keep, self._counted):
            now = self._count(keep)
            self._counted = keep
            self._left = {
                name: getattr(now, field) / getattr(self._whole, field) if getattr(self._whole, field) else 1.0
                for field, name in OPTIONS.items()
            }
        return dict(self._left)

    @property
    def last_step(self) -> int:
        """The step at which the last unit is closed."""
        return self.goal.schedule.target_step + (self._growing.steps if self._growing is not None else 0)

    # -- running ------------------------------------------------------------------------------------------------------

    def _key(self) -> str:
        return "units"

    def _given(self) -> Schedule:
        return self._asked

    def _resolve(self, span: Span) -> None:
        self.goal = dataclasses.replace(self.goal, schedule=self._asked.resolve(span))

    def _take_up(self) -> None:
        self.gates.refresh()
        unknown = self._asked.is_relative and self.span is None
        if not self.gates.restored and self._step > (0 if unknown else self.goal.schedule.first_step):
            # A file without the state of pruning: what is closed shows by its zeros.
            self.gates.set(~zero_units(self.analysis))
        self.gates.guard()

    def _act_first(self) -> None:
        self._act([self._step])

    def finish(self) -> int:
        """End: closed units are exactly zero and held there; the parts leave the step.

        Returns:
            How many weights of closed units something else had written to.
        """
        written = self.gates.settle()
        self._state.arrays.pop(f"span:{self._key()}", None)
        self._uninstall()
        self.gates.rest()
        self.model.train_function = None
        return written

    def settle(self) -> int:
        """Put weights of closed units back at zero; return how many something had written to."""
        return self.gates.settle()

    def abandon(self) -> None:
        """Leave the step, in whatever state this is."""
        self._uninstall()
        self.gates.abandon()

    def _act(self, passed: Sequence[int]) -> None:
        if self._growing is not None:
            self._grow(self._growing, passed)
        if any(self._chooses(step) for step in passed):
            self._choose()

    def _is_due(self, step: int) -> bool:
        grows = self._growing is not None and step % self._growing.every == 0
        return grows or self._chooses(step)

    def _chooses(self, step: int) -> bool:
        """Whether units are chosen at a step: where the schedule says so, and always where its final target begins."""
        return self.goal.schedule.should_update(step) or step == self.goal.schedule.target_step

    # -- choosing units -----------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Bring what stays to the target of this step; what went stays away."""
        targets = self.goal.targets(self._step)
        standing = self._standing()
        now = self._count(standing)
        if all(getattr(now, name) <= share * getattr(self._whole, name) for name, share in targets.items() if share):
            return
        scores = self._scores(standing)
        ranking = Ranking(self.analysis, self._counter, scores, self.goal.scope, self._limits)
        with _renamed(self._name):
            number = ranking.fewest(targets)
        keep = ranking.keep(number) & standing
        if self._growing is None:
            self.gates.set(keep)
        else:
            self._put_strengths(np.where(standing & ~keep, self._growing.delta, self._read_strengths()))

    def _standing(self) -> Keep:
        """The units that are neither closed nor on their way."""
        keep = self.gates.keep
        return keep if self._growing is None else keep & (self._read_strengths() == 0.0)

    def _scores(self, standing: Keep) -> Scores:
        """Scores in which only what stands counts for a group's normalisation, and the others are below all."""
        synchronise(self.model)
        importance = self.goal.importance
        scores = importance.as_measured()(self.model, self.analysis).astype(np.float64)
        for group in self.analysis.groups:
            part = scores[group.start : group.stop]
            on = standing[group.start : group.stop] & np.isfinite(part)
            scale = NORMALISATIONS[importance.normalise](part[on]) if on.any() else 0.0
            if scale > 0:
                part /= scale
        finite = scores[np.isfinite(scores)]
        scores[~standing] = (finite.min() if finite.size else 0.0) - 1.0
        return scores

    def _count(self, keep: Keep) -> Count:
        return self._counter.total(self.analysis.counts(keep))

    # -- growing regularisation ---------------------------------------------------------------------------------------

    def _grow(self, part: GrowingRegularisation, passed: Sequence[int]) -> None:
        """Raise the penalty once for each multiple of `every` that was passed; close what reached the ceiling."""
        done = int(self._state.arrays.get("unit_strengths_step", -1))
        times = sum(1 for step in passed if step > done and step > 0 and step % part.every == 0)
        if not times:
            return
        strengths = self._read_strengths()
        on = strengths > 0.0
        # Counted, not added up: no rounding moves the end.
        counts = np.rint(strengths / part.delta)
        strengths = np.where(on, np.minimum((counts + times) * part.delta, part.ceiling), 0.0)
        over = on & (strengths >= part.ceiling * (1.0 - 1e-6))
        self._put_strengths(np.where(over, 0.0, strengths))
        self.gates.set(self.gates.keep & ~over)
        self._state.arrays["unit_strengths_step"] = np.array(self._step)

    def _read_strengths(self) -> Any:
        assert self._strengths is not None
        return np.array(read(self._strengths))[:-1]

    def _put_strengths(self, values: Any) -> None:
        assert self._strengths is not None
        assign(self._strengths, np.append(values, 0.0).astype(np.float32))


@contextlib.contextmanager
def _renamed(name: str) -> Iterator[None]:
    """The scope in which a refusal of the planner names who asked it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("plan:", f"{name}:", 1)) from error


def _check_built(model: keras.Model, name: str) -> None:
    if not model.built:
        raise ValueError(
            f"{name}: {type(model).__name__} {model.name!r} is not built, so its units cannot be traced. "
            "Give it a keras.Input, or call it on a batch first."
        )
