"""A rewritten model is run beside the one it was made from before it is handed over."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops, tree

from keras_prune.arrays.distance import relative_difference
from keras_prune.keras_seam import (
    built_shapes,
    float64_policy,
    global_seed,
    input_structure,
    layers_in,
    own_state,
    random_states,
)
from keras_prune.layer_kinds import states_of
from keras_prune.models.samples import OPEN_SIZES, draw_inputs
from keras_prune.models.variables import assign, read

__all__ = ["Given", "State", "check_agreement", "computing_in_float64", "kept_state", "tolerance_of"]

Values = list[npt.NDArray[Any]]
Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call, by position and by name."""
State = Sequence[tuple[keras.Variable, npt.NDArray[Any]]]
"""Variables, each with a value that it is to have for a while."""
Run = Callable[..., Any]


def check_agreement(
    owner: str,
    old: keras.Model,
    new: keras.Model,
    *,
    inputs: Any = None,
    reference: Run | None = None,
    state: State = (),
    locate: Callable[[Given, float], str] | None = None,
) -> None:
    r"""Run a model and what was made from it on a small batch, and refuse a result that answers otherwise.

    $\max |new - old| \le 80 \epsilon \max |old|$ has to hold for each output, with $\epsilon$ of the coarsest type
    that a layer computes in. Where it does not, both are run in float64, since a deep model may blow rounding up.

    Args:
        owner: the function that made it, for the message.
        old: the model given; its variables are as they were afterwards.
        new: what was made from it; likewise.
        inputs: as the model's call takes them, few samples; None draws some (see `draw_inputs`).
        reference: answers in the place of `old`.
        state: values that variables of `old` have while it runs: zeros for what was removed, say.
        locate: (arguments, tolerance) -> where the difference arises, for the message.

    Raises:
        ValueError: an output differs (with the size of the difference, and the layer where it is known).

    Warns:
        UserWarning: nothing was compared: the old model does not run on drawn inputs, or its answers are random.
    """
    old_run: Run = old if reference is None else reference
    given, wanted = _first_answers(owner, old, old_run, inputs, state)
    if given is None:
        return
    with kept_state(new):
        found = _answers(new, given)
    tolerance = tolerance_of(old)
    error = _worst(wanted, found)
    if error <= tolerance:
        return
    with kept_state(old, state):
        again = [_answers(old_run, given) for _ in range(2)]
    if _worst(*again) > tolerance:
        _warn(owner, old, "its answers are random, also outside of training")
        return
    with contextlib.suppress(Exception), computing_in_float64(old), computing_in_float64(new):
        # A layer of the user's own may know float32 only, and raise anything: then what was found in float32 counts.
        with kept_state(old, state):
            wanted = _answers(old_run, given)
        with kept_state(new):
            found = _answers(new, given)
        error = _worst(wanted, found)
    if error > tolerance:
        place = "" if locate is None else locate(given, tolerance)
        raise ValueError(
            f"{owner}: the outputs of {old.name!r} would change by {error:.2g} of their scale, and "
            f"rounding explains at most {tolerance:.2g}{place}. Either a layer's get_config() does not rebuild it as "
            "it was, or a layer holds state that is neither a weight nor saved by its save_assets() or "
            "save_own_variables(), or its rule is wrong."
        )


def tolerance_of(model: keras.Model) -> float:
    """Return the difference that is rounding, as a share of an output's scale, for the types a model computes in."""
    kinds: dict[str, Any] = {
        "float64": np.float64,
        "float16": np.float16,
        "bfloat16": np.float16,
    }  # NumPy has no bfloat16
    used = {layer.compute_dtype for layer in layers_in(model) if layer.compute_dtype}
    coarsest = max((np.finfo(kinds.get(name, np.float32)).eps for name in used), default=np.finfo(np.float32).eps)
    return 80.0 * float(coarsest)


