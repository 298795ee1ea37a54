"""The weights of a dense file: its float constants, who reads them, and which Keras variable each one is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.eligibility import Consumer, Weight
from tflite_export.flatbuffer import constant, operator_name

Fingerprint = tuple[int, int, int]
_ACTIVATIONS = {code: name for name, code in vars(schema.ActivationFunctionType).items() if isinstance(code, int)}


def collect(model: Any, *, names: Mapping[Fingerprint, str], rows: Mapping[tuple[int, int], int]) -> list[Weight]:
    """Return the weights of a ``ModelT``, one for each buffer, in the file's order.

    Listed are constants of more than one element that are floating-point, or of one byte an element
    (quantized weights); shapes, axes and scalars are not weights.

    Args:
        model: A dense file's ``ModelT``.
        names: Path of the Keras variable with a fingerprint, as :func:`variable_names` returns.
        rows: For (subgraph, tensor), the rows of that tensor as a matrix, for one sample; where known.
    """
    pooled = {number for number, subgraph in enumerate(model.subgraphs) if _gives_out_spatial_mean(model, subgraph)}
    consumers: defaultdict[tuple[int, int], list[Consumer]] = defaultdict(list)
    for number, subgraph in enumerate(model.subgraphs):
        for operator in subgraph.operators or []:
            for slot, tensor in enumerate(operator.inputs if operator.inputs is not None else []):
                if tensor >= 0:
                    consumers[number, int(tensor)].append(_consumer(model, number, operator, slot, rows, pooled))
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
        kinds = {(tuple(model.subgraphs[n].tensors[i].shape), model.subgraphs[n].tensors[i].type) for n, i in tensors}
        weights.append(
            Weight(
                name=names.get(fingerprint(values), (tensor.name or b"").decode("utf-8", errors="replace")),
                values=values,
                consumers=tuple(use for place in tensors for use in consumers[place]),
                tensors=tuple(tensors),
                is_output=any(
                    i in list(model.subgraphs[n].outputs if model.subgraphs[n].outputs is not None else [])
                    for n, i in tensors
                ),
                agree=len(kinds) == 1,
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


def variable_names(variables: Iterable[tuple[str, NDArray[Any]]]) -> dict[Fingerprint, str]:
    """Return the path of each variable by its fingerprint; those whose fingerprints are equal are left out.

    Args:
        variables: (path, values) of each variable of the Keras model.
    """
    found: defaultdict[Fingerprint, list[str]] = defaultdict(list)
    for path, values in variables:
        found[fingerprint(values)].append(path)
    return {key: paths[0] for key, paths in found.items() if len(paths) == 1}


def _consumer(
    model: Any, number: int, operator: Any, slot: int, rows: Mapping[tuple[int, int], int], pooled: Set[int]
) -> Consumer:
    options = operator.builtinOptions
    first = int(operator.inputs[0])
    activation = getattr(options, "fusedActivationFunction", 0)
    return Consumer(
        operator=operator_name(model, operator),
        slot=slot,
        activation=_ACTIVATIONS.get(activation, str(activation)),
        default_layout=getattr(options, "weightsFormat", 0) == 0,
        float_input=first >= 0 and model.subgraphs[number].tensors[first].type == schema.TensorType.FLOAT32,
        rows=rows.get((number, first)),
        pooled_output=number in pooled,
    )


def _gives_out_spatial_mean(model: Any, subgraph: Any) -> bool:
    """Return whether an output of a graph is a MEAN of rank 4."""
    outputs = set(subgraph.outputs.tolist() if subgraph.outputs is not None else [])
    return any(
        operator_name(model, operator) == "MEAN"
        and set(operator.outputs.tolist()) & outputs
        and getattr(operator.builtinOptions, "keepDims", False)
        for operator in subgraph.operators or []
    )
