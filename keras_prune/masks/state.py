"""What a pruned model carries while it trains: state of the compiled step, saved and restored with the model.

A mask that changes during training has to be state of the step on every backend: on JAX a free variable is baked into
the compiled function as a constant. The optimizer's variables are state everywhere, so masks and sums of gradients
are made by `optimizer.add_variable`. In files they stand apart from the optimizer's own variables: a model saved in
the middle of a pruned training loads, moments and all, where this library is not installed; and a file without them
loads into a model that has them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from keras_prune.keras_seam import Saved
from keras_prune.models.variables import read
from keras_prune.optimizers.finding import innermost
from keras_prune.scope import Skipped

__all__ = ["TrainingState", "strategy_scope"]


def strategy_scope(model: keras.Model) -> Any:
    """Return the scope in which the model's variables live under `tf.distribute`, to be entered with `with`."""
    strategy: Any = getattr(model, "distribute_strategy", None)
    return strategy.scope() if hasattr(strategy, "scope") else contextlib.nullcontext()


class TrainingState(Saved):
    """The variables and arrays that pruning adds to a model.

    The model holds it as `model._pruning_state`, where Keras finds it when it saves.

    Attributes:
        variables: state of the compiled step, by key.
        arrays: state of the host (snapshots, curves), and values from a file whose variable is not made yet.
        runs: the trainings that follow the model now; `keras_prune.training.stepped_run`.
    """

    def __init__(self) -> None:
        self.variables: dict[str, keras.Variable] = {}
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self.runs: list[Any] = []
        self._guard: Any = None
        self.restored: set[str] = set()
        self.left_alone: tuple[Skipped, ...] = ()
        self._owners: dict[int, tuple[Any, Any]] = {}
        self._optimizer: Any = None
        self._fills: dict[str, float] = {}

    @classmethod
    def of(cls, model: keras.Model) -> TrainingState:
        """Return the state of a model, made on first use and following the model to a new optimizer."""
        state = cls.held_by(model)
        if state is None:
            state = cls()
            model._pruning_state = state
        state._bind(getattr(model, "optimizer", None))
        return state

    @staticmethod
    def held_by(model: keras.Model) -> TrainingState | None:
        """Return the state of a model as it is; None if pruning has added none."""
        state: TrainingState | None = getattr(model, "_pruning_state", None)
        return state

    @property
    def optimizer(self) -> Any:
        """The innermost optimizer whose step this is state of, or None."""
        return self._optimizer

    # -- variables of the step ----------------------------------------------------------------------------------------

    def _bind(self, outer: Any) -> None:
        optimizer = innermost(outer)
        if optimizer is self._optimizer:
            return
        # A new compile: the old optimizer's variables hand their values over as they are asked for.
        self.arrays.update({key: np.array(read(variable)) for key, variable in self.variables.items()})
        self.variables = {}
        self._owners = {}
        self._optimizer = optimizer
        if optimizer is not None:
            self._keep_out_of_optimizer_files(outer)
            if outer is not optimizer:
                self._keep_out_of_optimizer_files(optimizer)

    def variable(self, key: str, shape: Sequence[int], dtype: str, fill: float) -> keras.Variable:
        """Return the variable of this key; a new one has the value that was loaded for it, or is filled with `fill`."""
        if key in self.variables:
            # Of an earlier run of the same optimizer: its value goes on.
            self.restored.add(key)
            return self.variables[key]
        self._fills[key] = fill
        name = "pruning_" + key.replace(":", "_")

        def initializer(shape: Any, dtype: Any = None) -> Any:
            # Keras's own Constant multiplies, which TensorFlow before 2.21 cannot do with booleans.
            return ops.full(shape, fill, dtype)

        if self._optimizer is None:
            variable = keras.Variable(initializer, shape=tuple(shape), dtype=dtype, trainable=False, name=name)
        else:
            variable = self._optimizer.add_variable(
                tuple(shape), initializer=initializer, dtype=dtype, name=name, aggregation="only_first_replica"
            )
        self.variables[key] = variable
        value = self.arrays.pop(key, None)
        if value is not None and value.shape == tuple(shape):
            variable.assign(value)
            self.restored.add(key)
        return variable

    def forget(self) -> None:
        """Bring everything to how it is before anything is pruned: variables to what fills them, and no array."""
        for key, variable in self.variables.items():
            variable.assign(ops.full(variable.shape, self._fills[key], variable.dtype))
        self.arrays.clear()
        self.restored.clear()
        self.left_alone = ()
        self._owners = {}

    # -- who prunes what ----------------------------------------------------------------------------------------------

    def claim(self, claimant: Any, variable: keras.Variable, path: str, history: Any) -> None:
        """Note who prunes a variable in a training; two at once are refused.

        One of an earlier training (that was interrupted, say) no longer counts.

        Args:
            claimant: has `owner`, the callback that is named in messages, `abandon()` and `recount()`.
            variable: the kernel.
            path: of the variable, for messages.
            history: the History of the `fit` that this is of, or None.

        Raises:
            ValueError: another callback prunes the variable in the same training.
        """
        other, when = self._owners.get(id(variable), (None, None))
        if other is not None and when is history:
            raise ValueError(
                f"Two pruning callbacks act on {path!r} in one training: {other.owner!r} and {claimant.owner!r}. "
                "Remove one, or give them scopes that do not overlap: scope=Scope(include=..., exclude=...)."
            )
        if other is not None:
            other.abandon()
        self._owners[id(variable)] = (claimant, history)

    @property
    def owners(self) -> list[Any]:
        """Those that prune the model's variables now; each has `recount()`, for masks that something else has set."""
        return list({id(claimant): claimant for claimant, _ in self._owners.values()}.values())

    def unclaim(self, claimant: Any) -> None:
        """Forget one whose training is over."""
        self._owners = {key: value for key, value in self._owners.items() if value[0] is not claimant}

    def guard(self, model: keras.Model) -> None:
        """While a model is followed by `runs`, let it end those that were interrupted before it trains again.

        `fit` says nothing to its callbacks when an exception ends it, and its compiled step stays on the model, with
        all that acts in it. Call this after each change of `runs`.
        """
        if not self.runs:
            if self._guard is not None and vars(model).get("make_train_function") is self._guard:
                del model.make_train_function
            self._guard = None
            return
        if self._guard is not None:
            return
        plain = model.make_train_function

        def make_train_function(force: bool = False) -> Any:
            for run in list(self.runs):
                if run.is_over:
                    run.finish()
            made = force or model.train_function is None
            plain(force)
            for run in self.runs if made else ():
                model.train_function = run.around(model.train_function)
            return model.train_function

        self._guard = model.make_train_function = make_train_function

    # -- files --------------------------------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Write every variable and array; called by Keras."""
        for key, variable in self.variables.items():
            store[key] = read(variable)
        for key, array in self.arrays.items():
            store[key] = array

    def load_own_variables(self, store: Any) -> None:
        """Take over what the file holds; called by Keras. What it lacks is rebuilt from the weights."""
        self.restored.clear()
        for key in list(store.keys()):  # a view of a file knows no iteration of its own
            value = np.asarray(store[key])
            if key in self.variables:
                self.variables[key].assign(value)
                self.restored.add(key)
            else:
                self.arrays[key] = value

    def _keep_out_of_optimizer_files(self, optimizer: Any) -> None:
        """Make an optimizer save and load its own variables only, in the layout that it has without pruning."""

        def own() -> list[keras.Variable]:
            mine = {id(variable) for variable in self.variables.values()}
            return [variable for variable in optimizer.variables if id(variable) not in mine]

        def save_own_variables(store: Any) -> None:
            for i, variable in enumerate(own()):
                store[str(i)] = read(variable)

        def load_own_variables(store: Any) -> None:
            variables = own()
            if len(store.keys()) != len(variables):
                warnings.warn(
                    f"Optimizer {optimizer.name!r} has {len(variables)} variables of its own and the file has "
                    f"{len(store.keys())}: its state is not loaded, and training goes on with fresh moments. "
                    "Was the file saved with another optimizer?",
                    stacklevel=2,
                )
                return
            for i, variable in enumerate(variables):
                variable.assign(store[str(i)])

        optimizer.save_own_variables = save_own_variables
        optimizer.load_own_variables = load_own_variables
