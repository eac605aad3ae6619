"""Oddities that a run survives: a line in the log and in the manifest's report, or with --strict an error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

from aupipe.schema import DataError

_log = logging.getLogger(__name__)


class Notes(list[str]):
    """What was noted, and, of that, what went wrong with files that were then passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []


_collected: ContextVar[Notes | None] = ContextVar("_collected", default=None)


def note(message: str, *, strict: bool = False) -> None:
    """Something odd that a run survives: a line in the log and the report, or with `strict` a DataError.

    Called without `strict` for what --strict does not turn into an error either.
    """
    if strict:
        raise DataError(message)
    _log.warning("%s", message)
    remark(message)


def fail(message: str, *, strict: bool = False) -> None:
    """A file that is malformed and passed over, so that the others can be read: an error in log and report.

    Its labels are then not coded. With `strict` a DataError.
    """
    if strict:
        raise DataError(message)
    _log.error("%s", message)
    remark(message)
    notes = _collected.get()
    if notes is not None:
        notes.errors.append(message)


def remark(message: str) -> None:
    """Something of the usual for the report alone."""
    notes = _collected.get()
    if notes is not None:
        notes.append(message)


@contextlib.contextmanager
def collect_notes() -> Iterator[Notes]:
    """The notes that are made inside the block, as a list that grows."""
    notes = Notes()
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)
