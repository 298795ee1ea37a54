"""Run and time files where XNNPACK's sparse kernels are on: LiteRT.js, under Node or in a real Chromium.

On a PC with AVX these kernels never run (XNNPACK `src/configs`, `xnn_is_chw_compatible_config`); in
WebAssembly they do. LiteRT.js fails silently: where it cannot allocate, it answers garbage within a millisecond. So
whoever times here compares the outputs first, with LiteRT's on this machine or the model's:
`tflite_export.verification.agreement.require_right`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file import flatbuffer
from tflite_export.file.integrity import text
from tflite_export.runtimes.chromium import ChromiumHost
from tflite_export.runtimes.isolation import IsolatedSession
from tflite_export.runtimes.litert import Case, Measurement, require_names, run_in_batches
from tflite_export.runtimes.node import NodeHost

__all__ = [
    "SIMD",
    "TYPES",
    "Host",
    "WebSession",
    "fix_sizes",
    "measure_on_web",
    "open_web",
    "time_in_turn",
    "web_refusal",
]

TYPES: dict[int, type[np.generic]] = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
}
"""The types of inputs and outputs that LiteRT.js 2.5.3 has (`src/datatypes.ts`)."""
SIMD = ("relaxed", "plain")


class Host(Protocol):
    """A process that runs LiteRT.js and answers frames."""

    description: str

    def call(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> tuple[dict[str, Any], list[bytes]]:
        """Ask once; return the answer's header and blobs."""

    def close(self) -> None:
        """End the process."""


def open_web(*, browser: bool = False, simd: str = "relaxed") -> Host:
    """Start LiteRT.js, under Node or in a headless Chromium.

    Args:
        browser: in Chromium.
        simd: the build with "relaxed" SIMD, which browsers of today take, or with "plain".

    Raises:
        ExportError: Node, Chromium or LiteRT.js is missing, or does not start.
    """
    if simd not in SIMD:
        raise ExportError("simd", f"must be one of {SIMD}", repr(simd), "Choose one of these.")
    if browser:
        return ChromiumHost(simd)
    return NodeHost(simd)


def fix_sizes(
    content: bytes, batch: int = 1, subject: str = "the file", feeds: Mapping[str, NDArray[Any]] | None = None
) -> bytes:
    """Return a file whose sizes are free with its sizes fixed: LiteRT.js does not resize.

    Where only the batch is free, that is the first dimension of tensors of the main graph. Where other sizes are free,
    the file is run here on the feeds, and each tensor gets the shape that it has then. A file that is fixed is returned
    as it is.

    Args:
        content: the file.
        batch: what to fix the batch to.
        subject: what to call it in errors.
        feeds: arrays [batch, ...] by input: what to fix other sizes to.

    Raises:
        ExportError: another dimension than the batch is free, and there are no feeds.
    """
    model = flatbuffer.read(content, subject)
    graph = model.subgraphs[0]
    free = [
        (index, tensor)
        for index, tensor in enumerate(graph.tensors)
        if tensor.shapeSignature is not None and (np.asarray(tensor.shapeSignature) < 0).any()
    ]
    if not free:
        return content
    others = [index for index in graph.inputs if (np.asarray(_signature(graph.tensors[index]))[1:] < 0).any()]
    shapes = {index: [batch, *tensor.shape[1:]] for index, tensor in free if tensor.shapeSignature[0] < 0}
    if others and feeds is None:
        tensor = graph.tensors[others[0]]
        raise ExportError(
            f"{subject}, input '{text(tensor.name)}'",
            "only its batch may be free in WebAssembly where no inputs are given",
            list(map(int, tensor.shapeSignature)),
            "Give data, or export the model with fixed sizes: shapes={...}.",
        )
    if others and feeds is not None:
        session = IsolatedSession(content, subject, delegate=False)
        session.feed(list(feeds.values()), list(feeds))
        session.invoke()
        ran = session.tensor_shapes()
        shapes = {index: list(ran[index]) for index, _ in free}
    for index, tensor in free:
        if index in shapes:
            tensor.shape = np.array(shapes[index], dtype=np.int32)
            tensor.shapeSignature = None
    return flatbuffer.write(model)


def _signature(tensor: Any) -> Any:
    return () if tensor.shapeSignature is None else tensor.shapeSignature


def web_refusal(content: bytes, subject: str = "the file") -> str | None:
    """Return why LiteRT.js cannot run a file, or None where it can."""
    model = flatbuffer.read(content, subject)
    graph = model.subgraphs[0]
    names = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        if tensor.type not in TYPES:
            return (
                f"LiteRT.js takes float32, int32 and uint8 inputs and outputs, and '{text(tensor.name)}' is "
                f"{names[tensor.type].lower()}"
            )
    return None


