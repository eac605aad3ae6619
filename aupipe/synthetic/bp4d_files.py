"""A synthetic corpus in BP4D's layout.

Sequences/F001/T1/0000.jpg …          portrait frames, numbered from 0; some subjects have 3-digit names, as in BP4D
AUCoding/AU_OCC/F001_T1.csv           header 0 … 99; column 0 is the frame, column N is AU N; 9 = not coded
AUCoding/AU_INT/AU06/F001_T1_AU06.csv frame, intensity 0–5, without a header; AUs 6 10 12 14 17
2DFeatures/F001_T1.mat                49 exact landmarks of every image, if the spec asks for them; some are missing
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.synthetic.identity import name_subject
from aupipe.synthetic.landmark_files import KEPT, track_points, write_points_49
from aupipe.synthetic.recording import Recording, Written, count_labels, write_frames, write_rows
from aupipe.synthetic.render import Actor
from aupipe.synthetic.rig import AUS
from aupipe.synthetic.scene import film, set_scene

INTENSITY_AUS = (6, 10, 12, 14, 17)
_UNKNOWN = 9


class Bp4dFiles:
    """A recording is a session; frames before the coded span have an image and no label row."""

    fps = 25.0
    margins = "bp4d"
    has_uncoded = True

    def recordings(self, spec: SyntheticConfig) -> list[Recording]:
        return [
            Recording(subject, session, name_subject(subject), f"T{session}")
            for subject in range(spec.subjects)
            for session in range(1, spec.sessions + 1)
        ]

    def paths(self, spec: SyntheticConfig, recording: Recording) -> list[str]:
        name = f"{recording.owner}_{recording.name}"
        return [
            f"{_root(spec)}/{recording.owner}/{recording.name}",
            f"AUCoding/AU_OCC/{name}.csv",
            *(f"AUCoding/AU_INT/AU{au:02d}/{name}_AU{au:02d}.csv" for au in INTENSITY_AUS),
            *([f"2DFeatures/{name}.mat"] if spec.landmarks else []),
        ]

    def write(self, raw: Path, making: Path, actor: Actor, spec: SyntheticConfig, recording: Recording) -> Written:
        scene = set_scene(spec, recording.subject, recording.session)
        folder, *files = (raw / path for path in self.paths(spec, recording))
        tables, points = files[: 1 + len(INTENSITY_AUS)], files[1 + len(INTENSITY_AUS) :]
        digits = 3 if recording.owner[0] == "M" and int(recording.owner[1:]) % 2 == 0 else 4
        frames = ((f"{n:0{digits}d}.jpg", film(actor, scene, n)) for n in range(scene.frames))
        write_frames(making / "frames", frames, scene.camera.jpeg_quality)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(making / "frames", folder)
        occurrence, intensity, unknown = scene.labels()
        numbers = range(scene.uncoded, scene.frames)
        _write_tables(tables, numbers, np.where(unknown, _UNKNOWN, occurrence), np.where(unknown, _UNKNOWN, intensity))
        counts = count_labels(AUS, occurrence, ~unknown, scene.frames)
        for path in points:
            tracked, fate = track_points(actor, scene, "ibug49")
            write_points_49(making / path.name, tracked, fate)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(making / path.name, path)
            counts |= {"landmarks": len(fate), "landmarks_lost": int((fate != KEPT).sum())}
        return Written(raw, [folder, *files], tables, numbers, counts, header=True, folder=folder)

    def describe_tree(self, spec: SyntheticConfig) -> list[str]:
        return [] if spec.defects is None else [_root(spec)]


def _root(spec: SyntheticConfig) -> str:
    return "Sequences" if spec.defects is None else "Sequences(2D+3D)"


def _write_tables(
    tables: list[Path], numbers: range, occurrence_NM: NDArray[np.int64], intensity_NM: NDArray[np.int64]
) -> None:
    rows = []
    for frame, coded in zip(numbers, occurrence_NM.tolist(), strict=True):
        cells = [frame, *[_UNKNOWN] * 99]
        for au, value in zip(AUS, coded, strict=True):
            cells[au] = value
        rows.append(cells)
    first, *others = tables
    write_rows(first, rows, header=",".join(map(str, range(100))))
    for au, path in zip(INTENSITY_AUS, others, strict=True):
        write_rows(path, zip(numbers, intensity_NM[:, AUS.index(au)].tolist(), strict=True))
