"""Libraries that an extra installs: imported where they are used, and a missing one named with its command."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_extra", "missing_extra"]

_NAMED_OTHERWISE = {"sklearn": "scikit-learn", "tflite_micro": "tflite-micro", "ethosu": "ethos-u-vela"}
"""What the package of a module is called where it is installed from."""


def import_extra(module: str, extra: str, subject: str, otherwise: str = "") -> Any:
    """Return a module that belongs to an extra of `keras-prune`.

    Args:
        module: its name, with dots.
        extra: that installs it.
        subject: what needs it, as an error begins: "plots".
        otherwise: what to do instead of installing it.

    Raises:
        ImportError: it is not installed; the message has the command.

    Example:
        >>> import_extra("json", "viz", "plots").dumps([1])
        '[1]'
        >>> import_extra("no_such.module", "viz", "plots")
        Traceback (most recent call last):
            ...
        ImportError: plots: no_such is needed, and not installed. Install it: pip install "keras-prune[viz]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra(module, extra, subject, otherwise) from error


def missing_extra(module: str, extra: str, subject: str, otherwise: str = "") -> ImportError:
    """Return the error of `import_extra`, for a module that is not to be imported in this process."""
    package = module.split(".", maxsplit=1)[0]
    return ImportError(
        f"{subject}: {_NAMED_OTHERWISE.get(package, package)} is needed, and not installed. "
        f'Install it: pip install "keras-prune[{extra}]"' + (f". {otherwise}" if otherwise else "")
    )
