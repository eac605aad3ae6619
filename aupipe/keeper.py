"""What keeps a training going: its state on disk, one writer, saves that all workers agree on, an end to hanging.

A state is whole or not there, and holds all that the next step depends on: weights, the optimiser's state, the place in the
epoch, and for every worker its random states and its sums so far. A training that goes on with as many workers therefore
makes the very steps that it would have made; with fewer or more, the same steps but for what is drawn in the model.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import fcntl
import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from aupipe import checkpoint
from aupipe.progress import Progress, Sums
from aupipe.schema import DataError
from aupipe.training import Training, Worker

logger = logging.getLogger(__name__)

LOCK_SECONDS = 60.0  # in which a process that was killed is gone
FIRST_STEP_SECONDS = 1800.0  # compiling and joining the other workers may take long
SAVE_SHARE = 0.05  # of the time at most, or saves become rarer
_PRIME = 1_000_003  # sets the workers' random numbers apart


class Keeper:
    """The state of a training, `<directory>/last`, and the epoch selected so far, `<directory>/checkpoint`.

    Every worker has one and calls the same methods after the same steps; rank 0 writes. Its watchdog is awake while the
    context lasts.
    """

    def __init__(self, training: Training, worker: Worker, model: nn.Module) -> None:
        self.training, self.worker, self.model = training, worker, model
        self.last, self.best = training.directory / "last", training.directory / "checkpoint"
        self.watchdog = Watchdog(training.step_seconds)
        self.seconds = training.save_seconds
        self.random: NDArray[np.uint8] | None = None
        self.unwritten: nn.Module | None = None  # the best epoch, while there is no room for it
        self.met = self.saved = time.monotonic()
        self.since, self.ahead = 0, 4  # steps since workers met, and from then to the next time
        if worker.rank == 0:
            for path in (self.last, self.best):
                checkpoint.settle(path)
        worker.reduce(np.zeros(1))  # nobody reads before

    def __enter__(self) -> Keeper:
        self.watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watchdog.ended.set()

    def load(self) -> Progress | None:
        """The weights into the model, and the place in the training; None where nothing is kept."""
        kept = checkpoint.load_progress(self.last)
        if kept is None:
            return None
        checkpoint.load_weights(self.last, self.model)
        ranks = {name: tensor.numpy() for name, tensor in checkpoint.load_ranks(self.last).items()}
        names, progress = kept.pop("terms"), Progress(**kept)
        world = len(ranks["random_WN"])
        self.random = ranks["random_WN"][self.worker.rank] if self.worker.rank < world else None
        if progress.step:
            sums_WN = ranks["sums_WN"]
            own = sums_WN[self.worker.rank] if world == self.worker.world else sums_WN.sum(0) * (self.worker.rank == 0)
            progress.sums = Sums.from_array(own, names)
        if self.worker.rank == 0:
            logger.info("going on after epoch %d and %d steps: %s", progress.epoch, progress.step, self.last.parent)
        return progress

    def draw_on(self) -> None:
        """Go on drawing random numbers where the state was saved; a worker without one draws others than the rest."""
        if self.random is not None:
            set_random_state(self.random, self.worker.device)
        elif self.worker.rank:
            torch.manual_seed(self.training.seed + _PRIME * self.worker.rank)

    def is_due(self, step: int) -> bool:
        """Whether the state is to be saved after this step of the epoch, the same for all workers.

        By the clock, rank 0 decides: now and then, at a step that it named before, the others ask.
        """
        if self.training.save_steps:
            return step % self.training.save_steps == 0
        self.since += 1
        if self.since < self.ahead:
            return False
        now = time.monotonic()
        waited, pace = now - self.saved, (now - self.met) / self.since
        due = waited >= 0.9 * self.seconds
        ahead = (self.seconds - (0 if due else waited)) / max(pace, 1e-6) / 2  # half of the way, since the pace may change
        answer = np.array([due, max(1, int(ahead))], float) if self.worker.rank == 0 else np.zeros(2)
        due, ahead = self.worker.reduce(answer)
        self.met, self.since, self.ahead = now, 0, int(ahead)
        return bool(due)

    def save(self, optimiser: torch.optim.Optimizer, progress: Progress, *, best: bool = False, must: bool = False) -> None:
        """Save the state, after the best epoch so far the checkpoint too.

        Where that fails, what was kept before stays whole and a warning is logged; DataError if it `must` not fail. The
        state never runs ahead of the checkpoint.
        """
        sums = np.zeros(0) if progress.sums is None else progress.sums.to_array()
        ranks = {"random_WN": self._gather(random_state(self.worker.device)).astype(np.uint8), "sums_WN": self._gather(sums)}
        if self.worker.rank:
            return
        started, self.unwritten = time.monotonic(), self.model if best else self.unwritten
        try:
            if self.unwritten is not None:
                checkpoint.save_checkpoint(self.best, self.unwritten, self.training.description)
                self.unwritten = None
            kept = {name: getattr(progress, name) for name in ("history", "phase", "first", "step", "seconds")}
            kept["terms"] = [] if progress.sums is None else list(progress.sums.terms)
            tensors = {name: torch.from_numpy(values) for name, values in ranks.items()}
            checkpoint.save_state(self.last, self.model, self.training.description, optimiser, kept, tensors)
        except DataError as error:
            if must:
                raise
            if self.unwritten is self.model:
                self.unwritten = copy.deepcopy(self.model)
            logger.warning("%s; training goes on, and what was kept before is whole", error)
        self.saved = time.monotonic()
        self.seconds = max(self.training.save_seconds, (self.saved - started) / SAVE_SHARE)

    def share_buffers(self) -> None:
        """Have every worker go on with rank 0's running statistics: theirs are of other clips, and are not kept."""
        buffers = list(self.model.buffers())
        if self.worker.world == 1 or not buffers:
            return
        flat = torch.cat([buffer.detach().flatten().double().cpu() for buffer in buffers]).numpy()
        shared = torch.from_numpy(self.worker.reduce(flat if self.worker.rank == 0 else np.zeros_like(flat)))
        with torch.no_grad():
            for buffer, values in zip(buffers, shared.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(values.view(buffer.shape))

    def _gather(self, values: NDArray) -> NDArray[np.float64]:
        """(N,) of each worker → (world, N) for all."""
        rows = np.zeros((self.worker.world, len(values)))
        rows[self.worker.rank] = values
        return self.worker.reduce(rows)


def random_state(device: str) -> NDArray[np.uint8]:
    """What torch draws from, on the CPU and then on the worker's GPU, as bytes."""
    states = [torch.get_rng_state()]
    if device.startswith("cuda"):
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states).numpy()


