"""Frames per second from raw files to shards, beside the script a user would write, in the same run; needs no other files.

Three cases: 640×480 H.264 video in which faces are looked for, the same video with landmarks supplied, and 1040×1392 JPEGs
in which faces are looked for. The script reads with OpenCV (its threads as they come), finds and aligns faces with the same
networks and alignment, frame by frame in one process, and writes JPEGs. Ours writes shards, with one worker and with two.

Workers are started, and have read the networks, before time is taken. Each figure is the best of ROUNDS, taken in turns, by
wall and by processor time; where other programs take a share of the cores, the figures by processor time tell more. Run:
python benchmarks/ingest.py [landmarker]
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa

from aupipe import assets, schema, shards
from aupipe.align import align
from aupipe.config import Corpus, SyntheticConfig
from aupipe.datasets import list_files
from aupipe.landmarks import load_landmarker
from aupipe.processes import map_processes
from aupipe.synthetic.camera import LANDSCAPE
from aupipe.synthetic.render import prepare_actor
from aupipe.synthetic.scene import film, set_scene
from aupipe.synthetic.truth import landmarks

SESSIONS, ROUNDS = 4, 3
VIDEO_FRAMES, IMAGES = 64, 12  # of a session
QUALITY = 95


@dataclass(frozen=True, slots=True)
class Case:
    """What is read, whether its landmarks are supplied, and the frames per second on two cores that are aimed at."""

    name: str
    video: bool
    supplied: bool
    aim: float


CASES = (
    Case("640×480 H.264, faces looked for", True, False, 200),
    Case("640×480 H.264, landmarks supplied", True, True, 500),
    Case("1040×1392 JPEG, faces looked for", False, False, 40),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Frames per second of wall time and of the processor time of all workers together."""

    wall: float
    cpu: float


def main(landmarker: str = "blazemesh") -> None:
    assets.fetch(print)
    with tempfile.TemporaryDirectory(prefix="aupipe-") as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        started = time.perf_counter()
        points = dict(map_processes(functools.partial(render_session, raw), list(range(2 * SESSIONS))))
        print(f"rendered {SESSIONS} videos and {SESSIONS} folders of images in {time.perf_counter() - started:.0f} s")
        for case in CASES:
            compare(case, landmarker, raw, Path(folder) / "out", points)


def render_session(raw: Path, number: int) -> tuple[int, list[list[float]]]:
    """Even numbers are videos, odd ones folders of images; returns the exact landmarks of every frame."""
    cv2.setNumThreads(1)
    video, subject = number % 2 == 0, number // 2
    spec = SyntheticConfig(subjects=SESSIONS, sessions=1, seconds=4, fps=25, size=480 if video else 1392, seed=5)
    actor = prepare_actor(spec.seed, subject)
    scene = set_scene(spec, subject, 1, aspect=LANDSCAPE if video else 1040 / 1392)
    frames = range(VIDEO_FRAMES if video else IMAGES)
    (write_video if video else write_images)(raw / source_of(video, subject), (film(actor, scene, n) for n in frames))
    return number, [landmarks(actor, scene, n).ravel().tolist() for n in frames]


def source_of(video: bool, subject: int) -> str:
    return f"{subject}.mp4" if video else f"images{subject}"


