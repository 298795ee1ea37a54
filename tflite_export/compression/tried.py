"""What came of a candidate at a stage: its metric, its cost, its files; or why there is no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_prune.monitoring.metric import ROUNDING
from tflite_export.compression.candidate import Candidate
from tflite_export.measures.measure import Cost

__all__ = ["Tried"]


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate at a stage.

    Args:
        candidate: what was tried.
        stage: of `STAGES`.
        epochs: of fine-tuning, in all stages together.
        metric: the file's value; None where there is no file, or it was not worth judging.
        drop: how much worse that is than the plain float32 file's value; negative where it is better.
        cost: as measured beside the reference; None where it could not be.
        bytes: of the file.
        file: its name in the folder of the search; empty where there is none.
        model: name of the `.keras` file of the model in it, masks included; empty for the model as it was given.
        seconds: that exporting, measuring and judging took.
        reason: why there is no file, or no cost; empty where there are both.
        notes: what the export warned of.
    """

    candidate: Candidate
    stage: str
    epochs: int = 0
    metric: float | None = None
    drop: float | None = None
    cost: Cost | None = None
    bytes: int = 0
    file: str = ""
    model: str = ""
    seconds: float = 0.0
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """The reference's cost / this file's; 0 where it is not known."""
        return 0.0 if self.cost is None else self.cost.ratio

    def holds(self, max_drop: float) -> bool:
        """Whether there is a file, measured, whose metric is within a drop of the plain one's, in single precision."""
        return self.cost is not None and self.drop is not None and self.drop <= max_drop + ROUNDING

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON knows; `from_dict` is its inverse."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Tried:
        """Make what `to_dict` described."""
        cost = entry["cost"]
        made = {
            "candidate": Candidate(**entry["candidate"]),
            "cost": None if cost is None else Cost(**cost),
            "notes": tuple(entry["notes"]),
        }
        return cls(**{**entry, **made})
