"""What a user sees while a search runs: what is being done, the best so far, and how long it will take."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["SearchProgress"]


class SearchProgress:
    """A bar in the terminal; silent with `shown=False`.

    Args:
        total: of the search: seconds of its budget, or candidates.
        shown: whether anything is printed.
        console: where to print; None for the standard output.
    """

    def __init__(self, total: float, *, shown: bool, console: Console | None = None) -> None:
        self._bar = Progress(
            TextColumn("compress"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[best]} | {task.description}", markup=False),
            console=console,
            disable=not shown,
        )
        self._total = total
        self._task = self._bar.add_task("begins", total=total, best="nothing better yet")

    def doing(self, words: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=words)

    def done(self, amount: float, best: str) -> None:
        """Say how much of the total is done, and what the best candidate is so far."""
        self._bar.update(self._task, completed=min(amount, self._total), best=best or "nothing better yet")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
