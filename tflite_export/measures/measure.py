"""What every measure of a file's cost on a device has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from keras_prune.devices import Device

__all__ = ["OBJECTIVES", "Cost", "Measure"]

OBJECTIVES = ("latency", "size", "flash")
"""What a measure can be of: the time of a run, the bytes of the file, the bytes of it in a chip's flash."""


@dataclass(frozen=True)
class Cost:
    """What a file costs.

    Args:
        value: the figure, in `unit`: less is better.
        unit: "ms", "instructions", "cycles" or "bytes".
        ratio: the reference's cost / this file's, from the same interleaved run; 1.0 for the reference, above 1 for
            a file that costs less.
        spread: half the distance of the quartiles of the ratio, as a share of it; 0.0 where nothing was timed.
        on: what it was measured on, for the reader.
        estimate: why it is only an estimate of the cost on the target; empty for a measurement.

    Example:
        >>> str(Cost(1.25, "ms", 2.0, 0.01, "LiteRT here, one thread"))
        '1.25 ms, 2.00 x (+- 1.0 %)'
    """

    value: float
    unit: str
    ratio: float
    spread: float
    on: str
    estimate: str = ""

    def __str__(self) -> str:
        """Return the figure and the ratio; an estimate is called one."""
        figure = f"{self.value:.3g} {self.unit}" if self.unit == "ms" else f"{self.value:,.0f} {self.unit}"
        spread = f" (+- {self.spread:.1%})".replace("%", " %") if self.spread else ""
        return f"{figure}, {self.ratio:.2f} x{spread}{', an estimate' if self.estimate else ''}"


class Measure(ABC):
    """What a file costs on a device: one figure, less is better.

    A measure of one's own subclasses this, names its `objective` and overrides `measure`. Whoever measures with it
    closes it afterwards, also after an error: it is a context manager.

    Attributes:
        objective: "latency", "size" or "flash".

    Example:
        >>> import gzip
        >>> class Download(Measure):
        ...     objective = "size"
        ...
        ...     def measure(self, files, reference):
        ...         sizes = {name: len(gzip.compress(content)) for name, content in files.items()}
        ...         return {name: Cost(n, "bytes", sizes[reference] / n, 0.0, "gzip") for name, n in sizes.items()}
        >>> Download().measure({"dense": bytes(range(200)), "sparse": bytes(200)}, "dense")["sparse"].ratio > 5
        True
    """

    objective: str

    def refusal(self, file: bytes) -> str | None:
        """Return why a file cannot be measured here, or None where it can.

        After `measure` it knows of each file that was left out there.

        Args:
            file: the bytes of the .tflite.
        """
        return None

    @abstractmethod
    def measure(self, files: Mapping[str, bytes], reference: str) -> dict[str, Cost]:
        """Measure files against each other in one interleaved run.

        Args:
            files: the bytes of each .tflite by name.
            reference: the name that the others are compared with.

        Returns:
            The cost of each file, in the order given. A file that does not run there, or answers wrongly, is left out;
            `refusal` then has the reason.

        Raises:
            ExportError: the reference cannot be measured, or what measures is missing.
        """

    def for_device(self, device: Device | None) -> Measure:
        """Return the measure to use for files of a device: this one, unless it depends on the device."""
        return self

    def close(self) -> None:  # noqa: B027  (most measures hold nothing)
        """Let go of what the measure holds: processes, a server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
