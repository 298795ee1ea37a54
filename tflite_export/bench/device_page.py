"""The device page: any phone of the network measures files in its own browser, by LiteRT.js.

The page and everything that it loads come from this server; nothing is asked of another. See `server.py` for what
keeps the rest of the disk out of reach.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.arrays.distance import scale_of
from tflite_export.bench.comparable import feeds_for, matching_inputs, matching_outputs
from tflite_export.errors import ExportError
from tflite_export.processes.frames import pack
from tflite_export.runtimes import litertjs
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime
from tflite_export.runtimes.opening import open_foreign
from tflite_export.runtimes.sessions import Session, in_batches
from tflite_export.tolerances import OTHER_RUNTIME
from tflite_export.verification.golden import Golden, read_golden
from tflite_export.web.limitations import web_refusal, with_fixed_sizes
from tflite_export.web.page_files import web_files
from tflite_export.web.server import LOOPBACK, GuardedServer, Resource

__all__ = ["EVERYWHERE", "PAGES", "SAMPLES", "address_of_this_machine", "make_server", "serve"]

PAGES = ("serve.css", "serve.mjs", "icon.svg")
SAMPLES = 4
"""Samples of a golden file that the page checks, at most: they travel to the phone."""
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True, eq=False)
class _Sample:
    """Inputs of a run and its expected outputs, by position; bounds are absolute."""

    feeds: list[NDArray[Any]]
    outputs: list[NDArray[Any]]
    bounds: list[float]


@dataclass(frozen=True, eq=False)
class _Served:
    """A file as the page gets it: its sizes fixed, its names in the first file's order, samples to check it on."""

    subject: str
    content: bytes
    inputs: list[str]
    outputs: list[str]
    samples: list[_Sample]

    def described(self, blobs: list[bytes]) -> dict[str, Any]:
        """Return what the page needs to know; the arrays of the samples go to the end of the blobs."""
        outputs = []
        for place, name in enumerate(self.outputs):
            bound = max(sample.bounds[place] for sample in self.samples)
            scale = max(scale_of(sample.outputs[place]) for sample in self.samples)
            outputs.append({"name": name, "bound": bound, "scale": scale})
        return {
            "bytes": len(self.content),
            "inputs": self.inputs,
            "outputs": outputs,
            "samples": [
                {"feeds": _append(blobs, sample.feeds), "outputs": _append(blobs, sample.outputs)}
                for sample in self.samples
            ],
        }


def make_server(
    paths: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    data: Any = None,
    golden: Golden | str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
) -> GuardedServer:
    """Return the server of the device page, bound and not yet started.

    The outputs that the page expects are computed here, in a child process that a file may crash.

    Args:
        paths: the files; the first is what the others are compared with. They are read now; their names, and no
            paths, are shown.
        host: the address to bind to. One that the network can reach puts a random token into the page's address.
        port: 0 takes a free one.
        data: inputs: see `tflite_export.bench.timing.benchmark`.
        golden: inputs and outputs that the files must give: a `tflite_export.Golden`, or the path of a golden
            file. None: what LiteRT gives here, to 0.02 of each output's scale.
        limits: what the files may take on this machine: see `tflite_export.bench.timing.benchmark`.

    Raises:
        ExportError: a file cannot be run in LiteRT.js or differs from the first in its inputs or outputs, LiteRT.js
            is not installed, or the address cannot be bound.
    """
    runtime = find_web_runtime()
    if not paths:
        raise ExportError("serve", "needs a file", "none", "Name the files to measure.")
    subjects = [os.fspath(path) for path in paths]
    contents = [load(path) for path in paths]
    for subject, content in zip(subjects, contents, strict=True):
        refusal = web_refusal(content, subject)
        if refusal is not None:
            raise ExportError(f"'{subject}'", "must run in LiteRT.js", refusal, "Leave it out.")
    if isinstance(golden, (str, os.PathLike)):
        golden = read_golden(golden)
    served = _served(subjects, contents, data, golden, (limits or Limits()).for_files(*contents))
    blobs: list[bytes] = []
    files: list[dict[str, Any]] = []
    for place, file in enumerate(served):
        name = _distinct(Path(file.subject).name, [other["name"] for other in files])
        files.append({"name": name, "path": f"models/{place}", **file.described(blobs)})
    header = {
        "tool": f"tflite-export {version('keras-prune')}",
        "runtime": f"LiteRT.js {litertjs.VERSION}",
        "golden": "the golden file" if golden else f"LiteRT {version('ai-edge-litert')} on the computer that serves",
        "files": files,
    }
    resources = {
        "": Resource((ASSETS / "serve.html").read_bytes(), "html"),
        "job.bin": Resource(pack(header, blobs), "bin"),
        **{name: Resource((ASSETS / name).read_bytes(), name.rpartition(".")[2]) for name in PAGES},
        **{f"models/{place}": Resource(file.content, "bin") for place, file in enumerate(served)},
        **web_files(runtime),
    }
    token = "" if host in LOOPBACK else secrets.token_urlsafe(16)
    try:
        return GuardedServer(resources, host=host, port=port, token=token)
    except OSError as error:
        raise ExportError(
            f"address {host}:{port}",
            "must be free and this machine's",
            error.strerror,
            "Choose another --host or --port.",
        ) from error


