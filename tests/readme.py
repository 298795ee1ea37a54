"""The README's code, run block after block as a reader would paste it.

`python -m tests.readme` runs it in an empty folder and needs nothing but what the README itself says to install.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

PATH = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of Python, each with the line that it begins on."""
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, block.start(1)), block.group(1)


def run() -> dict[str, Any]:
    """Run all blocks in one namespace, in the current folder, and return what they defined."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for line, code in python_blocks(PATH.read_text(encoding="utf-8")):
        # The empty lines make a traceback point into the README.
        exec(compile("\n" * line + code, str(PATH), "exec"), namespace)
    return namespace


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert run(), "the README has no code"
        os.chdir("/")
    packages = ("numpy", "tensorflow", "keras", "ai-edge-litert")
    print(f"The README's code runs with Python {sys.version.split()[0]}:", *(f"{p} {version(p)}" for p in packages))
