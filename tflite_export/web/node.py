"""LiteRT.js under Node, asked by frames on its standard input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from tflite_export.errors import ExportError
from tflite_export.processes.child_process import ChildEndedError, ChildProcess
from tflite_export.processes.frames import Frame
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime
from tflite_export.web.host import PATIENCE, Host

__all__ = ["ENGINE", "RELAXED_FLAG", "NodeHost", "find_node", "node_command"]

RELAXED_FLAG = "--experimental-wasm-relaxed-simd"
"""Of Node 20; from V8 11.4 on relaxed SIMD needs no flag, and the flag is in time withdrawn."""
ENGINE = ASSETS / "engine.mjs"


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


class NodeHost(Host):
    """LiteRT.js under Node, in a process that lives until it is closed.

    Args:
        simd: "relaxed": the build with relaxed SIMD, which browsers of today take; "plain": the other one.
        limits: what files of unknown origin may take; None: files that this process has just made, without a limit of
            memory. Node reserves far more addresses than it uses, so that pages that it can write to are counted. Linux
            holds such a limit.

    Raises:
        ExportError: Node or the runtime is missing, or does not start.
    """

    def __init__(self, simd: str = "relaxed", limits: Limits | None = None) -> None:
        self.limits = limits
        folder = find_web_runtime()
        command = [*node_command(find_node(), simd), str(ASSETS / "node_host.mjs"), str(folder), simd]
        self._process = ChildProcess(command, log=True, cwd=folder)
        try:
            header, _ = self._answered(lambda: self._process.receive(seconds=PATIENCE))
            if "error" in header:
                raise ExportError("LiteRT.js under Node", "must start", header["error"], "Install it again.")
            if limits is not None:
                self._process.limit_memory(limits.memory, reserves=True)
        except BaseException:
            self.close()
            raise
        self.description = f"LiteRT.js under {header['runtime']}, {simd} SIMD"

    def call(self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, more_seconds: float = 0.0) -> Frame:
        """Send a request; return the answer: see `Host.call`."""
        seconds = self.seconds + more_seconds
        return self._answered(lambda: self._process.ask(header, blobs, seconds=seconds))

    def _answered(self, ask: Callable[[], Frame]) -> Frame:
        try:
            return ask()
        except ChildEndedError as error:
            last = self._process.printed().strip()[-500:]
            way_out = self.way_out("Try one file alone.")
            raise ExportError("LiteRT.js under Node", "must answer", f"{error}: {last}", way_out) from error

    def close(self) -> None:
        """End the process."""
        self._process.close()
