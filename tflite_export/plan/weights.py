"""The weights of a dense file: its constants, who reads them, and which Keras variable each one is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.file.flatbuffer import DTYPES, constant, operator_name
from tflite_export.plan.eligibility import Consumer, Weight

__all__ = ["Fingerprint", "Names", "collect", "fingerprint"]

Fingerprint = tuple[int, int, int]
_ACTIVATIONS = {code: name for name, code in vars(schema.ActivationFunctionType).items() if isinstance(code, int)}


def collect(model: Any, *, names: Names, rows: Mapping[tuple[int, int], int]) -> list[Weight]:
    """Return the weights of a `ModelT`, one for each buffer, in the file's order.

    Listed are constants of more than one element that are floating-point, or of one byte an element
    (quantized weights); shapes, axes and scalars are not weights. The uses of a float16 constant that only
    DEQUANTIZE reads are those of what DEQUANTIZE makes of it.

    Args:
        model: a dense file's `ModelT`.
        names: paths of the Keras variables.
        rows: for (subgraph, tensor), the rows of that tensor as a matrix, for one sample; where known.
    """
    consumers: defaultdict[tuple[int, int], list[Consumer]] = defaultdict(list)
    outputs: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for number, subgraph in enumerate(model.subgraphs):
        for operator in subgraph.operators or []:
            for slot, tensor in enumerate(operator.inputs if operator.inputs is not None else []):
                if tensor >= 0:
                    consumers[number, int(tensor)].append(_consumer(model, number, operator, slot, rows))
                    outputs[number, int(tensor)] += [(number, int(output)) for output in operator.outputs]
    sharing: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, subgraph in enumerate(model.subgraphs):
        for index, tensor in enumerate(subgraph.tensors or []):
            sharing[tensor.buffer].append((number, index))
    weights = []
    for tensors in sharing.values():
        number, index = tensors[0]
        tensor = model.subgraphs[number].tensors[index]
        values = constant(model, tensor)
        if values is None or not _is_weight(values):
            continue
        uses = [use for place in tensors for use in consumers[place]]
        dequantized = values.dtype == np.float16 and bool(uses) and all(use.operator == "DEQUANTIZE" for use in uses)
        read = [place for one in tensors for place in outputs[one]] if dequantized else list(tensors)
        kinds = {(tuple(model.subgraphs[n].tensors[i].shape), model.subgraphs[n].tensors[i].type) for n, i in tensors}
        weights.append(
            Weight(
                name=names.find(values, tensor.quantization) or (tensor.name or b"").decode("utf-8", errors="replace"),
                values=values,
                consumers=tuple(use for place in read for use in consumers[place]),
                tensors=tuple(tensors),
                is_output=any(
                    i in list(model.subgraphs[n].outputs if model.subgraphs[n].outputs is not None else [])
                    for n, i in (*tensors, *read)
                ),
                agree=len(kinds) == 1,
                dequantized=dequantized,
            )
        )
    return weights


def _is_weight(values: NDArray[Any]) -> bool:
    quantized = values.dtype.kind in "iu" and values.dtype.itemsize == 1
    return values.size > 1 and (values.dtype.kind == "f" or quantized)


def fingerprint(values: NDArray[Any]) -> Fingerprint:
    """Return the size, the sum and the xor of an array's bit patterns: equal for an array and its transposes.

    Example:
        >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
        >>> fingerprint(a) == fingerprint(a.T.copy())
        True
    """
    bits = np.ascontiguousarray(values).reshape(-1).view(f"u{values.dtype.itemsize}")
    return (
        int(values.size),
        int(bits.sum(dtype=np.uint64)),
        int(np.bitwise_xor.reduce(bits)) if bits.size else 0,
    )


@dataclass(frozen=True)
class Names:
    """Paths of Keras variables, by what is left of their values in a file.

    Args:
        exact: by fingerprint, of the values in float32 and in float16; those of several variables are left out.
        sums: by size: (path, sum, sum of absolute values), for quantized weights.
    """

    exact: Mapping[Fingerprint, str]
    sums: Mapping[int, tuple[tuple[str, float, float], ...]]

    @classmethod
    def of(cls, variables: Iterable[tuple[str, NDArray[Any]]], *, float16: bool = False, sums: bool = False) -> Names:
        """Return the names of variables, (path, values) each.

        Args:
            variables: of the Keras model.
            float16: know them rounded to float16 too.
            sums: know them quantized to integers too.
        """
        found: defaultdict[Fingerprint, list[str]] = defaultdict(list)
        by_size: defaultdict[int, list[tuple[str, float, float]]] = defaultdict(list)
        for path, values in variables:
            for rounded in _roundings(values, float16):
                if path not in found[fingerprint(rounded)]:
                    found[fingerprint(rounded)].append(path)
            if sums and values.ndim > 1 and values.dtype.kind == "f":
                by_size[values.size].append((path, float(values.sum(dtype=np.float64)), float(np.abs(values).sum())))
        exact = {key: paths[0] for key, paths in found.items() if len(paths) == 1}
        return cls(exact, {size: tuple(entries) for size, entries in by_size.items()})

    def __or__(self, other: Names) -> Names:
        """Return both; where they know the same values, the other's path."""
        sums = {size: (*entries, *other.sums.get(size, ())) for size, entries in self.sums.items()}
        return Names({**self.exact, **other.exact}, {**other.sums, **sums})

    def find(self, values: NDArray[Any], quantization: Any = None) -> str | None:
        """Return the path of the variable that a constant holds, or None.

        An integer constant is told by the sums of its values and of their sizes, which rounding moves by far
        less than they differ between variables: within 1 % of the sum of sizes, and four times nearer than
        any other.

        Args:
            values: of the constant.
            quantization: its tensor's `QuantizationParametersT`.
        """
        if values.dtype.kind == "f":
            return self.exact.get(fingerprint(values))
        scale = None if quantization is None else quantization.scale
        if scale is None or values.size not in self.sums:
            return None
        shape = [1] * values.ndim
        if len(scale) > 1:
            shape[quantization.quantizedDimension] = len(scale)
        real = values * np.asarray(scale, dtype=np.float32).reshape(shape)
        total, size = float(real.sum(dtype=np.float64)), float(np.abs(real).sum())
        found = {(s, a): path for path, s, a in self.sums[values.size]}
        nearest = sorted((abs(total - s) + abs(size - a), path) for (s, a), path in found.items())
        sure = len(nearest) == 1 or nearest[1][0] > 4 * nearest[0][0]
        return nearest[0][1] if sure and nearest[0][0] <= 0.01 * size else None


def _roundings(values: NDArray[Any], float16: bool) -> Iterator[NDArray[Any]]:
    yield values
    if float16 and values.dtype == np.float32:
        with np.errstate(over="ignore"):  # an infinity is what the converter would write, too
            yield values.astype(np.float16)


def _consumer(model: Any, number: int, operator: Any, slot: int, rows: Mapping[tuple[int, int], int]) -> Consumer:
    options = operator.builtinOptions
    first = int(operator.inputs[0])
    gives = model.subgraphs[number].tensors[int(operator.outputs[0])].type if len(operator.outputs) else -1
    activation = getattr(options, "fusedActivationFunction", 0)
    return Consumer(
        operator=operator_name(model, operator),
        slot=slot,
        activation=_ACTIVATIONS.get(activation, str(activation)),
        default_layout=getattr(options, "weightsFormat", 0) == 0,
        computes=DTYPES[gives].name if gives in DTYPES else f"type {gives}",
        rows=rows.get((number, first)),
    )
