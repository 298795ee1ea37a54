"""LiteRT.js in a real browser: a headless Chromium that fetches requests from a local server and posts its answers."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tflite_export.errors import ExportError
from tflite_export.processes.child_process import limit_memory
from tflite_export.processes.frames import Frame, pack, unpack
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.litertjs import ASSETS, find_web_runtime
from tflite_export.web.host import Host
from tflite_export.web.page_files import web_files
from tflite_export.web.server import GuardedServer, Resource

__all__ = ["FLAGS", "NAMES", "START", "ChromiumHost", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    # Root, as in most containers, has no sandbox; the one page that is opened is our own.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A page without a window counts as hidden; its timers would be slowed down.
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    # The page's renderer is then the only one.
    "--disable-features=SpareRendererForSitePerProcess",
)
START = 60.0
"""Seconds until the page must have loaded the runtime."""
_POLL = 20.0


def find_chromium() -> str:
    """Return the path of Chromium: `$CHROME`, else one of the usual names on the PATH.

    Raises:
        ExportError: there is none.
    """
    named = os.environ.get("CHROME")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise ExportError(
            "Chromium",
            "must be on the PATH or named by $CHROME",
            named or "none",
            "Install it: apt-get install chromium, or https://www.chromium.org/getting-involved/download-chromium",
        )
    return found


class ChromiumHost(Host):
    """LiteRT.js in a headless Chromium, until it is closed.

    Args:
        simd: "relaxed" or "plain".
        limits: what files of unknown origin may take; None: files that this process has just made, without a limit of
            memory. Memory is that of the page's process, on top of what it has before it loads a file: pages that it
            can write to are counted. Linux holds such a limit.

    Raises:
        ExportError: Chromium or the runtime is missing, or does not start.
    """

    def __init__(self, simd: str = "relaxed", limits: Limits | None = None) -> None:
        self.limits = limits
        program, folder = find_chromium(), find_web_runtime()
        self._renderers: list[int] = []
        self._requests: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[bytes] = queue.Queue()
        page = (ASSETS / "browser_host.html").read_bytes()
        script = (ASSETS / "browser_host.mjs").read_bytes()
        self._server = GuardedServer(
            {"": Resource(page, "html"), "browser_host.mjs": Resource(script, "mjs"), **web_files(folder)},
            {"next": self._next, "answer": self._answer},
            token=secrets.token_urlsafe(16),
        )
        self._profile = tempfile.TemporaryDirectory(prefix="tflite-export-", ignore_cleanup_errors=True)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._server.start()
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile.name}", f"{self._server.url()}?simd={simd}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )
        try:
            header, _ = self._receive(START)
            if "error" in header:
                raise ExportError("LiteRT.js in Chromium", "must start", header["error"], "Install it again.")
            self._renderers = _renderers(self._process.pid)
            if limits is not None:
                for number in self._renderers:
                    limit_memory(number, _writable(number) + limits.memory, reserves=True)
        except BaseException:
            self.close()
            raise
        self.description = f"LiteRT.js in {header['runtime']}, {header['simd']} SIMD"

    def _next(self, _: bytes) -> bytes | None:
        try:
            return self._requests.get(timeout=_POLL)
        except queue.Empty:
            return None

    def _answer(self, body: bytes) -> bytes:
        self._answers.put(body)
        return b""

    def call(self, header: dict[str, Any], blobs: Sequence[bytes] = (), *, more_seconds: float = 0.0) -> Frame:
        """Send a request; return the answer: see `Host.call`."""
        self._requests.put(pack(header, blobs))
        return self._receive(self.seconds + more_seconds)

    def _receive(self, timeout: float) -> Frame:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                return unpack(self._answers.get(timeout=0.5))
            except queue.Empty:
                if self._process.poll() is not None:
                    raise self._silent(f"it ended with code {self._process.returncode}") from None
                if self._renderers and not any(Path(f"/proc/{number}").exists() for number in self._renderers):
                    raise self._silent("its page ended") from None
        raise self._silent(f"nothing in {timeout:g} seconds")

    def _silent(self, received: str) -> ExportError:
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip()[-500:]
        way_out = self.way_out("Try one file alone.")
        return ExportError("LiteRT.js in Chromium", "must answer", f"{received}: {last}", way_out)

    def close(self) -> None:
        """End Chromium and the server."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its renderers too
        self._process.wait()
        self._server.stop()
        self._errors.close()
        self._profile.cleanup()


def _renderers(session: int) -> list[int]:
    """Return the processes of a session in which Chromium has its pages; none where there is no /proc."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[3]) == session and b"--type=renderer" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _writable(process: int) -> int:
    """Return the bytes of private pages that a process can write to, which Linux limits by RLIMIT_DATA."""
    status = Path(f"/proc/{process}/status").read_text()
    (kilobytes,) = re.findall(r"^VmData:\s*(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024
