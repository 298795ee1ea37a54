"""The commands `keras-prune` and `tflite-export`, as the console scripts start them.

TensorFlow and LiteRT write notes on the machine to the standard error when they are imported, before any command has
said a word, and no setting stops all of them. Importing either package imports TensorFlow, so this module belongs to
neither.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def keras_prune() -> None:
    """Run `keras-prune`."""
    with _quiet():
        # The commands of the other package (`demo`) are among its own.
        import tflite_export.cli  # noqa: F401
        from keras_prune.cli import main
    main()


def tflite_export() -> None:
    """Run `tflite-export`."""
    with _quiet():
        from tflite_export.cli import main
    main()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what is written to the standard error; it is shown if the import fails."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notes:
        terminal = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(terminal, notes.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