def serve(
    paths: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    data: Any = None,
    golden: Golden | str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serve the device page until interrupted; `say` is called with its address first.

    Args:
        paths: see `make_server`, as for the others.
        host: the address to bind to.
        port: 0 takes a free one.
        data: inputs.
        golden: inputs and outputs.
        limits: what the files may take here.
        say: called with a line of text.

    Raises:
        ExportError: see `make_server`.

    Example:
        >>> serve([])
        Traceback (most recent call last):
            ...
        tflite_export.errors.ExportError: ...
    """
    server = make_server(paths, host=host, port=port, data=data, golden=golden, limits=limits)
    say(f"Open {server.url(address_of_this_machine() if host in EVERYWHERE else None)}")
    say("Ctrl-C ends it.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()


def address_of_this_machine() -> str:
    """Return the address by which the network reaches this machine, as far as it knows.

    A datagram socket that is connected, and over which nothing is sent, has the address of the route taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # set aside for documentation: RFC 5737
            return str(probe.getsockname()[0])
        except OSError:  # no route: the name may still be known
            return socket.gethostname()


def _served(
    subjects: Sequence[str], contents: Sequence[bytes], data: Any, golden: Golden | None, limits: Limits
) -> list[_Served]:
    """Return the files with their sizes fixed, and what each must give.

    Raises:
        ExportError: a file does not run, or differs from the first in its inputs or outputs.
    """
    open_file = partial(open_foreign, limits=limits)
    sessions = [open_file(content, subject) for content, subject in zip(contents, subjects, strict=True)]
    served = []
    for subject, content, session, inputs, outputs in zip(
        subjects, contents, sessions, matching_inputs(sessions), matching_outputs(sessions), strict=True
    ):
        feeds = _feeds(session, inputs, outputs, data, golden)
        named = {name: feed[: session.batch_size or 1] for name, feed in zip(inputs, feeds, strict=True)}
        fixed = with_fixed_sizes(content, 1, subject, named, open_file=open_file)
        with open_file(fixed, subject) as again:
            samples = _samples(again, inputs, outputs, data, golden)
        served.append(_Served(subject, fixed, inputs, outputs, samples))
    return served


def _feeds(
    session: Session, inputs: list[str], outputs: list[str], data: Any, golden: Golden | None
) -> list[NDArray[Any]]:
    """Return the inputs of a file, those of the golden file or of the data, or drawn ones."""
    if golden is None:
        return feeds_for(session, inputs, 1, data)
    missing = [name for name in (*inputs, *outputs) if name not in golden.inputs and name not in golden.outputs]
    if missing:
        raise ExportError(
            session.subject,
            f"must have the names of the golden file, {[*golden.inputs, *golden.outputs]}",
            missing,
            "Is it the golden file of another model?",
        )
    return [golden.inputs[name] for name in inputs]


def _samples(
    session: Session, inputs: list[str], outputs: list[str], data: Any, golden: Golden | None
) -> list[_Sample]:
    """Return the first runs of a file of fixed sizes, with the outputs that are expected."""
    batch = session.batch_size or 1
    feeds = list(islice(in_batches(_feeds(session, inputs, outputs, data, golden), batch), SAMPLES))
    if golden is None:
        samples = []
        for feed in feeds:
            session.feed(feed, inputs)
            session.invoke()
            answers = session.fetch(outputs)
            samples.append(_Sample(feed, answers, [_bound(answer) for answer in answers]))
        return samples
    wanted = in_batches([golden.outputs[name] for name in outputs], batch)
    bounds = [golden.bounds[name] for name in outputs]
    return [_Sample(feed, answer, bounds) for feed, answer in zip(feeds, wanted, strict=False)]


def _bound(answer: NDArray[Any]) -> float:
    """Return the largest difference that is allowed; garbage is off by the whole scale."""
    return OTHER_RUNTIME * scale_of(answer)


def _append(blobs: list[bytes], arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Append the bytes of arrays; return their places."""
    start = len(blobs)
    blobs.extend(np.ascontiguousarray(array).tobytes() for array in arrays)
    return list(range(start, len(blobs)))


def _distinct(name: str, taken: Sequence[Any]) -> str:
    number, made = 2, name
    while made in taken:
        made, number = f"{name} ({number})", number + 1
    return made
