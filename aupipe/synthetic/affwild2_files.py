"""A synthetic corpus in Aff-Wild2's layout, that of the third ABAW challenge.

    cropped_aligned/<video>/00001.jpg                                                112 × 112, from 1; some are missing
    Third ABAW Annotations/AU_Detection_Challenge/Train_Set/<video>.txt              header AU1,AU2,…; row k is frame k
    Third ABAW Annotations/AU_Detection_Challenge/Validation_Set/<video>.txt         0, 1; −1 in the whole row: not coded

Every fourth person is in the validation set. The first two people share one video: <video>_left and <video>_right.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.synthetic.motion import CROPS, ROWS, session_rng
from aupipe.synthetic.recording import Image, Recording, Written, count_labels, write_frames, write_rows
from aupipe.synthetic.render import Actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import Scene, film, find_face_box, set_scene

CODED_AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)
SIZE = 112
UNCODED_SHARE = 0.27  # of the rows
_MARGIN = 1.15  # of the crop's side to the face's
_LOST = 0.01  # chance that, at a frame, the face is lost for one to three frames
_UNKNOWN = -1
_KINDS = ("1920x1080", "1280x720", "640x480")


class Affwild2Files:
    """A recording is a session, which is a video; a person's further videos are named video7_2, 12-30-1920x1080-2."""

    fps = 30.0
    margins = "affwild2"
    has_uncoded = False

    def recordings(self, spec: SyntheticConfig) -> list[Recording]:
        return [
            Recording(subject, session, f"person{subject + 1}", name_video(spec, subject, session, self.fps))
            for subject in range(spec.subjects)
            for session in range(1, spec.sessions + 1)
        ]

    def paths(self, spec: SyntheticConfig, recording: Recording) -> list[str]:
        person = int("".join(filter(str.isdigit, recording.owner)) or 0)
        part = "Validation_Set" if person % 4 == 3 else "Train_Set"
        table = f"{_root(spec)}/AU_Detection_Challenge/{part}/{recording.name}.txt"
        return [f"cropped_aligned/{recording.name}", table]

    def write(self, raw: Path, making: Path, actor: Actor, spec: SyntheticConfig, recording: Recording) -> Written:
        scene = set_scene(spec, recording.subject, recording.session)
        folder, table = (raw / path for path in self.paths(spec, recording))
        found = np.flatnonzero(~lose_crops(scene)).tolist()
        frames = ((f"{n + 1:05d}.jpg", crop_face(actor, scene, n)) for n in found)
        write_frames(making / "frames", frames, scene.camera.jpeg_quality)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(making / "frames", folder)
        occurrence = scene.labels()[0][:, [AUS.index(au) for au in CODED_AUS]]
        known = np.repeat(~leave_uncoded(scene)[:, None], len(CODED_AUS), 1)
        header = ",".join(f"AU{au}" for au in CODED_AUS)
        write_rows(table, np.where(known, occurrence, _UNKNOWN).tolist(), header=header)
        counts = count_labels(CODED_AUS, occurrence, known, len(found))
        return Written(raw, [folder, table], [table], range(1, scene.frames + 1), counts, header=True, folder=folder)

    def describe_tree(self, spec: SyntheticConfig) -> list[str]:
        return [] if spec.defects is None else [_root(spec)]


def name_video(spec: SyntheticConfig, subject: int, session: int, fps: float) -> str:
    """Names as the corpus has them, of two kinds; a frame rate and size in them are hints. Two faces share one video."""
    shared = session == 1 and subject < 2 and spec.subjects > 1
    number = 1 if shared else subject + 1
    if number % 2 == 1:
        name = f"{number}-{round(spec.fps or fps)}-{_KINDS[number % 3]}" + (f"-{session}" if session > 1 else "")
    else:
        name = f"video{number}" + (f"_{session}" if session > 1 else "")
    return name + ("_left", "_right")[subject] if shared else name


def leave_uncoded(scene: Scene) -> NDArray[np.bool_]:
    """The rows (N,) that are not coded: one to three stretches, together 0 to 54 % of a video."""
    rng, rows = session_rng(scene.seed, scene.subject, scene.session, ROWS), scene.frames
    total = round(rng.uniform(0, 2 * UNCODED_SHARE) * rows)
    count = int(rng.integers(1, 4))
    lengths = rng.multinomial(total, rng.dirichlet([2.0] * count))
    gaps = rng.multinomial(rows - total, rng.dirichlet([1.0] * (count + 1)))
    runs = [*(part for pair in zip(gaps, lengths, strict=False) for part in pair), gaps[-1]]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def lose_crops(scene: Scene) -> NDArray[np.bool_]:
    """The frames (N,) in which no face was found, some 2 %; never all."""
    rng = session_rng(scene.seed, scene.subject, scene.session, CROPS)
    lost = rng.random(scene.frames) < _LOST
    lengths = rng.integers(1, 4, scene.frames)
    for start in np.flatnonzero(lost):
        lost[start : start + lengths[start]] = True
    lost[0] = False
    return lost


def crop_face(actor: Actor, scene: Scene, frame: int) -> Image:
    """The face in frame number `frame`, (112, 112, 3): a square with a margin, as unsteady as a detector's."""
    rng = np.random.default_rng([scene.seed, scene.subject, scene.session, frame, CROPS])
    left, top, right, bottom = find_face_box(actor, scene, frame)
    side = max(right - left, bottom - top)
    x, y = np.array([left + right, top + bottom]) / 2 + rng.normal(0, 0.01, 2) * side
    half = max(8, round(side * _MARGIN * (1 + rng.normal(0, 0.01)) / 2))
    image = film(actor, scene, frame)
    around = cv2.copyMakeBorder(image, half, half, half, half, cv2.BORDER_REPLICATE)
    height, width = image.shape[:2]
    column, row = int(np.clip(round(float(x)), 0, width)), int(np.clip(round(float(y)), 0, height))
    return cv2.resize(around[row : row + 2 * half, column : column + 2 * half], (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _root(spec: SyntheticConfig) -> str:
    return "Third ABAW Annotations" if spec.defects is None else "6th ABAW Annotations"