class WebSession:
    """A file loaded into LiteRT.js; the interface of `tflite_export.runtimes.litert.Session`.

    Args:
        host: from `open_web`.
        content: the file's bytes.
        subject: what to call it in errors.
        batch: what a free batch is fixed to.
        feeds: what other free sizes are fixed to: see `fix_sizes`.

    Raises:
        ExportError: LiteRT.js cannot load it.
    """

    def __init__(
        self,
        host: Host,
        content: bytes,
        subject: str = "the file",
        *,
        batch: int = 1,
        feeds: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.host = host
        self.subject = f"{subject} ({host.description})"
        refusal = web_refusal(content, subject)
        if refusal is not None:
            raise ExportError(
                self.subject, "must have types that LiteRT.js knows", refusal, "Use the runtime 'litert' for it."
            )
        self.said: list[str] = []
        """What the runtime called an error. Not all are: it may take up an operator that a delegate has refused."""
        answer, _ = self._call({"do": "load"}, [fix_sizes(content, batch, subject, feeds)])
        self._id = int(answer["id"])
        self.inputs: dict[str, Any] = {detail["name"]: _as_session(detail) for detail in answer["inputs"]}
        self.outputs: dict[str, Any] = {detail["name"]: _as_session(detail) for detail in answer["outputs"]}

    def _call(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> tuple[dict[str, Any], list[bytes]]:
        answer, out = self.host.call(header, blobs)
        self.said += [line for line in answer.get("log", []) if line.startswith("ERROR")]
        if "error" in answer:
            raise ExportError(
                self.subject,
                f"LiteRT.js must {header['do']} it",
                "; ".join([answer["error"], *self.said]),
                "Export the model again, with target='web'.",
            )
        return answer, out

    @property
    def batch_size(self) -> int | None:
        """The batch that the file is fixed to; None where all inputs are scalars."""
        sizes = [int(detail["shape"][0]) for detail in self.inputs.values() if len(detail["shape"])]
        return sizes[0] if sizes else None

    def run(self, feeds: Sequence[NDArray[Any]], names: Sequence[str], outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs for samples of any number, in batches that the file is fixed to."""
        return run_in_batches(self, feeds, names, outputs)

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, all of them, in the shape that the file is fixed to.

        Raises:
            ExportError: a name is unknown or missing, or a shape is another.
        """
        require_names(self, names, self.inputs)
        given = dict(zip(names, batch, strict=True))
        arrays = []
        for name, detail in self.inputs.items():
            array = np.ascontiguousarray(given[name], dtype=detail["dtype"]) if name in given else None
            if array is None or array.shape != tuple(detail["shape"]):
                raise ExportError(
                    f"{self.subject}, input '{name}'",
                    f"must be given with the shape {tuple(map(int, detail['shape']))}",
                    "nothing" if array is None else array.shape,
                    "Pass the batch that the file is fixed to.",
                )
            arrays.append(array.tobytes())
        self._call({"do": "feed", "id": self._id}, arrays)

    def invoke(self) -> None:
        """Run the file once, on the inputs that were set."""
        self._call({"do": "invoke", "id": self._id})

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs of the last run by name."""
        require_names(self, outputs, self.outputs)
        _, blobs = self._call({"do": "fetch", "id": self._id})
        found = {
            name: np.frombuffer(blob, dtype=detail["dtype"]).reshape(detail["shape"])
            for (name, detail), blob in zip(self.outputs.items(), blobs, strict=True)
        }
        return [found[name] for name in outputs]

    def time(self, rounds: int, warm_up: int = 5) -> NDArray[np.float64]:
        """Return milliseconds of so many runs: [rounds]."""
        return time_in_turn([self], rounds, warm_up)[:, 0]

    def close(self) -> None:
        """Free what the file takes in the host."""
        self._call({"do": "unload", "id": self._id})


def _as_session(detail: dict[str, Any]) -> dict[str, Any]:
    shape = np.array(detail["shape"], dtype=np.int32)
    return {
        "name": detail["name"],
        "dtype": np.dtype(detail["dtype"]).type,
        "shape": shape,
        "shape_signature": shape,
    }


def time_in_turn(sessions: Sequence[WebSession], rounds: int, warm_up: int) -> NDArray[np.float64]:
    """Run files of one host in turn, timed there; return milliseconds a run, [rounds, files].

    Where the clock of the host is coarse, a sample is the mean of several runs (`assets/engine.mjs`).
    """
    first = sessions[0]
    header = {"do": "time", "ids": [session._id for session in sessions], "rounds": rounds, "warmUp": warm_up}
    _, (blob,) = first._call(header)
    return np.frombuffer(blob, dtype="<f8").reshape(rounds, len(sessions))


def measure_on_web(
    cases: Sequence[Case],
    feeds: Sequence[NDArray[Any]],
    rounds: int,
    warm_up: int,
    *,
    browser: bool = False,
    simd: str = "relaxed",
) -> Measurement:
    """Run files in LiteRT.js in turn, all in one process.

    Raises:
        ExportError: the runtime is missing, or cannot run one of them.
    """
    host = open_web(browser=browser, simd=simd)
    try:
        sessions, outputs = [], []
        for case in cases:
            named = dict(zip(case.inputs, feeds, strict=True))
            session = WebSession(host, case.content, case.name, batch=len(feeds[0]), feeds=named)
            session.feed(feeds, case.inputs)
            session.invoke()
            sessions.append(session)
            outputs.append(session.fetch(case.outputs))
        samples = time_in_turn(sessions, rounds, warm_up)
        return Measurement(host.description, "ms", outputs, samples, [session.said for session in sessions])
    finally:
        host.close()
