"""How far a training is: sums of a pass over batches, where the seconds went, and the step that is next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aupipe.metrics import Counts, mean_over_aus
from aupipe.recipes import PhaseConfig
from aupipe.schema import Batch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]
# What of an epoch's record depends on the machine and the day; all else is the same for every run of a training.
TIMINGS = ("time", "seconds", "frames_per_s", "wait", "timings", "gpu_memory", "gpu_use")
SPOKEN_EVERY = 30.0  # seconds between two lines of progress
SAMPLED_EVERY = 2.0  # seconds between two looks at the GPU


@dataclass(slots=True)
class Sums:
    """What a pass over batches adds up to, so that workers' passes can be added too. A loss term counts by its clips."""

    counts: Counts
    terms: dict[str, float] = field(default_factory=dict)
    clips: int = 0
    frames: int = 0

    def add(self, terms: Mapping[str, float | Tensor], logits_BTM: Tensor, batch: Batch) -> None:
        B = len(batch.labels_BTM)
        for name, term in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + float(term) * B
        probs = logits_BTM.detach().float().sigmoid().cpu().numpy()
        T = probs.shape[1]  # the whole clip, or its last frames alone
        self.counts = self.counts + Counts.from_probs(probs, batch.labels_BTM[:, -T:], batch.mask_BTM[:, -T:])
        self.clips += B
        self.frames += int(batch.real_BT.sum())

    def to_array(self) -> NDArray[np.float64]:
        """All numbers in a row: those of the counts, the terms in their order, clips and frames."""
        return np.concatenate([self.counts.to_array().ravel(), [*self.terms.values()], [self.clips, self.frames]])

    @classmethod
    def from_array(cls, flat: NDArray[np.float64], names: Iterable[str]) -> Sums:
        names = list(names)
        counts, rest = np.split(flat, [len(flat) - len(names) - 2])
        *terms, clips, frames = rest.tolist()
        return cls(Counts.from_array(counts.reshape(4, -1)), dict(zip(names, terms, strict=True)), int(clips), int(frames))

    def reduced(self, reduce: Reduce) -> Sums:
        """The sums over all workers. Every worker has at least a step, so all know the same terms in the same order."""
        return Sums.from_array(reduce(self.to_array()), self.terms)

    def figures(self) -> dict[str, float]:
        """Mean loss terms over clips, their sum, and the mean F1 over AUs."""
        terms = {name: total / max(self.clips, 1) for name, total in self.terms.items()}
        return {"loss": sum(terms.values()), **terms, "f1": mean_over_aus(self.counts.f1())}


class Tally:
    """Adds steps to `sums`, each one step late: a GPU is given the next step before it is asked for this one's numbers.

    `refuse` is called with the loss and the batch of a step whose loss is not finite, and raises.
    """

    def __init__(self, sums: Sums, refuse: Callable[[float, Batch], None] | None = None) -> None:
        self.sums, self.refuse = sums, refuse
        self.waiting: tuple[list[str], Tensor, Tensor, Batch, Any] | None = None

    def add(self, terms: Mapping[str, Tensor], logits_BTM: Tensor, batch: Batch) -> None:
        self.flush()
        values = torch.stack([term.detach() for term in terms.values()])
        copies = [tensor.detach().to("cpu", non_blocking=True) for tensor in (values, logits_BTM)]
        event = None
        if values.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self.waiting = (list(terms), *copies, batch, event)  # type: ignore[assignment]

    def flush(self) -> None:
        """Add the step that waits. Afterwards all steps so far are in the sums, and finite."""
        if self.waiting is None:
            return
        names, values, logits, batch, event = self.waiting
        self.waiting = None
        if event is not None:
            event.synchronize()
        numbers = values.tolist()
        if self.refuse is not None and not np.isfinite(sum(numbers)):
            self.refuse(sum(numbers), batch)
        self.sums.add(dict(zip(names, numbers, strict=True)), logits, batch)


class Timers:
    """Seconds spent in named parts of the work."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(seconds or {})

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time until each of them is there counts as part `name`."""
        iterator, end = iter(items), object()
        while True:
            with self.part(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def share(self, name: str) -> float:
        return self.seconds.get(name, 0.0) / max(sum(self.seconds.values()), 1e-9)


@dataclass(slots=True)
class Progress:
    """The place in a training: records of the epochs so far, the phase, the epochs before it, the steps of this epoch.

    Also what this epoch adds up to until now: the seconds of its parts, and this worker's sums.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    phase: int = 0
    first: int = 0
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    sums: Sums | None = None

    @property
    def epoch(self) -> int:
        return len(self.history)

    def is_over(self, phase: PhaseConfig) -> bool:
        """Whether the phase has had all its epochs, or `patience` of them without a better mean F1 on `val`."""
        own = self.history[self.first :]
        scores = [score_of(record) for record in own]
        stalled = phase.patience and own and len(own) - 1 - int(np.argmax(scores)) >= phase.patience
        return len(own) >= phase.epochs or bool(stalled)

    def end_epoch(self, record: dict[str, Any]) -> None:
        self.history.append(record)
        self.step, self.seconds, self.sums = 0, {}, None

    def is_best(self) -> bool:
        """Whether the last epoch is the one to keep; of two equals the later one."""
        scores = [score_of(record) for record in self.history]
        return scores[-1] >= max(scores)


def score_of(record: Mapping[str, Any]) -> float:
    """What epochs are compared by: the mean F1 on `val`, below all where it is undefined."""
    f1 = record["val"]["f1"]
    return -1.0 if f1 is None else f1


class Speaker:
    """Logs how an epoch goes, now and then, and watches the GPU that it runs on."""

    def __init__(self, device: str, total: int, world: int) -> None:
        self.device, self.total, self.world = device, total, world
        self.spoken = self.sampled = time.monotonic()
        self.uses: list[float] = []

    def look(self, epoch: int, step: int, sums: Sums, timers: Timers) -> None:
        now = time.monotonic()
        if now - self.sampled >= SAMPLED_EVERY and (use := gpu_use(self.device)) is not None:
            self.sampled, self.uses = now, [*self.uses, use]
        if now - self.spoken < SPOKEN_EVERY:
            return
        self.spoken, rate = now, sums.frames * self.world / max(sum(timers.seconds.values()), 1e-9)
        text = "epoch %d, step %d of %d: loss %.4f, %.0f frames/s, %.0f %% of the time waiting for data%s"
        gpu = "".join(f", {name} {value:.3g}" for name, value in self.gpu().items())
        logger.info(text, epoch, step, self.total, sums.figures()["loss"], rate, 100 * timers.share("wait"), gpu)

    def gpu(self) -> dict[str, float]:
        """`gpu_use`, percent of the time, and `gpu_memory`, the highest so far in GiB; nothing without a GPU."""
        if not self.device.startswith("cuda"):
            return {}
        memory = torch.cuda.max_memory_allocated(self.device) / 2**30
        return {"gpu_memory": memory} | ({"gpu_use": float(np.mean(self.uses))} if self.uses else {})


def gpu_use(device: str) -> float | None:
    """Percent of the last moment in which a GPU worked; None where nothing says so."""
    if not device.startswith("cuda"):
        return None
    try:
        return float(torch.cuda.utilization(device))
    except Exception:  # NVML is absent, or of another version: its errors have no class that is always there
        return None
