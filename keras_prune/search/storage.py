"""Where a study is kept, and whether it is the study that is meant."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_prune.trials.extra import quiet_optuna, search_module

__all__ = ["FILE", "open_storage", "open_study", "short_digest"]

FILE = "keras-prune-search.db"
"""The SQLite file in the current folder that studies are kept in, where nothing else is said."""
HEARTBEAT, GRACE = 5, 20
"""Seconds between two signs of life of a running trial, and without one until it is taken for dead."""
WRITING = 10.0
"""Seconds that another worker is given to describe the study that it has just made."""
DESCRIPTION = "keras_prune"


def open_storage(storage: Any) -> Any:
    """Return an Optuna storage.

    Args:
        storage: None for `FILE`; the path of an SQLite file; a URL, of PostgreSQL for instance; or a storage.

    Raises:
        ValueError: its folder is not there, or the database does not answer.
        ImportError: the driver of the database is not installed.
    """
    optuna = search_module("optuna")
    if isinstance(storage, optuna.storages.BaseStorage):
        return storage
    url = os.fspath(FILE if storage is None else storage)
    if "://" not in url:
        folder = Path(url).absolute().parent
        if not folder.is_dir():
            raise ValueError(
                f"study: storage must be a file in a folder that exists, or a URL. Received: {url!r}, and there is no "
                f"folder {str(folder)!r}."
            )
        url = f"sqlite:///{url}"
    # Several workers write to one file: each waits for the others.
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        with quiet_optuna():
            return optuna.storages.RDBStorage(
                url, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE
            )
    except ImportError as error:
        raise ImportError(
            f"study: {url.split(':', maxsplit=1)[0]!r} lacks a module (it said: {error.__cause__ or error}). For "
            'PostgreSQL: pip install "psycopg[binary]", and a URL that begins with postgresql+psycopg://. For any '
            'other: pip install "keras-prune[search]"'
        ) from error
    except search_module("sqlalchemy.exc").SQLAlchemyError as error:
        raise ValueError(
            f"study: storage must be the URL of a database that answers. Received: {_without_password(url)!r}, and "
            f"SQLAlchemy says: {str(error).splitlines()[0]}"
        ) from error


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def open_study(
    storage: Any, name: str, rises: Sequence[bool], description: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], bool]:
    """Return the study of a name, made if it is not there; its settings; and whether it was made.

    Args:
        storage: of Optuna.
        name: of the study.
        rises: for each objective, whether more is better.
        description: what has to be equal for trials to belong together, JSON-able, each under a name for the message.
        settings: what the first call decides for all that follow, JSON-able.

    Raises:
        ValueError: there is a study of this name, and it is another one; the message says what differs.
    """
    optuna = search_module("optuna")
    directions = ["maximize" if up else "minimize" for up in rises]
    try:
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name)
    else:
        study.set_user_attr(DESCRIPTION, {"description": dict(description), "settings": dict(settings)})
        return study, dict(settings), True
    known = _described(study)
    differing = (
        [] if known is None else [key for key, value in description.items() if known["description"].get(key) != value]
    )
    if known is None or differing:
        what = f"another {' and another '.join(differing)}" if differing else "no description by keras_prune"
        raise ValueError(
            f"study: the study {name!r} that is stored has {what} than this call, so their trials do not belong "
            f"together. Received: name={name!r}. Take another name or storage, or name=None for one of its own."
        )
    return study, known["settings"], False


def _described(study: Any) -> dict[str, Any] | None:
    """The description that the worker which made the study has written; None if there is none."""
    end = time.monotonic() + WRITING
    while True:
        found: dict[str, Any] | None = study.user_attrs.get(DESCRIPTION)
        if found is not None or study.get_trials(deepcopy=False) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def short_digest(value: Any) -> str:
    """Return eight characters that stand for a value, by its `repr`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]
