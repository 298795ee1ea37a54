"""The libraries of the extra `search`, imported where they are used, and kept quiet."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["import_extra", "quiet_optuna"]


def import_extra(name: str) -> Any:
    """Return a module of Optuna, pymoo or their kin.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        raise ImportError(f'A search needs {package}. Install it: pip install "keras-prune[search]"') from error


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from printing each trial, and from calling its heartbeat experimental."""
    optuna = import_extra("optuna")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
