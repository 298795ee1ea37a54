"""End a child process that was spoken to through pipes."""

from __future__ import annotations

import subprocess
from typing import IO, Any

__all__ = ["end"]


def end(process: subprocess.Popen[Any], *files: IO[Any]) -> None:
    """Kill a child process, wait for it, and close its pipes and other files that belong to it.

    Args:
        process: still running, or ended.
        files: closed with it.

    Example:
        >>> import sys
        >>> child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        >>> end(child)
        >>> child.returncode != 0, child.stdin.closed
        (True, True)
    """
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr, *files):
        if stream is not None and not stream.closed:
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what was still to be written has no reader any more