def _first_answers(owner: str, old: keras.Model, run: Run, inputs: Any, state: State) -> tuple[Given | None, Values]:
    """The first arguments that the old model takes, and its answers."""
    failure: Exception | None = None
    first: list[Given] = [] if inputs is None else [((inputs,), {})]
    for given in itertools.chain(first, _drawn(old)):
        try:
            with kept_state(old, state):
                return given, _answers(run, given)
        except Exception as error:  # anything, since the model may be anybody's
            failure = failure or error
    _warn(owner, old, f"it does not run on drawn inputs ({' '.join(str(failure).split())[:200]})")
    return None, []


def _warn(owner: str, model: keras.Model, reason: str) -> None:
    warnings.warn(
        f"{owner}: the result was not compared with {model.name!r}, because {reason}. "
        "Compare the two on inputs of your own.",
        stacklevel=4,
    )


def _drawn(model: Any) -> Iterator[Given]:
    """Drawn arguments of a model's call, other ones where it did not take those before."""
    symbols = _symbols(model)
    for kind in (None, "int32", "string"):
        if kind is not None and getattr(model, "inputs", None):
            return
        for size in OPEN_SIZES:
            typed = symbols if kind is None else _retyped(symbols, kind)
            yield (draw_inputs(model, typed[0][0], size),) if typed[0] else (), draw_inputs(model, typed[1], size)
            if all(None not in tensor.shape[1:] for tensor in tree.flatten(symbols)):
                break


def _symbols(model: Any) -> Given:
    """Symbolic arguments of a model's call: its inputs, or tensors of the shapes that a subclass was built for."""
    if getattr(model, "inputs", None):
        return (model.inputs[0] if isinstance(model, keras.Sequential) else input_structure(model),), {}
    shapes = built_shapes(model)
    made = {name: tree.map_shape_structure(keras.KerasTensor, shape) for name, shape in shapes.items()}
    if len(made) == 1:
        return (next(iter(made.values())),), {}
    return (), {name.removesuffix("_shape"): value for name, value in made.items()}


def _retyped(symbols: Given, kind: str) -> Given:
    made: Given = tree.map_structure(lambda one: keras.KerasTensor(one.shape, dtype=kind), symbols)
    return made


def _answers(run: Run, given: Given) -> Values:
    outputs = run(*given[0], **given[1], training=False)
    return [np.asarray(ops.convert_to_numpy(value)) for value in tree.flatten(outputs)]


def _worst(wanted: Values, found: Values) -> float:
    if len(wanted) != len(found):
        return float("inf")
    return max((relative_difference(b, a) for a, b in zip(wanted, found, strict=True)), default=0.0)


@contextlib.contextmanager
def kept_state(model: keras.Model, state: State = ()) -> Iterator[None]:
    """The scope in which variables may have other values; afterwards all of a model is as it was.

    Also what a call itself changes: states of random generators, and of stateful recurrent layers, which are 0 inside.

    Args:
        model: the model.
        state: variables, each with the value it is to have inside.
    """
    layers = layers_in(model)
    moving = [variable for layer in layers for variable in own_state(layer)]
    moving += [state for layer in layers for state in random_states(layer)]
    moving += [global_seed(), *(variable for variable, _ in state)]
    states = [state for layer in layers for state in states_of(layer)]
    moving += states
    before = {id(variable): (variable, np.array(read(variable))) for variable in moving}
    try:
        for variable, value in (*state, *((one, np.zeros_like(before[id(one)][1])) for one in states)):
            assign(variable, value)
        yield
    finally:
        for variable, value in before.values():
            if not np.array_equal(read(variable), value, equal_nan=value.dtype.kind == "f"):
                assign(variable, value)


@contextlib.contextmanager
def computing_in_float64(model: keras.Model) -> Iterator[None]:
    """Let the layers of a model that compute in float32 do so in float64, and put their policies back."""
    changed = [(layer, layer.dtype_policy) for layer in layers_in(model) if layer.compute_dtype == "float32"]
    try:
        for layer, _ in changed:
            layer.dtype_policy = float64_policy()
        yield
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy
