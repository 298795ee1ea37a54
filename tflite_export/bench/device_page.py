"""The device page: any phone of the network measures files in its own browser, by LiteRT.js.

The page and everything that it loads come from this server; nothing is asked of another. See `server.py` for what
keeps the rest of the disk out of reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tflite_export.bench.served_files import served_files
from tflite_export.errors import ExportError
from tflite_export.processes.frames import pack
from tflite_export.runtimes import litertjs
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litert import load
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime
from tflite_export.verification.golden import Golden, read_golden
from tflite_export.web.binding import bind, link
from tflite_export.web.limitations import web_refusal
from tflite_export.web.page_files import web_files
from tflite_export.web.server import GuardedServer, Resource

__all__ = ["PAGES", "make_server", "serve"]

PAGES = ("serve.css", "serve.mjs", "measuring.mjs", "icon.svg")


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
    served = served_files(subjects, contents, data, golden, (limits or Limits()).for_files(*contents))
    blobs: list[bytes] = []
    files: list[dict[str, Any]] = []
    for place, file in enumerate(served):
        name = _distinct(Path(file.subject).name, [other["name"] for other in files])
        files.append({"name": name, "path": f"models/{place}", **file.described(blobs)})
    header = {
        "tool": f"tflite-export {version('keras-prune')}",
        "runtime": f"LiteRT.js {litertjs.VERSION}",
        "golden": "the golden file"
        if golden
        else f"LiteRT {version('ai-edge-litert')} on the computer that serves this page",
        "files": files,
    }
    resources = {
        "": Resource((ASSETS / "serve.html").read_bytes(), "html"),
        "job.bin": Resource(pack(header, blobs), "bin"),
        **{name: Resource((ASSETS / name).read_bytes(), name.rpartition(".")[2]) for name in PAGES},
        **{f"models/{place}": Resource(file.content, "bin") for place, file in enumerate(served)},
        **web_files(runtime),
    }
    return bind(resources, host=host, port=port)


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
    say(f"Open {link(server)}")
    say("Ctrl-C ends it.")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()


def _distinct(name: str, taken: Sequence[Any]) -> str:
    number, made = 2, name
    while made in taken:
        made, number = f"{name} ({number})", number + 1
    return made
