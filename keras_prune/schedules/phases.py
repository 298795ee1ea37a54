"""Dense and compressed phases in turn."""

from __future__ import annotations

import dataclasses

from keras.saving import register_keras_serializable

from keras_prune.schedules.rounds import to_time
from keras_prune.schedules.schedule import Schedule, unresolved
from keras_prune.schedules.spans import Span, Time
from keras_prune.strategy import check_fraction, to_numbers

__all__ = ["Phases"]

_register = register_keras_serializable(package="keras_prune")


@_register
@dataclasses.dataclass(frozen=True)
class Phases(Schedule):
    r"""A dense warm-up, then compressed and dense phases in turn, the last one compressed: $s = s_f$ or $s = 0$.

    A compressed phase begins only where it and a dense phase after it are over before the last one begins; otherwise
    the dense phase before it goes on. With the lengths that stand here, the phases are those of the paper's training of
    ResNet-50.

    Args:
        sparsity: $s_f$ in compressed phases, a fraction in [0, 1).
        begin: the step at which the warm-up ends; or `"10%"` or `"2 epochs"` of the training.
        end: the step at which the last phase begins, which has no end; likewise.
        sparse: how many steps a compressed phase has; likewise.
        dense: how many steps a dense phase has; likewise.

    Raises:
        ValueError: the sparsity is out of its range, a length is below 1 step, or the end comes before the begin.

    Source: Peste et al. 2021, "AC/DC: Alternating compressed/decompressed training of deep neural networks", section 4.

    Example:
        >>> phases = Phases(0.9, begin=2, end=10, sparse=2, dense=1)
        >>> [round(phases(step) / 0.9) for step in range(12)]
        [0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1]
        >>> [step for step in range(12) if phases.should_update(step)]
        [2, 4, 5, 7, 10]
    """

    sparsity: float
    _: dataclasses.KW_ONLY
    begin: Time = "10%"
    end: Time = "85%"
    sparse: Time = "5%"
    dense: Time = "5%"

    def __post_init__(self) -> None:
        to_numbers(self, "sparsity")
        check_fraction("Phases: sparsity", self.sparsity)
        for name in ("begin", "end", "sparse", "dense"):
            to_time(self, name)
            value, least = getattr(self, name), int(name in ("sparse", "dense"))
            if isinstance(value, int) and value < least:
                raise ValueError(f"Phases: {name} must be {least} or more, in steps. Received: {name}={value}")
        if isinstance(self.begin, int) and isinstance(self.end, int) and self.end < self.begin:
            raise ValueError(
                f"Phases: end must not come before begin. Received: begin={self.begin}, end={self.end}. "
                "The last phase begins at end; the first compressed one at begin."
            )

    @property
    def is_relative(self) -> bool:
        return any(isinstance(time, str) for time in (self.begin, self.end, self.sparse, self.dense))

    def resolve(self, span: Span) -> Schedule:
        begin = span.step(self.begin)
        return dataclasses.replace(
            self,
            begin=begin,
            end=max(begin, span.step(self.end)),
            sparse=span.length(self.sparse),
            dense=span.length(self.dense),
        )

    def _in_steps(self) -> tuple[int, int, int, int]:
        if self.is_relative:
            raise unresolved(self)
        return int(self.begin), int(self.end), int(self.sparse), int(self.dense)

    @property
    def first_step(self) -> int:
        return self._in_steps()[0]

    @property
    def last_step(self) -> int:
        return self._in_steps()[1]

    @property
    def final(self) -> float:
        return self.sparsity

    def __call__(self, step: int) -> float:
        begin, end, sparse, dense = self._in_steps()
        if step >= end:
            return self.sparsity
        done, within = divmod(step - begin, sparse + dense)
        fits = begin + (done + 1) * (sparse + dense) <= end
        return self.sparsity if step >= begin and fits and within < sparse else 0.0

    def should_update(self, step: int) -> bool:
        begin, end, _, _ = self._in_steps()
        return step == end or (begin <= step < end and self(step) != self(step - 1))
