"""What a server is to be told: on disk before it is sent, so that a server that is away stops nothing and loses nothing.

Which server that is, and how it is told, the caller knows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aupipe.schema import write_text

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
BACK_OFF = 10  # after a failure that took a second, the next try is ten seconds away


class Journal:
    """Entries, one line of JSON each, in `<directory>/journal.jsonl`; in `sent.json` how many of them have arrived where."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "journal.jsonl"

    def entries(self) -> list[Entry]:
        """All entries in their order. What a killed writer left of a line is none, a damaged line is an empty entry."""
        try:
            return _parse(self.path.read_bytes())
        except FileNotFoundError:
            return []

    def append(self, entry: Entry, unless: Callable[[list[Entry]], bool] = lambda _: False) -> bool:
        """Add an entry, on disk and whole when this returns, unless the entries so far say that it is not wanted.

        Raises OSError where the disk takes no more; what it took of the entry goes with the next one.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            data = file.read()
            if unless(_parse(data)):
                return False
            file.truncate(_whole(data))
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return True

    def position(self) -> tuple[str | None, int]:
        """What the entries are known as where they went, and how many of them have arrived there."""
        try:
            noted = json.loads((self.directory / "sent.json").read_text(encoding="utf-8"))
            return noted["target"], noted["sent"]
        except (OSError, ValueError, KeyError, TypeError):
            return None, 0

    def note(self, target: str | None, sent: int) -> None:
        write_text(json.dumps({"target": target, "sent": sent}) + "\n", self.directory / "sent.json")

    def waiting(self) -> int:
        """How many entries have not arrived."""
        return len(self.entries()) - self.position()[1]

    @contextlib.contextmanager
    def sole_sender(self) -> Iterator[None]:
        """One sender at a time, of all processes; a second one waits."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".sender.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Delivery:
    """Tries to send, on a thread of its own: whoever calls does not wait for long and sees no error raised.

    `send` sends all that waits and raises what hinders it. `place` says in a warning where that would have gone.
    """

    patience = 10.0  # seconds that the work waits before it goes on beside the thread

    def __init__(self, send: Callable[[], None], place: str) -> None:
        self.send, self.place = send, place
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._next_try = 0.0
        self._away = False

    def attempt(self, patience: float | None = None, *, at_once: bool = False, report: bool = True) -> Exception | None:
        """Send, and return what hinders it: a TimeoutError if it goes on after `patience` seconds, None if all is sent.

        Nothing is tried while an earlier try is under way or soon after a failure, unless `at_once`.
        """
        patience = self.patience if patience is None else patience
        deadline = time.monotonic() + patience
        if self._thread is not None and self._thread.is_alive():
            if not at_once:
                return TimeoutError("an earlier try is under way")
            self._thread.join(patience)  # it may have begun before the last entry: try again after it
        if self._thread is None or not self._thread.is_alive():
            if self._error is not None and not at_once and time.monotonic() < self._next_try:
                return self._error
            self._thread = threading.Thread(target=self._try, name="delivery", daemon=True)
            self._thread.start()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        error = TimeoutError(f"no answer within {patience:.0f} s") if self._thread.is_alive() else self._error
        if report:
            self.report(error)
        return error

    def report(self, error: Exception | None) -> None:
        """One warning when the server goes, one line when it is back."""
        if error is not None and not self._away:
            logger.warning("%s does not answer; going on, all is kept and sent later (%s)", self.place, one_line(error))
        if error is None and self._away:
            logger.info("%s answers again; all is sent", self.place)
        self._away = error is not None

    def _try(self) -> None:
        started = time.monotonic()
        try:
            self.send()
            self._error = None
        except Exception as error:  # whatever it is, the work goes on
            self._error = error
            self._next_try = time.monotonic() + BACK_OFF * (time.monotonic() - started)


def one_line(error: Exception, width: int = 300) -> str:
    """What an error says, on one line, not too long, and without user and password of the URIs in it."""
    text = masked(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= width else text[:width] + " …"


def masked(text: str) -> str:
    """Without the user and password of a URI."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _whole(data: bytes) -> int:
    """The length of the lines that were finished."""
    return data.rfind(b"\n") + 1


def _parse(data: bytes) -> list[Entry]:
    return [_read_entry(line) for line in data[: _whole(data)].split(b"\n")[:-1]]


def _read_entry(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