def write_video(path: Path, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def write_images(folder: Path, frames: Iterator[np.ndarray]) -> None:
    folder.mkdir()
    for number, frame in enumerate(frames):
        (folder / f"{number:04d}.jpg").write_bytes(shards.encode_jpeg(frame, QUALITY))


def compare(case: Case, landmarker: str, raw: Path, out: Path, points: dict[int, list[list[float]]]) -> None:
    """Time the script, ours with one worker and ours with two, in turns."""
    source = "supplied" if case.supplied else landmarker
    corpus = Corpus(layout="bp4d", aus=(1,), landmarks=source, max_bad_fraction=1)
    manifest = pa.concat_tables([make_rows(case, n, points[2 * n + (not case.video)], corpus) for n in range(SESSIONS)])
    inventory, speeds = list_files(raw), list[tuple[Speed, ...]]()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as alone, ProcessPoolExecutor(1, spawn) as one, ProcessPoolExecutor(2, spawn) as two:
        by_script = functools.partial(take, alone, functools.partial(run_script, case, raw, points))
        ours = [functools.partial(build, pool, manifest, inventory, raw, corpus) for pool in (one, two)]
        for run in (by_script, *ours):
            run(out)  # starts the workers and reads the networks
        for _ in range(ROUNDS):
            speeds.append(tuple(measure(run, out, manifest.num_rows) for run in (by_script, *ours)))
    report(case, *(Speed(max(s.wall for s in run), max(s.cpu for s in run)) for run in zip(*speeds, strict=True)))


def report(case: Case, script: Speed, single: Speed, double: Speed) -> None:
    print(f"{case.name} (aim {case.aim:.0f} frames/s on two cores)")
    print(f"  script, one process   {script.wall:7.1f} frames/s  1.00   {script.cpu:6.1f} per processor second")
    for name, speed in (("shards, one worker ", single), ("shards, two workers", double)):
        ratio = speed.wall / script.wall
        print(f"  {name}   {speed.wall:7.1f} frames/s  {ratio:.2f}   {speed.cpu:6.1f} per processor second")
    whole = 2 * double.cpu
    print(f"  from one worker to two: {double.wall / single.wall:.2f} times; by processor time {whole / single.cpu:.2f}")
    print(f"  two workers got {double.wall / whole:.0%} of two cores; with all of them: {whole:.0f} frames/s")


def make_rows(case: Case, subject: int, points: list[list[float]], corpus: Corpus) -> pa.Table:
    """The manifest of one session."""
    count, source = len(points), source_of(case.video, subject)
    columns: dict[str, list[Any]] = {
        "subject": [f"S{subject}"] * count,
        "session": ["T1"] * count,
        "frame": list(range(count)),
        "source": [source if case.video else f"{source}/{n:04d}.jpg" for n in range(count)],
        "index": list(range(count)) if case.video else [None] * count,
        "landmarks": points if case.supplied else [None] * count,
        "AU01_c": [n % 2 for n in range(count)],
    }
    layout = schema.manifest_schema(corpus.au_set)
    return pa.table({name: columns.get(name, [None] * count) for name in layout.names}, schema=layout)


def measure(run: Callable[[Path], float], out: Path, frames: int) -> Speed:
    """The speed of a run, which returns the processor time that its workers took."""
    with tempfile.TemporaryDirectory(dir=out) as folder:
        started = time.perf_counter()
        cpu = run(Path(folder))
        return Speed(frames / (time.perf_counter() - started), frames / cpu)


def build(pool: ProcessPoolExecutor, manifest: pa.Table, inventory: pa.Table, raw: Path, corpus: Corpus, out: Path) -> float:
    """Ours; the processor time of the workers in seconds."""
    spent: list[float] = []

    def on_pool(function: Callable[[Any], Any], tasks: list[Any]) -> Iterator[Any]:
        for result, seconds in pool.map(functools.partial(time_task, function), tasks):
            spent.append(seconds)
            yield result

    shards.build(manifest, inventory, raw, out, corpus, map=on_pool)
    return sum(spent)


def take(pool: ProcessPoolExecutor, script: Callable[[Path], None], out: Path) -> float:
    """The script, in a process of its own; its processor time in seconds."""
    return pool.submit(time_task, script, out).result()[1]


def time_task(function: Callable[[Any], Any], task: Any) -> tuple[Any, float]:
    started = time.process_time()
    return function(task), time.process_time() - started


def run_script(case: Case, raw: Path, points: dict[int, list[list[float]]], out: Path) -> None:
    """What a user would write: every frame as it comes, with OpenCV and the same face networks."""
    landmarker = load_landmarker("blazemesh")
    for subject in range(SESSIONS):
        source = raw / source_of(case.video, subject)
        folder = out / source.stem
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(read_video(source) if case.video else read_images(source)):
            rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            if case.supplied:
                found = np.reshape(points[2 * subject][number], (-1, 2))
            else:
                face = landmarker.find_face(rgb)
                if face is None:
                    continue
                found = face.landmarks
            aligned = cv2.cvtColor(align("face200", rgb, found).image, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(folder / f"{number:04d}.jpg"), aligned, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def read_video(path: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    while True:
        there, image = capture.read()
        if not there:
            return
        yield image


def read_images(folder: Path) -> Iterator[np.ndarray]:
    for path in sorted(folder.iterdir()):
        image = cv2.imread(str(path))
        assert image is not None
        yield image


if __name__ == "__main__":
    main(*sys.argv[1:])
