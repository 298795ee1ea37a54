"""A step of a recurrent cell as the operators of an int8 file compute it, each of their results rounded.

A sum and what is added to it share a range: there are fewer, and where the converter leaves out the addition of a first
state, which is zero, one tensor has one range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras import layers as kl
from keras import ops

from keras_prune.keras_seam import built_shapes
from keras_prune.layer_kinds import altered
from keras_prune.models.masked_layers import mask_pairs_of
from keras_prune.quantization.kinds import FIXED, FUSED, name_of_function

__all__ = ["STEPS", "CellStep", "Ends", "refusal_of_recurrent", "tensors_of"]

Ends = tuple[float, float]
Rounding = Callable[[str, Any], Any]
"""(name of a tensor of the step, its values) -> the values rounded; a list of values, the parts of a rounded tensor."""


@dataclasses.dataclass(frozen=True)
class CellStep:
    """What is known of a kind of cell.

    Attributes:
        run: (cell, inputs `[n, in]`, states `[n, units]` each, rounding) -> output and new states. Without rounding it
            computes what the cell does, in inference mode.
        results: names of the tensors that products and sums make; with its two ends, one whose range is known.
        activated: names of the tensors that activation functions make -> the cell's attribute that holds the function.
        by_step: names of the results with a range for each step. The state has one: the next step's products read it,
            and each range of their input would need a bias of its own in the file.
    """

    run: Callable[[Any, Any, Sequence[Any], Rounding], tuple[Any, list[Any]]]
    results: Mapping[str, Ends | None]
    activated: Mapping[str, str]
    by_step: frozenset[str]


def _projected(inputs: Any, kernel: Any, bias: Any) -> Any:
    """A fully connected operator: its bias is no tensor with a range of its own."""
    product = ops.matmul(inputs, kernel)
    return product if bias is None else ops.add(product, bias)


def _parts(name: str, values: Any, number: int, rounded: Rounding) -> list[Any]:
    """The parts of a rounded tensor, rounded once more, which changes nothing.

    Where only the whole tensor has a range, the converter takes now and then, by chance, other ones for the parts, and
    then refuses the file.
    """
    parts: list[Any] = rounded(name, ops.split(rounded(name, values), number, axis=-1))
    return parts


def _lstm(cell: Any, inputs: Any, states: Sequence[Any], rounded: Rounding) -> tuple[Any, list[Any]]:
    state, carry = states
    read = rounded("sum", _projected(inputs, cell.kernel, cell.bias))
    kept = rounded("state_sum", ops.matmul(state, cell.recurrent_kernel))
    sums = _parts("sum", read + kept, 4, rounded)
    enter, stay, leave = (rounded("gate", cell.recurrent_activation(sums[i])) for i in (0, 1, 3))
    candidate = rounded("candidate", cell.activation(sums[2]))
    carry = rounded("carry", rounded("carry", stay * carry) + rounded("carry", enter * candidate))
    state = rounded("state", leave * rounded("squashed", cell.activation(carry)))
    return state, [state, carry]


def _gru(cell: Any, inputs: Any, states: Sequence[Any], rounded: Rounding) -> tuple[Any, list[Any]]:
    state, units = states[0], cell.units
    bias, state_bias = (cell.bias, None) if cell.bias is None or not cell.reset_after else (cell.bias[0], cell.bias[1])
    read = _parts("sum", _projected(inputs, cell.kernel, bias), 3, rounded)
    kernel = cell.recurrent_kernel if cell.reset_after else cell.recurrent_kernel[:, : 2 * units]
    kept = _parts("state_sum", _projected(state, kernel, state_bias), 3 if cell.reset_after else 2, rounded)
    update, reset = (rounded("gate", cell.recurrent_activation(rounded("sum", read[i] + kept[i]))) for i in (0, 1))
    if cell.reset_after:
        new = rounded("reset", reset * kept[2])
    else:
        new = rounded("reset_sum", ops.matmul(rounded("reset", reset * state), cell.recurrent_kernel[:, 2 * units :]))
    candidate = rounded("candidate", cell.activation(rounded("sum", read[2] + new)))
    renewed = rounded("state", rounded("rest", 1.0 - update) * candidate)
    state = rounded("state", rounded("state", update * state) + renewed)
    return state, [state]


def _simple(cell: Any, inputs: Any, states: Sequence[Any], rounded: Rounding) -> tuple[Any, list[Any]]:
    read = rounded("sum", _projected(inputs, cell.kernel, cell.bias))
    kept = rounded("state_sum", ops.matmul(states[0], cell.recurrent_kernel))
    state = rounded("state", cell.activation(rounded("sum", read + kept)))
    return state, [state]


STEPS: dict[type, CellStep] = {
    kl.LSTMCell: CellStep(
        _lstm,
        dict.fromkeys(("sum", "state_sum", "carry", "state")),
        {"gate": "recurrent_activation", "candidate": "activation", "squashed": "activation"},
        frozenset({"sum", "state_sum", "carry"}),
    ),
    kl.GRUCell: CellStep(
        _gru,
        {"rest": (0.0, 1.0), **dict.fromkeys(("sum", "state_sum", "reset", "reset_sum", "state"))},
        {"gate": "recurrent_activation", "candidate": "activation"},
        frozenset({"sum", "state_sum", "reset", "reset_sum"}),
    ),
    kl.SimpleRNNCell: CellStep(
        _simple, dict.fromkeys(("sum", "state_sum")), {"state": "activation"}, frozenset({"sum", "state_sum"})
    ),
}
"""By the class of a cell."""


def tensors_of(cell: Any) -> dict[str, Ends | None]:
    """Return the names of the tensors of a cell's step that are rounded, each with its ends if these are known.

    Example:
        >>> tensors_of(kl.SimpleRNNCell(3))
        {'sum': None, 'state_sum': None, 'state': (-1.0, 0.9921875)}
    """
    step = STEPS[type(cell)]
    found = dict(step.results)
    if type(cell) is kl.GRUCell and cell.reset_after:
        del found["reset_sum"]
    for name, attribute in step.activated.items():
        function = name_of_function(getattr(cell, attribute))
        if function != "linear":
            found[name] = FIXED.get(function)
    return found


def refusal_of_recurrent(layer: Any) -> str:
    """Return why a recurrent layer's steps are not rounded; empty where they are."""
    cell = layer.cell
    if type(layer) not in (kl.RNN, kl.LSTM, kl.GRU, kl.SimpleRNN) or type(cell) not in STEPS:
        return f"{type(layer).__name__} of {type(cell).__name__}: of its step it is not known what the converter makes"
    if mask_pairs_of(layer) or mask_pairs_of(cell):
        return "it carries masks of its own: call keras_prune.strip(model) first"
    if altered(layer) or altered(cell):
        return altered(layer) or altered(cell)
    for attribute in set(STEPS[type(cell)].activated.values()):
        function = name_of_function(getattr(cell, attribute))
        if function not in (*FIXED, *FUSED):
            return f"its {attribute} {function!r} becomes several operators, and there is no range for what is between"
    if layer.stateful:
        return "it is stateful: a file of int8 numbers keeps no state from one call to the next"
    if cell.recurrent_dropout or (cell.dropout and getattr(cell, "dropout_mask_count", 1) > 1):
        return "each of its gates drops other values: use dropout= with implementation=2, and no recurrent_dropout="
    if layer.activity_regularizer is not None:
        return "its activity_regularizer is not computed while it runs step by step"
    shapes = [shape for shape in built_shapes(layer).values() if shape]
    if shapes and shapes[0][1] is None:
        return "its sequences have no fixed length, and an int8 file holds each step: keras.Input((length, ...))"
    return ""
