"""Which optimizer's steps count: that of the one that moves given variables, found by what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_prune.keras_seam import calls_counted
from keras_prune.models.variables import read
from keras_prune.optimizers.finding import has_own_step, hook, leaves, optimizers_of, owns, unhook

__all__ = ["Clock", "optimizers_for", "synchronise"]


def synchronise(model: keras.Model) -> None:
    """Bring variables up to date where the compiled step holds them (JAX)."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def optimizers_for(model: keras.Model, name: str, instead: str) -> list[Any]:
    """Return the optimizers whose steps may count: that of `compile`; all, if the model has a step of its own.

    Args:
        model: compiled.
        name: who asks, for messages.
        instead: what to do without training, for messages.

    Raises:
        ValueError: there is none.
    """
    found = optimizers_of(model)
    if getattr(model, "optimizer", None) is not None and not has_own_step(model):
        found = found[:1]
    if not found:
        raise ValueError(
            f"{name}: {type(model).__name__} {model.name!r} is not compiled, so there is no optimizer whose steps "
            f"could be counted. Call model.compile(optimizer, loss) first; {instead}"
        )
    return found


class _Witness:
    """Notes, while a step is traced, which variables an optimizer moves."""

    def __init__(self) -> None:
        self.moved: set[int] = set()

    def before(self, gradients: list[Any], variables: list[keras.Variable]) -> list[Any]:
        self.moved |= {id(v) for g, v in zip(gradients, variables, strict=True) if g is not None}
        return gradients

    def after(self, variables: list[keras.Variable]) -> None:
        """Nothing."""


class Clock:
    """The steps of the optimizers that move some variables.

    Where the model's step is Keras's own, that is known at once. A `train_step` of the model's own may use any
    optimizer that the model holds, as often as it likes, and the one given to `compile` not at all: then the first
    batches show which of them move the variables. Of several that move one variable, the busiest counts; of several
    variables, the one that was moved least often.

    Args:
        model: what is trained.
        variables: whose moves count.
        optimizers: that may move them.
        exact: whether each batch takes at most one step, of the first optimizer.

    Attributes:
        exact: the same.
        open: whether it may still turn out that other optimizers count.
    """

    def __init__(
        self, model: keras.Model, variables: Sequence[keras.Variable], optimizers: Sequence[Any], *, exact: bool
    ) -> None:
        self._model = model
        self._variables = list(variables)
        self._optimizers = list(optimizers)
        self._witnesses: list[tuple[Any, _Witness]] = []
        self._began: dict[int, int] = {}
        self.exact = exact
        self.open = not exact
        if exact:
            self._groups = _distinct([self._owners(variable) for variable in self._variables]) or [self._leaves()]
        else:
            self._groups = []

    def watch(self) -> None:
        """Note, in steps that are traced from now on, which optimizer moves what."""
        if self.open:
            self._witnesses = [(leaf, _Witness()) for leaf in self._leaves()]
            for leaf, witness in self._witnesses:
                hook(leaf, witness)

    @property
    def known(self) -> bool:
        """Whether it is known whose steps count."""
        return bool(self._groups)

    @property
    def step(self) -> int:
        """Steps done; while it is not known whose, those of the optimizer that has done most."""
        synchronise(self._model)
        if self._groups:
            return min(max(map(_steps, group)) for group in self._groups)
        return max(map(_steps, self._candidates()), default=0)

    def begin(self) -> bool:
        """Note where every optimizer stands as training begins.

        Returns:
            Whether all that may count stand at one step, so that it does not matter yet which of them do.
        """
        synchronise(self._model)
        self._began = {id(leaf): int(read(calls_counted(leaf))) for leaf in self._leaves()}
        return self.known or len(set(map(_steps, self._candidates()))) <= 1

    @property
    def first(self) -> int:
        """The step at which training began."""
        return min(max(self._began.get(id(leaf), 0) // _calls(leaf) for leaf in group) for group in self._groups)

    def look(self) -> None:
        """Find out whose steps count, from what was moved since `begin`."""
        if not self.open:
            return
        synchronise(self._model)
        groups = [self._movers(variable) for variable in self._variables]
        self._groups = _distinct(groups)
        if all(groups):
            self.close()

    def close(self) -> None:
        """Decide by what is known now; variables that nothing has moved do not count."""
        self.open = False
        self.release()

    def release(self) -> None:
        """Leave the steps of the optimizers."""
        for leaf, witness in self._witnesses:
            unhook(leaf, witness)

    def unmoved(self) -> list[keras.Variable]:
        """Return the variables that no optimizer has moved since `begin`, as far as can be seen."""
        synchronise(self._model)
        return [] if self.exact else [variable for variable in self._variables if not self._movers(variable)]

    def complaint(self) -> str:
        """Return what is amiss with variables that should have moved by now, and have not; empty if nothing is.

        What no optimizer moves does not count from then on.
        """
        missed = self.unmoved() if self.open else []
        if not missed:
            return ""
        paths = ", ".join(repr(variable.path) for variable in missed[:3]) + (", ..." if len(missed) > 3 else "")
        if not self.known:
            return (
                f"no optimizer that {type(self._model).__name__} {self._model.name!r} holds has moved {paths}, so no "
                "step was counted, and the schedule has not begun. Hold the optimizer where it can be found: as an "
                "attribute of the model, or in a list or dictionary there."
            )
        self.close()
        return (
            f"{paths} are trainable, and no optimizer that the model holds has moved them: they are pruned with the "
            "others and cannot recover. Hold their optimizer as an attribute of the model, or leave them out: "
            f"scope=keras_prune.Scope(exclude=[{missed[0].path!r}])."
        )

    @property
    def calls(self) -> int:
        """Calls of the optimizer for each step: with accumulation of gradients several."""
        return max((_calls(leaf) for group in self._groups for leaf in group), default=1)

    # -- which optimizers ---------------------------------------------------------------------------------------------

    def _leaves(self) -> list[Any]:
        return [leaf for optimizer in self._optimizers for leaf in leaves(optimizer)]

    def _owners(self, variable: keras.Variable) -> list[Any]:
        return [leaf for leaf in self._leaves() if owns(leaf, variable)]

    def _candidates(self) -> list[Any]:
        """Return what may move one of the variables; an optimizer that is not built yet may move any."""
        return [
            leaf
            for leaf in self._leaves()
            if not leaf.built or any(owns(leaf, variable) for variable in self._variables)
        ]

    def _movers(self, variable: keras.Variable) -> list[Any]:
        """The optimizers that were called since `begin` and move a variable.

        A step that was traced before this clock was there shows nothing of what it moves: then an optimizer moves
        whatever it was built with.
        """
        moved = {id(leaf): witness.moved for leaf, witness in self._witnesses}
        return [
            leaf
            for leaf in self._leaves()
            if int(read(calls_counted(leaf))) > self._began.get(id(leaf), 0)
            and (id(variable) in moved[id(leaf)] if moved.get(id(leaf)) else owns(leaf, variable))
        ]


def _calls(leaf: Any) -> int:
    """Calls of an optimizer for each of its moves: with accumulation several."""
    return leaf.gradient_accumulation_steps or 1


def _steps(leaf: Any) -> int:
    return int(read(calls_counted(leaf))) // _calls(leaf)


def _distinct(groups: Sequence[list[Any]]) -> list[list[Any]]:
    return list({tuple(map(id, group)): group for group in groups if group}.values())
