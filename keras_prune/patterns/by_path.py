"""A pattern of its own for each tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from keras.saving import register_keras_serializable

from keras_prune.models.keys import fits, keyed
from keras_prune.patterns.pattern import Pattern
from keras_prune.strategy import Strategy

__all__ = ["ByPath"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True)
class ByPath(Strategy):
    """A pattern for each tensor, by its path; the first key that fits counts.

    Args:
        patterns: layer, name, path, glob or regular expression -> pattern.

    Example:
        >>> from keras_prune.patterns import Block, Unstructured
        >>> ByPath({".*conv.*": Unstructured(), ".*": Block(4, 1)}).at("model/conv_1/kernel")
        Unstructured()
    """

    kind: ClassVar[str] = "pattern"

    patterns: Mapping[str, Pattern]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", keyed(self.patterns))

    @property
    def fixed_units(self) -> bool:
        """Whether the units of every pattern are always the same weights."""
        return all(pattern.fixed_units for pattern in self.patterns.values())

    def at(self, path: str) -> Pattern:
        """Return the pattern of the tensor at this path.

        Raises:
            ValueError: no key fits.
        """
        for key, pattern in self.patterns.items():
            if fits(key, path):
                return pattern
        raise ValueError(
            f"ByPath: no key fits the tensor {path!r}. Received the keys {list(self.patterns)}. "
            "Add one for it, or '.*' for all others at the end; or leave the tensor out by scope=Scope(exclude=...)."
        )
