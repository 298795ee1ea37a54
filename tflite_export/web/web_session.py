"""Run and time files where XNNPACK's sparse kernels are on: LiteRT.js, under Node or in a real Chromium.

On a PC with AVX these kernels never run (XNNPACK `src/configs`, `xnn_is_chw_compatible_config`); in
WebAssembly they do. LiteRT.js fails silently: where it cannot allocate, it gives garbage within a millisecond. So
the outputs are compared before any time counts, with LiteRT's on this machine or the model's:
`tflite_export.verification.compare.require_agreement`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tflite_export.errors import ExportError
from tflite_export.file.tflite_file import TFLiteFile
from tflite_export.runtimes.isolation import TIMES_EXPECTED
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.opening import Opener, open_foreign, open_own
from tflite_export.runtimes.sessions import MeasuredFile, Measurement, Session
from tflite_export.web.chromium import ChromiumHost
from tflite_export.web.host import Host
from tflite_export.web.limitations import web_refusal, with_fixed_sizes
from tflite_export.web.node import NodeHost

__all__ = ["SIMD", "WebSession", "measure_in_litertjs", "open_web"]

SIMD = ("relaxed", "plain")
LONGEST_SAMPLE = 0.05
"""Seconds: where the clock ticks once a millisecond, a sample spans 50 of its ticks (`assets/engine.mjs`)."""


def open_web(*, browser: bool = False, simd: str = "relaxed", limits: Limits | None = None) -> Host:
    """Start LiteRT.js, under Node or in a headless Chromium.

    Args:
        browser: in Chromium.
        simd: the build with "relaxed" SIMD, which browsers of today take, or with "plain".
        limits: what files of unknown origin may take; None: files that this process has just made.

    Raises:
        ExportError: Node, Chromium or LiteRT.js is missing, or does not start.
    """
    if simd not in SIMD:
        raise ExportError("simd", f"must be one of {SIMD}", repr(simd), "Choose one of these.")
    return ChromiumHost(simd, limits) if browser else NodeHost(simd, limits)


class WebSession(Session):
    """A file loaded into LiteRT.js.

    Args:
        host: from `open_web`.
        file: the file, or its bytes.
        subject: what to call it in errors.
        batch: what a free batch is fixed to.
        feeds: what other free sizes are fixed to: see `with_fixed_sizes`.
        open_file: loads the file into LiteRT where other sizes are free: see `with_fixed_sizes`.

    Raises:
        ExportError: LiteRT.js cannot load it.
    """

    def __init__(
        self,
        host: Host,
        file: TFLiteFile | bytes,
        subject: str = "the file",
        *,
        batch: int = 1,
        feeds: Mapping[str, NDArray[Any]] | None = None,
        open_file: Opener = open_own,
    ) -> None:
        self.host = host
        self.subject = f"{subject} ({host.description})"
        file = TFLiteFile.of(file, subject)
        refusal = web_refusal(file, subject)
        if refusal is not None:
            raise ExportError(
                self.subject, "must have types that LiteRT.js knows", refusal, "Use the runtime 'litert' for it."
            )
        self.said: list[str] = []
        """What the runtime called an error. Not all are: it may take up an operator that a delegate has refused."""
        self.took = 0.0
        """Seconds of the last `invoke`, with the way to the host and back."""
        fixed = with_fixed_sizes(file, batch, subject, feeds, open_file=open_file)
        answer, _ = self._call({"do": "load"}, [fixed])
        self._id = int(answer["id"])
        self.inputs: dict[str, Any] = {detail["name"]: _as_session(detail) for detail in answer["inputs"]}
        self.outputs: dict[str, Any] = {detail["name"]: _as_session(detail) for detail in answer["outputs"]}

    def _call(
        self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, more_seconds: float = 0.0
    ) -> tuple[dict[str, Any], list[bytes]]:
        answer, out = self.host.call(header, blobs, more_seconds=more_seconds)
        self.said += [line for line in answer.get("log", []) if line.startswith("ERROR")]
        if "error" in answer:
            raise ExportError(
                self.subject,
                f"LiteRT.js must {header['do']} it",
                "; ".join([answer["error"], *self.said]),
                self.host.way_out("Export the model again, with target='web'."),
            )
        return answer, out

    def feed(self, batch: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
        """Set the inputs, all of them, in the shape that the file is fixed to.

        Raises:
            ExportError: a name is unknown or missing, or a shape is another.
        """
        self.require_names(names, self.inputs)
        given = dict(zip(names, batch, strict=True))
        arrays = []
        for name, detail in self.inputs.items():
            array = np.asarray(given[name], dtype=detail["dtype"]) if name in given else None
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
        start = time.perf_counter()
        self._call({"do": "invoke", "id": self._id})
        self.took = time.perf_counter() - start

    def fetch(self, outputs: Sequence[str]) -> list[NDArray[Any]]:
        """Return the outputs of the last run by name."""
        self.require_names(outputs, self.outputs)
        _, blobs = self._call({"do": "fetch", "id": self._id})
        found = {
            name: np.frombuffer(blob, dtype=detail["dtype"]).reshape(detail["shape"])
            for (name, detail), blob in zip(self.outputs.items(), blobs, strict=True)
        }
        return [found[name] for name in outputs]

    def time_beside(self, others: Sequence[WebSession], rounds: int, warm_up: int) -> NDArray[np.float64]:
        """Time this file and others of the same host in turn, there; return milliseconds, [rounds, 1 + others].

        Where the clock of the host is coarse, a sample is the mean of several runs (`assets/engine.mjs`).

        Args:
            others: fed and run before, as this one.
            rounds: runs of each.
            warm_up: runs before that.

        Raises:
            ExportError: they take far longer than the runs before did.
        """
        sessions = [self, *others]
        header = {"do": "time", "ids": [session._id for session in sessions], "rounds": rounds, "warmUp": warm_up}
        expected = sum((rounds + warm_up) * max(session.took, LONGEST_SAMPLE) for session in sessions)
        _, (blob,) = self._call(header, more_seconds=TIMES_EXPECTED * expected)
        return np.frombuffer(blob, dtype="<f8").reshape(rounds, len(sessions))

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


def measure_in_litertjs(
    cases: Sequence[MeasuredFile],
    feeds: Sequence[NDArray[Any]],
    rounds: int,
    warm_up: int,
    *,
    browser: bool = False,
    simd: str = "relaxed",
    limits: Limits | None = None,
) -> Measurement:
    """Run files of unknown origin in LiteRT.js in turn, all in one process.

    Args:
        cases: the files, and their names.
        feeds: an array [batch, ...] for each input.
        rounds: runs of each that are timed.
        warm_up: runs before that.
        browser: in a headless Chromium instead of Node.
        simd: "relaxed" or "plain".
        limits: what the files may take.

    Raises:
        ExportError: the runtime is missing, or cannot run one of them.
    """
    allowed = (limits or Limits()).for_files(*(case.content for case in cases))
    with open_web(browser=browser, simd=simd, limits=allowed) as host:
        sessions, outputs = [], []
        for case in cases:
            session = WebSession(
                host,
                case.content,
                case.name,
                batch=len(feeds[0]),
                feeds=dict(zip(case.inputs, feeds, strict=True)),
                open_file=partial(open_foreign, limits=allowed),
            )
            session.feed(feeds, case.inputs)
            session.invoke()
            sessions.append(session)
            outputs.append(session.fetch(case.outputs))
        samples = sessions[0].time_beside(sessions[1:], rounds, warm_up)
        return Measurement(host.description, "ms", outputs, samples, [session.said for session in sessions])
