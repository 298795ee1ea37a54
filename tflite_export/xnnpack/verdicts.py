"""What an operator can be in sparse inference."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

from tflite_export.xnnpack.reasons import Reason

__all__ = ["Role", "Verdict", "refuse"]


class Role(Flag):
    """What an operator can be in a cluster."""

    NONE = 0
    STEM = auto()
    """Reads channels last, writes channels first."""
    INSIDE = auto()
    """Channels first on both sides."""
    END = auto()
    """Reads channels first, writes channels last."""


@dataclass(frozen=True)
class Verdict:
    """What an operator can be in a cluster; where nothing, the rule that it breaks.

    Args:
        role: `Role.NONE` for nothing.
        rule: which rule it breaks, in words.
        cure: what would change that; empty where nothing does.
        reason: the rule's name.
    """

    role: Role
    rule: str = ""
    cure: str = ""
    reason: Reason | None = None


def refuse(reason: Reason, rule: str, cure: str = "") -> Verdict:
    """Return the verdict on an operator that can be nothing in a cluster."""
    return Verdict(Role.NONE, rule, cure, reason)
