"""What a file of unknown origin may take while it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tflite_export.errors import ExportError

__all__ = ["TIMES_FILE", "Limits"]

TIMES_FILE = 8
"""A sound file may need several times its size: its bytes, the runtime's copy, packed weights, activations."""


@dataclass(frozen=True)
class Limits:
    """Limits of the process in which a file of unknown origin is run.

    Args:
        seconds: that one step may take: loading, feeding, or one run.
        memory: bytes of address space that the process may have, or 8 times the files, where that is more; in Node and
            under an emulator, which reserve addresses that they never use, bytes of memory that it can write to. Linux
            holds such a limit; macOS and Windows do not.

    Raises:
        ExportError: a limit is not a positive number.

    Example:
        >>> str(Limits(seconds=30, memory=2 * 2**30))
        '30 s for a step and 2.0 GiB of memory'
    """

    seconds: float = 120.0
    memory: int = 4 * 2**30

    def __post_init__(self) -> None:
        """Check both."""
        for name, value in vars(self).items():
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ExportError(f"limits, {name}", "must be a positive number", repr(value), "Leave it out.")

    def for_files(self, *contents: bytes) -> Limits:
        """Return the limits with memory for all of some files at once."""
        return replace(self, memory=max(int(self.memory), TIMES_FILE * sum(map(len, contents))))

    @property
    def way_out(self) -> str:
        """What to do about a file that exceeded its limits."""
        return (
            f"The file is damaged, or needs more than its limits, {self}: get or export it again, or raise them with "
            "limits=Limits(seconds=..., memory=...), or --seconds and --memory on the command line."
        )

    def __str__(self) -> str:
        """Return both in words."""
        return f"{self.seconds:g} s for a step and {self.memory / 2**30:.1f} GiB of memory"
