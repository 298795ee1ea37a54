"""Which layers of a model can be factorised, and the forms of each at each of its ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers as kl

from keras_prune.factorization.chains import Array, Decomposition, Split, Tucker2
from keras_prune.factorization.choosing import Choices
from keras_prune.factorization.costs import Cost, Places
from keras_prune.factorization.reading import on_data
from keras_prune.factorization.tensor_train import TrainOfConvolution, TrainOfDense, splits
from keras_prune.graph.graph import Graph, Inside, Node, Shape
from keras_prune.keras_seam import from_keras, layers_in, own_variables
from keras_prune.layer_kinds import KINDS
from keras_prune.models.variables import read
from keras_prune.scope import Scope, Skipped, Target

__all__ = ["CONVOLUTION_FORMS", "DENSE_FORMS", "Candidate", "Left", "candidates_of"]

Grams = Mapping[int, Array]
"""Of what a kernel reads, by the variable's id."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that can be factorised.

    Attributes:
        target: its kernel.
        kernel: the kernel's values, in float64.
        forms: the decompositions to choose from.
        whole: what the layer costs as it is.
        of: for each choice, in order, the form and its row of ranks; only those neither larger nor slower.
        choices: what these cost and lose.
        shape: of the input of its first call.
    """

    target: Target
    kernel: Array
    forms: tuple[Decomposition, ...]
    whole: Cost
    of: npt.NDArray[np.int64]
    choices: Choices
    shape: Shape

    @property
    def name(self) -> str:
        """The path of the layer."""
        return self.target.path.rpartition("/")[0] or self.target.layer.name

    def chosen(self, choice: int) -> tuple[Decomposition, tuple[int, ...]]:
        """Return the form of a choice, and its ranks."""
        form, row = self.of[choice]
        return self.forms[form], tuple(int(rank) for rank in self.forms[form].ranks[row])


class Left(Exception):
    """A layer is left as it is; with the reason."""


def candidates_of(
    graph: Graph, scope: Scope, forms: Sequence[str], grams: Callable[[Sequence[Target]], Grams]
) -> tuple[list[Candidate], list[Skipped]]:
    """Return the layers that can be factorised, in the model's order, and the other kernels with the reasons.

    Args:
        graph: of the model.
        scope: which kernels may be.
        forms: the names of the forms to choose from.
        grams: the kernels that can be -> Gram matrices of what they read; none without data.
    """
    survey = scope.survey(graph.model, may_be_empty=True)
    skipped = [one for one in survey.skipped if one.path.rpartition("/")[2].partition("#")[0] in _KERNELS]
    taken: list[tuple[Target, list[Node]]] = []
    for target in survey.targets:
        try:
            taken.append((target, _calls(graph, target)))
        except Left as left:
            skipped.append(Skipped(target.path, str(left)))
    known = grams([target for target, _ in taken])
    found = []
    for target, calls in taken:
        try:
            found.append(_candidate(graph, target, calls, forms, known.get(id(target.variable))))
        except Left as left:
            skipped.append(Skipped(target.path, str(left)))
    return found, skipped


_KERNELS = {name for kind in KINDS.values() for name in kind.kernels}
_FACTORISED = (kl.Dense, kl.Conv1D, kl.Conv2D)


def _calls(graph: Graph, target: Target) -> list[Node]:
    """The calls of the layer of a kernel.

    Raises:
        Left: the layer is not one that others can take the place of.
    """
    layer: Any = target.layer
    kind = type(layer).__name__
    if not isinstance(layer, _FACTORISED) or not from_keras(type(layer).call):
        raise Left(f"{kind} is no Dense, Conv1D or Conv2D of Keras's own, whose kernels have forms")
    if getattr(layer, "groups", 1) != 1:
        raise Left(f"it is a convolution in {layer.groups} groups, which are small already")
    if layer.kernel_constraint is not None or target.variable.constraint is not None:
        constraint = layer.kernel_constraint or target.variable.constraint
        raise Left(f"its constraint {type(constraint).__name__} is on the kernel, and factors would not keep it")
    owners = [one for one in layers_in(graph.model) if any(v is target.variable for v in own_variables(one))]
    if len(owners) > 1:
        raise Left(f"its kernel is also that of {next(one.name for one in owners if one is not layer)!r}")
    calls = [node for node in graph.walk() if node.operation is layer]
    inside = [body for node in graph.walk() for body in node.bodies if isinstance(body, Inside)]
    owner = next((body.model for body in inside if any(node.operation is layer for node in body.walk())), None)
    if owner is None and not calls:
        owner = next((n.operation for n in graph.walk() if _holds(n.operation, layer)), graph.model)
    if owner is not None:
        raise Left(f"{type(owner).__name__} {owner.name!r} calls it in its own call(), where it cannot be replaced")
    return list({id(node): node for node in calls}.values())


def _holds(operation: Any, layer: Any) -> bool:
    return isinstance(operation, keras.Layer) and any(one is layer for one in layers_in(operation))


def _places(layer: Any, shapes: Sequence[tuple[Shape, Shape]]) -> Places:
    """At how many places each call applies the layer."""
    return Places(tuple(_place(layer, *pair) for pair in shapes))


def _shapes(graph: Graph, calls: Sequence[Node]) -> list[tuple[Shape, Shape]]:
    """The shapes of the input and the output of each call."""
    graphs = [graph, *(body for node in graph.walk() for body in node.bodies)]
    around = {id(node): one.shapes for one in graphs for node in one.nodes}
    return [(around[id(node)][node.inputs[0]], around[id(node)][node.outputs[0]]) for node in calls]


def _place(layer: Any, given: Shape, out: Shape) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    sizes = [tuple(size or 1 for size in shape) for shape in (given, out)]
    if isinstance(layer, kl.Dense):
        return int(np.prod(sizes[0][1:-1])), (), ()
    before, after = (one[2:] if layer.data_format == "channels_first" else one[1:-1] for one in sizes)
    return 1, before, after


DENSE_FORMS = ("svd", "tensor_train")
"""Forms of a Dense layer."""
CONVOLUTION_FORMS = ("spatial", "channel", "tucker2", "tensor_train")
"""Forms of a convolution."""


def _candidate(
    graph: Graph, target: Target, calls: Sequence[Node], names: Sequence[str], gram: Array | None
) -> Candidate:
    shapes = _shapes(graph, calls)
    places = _places(target.layer, shapes)
    kernel = np.asarray(read(target.variable), np.float64)
    if not np.isfinite(kernel).all():
        raise Left("its weights are not all finite")
    if not kernel.any():
        raise Left("all of its weights are 0")
    vectors = all(len(given) == 2 for given, _ in shapes)
    forms = tuple(_forms(target.layer, kernel, places, names, _eps(target.variable), gram, vectors))
    if not forms:
        fitting = DENSE_FORMS if isinstance(target.layer, kl.Dense) else CONVOLUTION_FORMS
        only = (
            "; a tensor train of a Dense layer is for vectors whose sizes are no primes" if not kernel.ndim - 2 else ""
        )
        raise Left(f"none of the forms {tuple(names)} is for it: {fitting} are{only}")
    whole = Cost(kernel.size, kernel.size * places.after(range(kernel.ndim - 2)))
    rows = [
        np.stack([np.full(len(rows), number), rows], axis=1)
        for number, form in enumerate(forms)
        for rows in [np.flatnonzero((form.params < whole.params) & (form.macs < whole.macs))]
    ]
    of = np.concatenate(rows)
    if not len(of):
        raise Left("at every rank it would have more weights or multiplications than it has")
    params, macs, lost = (
        np.concatenate([getattr(form, name)[own[:, 1]] for form, own in zip(forms, rows, strict=True)])
        for name in ("params", "macs", "lost")
    )
    return Candidate(target, kernel, forms, whole, of, Choices(whole, params, macs, lost), shapes[0][0])


def _forms(
    layer: Any, kernel: Array, places: Places, names: Sequence[str], eps: float, gram: Array | None, vectors: bool
) -> list[Decomposition]:
    """The decompositions of a kernel; on data, what is not solved for them is measured on them."""
    window = tuple(range(kernel.ndim - 2))
    windowed = bool(window) and max(kernel.shape[:-2]) > 1
    solved: list[Decomposition] = []
    found: list[Decomposition] = []
    if not window and "svd" in names:
        solved.append(Split("svd", kernel, (), places, eps, gram))
    if window and "channel" in names:
        solved.append(Split("channel", kernel, window, places, eps, gram))
        found += [Split("channel", kernel, (), places, eps)] if windowed else []
    if len(window) == 2 and "spatial" in names and min(kernel.shape[:2]) > 1:
        found.append(Split("spatial", kernel, (0,), places, eps))
    if windowed and "tucker2" in names:
        found.append(Tucker2(kernel, places, eps))
    if windowed and "tensor_train" in names:
        found.append(TrainOfConvolution(kernel, places))
    if not window and vectors and "tensor_train" in names and layer.bias_constraint is None and splits(kernel):
        found.append(TrainOfDense(kernel))
    return solved + (found if gram is None else [on_data(form, kernel, gram) for form in found])


def _eps(variable: keras.Variable) -> float:
    """The precision that a kernel was stored in."""
    kinds: dict[str, Any] = {"float64": np.float64, "float16": np.float16, "bfloat16": np.float16}
    return float(np.finfo(kinds.get(str(variable.dtype), np.float32)).eps)
