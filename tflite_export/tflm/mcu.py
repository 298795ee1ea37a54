"""Check a file for microcontrollers: in the interpreter of TensorFlow Lite Micro, in a process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from keras_prune.arrays.distance import distance
from tflite_export.errors import ExportError
from tflite_export.file.flatbuffer import TYPE_NAMES, operator_name
from tflite_export.file.integrity import is_decode, text
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.opening import open_foreign
from tflite_export.tflm.decode_operators import holds_decode, without_decode
from tflite_export.tflm.decoding import Decoding, beside_dense, require_right_tables
from tflite_export.tflm.micro import MicroSession, require_micro
from tflite_export.tolerances import MICRO_FLOAT, MICRO_STEPS
from tflite_export.verification.compare import OutputError
from tflite_export.verification.ports import Port

__all__ = [
    "SAMPLES",
    "SEED",
    "MicroReport",
    "check_full_int8",
    "check_micro",
    "check_structure",
    "draw_samples",
    "open_micro",
]

SAMPLES = 4
SEED = 20240229
_FLOATS = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32, schema.TensorType.FLOAT64}


@dataclass(frozen=True)
class MicroReport:
    """A file that runs in TensorFlow Lite Micro, with the same outputs as in LiteRT.

    Args:
        arena_bytes: the smallest tensor arena in which it allocates and gives the same outputs, in this
            interpreter, which also keeps records, on this 64-bit machine. A chip needs somewhat less: no records,
            shorter pointers.
        activation_bytes: the part of it that activations and scratch buffers share, as the interpreter records it.
        persistent_bytes: the part of it that stays: structures, quantization.
        model_bytes: of flash: the file itself.
        operators: (name, how often) of each operator: what the program has to register.
        outputs: how far each output is from LiteRT's.
        samples: number of inputs compared.
        runtime: version of tflite-micro.
        decoding: what its DECODE records cost and save; None where it has none.
    """

    arena_bytes: int
    activation_bytes: int
    persistent_bytes: int
    model_bytes: int
    operators: tuple[tuple[str, int], ...]
    outputs: tuple[OutputError, ...]
    samples: int
    runtime: str
    decoding: Decoding | None = None

    def __str__(self) -> str:
        """Return the figures as two lines, and as two more where weights are decoded."""
        worst = max(output.max_absolute for output in self.outputs)
        names = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in self.operators)
        return (
            f"TFLM {self.runtime}: arena {self.arena_bytes:,} bytes, flash {self.model_bytes:,} bytes, {self.samples} "
            f"inputs with the outputs of LiteRT (max difference {worst:.2g})\noperators to register: {names}"
            + (f"\n{self.decoding}" if self.decoding else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON-able dictionary."""
        return asdict(self) | {"operators": dict(self.operators), "outputs": [asdict(each) for each in self.outputs]}


def check_micro(
    file: TFLiteFile | bytes,
    inputs: Mapping[str, NDArray[Any]] | None = None,
    *,
    full_int8: bool = True,
    subject: str = "the file",
    limits: Limits | None = None,
    dense: TFLiteFile | None = None,
) -> MicroReport:
    """Run a file in TensorFlow Lite Micro and compare it with LiteRT; find the arena that it needs.

    Weights that are stored as DECODE records, which LiteRT does not read, are made dense for it. Then the file must
    also give the outputs of the dense one in TensorFlow Lite Micro, bit for bit.

    Args:
        file: the file, or its bytes.
        inputs: samples [samples, ...] for each input by name, as real numbers. None draws a few from the whole range of
            each input.
        full_int8: refuse floats anywhere in the file.
        subject: what errors call it.
        limits: what the file may take; None: 120 seconds for a run, and 4 GiB of memory or 8 times the file.
        dense: of a file with DECODE records, the one that it was made from; None: what they decode to.

    Raises:
        ImportError: tflite-micro is not installed; the message names the command.
        FlatbufferError: the file is damaged.
        ExportError: it holds what TFLM cannot take (sparse tensors, free shapes, an operator that it lacks) or reads
            wrongly (a look-up table of another axis than the scales), or gives other outputs than LiteRT.

    Example:
        >>> check_micro(b"not a file")
        Traceback (most recent call last):
            ...
        tflite_export.errors.FlatbufferError: ...
    """
    file = TFLiteFile.of(file, subject)
    model = file.model
    require_micro()
    check_structure(model, subject)
    if full_int8:
        check_full_int8(model, subject)
    plain = file
    if holds_decode(model):
        require_right_tables(file, subject)
        plain = without_decode(file) if dense is None else dense
    with MicroSession(file, subject, limits=limits) as micro:
        feeds = (
            draw_samples(micro.inputs) if inputs is None else {name: np.asarray(inputs[name]) for name in micro.inputs}
        )
        names, outputs = list(feeds), list(micro.outputs)
        # Both runtimes get the same bytes: what is compared is the kernels.
        stored = [micro.inputs[name].store(feeds[name]) for name in names]
        got = micro.run(stored, names, outputs)
        litert = open_foreign(plain, subject, delegate=False, limits=limits)
        wanted = [
            micro.outputs[name].real(values)
            for name, values in zip(outputs, litert.run(stored, names, outputs), strict=True)
        ]
        errors = tuple(
            _compare(name, micro.outputs[name], a, b, subject) for name, a, b in zip(outputs, got, wanted, strict=True)
        )
        arena, activations, persistent = micro.arena()
        decoding = None if plain is file else beside_dense(micro, file, plain, stored, got, subject, limits)
    return MicroReport(
        arena_bytes=arena,
        activation_bytes=activations,
        persistent_bytes=persistent,
        model_bytes=len(file.content),
        operators=_operators(model),
        outputs=errors,
        samples=len(stored[0]),
        runtime=version("tflite-micro"),
        decoding=decoding,
    )


