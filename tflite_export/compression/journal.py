"""What a search has done, on disk: so that it goes on after a kill where it stopped.

A folder holds the files and models of candidates, and `journal.jsonl`: a line for what the search was asked for, then
one for each thing that is done. A line is appended, flushed and synced when the files that it names are there; one that
was cut short by a kill is dropped when the journal is read. A second search in the folder is refused while one runs:
the system holds the lock for the process of the first, so that a kill leaves none behind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from keras_prune.files.locking import FileLock, LockedError
from tflite_export.errors import ExportError

__all__ = ["NAME", "Journal"]

NAME = "journal.jsonl"
LOCK = "lock"
VERSION = 1


class Journal:
    """The entries of a search, by key. It is closed afterwards: until then no other search works in the folder.

    Args:
        folder: made if it is not there.
        asked: what the search was asked for, as values that JSON knows: another search does not go on from it.

    Raises:
        ExportError: the folder holds another search, or a file that is no journal, or cannot be written; or a search
            works in it.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self._path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK)
            try:
                self.entries = self._read(json.loads(json.dumps(dict(asked))))
            except BaseException:
                self.close()
                raise
        except LockedError as error:
            raise ExportError(
                f"folder '{folder}'",
                "must not be one that another search works in now",
                f"a search of process {error.holder or 'unknown'}",
                "Wait for its end, and this call takes over what it found; or pass folder= as another one.",
            ) from error
        except OSError as error:
            raise ExportError(
                f"folder '{folder}'", "must be a folder that can be written", error.strerror or error, "Choose another."
            ) from error

    def _read(self, asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
            entries = {line["key"]: line for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(
                f"'{self._path}'", "must be the journal of a search", error, "Remove the folder, or pass another."
            ) from error
        if first is None:
            self._write({"version": VERSION, "asked": asked})
        elif first != {"version": VERSION, "asked": asked}:
            raise self._another(asked, first.get("asked", {}))
        return entries

    def _another(self, asked: dict[str, Any], before: dict[str, Any]) -> ExportError:
        different = [name for name in asked if asked[name] != before.get(name)] or ["version"]
        listed = "; ".join(f"{name}: {before.get(name)!r} there, {asked.get(name)!r} now" for name in different)
        return ExportError(
            f"folder '{self.folder}'",
            "holds a search for other arguments, from which this one cannot go on",
            listed,
            "Pass folder= as another one, or remove this one to begin anew.",
        )

    def close(self) -> None:
        """Let the next search in."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, key: str, entry: Mapping[str, Any]) -> None:
        """Note that something is done; its files must be there."""
        line = {"key": key, **entry}
        self._write(line)
        self.entries[key] = json.loads(json.dumps(line))

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
