"""The kept weights of a pruned model solved again, layer after layer, against the outputs of the dense one.

The pruned model and the dense one run side by side through the model's graph, one call after the other, on all batches
of the data. So each layer is solved on what it really reads once the layers before it are pruned and solved, and the
data goes through each layer a fixed number of times, however deep the model is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops, tree

from keras_prune.graph.graph import Graph, Inside, Node, input_tensors
from keras_prune.graph.trace import trace
from keras_prune.keras_seam.layers import layers_in, takes_training
from keras_prune.models.attributes import replaced
from keras_prune.models.variables import assign, read
from keras_prune.reconstruction.least_squares import Sums, solve
from keras_prune.reconstruction.linear import LinearMap, linear_map
from keras_prune.reconstruction.store import Pair, Store
from keras_prune.scope import Skipped, Target
from keras_prune.statistics.batches import Batches

__all__ = ["Pruned", "reconstruct"]

BATCH = 128
"""Samples that run at once, where the data does not come in batches."""
ROWS, ROWS_PER_INPUT = 65_536, 8
"""Samples that a kernel is solved on: at most the larger of this many, and this many for each of its inputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """A tensor that was pruned.

    Attributes:
        target: the tensor, pruned.
        kept: its mask, of the kernel's shape.
        dense: its values before it was pruned, of the kernel's shape.
    """

    target: Target
    kept: npt.NDArray[np.bool_]
    dense: npt.NDArray[Any]


def reconstruct(model: keras.Model, pruned: Sequence[Pruned], data: Any) -> tuple[Skipped, ...]:
    """Solve the kept weights of pruned kernels again, and the biases of their layers, in place.

    Args:
        model: the pruned model.
        pruned: its pruned tensors.
        data: inputs, as `Batches` takes them; labels are not looked at.

    Returns:
        The tensors that keep their weights as they are, with the reasons.
    """
    batches = [batch.x for batch in Batches(data, model, labels=False, size=BATCH)]
    with Store() as store:
        return _Reconstruction(model, pruned, len(batches), store).run(batches)


