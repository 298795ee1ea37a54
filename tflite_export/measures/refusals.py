"""Which files a measure leaves out, and why: remembered by their content, or found by loading them."""

from __future__ import annotations

import hashlib

from tflite_export.errors import ExportError
from tflite_export.runtimes.limits import Limits
from tflite_export.runtimes.opening import open_foreign
from tflite_export.web.limitations import web_refusal

__all__ = ["Refusals", "digest"]


class Refusals:
    """The files that a runtime refused, each with the reason.

    Args:
        limits: what a file may take, where it is loaded.
        web: whether files must run in LiteRT.js, too.
    """

    def __init__(self, limits: Limits | None, *, web: bool) -> None:
        self._limits = limits
        self._web = web
        self._reasons: dict[str, str] = {}

    def note(self, file: bytes, reason: str) -> None:
        """Remember why a file is left out."""
        self._reasons[digest(file)] = reason

    def __contains__(self, file: bytes) -> bool:
        return digest(file) in self._reasons

    def reason(self, file: bytes) -> str | None:
        """Return why a file is left out: what was noted, or what loading it tells; None where nothing is known."""
        known = self._reasons.get(digest(file))
        if known is not None:
            return known
        try:
            open_foreign(file, limits=self._limits).close()
        except ExportError as error:
            return str(error)
        return web_refusal(file) if self._web else None


def digest(file: bytes) -> str:
    """Return what a file is remembered by."""
    return hashlib.sha256(file).hexdigest()
