"""Ray Data: clips streamed to a training worker, and sessions mapped over all cores and nodes.

Rows of the clip plan travel, then bytes of faces, one row per clip, so no clip depends on a block boundary; the worker
decodes them on threads of its own. Order, crops and mirrors are those of `clips`, byte for byte.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

# Before Ray is imported: no usage reports, and every Ray that we start or join wants its token (its ports listen widely).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
if "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine's own CPUs away
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for a poll: 2 s by default

import pyarrow as pa
import ray
import ray.data
from ray.data.read_api import from_blocks

from aupipe.clips import ClipSpec, decode_clips, read_clips
from aupipe.codec import THREADS
from aupipe.order import Epoch, cut_pieces
from aupipe.prefetch import Buffers, prefetch
from aupipe.schema import Batch, DataError

OBJECT_STORE_BYTES = 1 << 30  # plans and JPEGs in flight; Ray's own default takes 30 % of the memory
# Reading Parquet mostly waits, so its tasks reserve no CPU: Ray Data shares what the workers leave out by whole CPUs, and
# on two cores a half for each of two ranks is none for either.
READ_TASKS = 2  # at a time, for each rank
TASK_FRAMES = 1024  # read by one task: 18 MB as JPEG at 200 pixels, so that a task's own cost is small beside its reading
IN_FLIGHT = 3  # sessions per CPU: one runs, the others wait for it, so that no core does


def connect() -> None:
    """Join the cluster at RAY_ADDRESS, or start a Ray of this process's own; nothing if it runs already."""
    if not ray.is_initialized():
        # "local": without it, Ray would look for whatever cluster this machine has, and join it.
        local = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "object_store_memory": OBJECT_STORE_BYTES}
        ray.init(logging_level="warning", log_to_driver=True, **local)
    # A line for every pass over the data, and the news that its progress bar is off, drown what a person reads.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


def cpus() -> float:
    """CPUs of the cluster that `connect` joined or started."""
    return float(ray.cluster_resources().get("CPU", 1))


def map_sessions(function: Callable[[Any], Any], tasks: list[Any]) -> Iterator[Any]:
    """Run `function` over the tasks on all cores and nodes, a Ray task each; results come as they are ready.

    For `synthetic.corpus.render` and `shards.build`. Ray has IN_FLIGHT tasks per CPU at a time, so that its memory does not
    grow with the corpus; nodes that join get theirs. An error of a task is raised here as it was there, and the rest is
    cancelled. Raises DataError if a worker dies.
    """
    connect()
    run = ray.remote(num_cpus=1, max_retries=2)(_work_in)
    folder, rest = os.getcwd(), iter(tasks)
    waiting: list[Any] = []
    try:
        while True:
            room = max(1, int(IN_FLIGHT * cpus())) - len(waiting)
            waiting += [run.remote(folder, function, task) for task in itertools.islice(rest, max(0, room))]
            if not waiting:
                return
            done, waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause if error.cause is not None else error from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise DataError(
            f"a worker of Ray died ({type(error).__name__}); finished sessions are kept, so run the same command again"
        ) from None
    finally:
        for task in waiting:
            ray.cancel(task)


def _work_in(folder: str, function: Callable[[Any], Any], task: Any) -> Any:
    """`function(task)` in the caller's folder, so that relative paths mean the same; a worker's own is one of Ray's."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise DataError(f"a node of the cluster has no {folder} ({error}); work in a folder that all nodes share") from None
    return function(task)


def clip_stream(
    plan: pa.Table,
    shards: Path,
    spec: ClipSpec,
    *,
    train: bool,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """This rank's batches of one pass, the same as `clips.clip_batches` gives, read by Ray Data ahead of the caller.

    `start` skips that many steps. Every rank gets the same number of training steps.
    """
    this = Epoch(train, seed, epoch)
    pieces = list(cut_pieces(plan, spec, this, rank=rank, world=world, start=start, frames=TASK_FRAMES))
    if not pieces:
        return
    # Not from_arrow: it looks at each table in a task that wants a whole CPU, which a small cluster may never have free.
    clips = from_blocks(pieces).map_batches(
        _read,
        fn_kwargs={"shards": Path(shards).resolve(), "spec": spec, "epoch": this},
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(min(READ_TASKS, len(pieces))),
    )
    tables = iter(clips.iter_batches(batch_size=spec.batch // world, batch_format="pyarrow", prefetch_batches=1))
    with ThreadPoolExecutor(THREADS) as pool:
        decode = partial(_decode, spec=spec, epoch=this, pool=pool, buffers=Buffers())
        yield from prefetch(map(decode, tables), 2)


def _read(plan: pa.Table, shards: Path, spec: ClipSpec, epoch: Epoch) -> pa.Table:
    """`read_clips`, with what went wrong as a column: of an exception, Ray Data hands on the text of its report alone."""
    try:
        clips, problem = read_clips(plan, shards, spec, epoch), None
    except DataError as error:
        nothing = pa.nulls(plan.num_rows)
        clips = plan.append_column("faces", nothing.cast(pa.list_(pa.binary())))
        for name in ("labels", *(["intensities"] if spec.intensity else [])):
            clips = clips.append_column(name, nothing.cast(pa.list_(pa.float32())))
        problem = str(error)
    return clips.append_column("problem", pa.array([problem] * plan.num_rows, pa.string()))


def _decode(batch: pa.Table, spec: ClipSpec, epoch: Epoch, pool: ThreadPoolExecutor, buffers: Buffers) -> Batch:
    if problems := batch["problem"].drop_null().to_pylist():
        raise DataError(problems[0])
    return decode_clips(batch, spec, epoch, pool, buffers)
