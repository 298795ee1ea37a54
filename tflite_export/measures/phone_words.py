"""What a phone's page says, read as what it is: text from a device that nobody has checked."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_prune.text.plaintext import printable

__all__ = [
    "LARGEST_WORDS",
    "LONGEST_RUN",
    "Figures",
    "Row",
    "WordsError",
    "browser_name",
    "read_figures",
    "read_words",
    "text",
]

LARGEST_WORDS = 2**22
"""Bytes of a request: a hundred rounds of a hundred files, as text, are a fifth of it."""
LONGEST_RUN = 3.6e6
"""Milliseconds: no browser runs a page for an hour at a stretch."""
_LONGEST_TEXT = 300
_MOST_TEXTS = 5
_NAMES = (
    ("Firefox", r"(?:Firefox|FxiOS)/[\d.]+"),
    ("Edge", r"Edg(?:A|iOS)?/[\d.]+"),
    ("Opera", r"OPR/[\d.]+"),
    ("Samsung Internet", r"SamsungBrowser/[\d.]+"),
    ("Chrome", r"(?:HeadlessChrome|Chrome|CriOS)/[\d.]+"),
    ("Safari", r"Version/[\d.]+"),
)


class WordsError(ValueError):
    """What a page says is not what a page of ours would say."""


@dataclass(frozen=True)
class Row:
    """What a phone says of one file.

    Args:
        agrees: its outputs are those that were expected.
        timed: its times are among the samples.
        failed: it could not be loaded or run.
        reason: why it was not timed; empty if it was.
    """

    agrees: bool
    timed: bool
    failed: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Figures:
    """The result of a job.

    Args:
        rows: of the files, in their order; fewer where one failed, which ends a job.
        samples: milliseconds, [rounds, files timed].
        hidden: the page was hidden meanwhile.
    """

    rows: tuple[Row, ...]
    samples: NDArray[np.float64]
    hidden: bool


def read_words(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a page posted, with the page's own number.

    Raises:
        WordsError: it is none.

    Example:
        >>> read_words(b'{"page": "00ff", "place": 1}')
        {'page': '00ff', 'place': 1}
    """
    try:
        words = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WordsError("a request must be JSON") from error
    if not isinstance(words, dict) or not re.fullmatch(r"[0-9a-f]{1,32}", str(words.get("page"))):
        raise WordsError("a request must be an object with the number of its page")
    return words


def read_figures(words: dict[str, Any], files: int, rounds: int) -> Figures:
    """Return the result of a job, checked: types, sizes, and times that are finite and positive.

    Args:
        words: as the page posted them.
        files: of the job.
        rounds: of the job.

    Raises:
        WordsError: it cannot be the result of the job.
    """
    rows = _list(words.get("rows"), "the rows", files)
    if not 1 <= len(rows) <= files:
        raise WordsError(f"there must be a row for each of {files} files")
    read = tuple(_row(row) for row in rows)
    failed = [row.failed for row in read]
    if any(failed[:-1]) or (len(read) < files and not failed[-1]):
        raise WordsError("the rows must end with the file that failed, or with the last")
    timed = sum(row.timed for row in read)
    if failed[-1]:
        if timed:
            raise WordsError("no file may be timed where one failed")
        return Figures(read, np.empty((0, 0)), words.get("hidden") is True)
    times = _list(words.get("times"), "the times", rounds)
    if any(row.agrees != row.timed for row in read) or len(times) != (rounds if timed else 0):
        raise WordsError(f"there must be {rounds} rounds, of the files that agree")
    samples = [[_milliseconds(value) for value in _list(row, "a round", timed)] for row in times]
    if any(len(row) != timed for row in samples):
        raise WordsError(f"a round must have {timed} times")
    return Figures(read, np.array(samples, dtype=np.float64).reshape(len(samples), timed), words.get("hidden") is True)


def _list(value: object, what: str, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise WordsError(f"{what} must be a list of at most {longest}")
    return value


def _milliseconds(value: object) -> float:
    # A bool is an int to Python.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LONGEST_RUN:
        raise WordsError("a time must be a positive, finite number of milliseconds")
    return float(value)


def _row(row: object) -> Row:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), bool) for key in ("agrees", "timed", "failed")):
        raise WordsError("a row must say whether the file agrees, was timed, and failed")
    if row["failed"] and row["agrees"]:
        raise WordsError("a file that failed cannot agree")
    difference = row.get("max_difference")
    if difference is not None and (isinstance(difference, bool) or not isinstance(difference, (int, float))):
        raise WordsError("a difference must be a number or nothing")
    texts = [text(each) for each in _list(row.get("said"), "what the runtime said", _MOST_TEXTS)]
    reason = ""
    if row["failed"]:
        reason = "it does not run there: " + ("; ".join(texts) or "no message")
    elif not row["agrees"]:
        far = difference is None or not math.isfinite(difference)
        share = "more than their scale" if far else f"{difference:.3g} of their scale"
        reason = "; ".join([f"its outputs differ by {share}", *texts])
    return Row(row["agrees"], row["timed"], row["failed"], reason)


def text(value: object) -> str:
    """Return a text of a page, cut and made harmless for a terminal.

    Raises:
        WordsError: it is none.
    """
    if not isinstance(value, str):
        raise WordsError("a text must be a text")
    return printable(value[:_LONGEST_TEXT]).replace("\n", " ")


def browser_name(user_agent: str) -> str:
    """Return a browser's name, version and system from what it calls itself.

    Example:
        >>> browser_name("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/140.0.0.0 Mobile Safari/537.36")
        'Chrome 140.0.0.0 (Linux; Android 10; K)'
    """
    system = re.search(r"\([^()]{1,80}\)", user_agent)
    for name, pattern in _NAMES:
        found = re.search(pattern, user_agent)
        if found is not None:
            version = found[0].partition("/")[2]
            return " ".join([name, version, *([system[0]] if system else [])])
    return user_agent[:80] or "an unnamed browser"