def set_random_state(state: NDArray[np.uint8], device: str) -> None:
    """Put back what `random_state` gave; a GPU that it knows nothing of stays as it is."""
    cpu, gpu = torch.from_numpy(state.copy()).split([n := len(torch.get_rng_state()), len(state) - n])
    torch.set_rng_state(cpu)
    if device.startswith("cuda") and len(gpu):
        torch.cuda.set_rng_state(gpu, device)


@contextlib.contextmanager
def written_alone(directory: Path) -> Iterator[None]:
    """Be the only process that trains in a directory; wait for one that is being killed.

    Raises DataError if it lives on. On file systems that cannot lock a directory there is no such guard.
    """
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(f"another process trains in {directory}; end it or wait, and run it again") from None
                time.sleep(0.2)
            except OSError:
                break
        yield
    finally:
        os.close(handle)


class Watchdog:
    """Ends this process, exit code 2, if there is no `beat` for `seconds`: where it hangs stands in the log.

    It counts its own ticks and not the clock, so that a process that was stopped for a while is not blamed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.tick, self.ended = seconds, min(1.0, seconds / 4), threading.Event()
        self.limit = self.left = math.inf

    def rest(self) -> None:
        """What comes now may take as long as it likes, until the next call."""
        self.left = math.inf

    def begin(self) -> None:
        """A first step comes, for which more may have to be made ready."""
        self.limit = self.left = max(self.seconds, FIRST_STEP_SECONDS)

    def step(self) -> None:
        """A step was made; the next ones are to be quicker than a first one."""
        self.limit = self.left = self.seconds

    def beat(self) -> None:
        """Something else was done; the next thing has its time."""
        self.left = self.limit

    def start(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.ended.wait(self.tick):
            self.left -= self.tick
            if self.left <= 0:
                text = "nothing was done for %.0f s, so this process ends itself; its threads were here:"
                logger.error(text, self.limit)
                faulthandler.dump_traceback()
                os._exit(2)
