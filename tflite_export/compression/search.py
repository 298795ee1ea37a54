"""Which candidate is tried next, and which is the best: a successive narrowing.

Candidates lie on lines (`space.Line`) along which less and less of the model is left, so that cost and metric fall
together. On each line there is a smallest share that holds; it is found by bisection, and step by step once a trained
model holds, of which smaller ones are made. Lines whose most promising share cannot beat the best file so far are not
looked at again:

1. single means are tried first: what they cost says what combinations will;
2. the line whose next share promises the lowest cost is tried at that share. Without training first: a file that
   costs no less than the best so far goes no further. Then with a short fine-tuning;
3. one that holds, or is expected to once it is trained, and costs no more than the next share promises is fine-tuned
   fully: nothing cheaper is in sight, and what training brings, or does not, says what may be expected of others. Where
   it misses, and is expected to hold after more, it is trained on;
4. time that a budget has left then goes to the misses: to those that are expected to hold with it, the cheapest first,
   then to the smallest drop; where one holds, 2 again, from there.

What is predicted orders the trials and nothing else: a file is chosen by what was measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from tflite_export.compression.candidate import STAGES, Candidate, Route, Routes
from tflite_export.compression.forecast import POWER, Trained, power_of_training, promised
from tflite_export.compression.space import Line, Space
from tflite_export.compression.tried import Tried

__all__ = ["Bounds", "Search"]

GAIN = 1.02
"""A candidate is worth a trial if it promises so much more than the best so far: less is noise."""
ON = 2
"""Times the epochs of the full fine-tuning that a candidate is trained on at once."""
LONG = 4
"""Times these epochs that a near miss is trained on at most, in time that is left: each more brings less."""


class Laboratory(Protocol):
    """What a search tries candidates by: `Workshop`, or figures in a test."""

    tried: dict[tuple[Candidate, str], Tried]
    spent: float
    making_seconds: float

    def epoch_seconds(self, candidate: Candidate) -> float:
        """Return what an epoch of a candidate takes at most, by those that were; 0 before any was."""

    def try_plain(self, candidate: Candidate) -> Tried:
        """Try the model as it is, in a number type."""

    def try_candidate(self, route: Route) -> Tried:
        """Try the candidate that a route leads to."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far a search goes.

    Args:
        max_drop: how much worse than the plain file's the metric may be.
        epochs: of the full fine-tuning; 0: nothing is trained.
        trials: candidates that are tried besides the baselines; None for no limit.
        seconds: that all of it may take; None for no limit.
    """

    max_drop: float
    epochs: int
    trials: int | None = None
    seconds: float | None = None

    @property
    def short(self) -> int:
        """Epochs of the short fine-tuning."""
        return max(1, round(self.epochs / 4)) if self.epochs else 0


class Search:
    """The search, whose only state is what the laboratory has tried, and the routes that led there.

    Args:
        space: what is searched.
        lab: tries candidates.
        bounds: how far to go.
        after: called after each trial.

    Attributes:
        notes: what the budget did not allow.
    """

    def __init__(self, space: Space, lab: Laboratory, bounds: Bounds, after: Callable[[], None] = lambda: None) -> None:
        self._space, self._lab, self._bounds, self._after = space, lab, bounds, after
        self._routes = Routes(lambda route: lab.tried[route.candidate, route.stage].holds(bounds.max_drop))
        self.notes: list[str] = []

    def run(self) -> None:
        """Try baselines, then narrow, until nothing promises more or the budget is spent."""
        for candidate in self._space.baselines:
            if candidate.is_plain:
                self._lab.try_plain(candidate)
                self._after()
            else:
                self._try(candidate, always=True)
        while True:
            following = self._next()
            ready = self._promising()
            if ready and (following is None or ready[0].ratio >= self._promised(following)):
                self._train_fully(ready[0])
            elif following is not None:
                self._try(following)
            elif not self._train_near_misses():
                return

    # -- results ------------------------------------------------------------------------------------------------------

    def best(self) -> Tried | None:
        """The file with the lowest cost among those that hold and cost less than the reference; None without one."""
        held = [each for each in self._lab.tried.values() if each.holds(self._bounds.max_drop) and _gains(each)]
        # Of one candidate's stages the one with the better metric: they cost the same.
        stages: dict[Candidate, Tried] = {}
        for each in held:
            before = stages.get(each.candidate)
            if before is None or _drop(each) < _drop(before):
                stages[each.candidate] = each
        return max(stages.values(), key=lambda each: each.ratio, default=None)

    def route_to(self, tried: Tried) -> Route:
        """Return how the model of a candidate came to be at this stage."""
        return self._routes.to(tried.candidate).until(STAGES.index(tried.stage))

    def count(self) -> int:
        """Return how many candidates were tried besides the baselines."""
        return len({candidate for candidate, _ in self._lab.tried} - set(self._space.baselines))

    # -- one trial ----------------------------------------------------------------------------------------------------

    def _try(self, candidate: Candidate, *, always: bool = False) -> None:
        """Try a candidate without training, then with a little, if that is worth it.

        Where its model was trained already, for another number type, it is tried as far as that one was.
        """
        self._forget(candidate)  # one that was begun with a larger model, and did not hold
        twin = self._routes.twin(candidate)
        if twin is not None:
            self._go(twin.leading_to(candidate))
            return
        tried = self._go(Route(candidate, start=self._routes.start(candidate)))
        worth = always or tried.cost is None or tried.ratio > GAIN * self._lowest()
        made = tried.model != "" or tried.file != ""
        if self._bounds.short and made and worth and not tried.holds(self._bounds.max_drop):
            self._train(candidate, self._bounds.short)

    def _forget(self, candidate: Candidate) -> None:
        self._routes.forget(candidate)
        for stage in STAGES:
            self._lab.tried.pop((candidate, stage), None)

    def _train(self, candidate: Candidate, epochs: int) -> Tried:
        """Try a candidate after one more stage of training."""
        return self._go(self._routes.to(candidate).trained(epochs))

    def _go(self, route: Route) -> Tried:
        """Try what a route leads to, and remember it."""
        self._routes.remember(route)
        tried = self._lab.try_candidate(route)
        self._after()
        return tried

    def _lowest(self) -> float:
        best = self.best()
        return 1.0 if best is None else best.ratio

    def _is_open(self, candidate: Candidate) -> bool:
        """Whether a candidate was not tried, or begun with a larger model than there is now, and did not hold."""
        if candidate not in self._known():
            return True
        return self._routes.begins_better(candidate, candidate) and not self._held(candidate)

    def _allows(self, candidate: Candidate) -> bool:
        """Whether the limits allow another candidate, and still the full fine-tuning of one."""
        bounds, lab = self._bounds, self._lab
        if bounds.trials is not None:
            return self.count() < bounds.trials
        if bounds.seconds is None:
            return True
        file = self._file_seconds()
        if self._routes.twin(candidate) is not None:
            return lab.spent + file <= bounds.seconds
        training = lab.epoch_seconds(candidate) * (bounds.short + bounds.epochs)
        return lab.spent + lab.making_seconds + training + 3 * file <= bounds.seconds

    def _file_seconds(self) -> float:
        """Return how long a file takes at most, from the export to its metric."""
        return max((each.seconds for each in self._lab.tried.values()), default=0.0)

    # -- which next ---------------------------------------------------------------------------------------------------

    def _next(self) -> Candidate | None:
        """Return the candidate that promises the lowest cost, of each line's next share.

        None if none promises more, or the limits allow none.
        """
        lines = [line for line in self._space.lines if line.values is None or self._pays(line.values)]
        found = [candidate for line in lines if (candidate := self._next_of(line)) and self._allows(candidate)]
        return max(found, key=self._promised, default=None)

    def _pays(self, values: int) -> bool:
        """Whether shared values gained something alone: where they do not, they do not pay in combinations either."""
        alone = Candidate(1.0, 0.0, self._space.number_types[0], values)
        return all(_gains(each) and each.ratio > GAIN for each in self._stages(alone))

    def _next_of(self, line: Line) -> Candidate | None:
        """Return the candidate of a line in the middle of the shares that may hold and would gain.

        Where one that was trained holds, smaller ones are made of it: then the nearest of these shares, a step at a
        time, and none while one that was tried may hold once it is trained. Before either those whose model was trained
        already, for another number type: they take a file and no more.
        """
        shares = self._space.shares
        first = max((place + 1 for place, keep in enumerate(shares) if self._held(line.at(keep))), default=0)
        last = min((place for place, keep in enumerate(shares) if self._failed(line.at(keep))), default=len(shares))
        least = GAIN * self._lowest()
        open_ = [
            candidate
            for candidate in map(line.at, shares[first:last])
            if not candidate.is_plain and self._is_open(candidate) and self._promised(candidate) > least
        ]
        twins = [candidate for candidate in open_ if self._routes.twin(candidate) is not None]
        if twins or not open_:
            return twins[-1] if twins else None
        if self._routes.start(open_[-1]) is None:
            return open_[(len(open_) - 1) // 2]
        pending = any(self._may_hold(self._stages(one)[-1]) for one in map(line.at, shares) if one in self._known())
        return None if pending else open_[0]

    def _known(self) -> set[Candidate]:
        return {candidate for candidate, _ in self._lab.tried}

    def _stages(self, candidate: Candidate) -> list[Tried]:
        stages = [self._lab.tried.get((candidate, stage)) for stage in STAGES]
        return [each for each in stages if each is not None]

    def _held(self, candidate: Candidate) -> bool:
        return any(each.holds(self._bounds.max_drop) for each in self._stages(candidate))

    def _failed(self, candidate: Candidate) -> bool:
        """Whether a candidate is known not to hold, or one that is larger in every way."""
        known = self._known()
        held = [each for each in known if self._held(each)]
        # One that failed says nothing where a smaller one holds, which was trained longer.
        return any(
            _is_larger(other, candidate)
            and self._is_too_bad(other)
            and not self._routes.begins_better(candidate, other)
            and not any(_is_larger(other, one) for one in held)
            for other in known
        )

    def _is_too_bad(self, candidate: Candidate) -> bool:
        """Whether a candidate's metric is too far from the plain one's, as far as it was trained."""
        last = self._stages(candidate)[-1]
        if self._held(candidate):
            return False
        if last.drop is None:  # refused: its file cannot be made, or answers wrongly even after training
            return last.stage != "untrained"
        if last.stage == "untrained":  # one that was not worth training says nothing of the metric
            return self._bounds.epochs == 0
        # What full training brings is known once there was one; until then nothing is built on it.
        return last.stage in _TRAINED or not self._trained() or not self._may_hold(last)

    def _promised(self, candidate: Candidate) -> float:
        return promised(candidate, self._lab.tried.values(), self._space.number_types[0])

    # -- the last stage -----------------------------------------------------------------------------------------------

    def _train_fully(self, tried: Tried) -> None:
        """Train a candidate fully, or on, as far as the budget allows."""
        if tried.stage == "full":
            self._train(tried.candidate, self._affordable(tried.candidate, ON * self._bounds.epochs))
            return
        epochs = self._affordable(tried.candidate, self._bounds.epochs)
        if epochs < self._bounds.epochs:
            self._note(f"the budget left time for {epochs} of {self._bounds.epochs} epochs of full fine-tuning")
        if tried.stage == "untrained":  # it held without training
            self._train(tried.candidate, self._bounds.short)
        self._train(tried.candidate, epochs)

    def _train_near_misses(self) -> bool:
        """Train on what may hold yet, in the time that is left, until one holds; gives whether one does."""
        if self._bounds.seconds is None:
            return False
        most = self._bounds.epochs
        while misses := self._misses():
            nearest = misses[0]
            epochs = most if nearest.stage == "short" else self._affordable(nearest.candidate, LONG * most)
            if self._train(nearest.candidate, epochs).holds(self._bounds.max_drop):
                return True
        return False

    def _misses(self) -> list[Tried]:
        """Return the cheaper candidates that may hold at the best, if all the time that is left goes to one of them.

        First those that are expected to hold, the cheapest first; then the others, the smallest drop first.
        """
        most, full, power = self._bounds.max_drop, self._bounds.epochs, self._power()
        expected, others = [], []
        for each in self._cheaper():
            epochs = self._affordable(each.candidate, LONG * full + (full if each.stage == "short" else 0))
            if each.stage not in ("short", "full") or self._held(each.candidate) or epochs < max(1, full):
                continue
            if self._drop_after(each, epochs, power) <= most:
                expected.append(each)
            elif self._drop_after(each, epochs, max(power, POWER)) <= most:
                others.append(each)
        return _cheapest_first(expected) + sorted(others, key=lambda each: (_drop(each), str(each.candidate)))

    def _promising(self) -> list[Tried]:
        """Return the candidates to train fully, the cheapest first: the best so far, and others that may hold then."""
        if not self._bounds.epochs:
            return []
        found = [
            each
            for each in self._cheaper()
            if not each.candidate.is_plain
            and (self._held(each.candidate) or not self._routes.begins_better(each.candidate, each.candidate))
            and ((each.stage in ("untrained", "short") and each.holds(self._bounds.max_drop)) or self._may_hold(each))
        ]
        there_is_time = [each for each in found if self._affordable(each.candidate, 1) == 1]
        if len(there_is_time) < len(found):
            self._note("the budget left no time to train the best candidates fully")
        return _cheapest_first(there_is_time)

    def _may_hold(self, tried: Tried) -> bool:
        """Whether a candidate that does not hold is expected to, trained fully and on as far as there is time."""
        full, on = self._bounds.epochs, 0 if self._bounds.seconds is None else ON * self._bounds.epochs
        planned = {"short": full, "full": on}.get(tried.stage, 0)
        epochs = self._affordable(tried.candidate, planned)
        if epochs < 1 or self._held(tried.candidate):
            return False
        return self._drop_after(tried, epochs, self._power()) <= self._bounds.max_drop

    def _power(self) -> float:
        return power_of_training(self._trained(), self._bounds.max_drop)

    def _drop_after(self, tried: Tried, epochs: int, power: float) -> float:
        """Return the drop that is expected after so many more epochs."""
        done = self._epochs(tried)
        return float(_drop(tried) * ((done + epochs) / done) ** -power)

    def _epochs(self, tried: Tried) -> int:
        """Return how long a candidate was trained since its units and zeros are gone."""
        return sum(self.route_to(tried).epochs)

    def _cheaper(self) -> list[Tried]:
        """Return the best candidate and those with a file that costs less, each as far as it was trained."""
        best = self.best()
        return [
            each
            for each in (self._stages(candidate)[-1] for candidate in self._known())
            if each.drop is not None
            and _gains(each)
            and (best is None or each.candidate == best.candidate or each.ratio > GAIN * best.ratio)
        ]

    def _trained(self) -> list[Trained]:
        """Return what each further training brought."""
        found = []
        for candidate in dict.fromkeys(candidate for candidate, _ in self._lab.tried):
            stages = [each for each in self._stages(candidate) if each.stage != "untrained" and each.drop is not None]
            found += [
                Trained(_drop(before), _drop(after), self._epochs(after) / self._epochs(before))
                for before, after in itertools.pairwise(stages)
            ]
        return found

    def _affordable(self, candidate: Candidate, wanted: int) -> int:
        """Return how many of the wanted epochs of training a candidate the budget still allows."""
        if self._bounds.seconds is None:
            return wanted
        left = self._bounds.seconds - self._lab.spent - self._file_seconds()
        per_epoch = self._lab.epoch_seconds(candidate)
        return wanted if per_epoch == 0 else min(wanted, int(left / per_epoch))

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)


def _is_larger(one: Candidate, other: Candidate) -> bool:
    """Whether a candidate is larger than another in every way, or as large."""
    more_values = one.values in (None, other.values)
    more_numbers = one.quantize in (None, other.quantize)
    return one.keep >= other.keep and one.sparsity <= other.sparsity and more_values and more_numbers


_TRAINED = STAGES[STAGES.index("full") :]


def _drop(tried: Tried) -> float:
    return math.inf if tried.drop is None else tried.drop


def _cheapest_first(tried: Iterable[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda each: (-each.ratio, str(each.candidate)))


def _gains(tried: Tried) -> bool:
    """Whether a file costs less than the reference, by more than its runs differ."""
    return tried.cost is not None and tried.ratio > 1.0 + tried.cost.spread
