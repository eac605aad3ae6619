"""What a training says of itself, entry by entry: into the journal first, then to the server if it is there."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aupipe.journal import Delivery, Entry, Journal, one_line

logger = logging.getLogger(__name__)

SAMPLING = 5.0  # seconds between two samples of CPU, memory and GPU


class RunLog:
    """The entries of one training, `key`, in `<directory>/tracking/<key>/`. No method waits for long or fails for a server.

    The folder may have held another training before, and hold it again after a `dvc checkout`: hence the key.
    `send` sends what the journal has unsent and raises what hinders it; `monitors` makes what measures this machine.
    """

    patience = 60.0  # seconds that a stage waits for the server at its beginning and its end

    def __init__(
        self, directory: Path, key: str, send: Callable[[Journal], None], place: str, monitors: Callable[[], list] = list
    ) -> None:
        self.key, self.journal = key, Journal(directory / "tracking" / key)
        self.delivery = Delivery(lambda: send(self.journal), place)
        self._monitors = monitors
        self._sampler: Sampler | None = None

    def begin(self, corpus: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> Entry:
        """Begin a run in the corpus's experiment, or go on with the one begun; return its first entry."""
        entry = {"kind": "start", "key": self.key, "experiment": f"aupipe-{corpus}", "name": name}
        values = {key: str(value) for key, value in flatten(params).items()}
        self._append(entry | {"params": values, "tags": tags, "time": _now_ms()}, unless=bool)
        self._set_status("RUNNING")
        return (self.journal.entries() or [entry])[0]

    def adopt(self, first: Entry, history: list[dict[str, Any]]) -> None:
        """Take over a finished training whose journal lies on another machine; nothing happens where it is here."""
        if self._append(first, unless=bool):
            self.catch_up([record for record in history if "time" in record])  # an epoch's own time makes it the same one
            self._set_status("FINISHED")

    def watch(self) -> None:
        """Sample the use of CPU, memory and GPU of this machine from now on: it goes into the epochs' entries."""
        self._sampler = self._sampler or Sampler(self._monitors())

    def epoch(self, record: dict[str, Any]) -> None:
        """Log an epoch's record, once: every number in it by its dotted name, and the machine's use since the last."""
        self._append_epoch(record, {} if self._sampler is None else self._sampler.take())
        self.watch()
        self.delivery.attempt()

    def catch_up(self, history: list[dict[str, Any]]) -> None:
        """Log those epochs that have not been: of a training killed between keeping an epoch and logging it."""
        for record in history:
            self._append_epoch(record, {})

    def results(self, figures: dict[str, Any]) -> None:
        """Log the test side's figures, one metric each, under test.*"""
        metrics = {f"test.{name}": value for name, value in _numbers(figures).items()}
        entry = {"kind": "metrics", "step": 0, "metrics": metrics, "time": _now_ms()}
        self._append(entry, unless=lambda entries: _last(entries, step=0).get("metrics") == metrics)
        self.flush()

    @contextlib.contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Around a training: however it ends, that is the run's status."""
        try:
            yield
        except BaseException as error:
            self.end("FAILED" if isinstance(error, Exception) else "KILLED", self.delivery.patience)
            raise
        self.end()

    def end(self, status: str = "FINISHED", patience: float | None = None) -> None:
        """The training is over: FINISHED, FAILED or KILLED."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None
        self._set_status(status)
        self.flush(patience)

    def flush(self, patience: float | None = None) -> Exception | None:
        """Send what is unsent; return what hinders it, after a warning that says what stays behind, and where."""
        if not self.journal.waiting():
            return None
        error = self.deliver(patience)
        self.delivery.report(error)
        if error is not None:
            text = "%d records wait in %s; the next stage of this run sends them, or this one run again"
            logger.warning(text, self.journal.waiting(), self.journal.path)
        return error

    def deliver(self, patience: float | None = None) -> Exception | None:
        """Send what is unsent, as long as it gets less every `patience` seconds; return what hinders it."""
        while True:
            left = self.journal.waiting()
            error = self.delivery.attempt(patience or self.patience, at_once=True, report=False)
            if not isinstance(error, TimeoutError) or self.journal.waiting() >= left:
                return error

    def _append_epoch(self, record: dict[str, Any], system: dict[str, float]) -> None:
        number = record["epoch"]
        figures = _numbers({k: v for k, v in record.items() if k not in ("epoch", "time")})
        entry = {"kind": "metrics", "step": number, "time": round(record.get("time", 0) * 1000) or _now_ms()}
        self._append(entry | {"metrics": figures | system}, unless=lambda entries: bool(_last(entries, step=number)))

    def _set_status(self, status: str) -> None:
        now = {"kind": "status", "status": status, "time": _now_ms()}
        self._append(now, unless=lambda entries: _last(entries, kind="status").get("status", "RUNNING") == status)

    def _append(self, entry: Entry, unless: Callable[[list[Entry]], bool]) -> bool:
        try:
            return self.journal.append(entry, unless)
        except OSError as error:  # a full disk stops the checkpoints, not this; epochs are caught up with at the end
            logger.warning("%s cannot be written (%s); going on", self.journal.path, one_line(error))
            return False


class Sampler:
    """Mean use of this machine's parts, over the time between two questions. `monitors` are MLflow's, or alike."""

    def __init__(self, monitors: list[Any]) -> None:
        self.monitors, self._lock, self._over = monitors, threading.Lock(), threading.Event()
        self.take()  # the CPU's first figure is of the time before
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def take(self) -> dict[str, float]:
        """The means since the last call: {"system/cpu_utilization_percentage": 93.1, …}."""
        self._collect()
        with self._lock:
            figures = {f"system/{k}": float(v) for monitor in self.monitors for k, v in monitor.aggregate_metrics().items()}
            for monitor in self.monitors:
                monitor.clear_metrics()
        return figures

    def stop(self) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(SAMPLING):
            self._collect()

    def _collect(self) -> None:
        with self._lock:
            for monitor in self.monitors:
                monitor.collect_metrics()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among them, named in letters that MLflow takes; what is undefined is left out."""
    flat = flatten(values).items()
    return {re.sub(r"[^\w\-. :/]", "_", key): float(value) for key, value in flat if isinstance(value, (int, float))}


def _last(entries: list[Entry], **what: Any) -> Entry:
    """The last entry that has these values, {} if there is none."""
    found = (entry for entry in reversed(entries) if all(entry.get(key) == value for key, value in what.items()))
    return next(found, {})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
