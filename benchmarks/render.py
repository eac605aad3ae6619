"""How fast the synthetic corpus is rendered: one core, and all of them at once. Run: python benchmarks/render.py [size]

Everything is on: pose, light, distractors, corruption, JPEG encoding. Frames come from several people, because hair, glasses
and hands differ in cost. Nothing that a user could pick instead renders FACS-coded faces, so the yardstick is real time:
25 frames a second.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import cv2

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.synthetic import corpus
from aupipe.synthetic.render import Actor, prepare_actor
from aupipe.synthetic.scene import Scene, film, set_scene

REAL_TIME = 25.0
PEOPLE, SECONDS = 8, 15.0  # per core: how many are rendered in turns, and for how long


def main(size: int) -> None:
    assets.fetch(print)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spec = SyntheticConfig(subjects=PEOPLE * cores, sessions=1, seconds=6, size=size)
    prepare_actor(spec.seed, 0)  # reads the head once
    start = time.process_time()
    cast = gather(spec, 0)
    print(f"set-up of a person {(time.process_time() - start) / PEOPLE:7.2f} s")
    start = time.process_time()
    frames = shoot(cast)
    report("one core", frames / (time.process_time() - start), f"at {size} px, of processor time")
    speed, share = time_all(spec, cores)
    report(f"{cores} cores", speed, f"at {size} px, of wall time, without start and set-up; got {share:.0%} of the cores")
    short = SyntheticConfig(subjects=4 * cores, sessions=2, seconds=6, size=size)
    report("on disk", time_corpus(short), "a corpus, of wall time, with start and set-up")


def report(name: str, speed: float, what: str) -> None:
    print(f"{name:18s} {speed:7.1f} frames/s {what} ({speed / REAL_TIME:.1f} × real time)")


def gather(spec: SyntheticConfig, worker: int) -> list[tuple[Actor, Scene]]:
    """A worker's own people, each before a camera, their first frame filmed."""
    cv2.setNumThreads(1)
    subjects = range(worker * PEOPLE, (worker + 1) * PEOPLE)
    cast = [(prepare_actor(spec.seed, subject), set_scene(spec, subject, 1)) for subject in subjects]
    for actor, scene in cast:
        film(actor, scene, 0)
    return cast


def shoot(cast: list[tuple[Actor, Scene]]) -> int:
    """Render and encode frames for SECONDS; returns how many."""
    frames, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        actor, scene = cast[frames % len(cast)]
        image = cv2.cvtColor(film(actor, scene, frames // len(cast) % scene.frames), cv2.COLOR_RGB2BGR)
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, scene.camera.jpeg_quality])
        frames += 1
    return frames


def work(spec: SyntheticConfig, worker: int, ready: Barrier, done: multiprocessing.SimpleQueue[tuple[float, float]]) -> None:
    cast = gather(spec, worker)
    ready.wait()
    start, used = time.perf_counter(), time.process_time()
    frames = shoot(cast)
    wall = time.perf_counter() - start
    done.put((frames / wall, (time.process_time() - used) / wall))


def time_all(spec: SyntheticConfig, cores: int) -> tuple[float, float]:
    """Frames a second of all cores together, while all of them are at work; and what share of the cores that work got."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(cores), context.SimpleQueue()
    workers = [context.Process(target=work, args=(spec, worker, ready, done)) for worker in range(cores)]
    for process in workers:
        process.start()
    speeds, shares = zip(*(done.get() for _ in workers), strict=True)
    for process in workers:
        process.join()
    return sum(speeds), sum(shares) / cores


def time_corpus(spec: SyntheticConfig) -> float:
    """Frames a second of wall time for a whole corpus on disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        card = corpus.render(spec, Path(folder) / "corpus")
        return card["counts"]["images"] / (time.perf_counter() - start)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
