"""How fast the synthetic corpus is rendered: one core, and all of them. Run: python benchmarks/render.py [size]

Nothing that a user could pick instead renders FACS-coded faces, so the yardstick is real time: 25 frames a second.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import cv2

from aupipe import assets
from aupipe.config import SyntheticConfig
from aupipe.synthetic import corpus
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.scene import film, set_scene

REAL_TIME = 25.0


def main(size: int) -> None:
    assets.fetch(print)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spec = SyntheticConfig(subjects=4 * cores, sessions=2, seconds=6, size=size)
    cv2.setNumThreads(1)
    set_up, single = time_one_core(spec)
    print(f"subject set-up     {set_up:7.2f} s")
    print(f"one core           {single:7.1f} frames/s at {size} px, JPEG included ({single / REAL_TIME:.1f} × real time)")
    total = time_corpus(spec)
    print(f"{cores} cores, on disk   {total:7.1f} frames/s with start and set-up ({total / REAL_TIME:.1f} × real time)")


def time_one_core(spec: SyntheticConfig) -> tuple[float, float]:
    """Seconds of processor time to prepare a person, and frames a second of it."""
    prepare_actor(spec.seed, 0)  # reads the head once
    start = time.process_time()
    actor = prepare_actor(spec.seed, 1)
    set_up = time.process_time() - start
    scene = set_scene(spec, 1, 1)
    start = time.process_time()
    for frame in range(scene.frames):
        image = cv2.cvtColor(film(actor, scene, frame), cv2.COLOR_RGB2BGR)
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, scene.camera.jpeg_quality])
    return set_up, scene.frames / (time.process_time() - start)


def time_corpus(spec: SyntheticConfig) -> float:
    """Frames a second of wall time for a whole corpus on disk."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        card = corpus.render(spec, Path(folder) / "corpus")
        return card["counts"]["images"] / (time.perf_counter() - start)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
