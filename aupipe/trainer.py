"""Ray Train: one training over several workers, restarted from the newest state on disk when one of them dies.

Ray's own restarts and reports are not used: a report waits for a poll, and a restart may begin at an older checkpoint than
the newest on disk. `loop.fit` keeps its own state, and this file starts it again, with fewer workers if a node is gone.
"""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from typing import Any

from aupipe import stream  # first: it sets Ray's environment before Ray is imported

import ray.train  # isort: skip
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from aupipe.checkpoint import load_progress
from aupipe.loop import Training, Worker, fit, sum_over_processes, synchronise_norms
from aupipe.schema import ConfigError, DataError

logger = logging.getLogger(__name__)

# The big tensors of a step would otherwise go back to the system and be faulted in anew at every step (see Makefile).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "4"}
MAX_FAILURES = 3  # restarts without a newer state in between, before the training gives up
PATIENCE = 9  # times RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S (60 s) more for a cluster that grows to what is asked of it
JOIN_SECONDS = 1800  # for workers to find each other, and for any of their exchanges; the watchdog is quicker


def train(training: Training, workers: int | None = None, *, gpu: bool | None = None) -> list[dict[str, Any]]:
    """Run `loop.fit` on `workers` processes of the cluster and return the epochs' records.

    Each has a GPU if `gpu`, or, where that is None, if the cluster has any; without a number, there are as many workers as
    GPUs, or two. Without a GPU the workers reserve half of the CPUs at most: the tasks that read their clips need the rest,
    and a cluster whose every CPU is reserved waits for ever. After a failure as many start again as the cluster still has
    room for. All of them must see `training.directory`.

    Raises ConfigError if a batch cannot be split over the workers, what a worker raises of ConfigError and DataError at
    once, and anything else after MAX_FAILURES restarts that came no further.
    """
    for phase in training.recipe.phases:
        if workers and phase.batch % workers:
            raise ConfigError(
                f"phase '{phase.name}' has a batch of {phase.batch} clips, which {workers} workers cannot share evenly; "
                "give --workers a divisor of it"
            )
    stream.connect()
    gpu = _room(True) >= 1 if gpu is None else gpu
    workers = workers or _largest(training, int(_room(True)) if gpu else 2)
    last, size, whole = training.directory / "last", workers, _room(gpu)
    failures, place = 0, None
    while True:
        try:
            _run(training, size, gpu, PATIENCE if place is None else 0)
            break
        except (TrainingFailedError, ray.exceptions.RayActorError) as error:
            kept, before = load_progress(last) or {}, place
            place = (len(kept.get("history", [])), kept.get("step", 0))
            failures = failures + 1 if place == before else 1
            cause = _cause(error)
            if isinstance(cause, ConfigError | DataError):
                raise cause from None
            if failures > MAX_FAILURES:
                raise _surrender(cause, training) from None
            size = _largest(training, int(workers * _room(gpu) / whole) if whole else workers)
            text = "a worker failed (%s); going on with %d of %d after epoch %d and %d steps"
            logger.warning(text, _first_line(cause), size, workers, *place)
    progress = load_progress(last)
    assert progress is not None, "a finished training has a state"
    return progress["history"]


def _run(training: Training, workers: int, gpu: bool, patience: int) -> None:
    """One start of the workers, to the end or an error."""
    scratch = training.directory.resolve() / "ray"
    shutil.rmtree(scratch, ignore_errors=True)  # of a training that was killed
    trainer = ray.train.torch.TorchTrainer(
        partial(_work, training),
        train_loop_config={"threads": max(1, int(stream.cpus() // workers))},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=JOIN_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"GPU": 1} if gpu else {"CPU": stream.cpus() / 2 / workers},
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=patience),
            worker_runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}},
        ),
    )
    try:
        trainer.fit()
    finally:
        # Our own directory holds the state; Ray's holds only its bookkeeping.
        shutil.rmtree(scratch, ignore_errors=True)


def _room(gpu: bool) -> float:
    """What the cluster has of that by which workers are counted."""
    return float(ray.cluster_resources().get("GPU", 0)) if gpu else stream.cpus()


def _largest(training: Training, room: int) -> int:
    """The largest number of workers up to `room`, at least one, that can share every phase's batch."""
    return next(n for n in range(max(1, room), 0, -1) if not any(phase.batch % n for phase in training.recipe.phases))


def _work(training: Training, config: dict[str, Any]) -> None:
    """Body of one worker process."""
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    worker = Worker(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=str(device),
        batches=stream.clip_stream,
        reduce=partial(sum_over_processes, device=str(device)),
        wrap=_wrap,
    )
    stream.connect()
    fit(training, worker, threads=config["threads"])


def _wrap(model: Any) -> Any:
    """Data-parallel, if there are several workers."""
    if ray.train.get_context().get_world_size() == 1:
        return model
    # Running statistics are shared before they are used, in validation: keeper.share_buffers.
    options = {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    return ray.train.torch.prepare_model(synchronise_norms(model), parallel_strategy_kwargs=options)


def _cause(error: Exception) -> Exception:
    """What made a training fail: one of our own errors if a worker had one, else the first worker's, else Ray's."""
    if isinstance(error, ControllerError):
        return error.controller_failure
    causes = [getattr(failure, "cause", None) or failure for failure in getattr(error, "worker_failures", {}).values()]
    ours = [cause for cause in causes if isinstance(cause, ConfigError | DataError)]
    return (ours or causes or [error])[0]


def _surrender(cause: Exception, training: Training) -> Exception:
    """The error to end with: a worker's own, or a sentence where it died without one or never started."""
    if not isinstance(cause, ray.exceptions.RayError | ray.train.v2._internal.exceptions.RayTrainError):
        return cause
    return DataError(
        f"the workers failed {MAX_FAILURES + 1} times without coming further ({_first_line(cause)}); their logs are in "
        f"Ray's session folder, and the same command goes on from what is kept in {training.directory}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
