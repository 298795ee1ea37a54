"""The files of LiteRT.js that a page loads, by the path under which our server has them."""

from __future__ import annotations

from pathlib import Path

from tflite_export.errors import ExportError
from tflite_export.runtimes.litertjs import ASSETS, BUILDS, COMMAND
from tflite_export.web.server import Resource

__all__ = ["web_files"]


def web_files(folder: Path) -> dict[str, Resource]:
    """Return the files of LiteRT.js that a page loads, by the path under which a server has them.

    The page imports `litertjs/core.mjs` and loads one of the two builds for one thread beside it.

    Raises:
        ExportError: a file is missing, or is not the one that is expected.
    """
    packages = folder / "node_modules" / "@litertjs"
    try:
        core = (packages / "core" / "dist" / "index.js").read_bytes()
        # A browser resolves no names of packages.
        if core.count(b'"@litertjs/wasm-utils"') != 1:
            raise ExportError(
                f"'{packages}'", "must import @litertjs/wasm-utils once", "another file", f"Remove it. Run: {COMMAND}"
            )
        files = {
            "litertjs/core.mjs": Resource(core.replace(b'"@litertjs/wasm-utils"', b'"./wasm_utils.mjs"'), "mjs"),
            "litertjs/wasm_utils.mjs": Resource((packages / "wasm-utils" / "dist" / "index.js").read_bytes(), "mjs"),
            "engine.mjs": Resource((ASSETS / "engine.mjs").read_bytes(), "mjs"),
        }
        for build in BUILDS:
            for kind in ("js", "wasm"):
                content = (packages / "core" / "wasm" / f"{build}.{kind}").read_bytes()
                files[f"litertjs/{build}.{kind}"] = Resource(content, kind)
    except OSError as error:
        raise ExportError(f"LiteRT.js in '{folder}'", "must be whole", error, f"Remove it. Run: {COMMAND}") from error
    return files
