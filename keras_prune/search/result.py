"""What a search has found: every trial, the best of them, and the front where there are several aims."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_prune.allocation import Explicit
from keras_prune.arrays.fronts import non_dominated
from keras_prune.report.plots import plot_search, plot_trade
from keras_prune.search.samplers import place_of
from keras_prune.text.tables import plain_table
from keras_prune.trials.choice import PruningStrategy
from keras_prune.trials.code import as_code, imports_of
from keras_prune.trials.trial import STOPPED, Training, TrialRunner, strategy_of

__all__ = ["Result", "Tried"]

STATES = {"COMPLETE": "complete", "PRUNED": "ended early", "FAIL": "failed"}


@dataclasses.dataclass(frozen=True)
class Tried:
    """A trial that is over.

    Attributes:
        number: from 0, in the order in which trials were begun.
        parameters: of the space, by name.
        strategy: what the space made of them.
        values: of the objectives, empty if it is not complete.
        state: "complete", "ended early" or "failed".
        why: what ended it, if it failed.
    """

    number: int
    parameters: Mapping[str, Any]
    strategy: Any
    values: tuple[float, ...]
    state: str
    why: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """What `study` has tried; `str()` is a table.

    Attributes:
        name: of the study in its storage.
        storage: where it is kept: a URL, or the kind of storage.
        objectives: their names, and whether more is better.
        dense: the objectives of the model before pruning.
        trials: all that are over, in the order in which they were begun.
        interrupted: whether Ctrl-C ended the search before all trials were finished.
    """

    name: str
    storage: str
    objectives: tuple[tuple[str, bool], ...]
    dense: Mapping[str, float]
    trials: tuple[Tried, ...]
    interrupted: bool
    _training: Training
    _space: Callable[[Any], Any]

    @classmethod
    def of(
        cls, study: Any, store: Any, runner: TrialRunner, dense: Mapping[str, float], *, interrupted: bool
    ) -> Result:
        """Read an Optuna study.

        Args:
            study: of Optuna.
            store: its storage.
            runner: has the space and the objectives.
            dense: the objectives of the model before pruning.
            interrupted: whether the search is not over.
        """
        trials = study.get_trials(deepcopy=False)
        rows: dict[int, Tried] = {}
        for trial in trials:
            if trial.state.name not in STATES or STOPPED in trial.user_attrs:
                continue  # not over, or ended by an error or Ctrl-C, and tried again by the next call
            place, done = place_of(trial, trials), trial.state.name == "COMPLETE"
            if place in rows and trial.state.name == "FAIL":
                continue  # one that failed was tried again, or two workers had it
            whole = trial.state.name != "FAIL"
            rows[place] = Tried(
                place,
                dict(trial.params),
                strategy_of(runner.space, trial.params) if whole else None,
                tuple(trial.values) if done else (),
                STATES[trial.state.name],
                "" if whole else "its process died",
            )
        return cls(
            study.study_name,
            str(getattr(store, "url", type(store).__name__)),
            tuple((one.name, one.rises) for one in runner.objectives),
            dict(dense),
            tuple(rows[place] for place in sorted(rows)),
            interrupted,
            runner.training,
            runner.space,
        )

    # -- what was found -----------------------------------------------------------------------------------------------

    @property
    def complete(self) -> tuple[Tried, ...]:
        """The trials that have values, best first by the first objective."""
        rises = self.objectives[0][1]
        found = [tried for tried in self.trials if tried.state == "complete"]
        return tuple(sorted(found, key=lambda tried: -tried.values[0] if rises else tried.values[0]))

    @property
    def front(self) -> tuple[Tried, ...]:
        """The trials that no other is at least as good as in every objective and better in one; best first.

        With one objective these are the best, more than one where several are equally good.
        """
        found = self.complete
        signs = [-1.0 if rises else 1.0 for _, rises in self.objectives]
        losses = [tuple(sign * value for sign, value in zip(signs, one.values, strict=True)) for one in found]
        return tuple(one for one, stays in zip(found, non_dominated(losses), strict=True) if stays)

    @property
    def best_trial(self) -> Tried:
        """The best trial by the first objective; of equal ones, the one that is best by the others.

        Raises:
            ValueError: no trial was complete.
        """
        if not self.front:
            raise ValueError(
                f"study: no trial of {self.name!r} is complete. Received: {len(self.trials)} trials, all failed or "
                "ended early. Take more trials, another space, or early_stop=None."
            )
        return self.front[0]

    @property
    def best(self) -> Any:
        """The strategy of `best_trial`: a `PruningStrategy`, or what a space of your own returned for it."""
        return self.best_trial.strategy

    def callback(self, data: Any = None) -> Any:
        """Return the best strategy as a new callback for `fit`.

        Args:
            data: for a criterion that takes what training does not give, such as the inputs of layers.
        """
        found = strategy_of(self._space, self.best_trial.parameters)
        return found.callback(data) if isinstance(found, PruningStrategy) else found

    @property
    def code(self) -> str:
        """The best strategy as Python.

        It prunes `model`, the network that the search was given, on `data` where that is needed. A strategy that a
        space of your own made of its own callbacks is made by it again: `space`.
        """
        return self.code_of(self.best_trial)

    def code_of(self, tried: Tried) -> str:
        """Return the strategy of a trial as Python; see `code`."""
        values = ", ".join(
            f"{name} {value:.6g}" for (name, _), value in zip(self.objectives, tried.values, strict=False)
        )
        head = [f"# Trial {tried.number} of the search {self.name!r}: {values}", "import keras_prune as kp"]
        strategy, training = tried.strategy, self._training
        if not isinstance(strategy, PruningStrategy):
            head[1:] = ["import optuna"]
            parameters = _wrapped(as_code(dict(tried.parameters)))
            return "\n".join([*head, "", f"pruning = space(optuna.trial.FixedTrial({parameters}))", self._fit()]) + "\n"
        how = strategy.criterion_on(True, training=training.epochs > 0)
        foreign = imports_of(how, strategy.pattern, strategy.allocation, strategy.schedule)
        when = strategy.sparsity if strategy.schedule is None or not training.epochs else strategy.schedule
        chosen = {"criterion": how, "pattern": strategy.pattern, "allocation": strategy.allocation}
        lines = [f"    {name}={_wrapped(as_code(value), 4)}," for name, value in chosen.items()]
        if strategy.scope is not None:
            lines.append(f"    scope={as_code(strategy.scope)},")
        if training.epochs:
            return "\n".join(
                [*head, *foreign, "", "pruning = kp.Pruning(", f"    {as_code(when)},", *lines, ")", self._fit(), ""]
            )
        lines += ["    reconstruct=data,"] if training.reconstruct else []
        return "\n".join([*head, *foreign, "", "kp.prune(", "    model,", f"    {as_code(when)},", *lines, ")", ""])

    def _fit(self) -> str:
        """The line that trains."""
        given = {key: value for key, value in self._training.options.items() if key != "callbacks"}
        options = [f"{key}={as_code(value)}" for key, value in {**given, "epochs": self._training.epochs}.items()]
        data = "*data" if self._training.paired else "data"
        return f"model.fit({', '.join([data, *options, 'callbacks=[pruning]'])})"

    # -- how it is shown ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        front = {tried.number for tried in self.front}
        best = self.front[0].number if self.front else None
        shown = [*self.complete, *(tried for tried in self.trials if tried.state != "complete")]
        columns: dict[str, list[str]] = {"trial": ["dense", *(str(tried.number) for tried in shown)]}
        for place, (name, _) in enumerate(self.objectives):
            values = [f"{tried.values[place]:.6g}" if tried.values else "" for tried in shown]
            columns[name] = [f"{self.dense[name]:.6g}", *values]
        for name, cells in _choices([tried.strategy for tried in shown]).items():
            columns[name] = ["", *cells]
        words = ["best" if t.number == best else "front" if t.number in front else "" for t in shown]
        columns[""] = ["", *(w if t.state == "complete" else t.state for w, t in zip(words, shown, strict=True))]
        right = ["trial", *(name for name, _ in self.objectives)]
        title = f"Search {self.name}: {len(self.trials)} trials{', interrupted' if self.interrupted else ''}"
        return plain_table(title, columns, right=right) + f"kept in {self.storage}\n"

    def __repr__(self) -> str:
        return f"Result({self.name!r}, {len(self.trials)} trials, {len(self.front)} on the front)"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary that JSON can hold."""
        return {
            "name": self.name,
            "storage": self.storage,
            "objectives": [{"name": name, "mode": "max" if rises else "min"} for name, rises in self.objectives],
            "dense": dict(self.dense),
            "interrupted": self.interrupted,
            "best": self.front[0].number if self.front else None,
            "front": [tried.number for tried in self.front],
            "trials": [
                {
                    "number": tried.number,
                    "state": tried.state,
                    "why": tried.why,
                    "parameters": dict(tried.parameters),
                    "values": {name: value for (name, _), value in zip(self.objectives, tried.values, strict=False)},
                    "sparsities": _shares(tried.strategy),
                }
                for tried in self.trials
            ],
        }

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a chart: the values and the best so far by trial; with several objectives, the trials and their front.

        Args:
            path: the file; its ending gives the format.

        Raises:
            ImportError: matplotlib is not installed. ValueError: no trial was complete.
        """
        self.best_trial  # noqa: B018 (refuses a search that has found nothing)
        in_order = [tried for tried in self.trials if tried.values]
        if len(self.objectives) == 1:
            name, rises = self.objectives[0]
            numbers, values = [t.number for t in in_order], [t.values[0] for t in in_order]
            plot_search(numbers, values, path, label=name, rises=rises, dense=self.dense[name])
            return
        front = {tried.number for tried in self.front}
        plot_trade(
            {name: [tried.values[i] for tried in in_order] for i, (name, _) in enumerate(self.objectives)},
            [tried.number in front for tried in in_order],
            path,
        )


def _shares(strategy: Any) -> dict[str, float]:
    explicit = isinstance(strategy, PruningStrategy) and isinstance(strategy.allocation, Explicit)
    return dict(strategy.allocation.targets) if explicit else {}


def _choices(strategies: Sequence[Any]) -> dict[str, list[str]]:
    """What strategies differ in, as the cells of columns."""
    known = [strategy if isinstance(strategy, PruningStrategy) else None for strategy in strategies]
    cells = {
        "sparsity": ["" if one is None else f"{one.sparsity:.1%}" for one in known],
        "by tensor": [_range(_shares(one)) for one in known],
    }
    for name in ("criterion", "pattern", "schedule"):
        texts = ["" if one is None else as_code(getattr(one, name)).replace("kp.", "").strip('"') for one in known]
        if len({text for text in texts if text}) > 1:
            cells[name] = texts
    if any(one is None and strategy is not None for one, strategy in zip(known, strategies, strict=True)):
        cells["strategy"] = [str(one) for one in strategies]
    return {name: texts for name, texts in cells.items() if any(texts)}


def _range(shares: Mapping[str, float]) -> str:
    return f"{min(shares.values()):.1%} to {max(shares.values()):.1%}" if shares else ""


def _wrapped(text: str, indent: int = 0) -> str:
    """A long mapping with an entry a line."""
    if not text.startswith("{") or len(text) < 80:
        return text
    inside = text[1:-1].replace(', "', ',\n"')
    return "{\n" + textwrap.indent(inside, " " * (indent + 4)) + ",\n" + " " * indent + "}"
