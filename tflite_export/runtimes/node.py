"""LiteRT.js in a child process: Node, asked by frames on its standard input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from tflite_export.errors import ExportError
from tflite_export.runtimes.children import end
from tflite_export.runtimes.frames import pack, read_frame
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime

__all__ = ["ENGINE", "RELAXED_FLAG", "TIMEOUT", "NodeHost", "find_node", "node_command"]

RELAXED_FLAG = "--experimental-wasm-relaxed-simd"
"""Of Node 20; from V8 11.4 on relaxed SIMD needs no flag, and the flag is in time withdrawn."""
ENGINE = ASSETS / "engine.mjs"
TIMEOUT = 600.0
"""Seconds that one request may take."""


def find_node() -> str:
    """Return the path of Node: `$NODE`, else the one on the PATH.

    Raises:
        ExportError: there is none.
    """
    node = os.environ.get("NODE") or shutil.which("node")
    if node is None or shutil.which(node) is None:
        raise ExportError(
            "Node.js", "must be on the PATH or named by $NODE", node or "none", "Install Node.js 20 or later."
        )
    return node


def node_command(node: str, simd: str) -> list[str]:
    """Return the command that starts Node with relaxed SIMD, or without.

    Raises:
        ExportError: this Node has no relaxed SIMD, or does not start.
    """
    probe = f"import {{hasRelaxedSimd}} from {json.dumps(ENGINE.as_uri())}; process.exit(hasRelaxedSimd() ? 0 : 3)"
    if simd == "plain":
        return [node]
    for flags in ([], [RELAXED_FLAG]):
        command = [node, *flags, "--input-type=module", "-e", probe]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return [node, *flags]
    raise ExportError(
        f"'{node}'",
        "must have WebAssembly's relaxed SIMD",
        done.stderr.strip() or "it does not validate",
        "Install Node.js 20 or later, or pass simd='plain'.",
    )


class NodeHost:
    """LiteRT.js under Node, in a process that lives until it is closed.

    Args:
        simd: "relaxed": the build with relaxed SIMD, which browsers of today take; "plain": the other one.

    Raises:
        ExportError: Node or the runtime is missing, or does not start.
    """

    def __init__(self, simd: str = "relaxed") -> None:
        folder = find_web_runtime()
        command = [*node_command(find_node(), simd), str(ASSETS / "node_host.mjs"), str(folder), simd]
        # A file, not a pipe: nobody reads it meanwhile, and a full pipe would stop the process.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=folder
        )
        try:
            header, _ = self._read(TIMEOUT)
        except BaseException:
            self.close()
            raise
        if "error" in header:
            self.close()
            raise ExportError("LiteRT.js under Node", "must start", header["error"], "Install it again.")
        self.description = f"LiteRT.js under {header['runtime']}, {simd} SIMD"

    def call(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> tuple[dict[str, Any], list[bytes]]:
        """Ask once; return the answer's header and blobs.

        Raises:
            ExportError: the process ended, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pack(header, blobs))
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._read(TIMEOUT)

    def _read(self, timeout: float) -> tuple[dict[str, Any], list[bytes]]:
        assert self._process.stdout is not None
        watch = threading.Timer(timeout, self._process.kill)
        watch.start()
        try:
            return read_frame(self._process.stdout.read)
        except (EOFError, ValueError) as error:
            raise self._ended() from error
        finally:
            watch.cancel()

    def _ended(self) -> ExportError:
        self._process.kill()
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip()[-500:]
        return ExportError(
            "LiteRT.js under Node", "must answer", f"its process ended with code {code}: {last}", "Try one file alone."
        )

    def close(self) -> None:
        """End the process."""
        end(self._process, self._errors)

    def __enter__(self) -> NodeHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
