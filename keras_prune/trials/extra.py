"""The libraries of the extra `search`, imported where they are used, and kept quiet."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from keras_prune.extras import import_extra

__all__ = ["quiet_optuna", "search_module"]


def search_module(name: str) -> Any:
    """Return a module of Optuna, pymoo or their kin.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    return import_extra(name, "search", "a search")


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from printing each trial, and from calling its heartbeat experimental."""
    optuna = search_module("optuna")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
