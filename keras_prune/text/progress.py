"""A progress bar for what takes its time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keras_prune.text.plaintext import printable

__all__ = ["progress"]


@contextlib.contextmanager
def progress(owner: str, total: int, verbose: Any) -> Iterator[Callable[[str], None]]:
    """Show how many parts are done and how long the rest may take, on the standard error.

    Args:
        owner: who works, for the bar and for messages.
        total: how many parts there are; nothing is shown for none.
        verbose: as Keras has it: 0 for none, 1 for a bar, "auto" for one where it is seen, in a terminal or a notebook.

    Yields:
        A function that is told the name of each part that is done.

    Raises:
        ValueError: `verbose` is none of these.

    Example:
        >>> with progress("prune", 2, verbose=0) as done:
        ...     done("dense/kernel")
    """
    if verbose not in ("auto", 0, 1):
        raise ValueError(f"{owner}: verbose must be 'auto', 0 or 1. Received: verbose={verbose!r}")
    console = Console(stderr=True)
    seen = console.is_interactive or console.is_jupyter
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[part]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not (total and (seen if verbose == "auto" else verbose))) as bar:
        task = bar.add_task(owner, total=total, part="")

        def done(part: str) -> None:
            bar.update(task, advance=1, part=printable(part))

        yield done
