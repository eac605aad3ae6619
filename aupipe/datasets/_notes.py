"""Oddities that a run survives: a line in the log and in the manifest's report, or with --strict an error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

from aupipe.schema import DataError

_log = logging.getLogger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("_collected", default=None)


def note(message: str, *, strict: bool = False) -> None:
    """Something odd that a run survives: a line in the log and the report, or with `strict` a DataError.

    Called without `strict` for what --strict does not turn into an error either.
    """
    if strict:
        raise DataError(message)
    _log.warning("%s", message)
    remark(message)


def remark(message: str) -> None:
    """Something of the usual for the report alone."""
    notes = _collected.get()
    if notes is not None:
        notes.append(message)


@contextlib.contextmanager
def collect_notes() -> Iterator[list[str]]:
    """The notes that are made inside the block, as a list that grows."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)