class _Reconstruction:
    """One pass of both models through the graph."""

    def __init__(self, model: keras.Model, pruned: Sequence[Pruned], batches: int, store: Store) -> None:
        self._model = model
        self._waiting = list(pruned)
        self._number = batches
        self._store = store
        self._skipped: list[Skipped] = []
        self._dense: list[tuple[keras.Variable, Any]] = []
        for one in pruned:
            self._was(one.target.variable, one.dense)
            if one.target.mask is not None:
                self._was(one.target.mask, np.ones(one.kept.shape))

    def _was(self, variable: keras.Variable, value: Any) -> None:
        """Note the value that a variable has in the dense model."""
        self._dense.append((variable, ops.convert_to_tensor(value, dtype=variable.dtype)))

    def run(self, batches: list[Any]) -> tuple[Skipped, ...]:
        try:
            graph = trace(self._model)
        except ValueError:
            # Its calls cannot be traced: the model is one call, run from its inputs for every kernel in it.
            given = [(x, x) for x in batches]
            self._solve_inside(self._model, lambda i: (((given[i][0],), {}), ((given[i][1],), {})))
        else:
            flat = [input_tensors(graph, x) for x in batches]
            self._run_graph(graph, [[(x[i], x[i]) for x in flat] for i in range(len(graph.inputs))])
        reason = "no call of its layer was seen on the data"
        self._skipped += [Skipped(one.target.path, reason) for one in self._waiting]
        return tuple(self._skipped)

    def _run_graph(self, graph: Graph, inputs: list[list[Pair]]) -> list[list[Pair]]:
        """Run the calls of a graph on all batches; gives its outputs, each for all batches."""
        readers = Counter(tensor for node in graph.nodes for tensor in (*set(node.inputs), *set(node.entries)))
        known = {}
        for tensor, pairs in zip(graph.inputs, inputs, strict=True):
            known[tensor] = self._store.keep(pairs)
        for node in graph.nodes:
            if node.body is not None and not isinstance(node.body, Inside):
                made = self._run_graph(node.body, [list(self._store.pairs(known[t])) for t in node.entries])
            else:
                made = self._run_node(node, known)
            for tensor, pairs in zip(node.outputs, made, strict=True):
                known[tensor] = self._store.keep(pairs)
            readers.subtract((*set(node.inputs), *set(node.entries)))
            for tensor in {*node.inputs, *node.entries, *node.outputs}:
                if readers[tensor] <= 0 and tensor not in graph.outputs and tensor in known:
                    self._store.drop(known.pop(tensor))
        return [list(self._store.pairs(known[tensor])) for tensor in graph.outputs]

    def _run_node(self, node: Node, known: dict[int, int]) -> list[list[Pair]]:
        def arguments(i: int) -> tuple[Any, Any]:
            pairs = {tensor: self._store.pair(known[tensor], i) for tensor in node.inputs}
            first, second = (node.filled({t: pair[side] for t, pair in pairs.items()}) for side in (0, 1))
            return first, second

        self._solve_inside(node.operation, arguments)
        changed = self._changed_in(node.operation)
        made = []
        for i in range(self._number):
            pruned, dense = arguments(i)
            first = tree.flatten(self._call(node.operation, pruned))
            same = not changed and all(
                a is b for a, b in zip(tree.flatten(pruned), tree.flatten(dense), strict=True) if ops.is_tensor(a)
            )
            second = first if same else tree.flatten(self._call(node.operation, dense, self._dense))
            made.append(list(zip(first, second, strict=True)))
        return [list(one) for one in zip(*made, strict=True)]

    def _changed_in(self, operation: Any) -> bool:
        """Whether the dense model has other values in a layer."""
        own = {id(variable) for variable in getattr(operation, "weights", ())}
        return any(id(variable) in own for variable, _ in self._dense)

    @staticmethod
    def _call(operation: Any, arguments: Any, values: Sequence[tuple[keras.Variable, Any]] = ()) -> Any:
        args, kwargs = arguments
        if takes_training(operation):
            kwargs = {**kwargs, "training": False}
        with keras.StatelessScope(list(values)):
            return operation(*args, **kwargs)

    def _solve_inside(self, operation: Any, arguments: Callable[[int], tuple[Any, Any]]) -> None:
        """Solve the kernels in a layer, in the order in which it calls their layers."""
        if not isinstance(operation, keras.Layer):
            return
        inside = {id(layer) for layer in layers_in(operation)}
        here = [one for one in self._waiting if id(one.target.layer) in inside]
        for one in self._in_order(operation, arguments, here):
            self._waiting.remove(one)
            reason = self._solve(operation, arguments, one)
            if reason:
                self._skipped.append(Skipped(one.target.path, reason))

    def _in_order(
        self, operation: Any, arguments: Callable[[int], tuple[Any, Any]], found: list[Pruned]
    ) -> list[Pruned]:
        if len(found) < 2:
            return found
        seen: list[int] = []
        with _watched([one.target.layer for one in found], lambda layer, x: seen.append(id(layer))):
            self._call(operation, arguments(0)[0])
        return sorted(
            (one for one in found if id(one.target.layer) in seen), key=lambda o: seen.index(id(o.target.layer))
        )

    def _solve(self, operation: Any, arguments: Callable[[int], tuple[Any, Any]], one: Pruned) -> str:
        """Solve one kernel; gives the reason where that cannot be done."""
        layer: Any = one.target.layer
        found = linear_map(layer, one.target.variable)
        if found is None:
            return f"{type(layer).__name__} is not known to multiply its input by this kernel"
        if one.kept.all():
            return ""
        sums = self._sums(operation, arguments, one, found)
        if sums is None:
            return "its layer is called in a compiled function, where inputs have no values"
        bias = getattr(layer, "bias", None)
        if found.vectors is None or found.bias is None or bias is None or not bias.trainable:
            before = None
        else:
            before = found.vectors(np.asarray(read(bias), np.float64))
            self._was(bias, read(bias))
        kernel = found.matrices(one.dense.astype(np.float64))
        solved, moved = solve(sums, kernel, found.matrices(one.kept), before)
        assign(one.target.variable, found.kernel(solved))
        if moved is not None and found.bias is not None:
            assign(bias, found.bias(moved))
        return ""

    def _sums(
        self, operation: Any, arguments: Callable[[int], tuple[Any, Any]], one: Pruned, found: LinearMap
    ) -> Sums | None:
        groups, width, _ = found.matrices(one.kept).shape
        sums = Sums.zeros(groups, width)
        limit = -(-max(ROWS, ROWS_PER_INPUT * width) // self._number)
        for i in range(self._number):
            rows: list[list[npt.NDArray[Any]]] = []
            for side, values in zip(arguments(i), ((), self._dense), strict=True):
                inputs: list[Any] = []
                with _watched([one.target.layer], lambda layer, x, inputs=inputs: inputs.append(x)):  # type: ignore[misc]
                    self._call(operation, side, values)
                try:
                    arrays = [np.asarray(ops.convert_to_numpy(ops.cast(x, "float32"))) for x in inputs]
                except (NotImplementedError, TypeError):
                    return None
                draw = np.random.default_rng((one.target.index, i))
                rows.append([found.rows(x, lambda n: _some(n, limit, draw)) for x in arrays])  # noqa: B023
            for x, y in zip(*rows, strict=True):
                sums.add(x, y)
        return sums if sums.count else None


def _some(number: int, limit: int, draw: np.random.Generator) -> Any:
    return slice(None) if number <= limit else np.sort(draw.choice(number, limit, replace=False))


@contextlib.contextmanager
def _watched(layers: Sequence[Any], see: Callable[[Any, Any], None]) -> Iterator[None]:
    """For a while, `see` is told each call of these layers, with its first argument."""

    def told(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            see(layer, args[0] if args else next(iter(kwargs.values())))
            return call(*args, **kwargs)

        return run

    with contextlib.ExitStack() as undo:
        for layer in {id(layer): layer for layer in layers}.values():
            undo.enter_context(replaced(layer, "call", told(layer, layer.call)))
        yield
