"""What tests that kill run by `ray_nodes.Nodes.drive`, in processes of their own: small trainings and builds of shards."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from conftest import make_recipe, make_training
from ray_nodes import PATIENCE
from torch.nn.parallel import DistributedDataParallel

from aupipe import loop, shards
from aupipe.checkpoint import load_progress
from aupipe.config import Corpus
from aupipe.datasets import build_manifest, get_dataset, list_files
from aupipe.schema import DataError

CORPUS = Corpus(layout="bp4d", aus=(1, 6, 12), align=("face112",), landmarks="prealigned")
WORKERS, EPOCHS, STEPS = 2, 2, 10  # of a training: 80 clips of two frames, eight in a step


def plan(shards_: Path, directory: Path, save_steps: int = 1) -> loop.Training:
    """A training of a few seconds that keeps its state after every `save_steps` steps."""
    phase = {"name": "train", "epochs": EPOCHS, "batch": 8, "optimiser": {"name": "adam", "lr": 0.001}}
    recipe = make_recipe(phases=[phase], clip={"frames": 2, "stride": 2})
    return make_training(shards_, directory, recipe, save_steps=save_steps, level="stream")


def train(shards_: str, directory: str) -> None:
    """Over Ray."""
    from aupipe import trainer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trainer.train(plan(Path(shards_), Path(directory)), WORKERS)


def steps_done(directory: Path) -> int:
    """Steps of such a training that its state on disk has."""
    try:
        progress = load_progress(directory / "last")
    except DataError:  # it was replaced while we read
        return 0
    return 0 if progress is None else len(progress["history"]) * STEPS + progress["step"]


def train_calmly(shards_: Path) -> Path:
    """The directory of the same training by torch alone, two processes: what one over Ray must give. Made once."""
    directory = shards_.with_name("calm")
    if not directory.exists():
        spawn = multiprocessing.get_context("spawn")
        arguments = (plan(shards_, directory, save_steps=1000), shards_.with_name("meeting"))
        workers = [spawn.Process(target=_work, args=(rank, *arguments)) for rank in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
            assert worker.exitcode == 0
    return directory


def _work(rank: int, training: loop.Training, meeting: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=WORKERS)
    wrap: Any = partial(DistributedDataParallel, gradient_as_bucket_view=True)
    loop.fit(training, loop.Worker(rank=rank, world=WORKERS, reduce=loop.sum_over_processes, wrap=wrap), threads=1)
    torch.distributed.destroy_process_group()


def write_raw(root: Path, sessions: int, frames: int = 80) -> Path:
    """A corpus of aligned faces of noise in BP4D's layout, ten sessions of a person."""
    labels = root / "AUCoding" / "AU_OCC"
    labels.mkdir(parents=True)
    for number in range(sessions):
        subject, task = f"F{number // 10 + 1:03d}", f"T{number % 10 + 1}"
        folder = root / "Sequences" / subject / task
        folder.mkdir(parents=True)
        random = np.random.default_rng(number)
        for frame in range(frames):
            image = cv2.imencode(".jpg", random.integers(0, 256, (112, 112, 3), np.uint8))[1]
            (folder / f"{frame:04d}.jpg").write_bytes(image.tobytes())
        rows = [f"{frame},{','.join(map(str, random.integers(0, 2, 3)))}" for frame in range(frames)]
        (labels / f"{subject}_{task}.csv").write_text("\n".join(["0,1,6,12", *rows]) + "\n")
    return root


def build(raw: str, out: str, cluster: bool | str = True) -> None:
    """Shards of a whole corpus, over Ray or, for comparison, in this process."""
    run: Any = map
    if cluster:
        from aupipe import stream

        run = lambda function, tasks: stream.map_sessions(partial(_take_time, function), tasks)  # noqa: E731
    os.chdir(raw)
    manifest = build_manifest(get_dataset("bp4d", CORPUS.au_set), Path(raw))
    shards.build(manifest, list_files(Path(raw)), Path(raw), Path(out), CORPUS, map=run)


def _take_time(function: Any, task: Any) -> Any:
    """A session's work, as long as the start of a worker at least, so that all nodes come to take part."""
    time.sleep(0.4)
    return function(task)


def sessions_done(out: Path) -> int:
    """Sessions of a build that have their sidecar."""
    return len(list(out.glob("*/*.key")))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