def open_micro(
    file: TFLiteFile | bytes,
    subject: str = "the file",
    *,
    threads: int = 1,
    delegate: bool = False,
    limits: Limits | None = None,
) -> MicroSession:
    """Load a file of any make into TensorFlow Lite Micro, in a child process, checked to be one that it reads rightly.

    Args:
        file: the file, or its bytes.
        subject: what errors call it.
        threads: it has one.
        delegate: it has none.
        limits: what the file may take.

    Raises:
        ImportError: tflite-micro is not installed.
        FlatbufferError: the file is damaged.
        ExportError: the interpreter does not take it, or reads a look-up table of it wrongly.
    """
    file = TFLiteFile.of(file, subject)
    check_structure(file.model, subject)
    require_right_tables(file, subject)
    return MicroSession(file, subject, limits=limits)


def check_structure(model: Any, subject: str = "the file") -> None:
    """Refuse what TensorFlow Lite Micro would misread or not take: sparse tensors, and shapes that are free.

    TFLM reads the values of a sparse tensor as if they were dense, and gives NaN or noise without an error; it has no
    DENSIFY. The zeros that pay on a microcontroller are whole channels and units, taken out of the model before it is
    exported, and single ones in DECODE records, which take less flash.

    Args:
        model: the file's `ModelT`.
        subject: what to call it in errors.

    Raises:
        ExportError: with the tensor, and the way out.
    """
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            if operator_name(model, operator) == "DENSIFY":
                raise _sparse(subject, text(graph.tensors[int(operator.inputs[0])].name))
        for tensor in graph.tensors or []:
            if tensor.sparsity is not None:
                raise _sparse(subject, text(tensor.name))
            signature = tensor.shapeSignature
            if signature is not None and any(size < 0 for size in signature):
                raise ExportError(
                    f"tensor '{text(tensor.name)}' of {subject}",
                    "must have fixed shapes for TensorFlow Lite Micro",
                    [int(size) for size in signature],
                    "Export with target='mcu', or fix the sizes: batch_size=1, shapes={...}.",
                )


def check_full_int8(model: Any, subject: str = "the file") -> None:
    """Refuse a file that computes in floats anywhere, its inputs and outputs included.

    Raises:
        ExportError: with the first such tensor.
    """
    graph = model.subgraphs[0]
    borders = {
        int(index): kind
        for kind, indices in (("input", graph.inputs), ("output", graph.outputs))
        for index in _listed(indices)
    }
    # Inputs and outputs first: they name the cure best. A tensor that no operator reads or writes costs nothing.
    places = [(0, index) for index in borders]
    for number, each in enumerate(model.subgraphs):
        used = {int(i) for op in each.operators or [] for part in (op.inputs, op.outputs) for i in _listed(part)}
        places += [(number, index) for index in sorted(used) if index >= 0]
    for number, index in places:
        tensor = model.subgraphs[number].tensors[index]
        if tensor.type in _FLOATS:
            kind = borders.get(index, "tensor") if number == 0 else "tensor"
            raise ExportError(
                f"{kind} '{text(tensor.name)}' of {subject}",
                "a full int8 file holds integers only, its inputs and outputs too",
                TYPE_NAMES[tensor.type],
                "Export with target='mcu', quantize='int8' and data=..., or check with full_int8=False.",
            )


def _listed(values: Any) -> Any:
    return values if values is not None else []


def _sparse(subject: str, name: str) -> ExportError:
    return ExportError(
        f"weight '{name}' of {subject}",
        "TensorFlow Lite Micro has no sparse kernels and reads sparse tensors wrongly",
        "a sparse tensor",
        "Export with target='mcu', which stores zeros as DECODE records where that takes less flash.",
    )


def draw_samples(ports: Mapping[str, Port]) -> dict[str, NDArray[Any]]:
    """Draw a few samples: the whole range of a quantized input, a standard normal for floats, else 0 and 1."""
    rng = np.random.default_rng(SEED)
    drawn: dict[str, NDArray[Any]] = {}
    for name, port in ports.items():
        shape = (SAMPLES * port.shape[0], *port.shape[1:])
        if port.scale is not None:
            limits = np.iinfo(port.dtype)
            drawn[name] = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(port.dtype)
        elif port.dtype.kind == "f":
            drawn[name] = rng.standard_normal(shape).astype(port.dtype)
        else:
            drawn[name] = rng.integers(0, 2, shape).astype(port.dtype)
    return drawn


def _compare(name: str, port: Port, got: NDArray[Any], wanted: NDArray[Any], subject: str) -> OutputError:
    found = distance(got, wanted)
    allowed = MICRO_FLOAT * (found.scale or 1.0) if port.dtype.kind == "f" else (MICRO_STEPS + 0.01) * (port.scale or 0)
    if not found.largest <= allowed:
        raise ExportError(
            f"output '{name}' of {subject} (TFLM)",
            f"must be within {allowed:.3g} of LiteRT's",
            f"{found.largest:.3g}",
            "Report the file to tflite-micro; a kernel differs.",
        )
    return OutputError.of(name, found)


def _operators(model: Any) -> tuple[tuple[str, int], ...]:
    counts = Counter(
        "DECODE" if is_decode(model, operator) else operator_name(model, operator)
        for graph in model.subgraphs
        for operator in graph.operators or []
    )
    return tuple(sorted(counts.items()))
