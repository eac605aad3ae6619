"""Ray Train: one training over several workers, restarted from the last finished epoch when a worker dies."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from typing import Any

from aupipe import stream  # first: it sets Ray's environment before Ray is imported

import ray.train  # isort: skip
import ray.train.torch
from ray.train import RunConfig, ScalingConfig

from aupipe.checkpoint import load_progress
from aupipe.loop import Training, Worker, fit, sum_over_processes
from aupipe.schema import ConfigError

logger = logging.getLogger(__name__)

# The big tensors of a step would otherwise go back to the system and be faulted in anew at every step (see Makefile).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_ARENA_MAX": "4"}
MAX_FAILURES = 3  # restarts of the group of workers before the training gives up


def train(training: Training, workers: int = 2, *, gpu: bool = False) -> list[dict[str, Any]]:
    """Run `loop.fit` on `workers` processes of the cluster and return the epochs' records.

    Without a GPU the workers reserve half of the CPUs at most: the tasks that read their clips need the rest, and a
    cluster whose every CPU is reserved waits for ever. Raises ConfigError if a batch cannot be split over the workers.
    """
    for phase in training.recipe.phases:
        if phase.batch % workers:
            raise ConfigError(
                f"phase '{phase.name}' has a batch of {phase.batch} clips, which {workers} workers cannot share evenly; "
                "give --workers a divisor of it"
            )
    stream.connect()
    threads = max(1, int(stream.cpus() // workers))
    scratch = training.directory.resolve() / "ray"
    shutil.rmtree(scratch, ignore_errors=True)  # of a training that was killed
    for left in reversed(range(MAX_FAILURES + 1)):
        trainer = ray.train.torch.TorchTrainer(
            partial(_work, training),
            train_loop_config={"threads": threads},
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpu,
                resources_per_worker={"GPU": 1} if gpu else {"CPU": stream.cpus() / 2 / workers},
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(scratch),
                worker_runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in ALLOCATOR.items()}},
            ),
        )
        try:
            trainer.fit()
            break
        except ray.train.v2.api.exceptions.TrainingFailedError as error:
            # Ray would also restart after an error of the user's, which comes again every time.
            if (cause := _cause(error)) is not error or not left:
                raise cause from None
            logger.warning("a worker died; going on after the last finished epoch, %d restarts left", left - 1)
        finally:
            # Our own directory holds the checkpoints; Ray's holds only its bookkeeping.
            shutil.rmtree(scratch, ignore_errors=True)
    progress = load_progress(training.directory / "last")
    assert progress is not None, "a finished training has a state"
    return progress["history"]


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
        wrap=ray.train.torch.prepare_model,
    )
    stream.connect()
    fit(training, worker, threads=config["threads"])


def _cause(error: Exception) -> Exception:
    """The first worker's own error, if it is one of ours: a sentence for the user instead of Ray's report."""
    for failure in getattr(error, "worker_failures", {}).values():
        inner = getattr(failure, "cause", failure)
        if type(inner).__name__ in ("ConfigError", "DataError"):
            return inner
    return error
