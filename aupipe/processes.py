"""A map over the cores of this machine: the default way of running sessions, beside Ray's `stream.map_sessions`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from aupipe.schema import DataError

Map = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]


def map_processes(function: Callable[[Any], Any], tasks: list[Any]) -> Iterator[Any]:
    """Run a picklable function over tasks, a process per core; results come as they are ready.

    An error of a task is raised here, the rest is cancelled. Raises DataError if a process dies.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned: a forked copy of a process that has started Ray or CUDA does not work.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died: out of memory, or called from a script without `if __name__ == '__main__':`; "
                "finished sessions are kept, so run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
