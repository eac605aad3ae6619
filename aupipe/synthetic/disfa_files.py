"""A synthetic corpus in DISFA's layout.

    Videos_LeftCamera/LeftVideoSN001_comp.avi     landscape, Motion JPEG (DISFA's own codec, Cinepak, cannot be written)
    Video_RightCamera/RightVideoSN001_Comp.avi    the same moments from further right, if the spec asks for it
    ActionUnit_Labels/SN001/SN001_au1.txt …       frame from 1, intensity 0–5, without a header
    Landmark_Points/SN001/frame_lm/SN001_0000_lm.mat …            66 exact landmarks in the left camera's frame 1, if the
    Landmark_Points/SN002/tmp_frame_lm/l00001_lm.mat …            spec asks for them; some are missing; as a few are named

AU5 and AU20 are not among the synthetic corpora's AUs, but faces make them, and they are known as exactly.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aupipe.config import SyntheticConfig
from aupipe.synthetic.camera import LANDSCAPE
from aupipe.synthetic.coordinates import floats
from aupipe.synthetic.landmark_files import KEPT, track_points, write_points_66
from aupipe.synthetic.motion import POINTS, session_rng
from aupipe.synthetic.recording import Recording, Written, count_labels, write_rows, write_video
from aupipe.synthetic.render import Actor
from aupipe.synthetic.rig import AUS, RECIPES
from aupipe.synthetic.scene import Scene, act, film, set_scene

CODED_AUS = (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)
_ALSO = (5, 20)  # coded here, and uncoded in the other layouts
_RIGHT = (0.15, 0.0, 0.0)  # radians by which a head is turned as the right camera sees it
_SHORT = "one label row fewer"
_NAMED_OTHERWISE = 1  # the last digit of the numbers, from 0, of subjects whose files of landmarks have other names


class DisfaFiles:
    """A recording is a person: all sessions in one video. The last person's labels lack their last row."""

    fps = 20.0
    margins = "disfa"
    has_uncoded = False

    def recordings(self, spec: SyntheticConfig) -> list[Recording]:
        length = f"{spec.sessions} sessions"
        return [
            Recording(n, 1, f"SN{n + 1:03d}", "video", f"{length}, {_SHORT}" if n == spec.subjects - 1 else length)
            for n in range(spec.subjects)
        ]

    def paths(self, spec: SyntheticConfig, recording: Recording) -> list[str]:
        left, labels, points, ending = _tree(spec)
        who = recording.owner
        right = [f"Video_RightCamera/RightVideo{who}_Comp.avi"] if spec.right_camera else []
        tables = [f"{labels}/{who}/{who}_au{au}.txt" for au in CODED_AUS]
        tracked = [f"{points}/{who}/{_point_names(recording, 0)[0]}"] if spec.landmarks else []
        return [f"{left}/LeftVideo{who}_{ending}.avi", *right, *tables, *tracked]

    def write(self, raw: Path, making: Path, actor: Actor, spec: SyntheticConfig, recording: Recording) -> Written:
        scene = set_scene(spec, recording.subject, 1, sessions=spec.sessions, aspect=LANDSCAPE)
        owned = [raw / path for path in self.paths(spec, recording)]
        videos = 2 if spec.right_camera else 1
        motion = replace(scene.motion, angles_N3=scene.motion.angles_N3 + floats(_RIGHT))
        for path, view in zip(owned[:videos], (scene, replace(scene, motion=motion)), strict=False):
            _film_video(path, making, actor, view, spec.fps or self.fps)
        levels_NM = read_levels(scene)
        levels_NM = levels_NM[: max(1, len(levels_NM) - 1)] if recording.role.endswith(_SHORT) else levels_NM
        numbers, tables = range(1, len(levels_NM) + 1), owned[videos : videos + len(CODED_AUS)]
        for table, levels in zip(tables, levels_NM.T.tolist(), strict=True):
            write_rows(table, zip(numbers, levels, strict=True))
        occurrence = (levels_NM >= scene.occurs_at).astype(np.int64)
        counts = count_labels(CODED_AUS, occurrence, np.ones_like(occurrence, bool), scene.frames)
        for folder in owned[videos + len(CODED_AUS) :]:
            counts |= _write_points(folder, making, actor, scene, recording)
        return Written(raw, owned, tables, numbers, counts, video=owned[0])

    def describe_tree(self, spec: SyntheticConfig) -> list[str]:
        return [] if spec.defects is None else list(_tree(spec)[: 3 if spec.landmarks else 2])


def read_levels(scene: Scene) -> NDArray[np.int64]:
    """Intensities (N, 12) of CODED_AUS, 0–5, rounded down."""
    _, levels, _ = scene.labels()
    others = [list(RECIPES).index(au) for au in _ALSO]
    moved = 5 * np.array([act(scene, n)[0][others] for n in range(scene.uncoded, scene.frames)])
    columns = {au: levels[:, m] for m, au in enumerate(AUS)}
    columns |= dict(zip(_ALSO, np.floor(moved).astype(np.int64).T, strict=True))
    return np.stack([columns[au] for au in CODED_AUS], 1)


def _film_video(path: Path, making: Path, actor: Actor, scene: Scene, fps: float) -> None:
    camera, frames = scene.camera, (film(actor, scene, n) for n in range(scene.frames))
    write_video(making / path.name, frames, camera.size, fps, camera.jpeg_quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(making / path.name, path)


def _write_points(folder: Path, making: Path, actor: Actor, scene: Scene, recording: Recording) -> dict[str, int]:
    """The landmarks' files, by way of `making`; returns what the card counts."""
    points, fate = track_points(actor, scene, "ibug66")
    _, names = _point_names(recording, scene.frames)
    write_points_66(making / "points", points, names)
    absent = []
    if recording.subject == _NAMED_OTHERWISE and scene.frames > 2:  # as DISFA lacks one file of SN031
        rng = session_rng(scene.seed, scene.subject, 0, POINTS)
        absent = [int(rng.integers(1, scene.frames - 1))]
        (making / "points" / names[absent[0]]).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.rename(making / "points", folder)
    fate = np.delete(fate, absent)
    return {"landmarks": len(fate), "landmarks_lost": int((fate != KEPT).sum())}


def _point_names(recording: Recording, frames: int) -> tuple[str, list[str]]:
    """The folder and the names of the files of so many frames: counted from 0, or otherwise and from 1."""
    if recording.subject % 10 == _NAMED_OTHERWISE:
        return "tmp_frame_lm", [f"l{n + 1:05d}_lm.mat" for n in range(frames)]
    return "frame_lm", [f"{recording.owner}_{n:04d}_lm.mat" for n in range(frames)]


def _tree(spec: SyntheticConfig) -> tuple[str, str, str, str]:
    if spec.defects is None:
        return "Videos_LeftCamera", "ActionUnit_Labels", "Landmark_Points", "comp"
    return "Video_LeftCamera", "ActionUnits_Labels", "Landmark_Points/Landmark_Points", "Comp"
